"""Scores a task with a tuned model, and keeps of it what a record holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn
from transformers import set_seed

from tasks.base import Scoring
from tasks.data import fingerprint
from tasks.scoring import Prediction, score

from ..cells.spec import LM_EVAL, RunSpec
from ..store.records import TaskResult
from .inputs import EvalSet
from .load_log import counting
from .memory import naming_out_of_memory
from .quirk_effects import dropout_modules


def score_task(
    model: nn.Module,
    tokenizer: Any,
    rows: EvalSet,
    spec: RunSpec,
    adapter_name: str,
    report: Callable[[str], None],
) -> TaskResult:
    """Have the model answer a task's rows.

    Args:
        model: With the cell's adapter active.
        tokenizer: Its tokenizer.
        rows: To be scored.
        spec: The cell.
        adapter_name: Of the adapter, whose experts' load is counted where the cell asks for it.
        report: Called with short texts on how far it is.

    Raises:
        FloatingPointError: A score is not finite.
        OutOfMemory: Memory ran out.
    """
    done, total = 0, len(rows.prompts)

    def count(number: int) -> None:
        nonlocal done
        done += number
        report(f"scored {done}/{total}")

    scoring = cast(Scoring, spec.scoring)
    if spec.evaluator == LM_EVAL:
        # Here, because lm-eval takes seconds to import.
        from .lm_eval import score_with_lm_eval

        with naming_out_of_memory(lambda: "scoring with lm-eval"):
            found = score_with_lm_eval(model, tokenizer, rows, scoring, progress=count)
        return _task_result(rows, found, None)
    batch = (0, 0)

    def on_batch(rows: int, length: int) -> None:
        nonlocal batch
        batch = (rows, length)

    def where() -> str:
        return f"scoring, batch of {batch[0]} rows of {batch[1]} tokens after {done} prompts"

    live: list[nn.Module] = []
    if "eval-dropout" in spec.quirks:
        live = dropout_modules(model)
        set_seed(spec.seed)  # of the masks
    with counting(model, spec) as load, naming_out_of_memory(where):
        predictions = score(
            model,
            tokenizer,
            rows.prompts,
            scoring,
            progress=count,
            on_batch=on_batch,
            live=live,
        )
    counts = None if load is None else load.counts[adapter_name].tolist()
    return _task_result(rows, predictions, counts)


def _task_result(
    rows: EvalSet, predictions: list[Prediction], expert_load: list[list[int]] | None
) -> TaskResult:
    normalised = [p.label_norm for p in predictions if p.label_norm is not None]
    return TaskResult(
        ids=[example.id for example in rows.examples],
        answers=[example.answer for example in rows.examples],
        predictions=[prediction.label for prediction in predictions],
        predictions_norm=normalised or None,
        num_options=[len(example.options) for example in rows.examples],
        truncated=sum(prediction.truncated for prediction in predictions),
        rows=fingerprint(rows.examples),
        expert_load=expert_load,
    )
