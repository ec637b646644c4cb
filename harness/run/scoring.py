"""Scores tasks with a tuned model, and keeps of the answers what a record holds."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any, cast

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import set_seed

from mixlora.layer import MixLoraFfn
from tasks.base import Scoring
from tasks.data import fingerprint
from tasks.scoring import Prediction, score

from ..cells.spec import LM_EVAL, RunSpec
from ..store.records import TaskResult
from .inputs import EvalSet
from .load_log import counting
from .memory import naming_out_of_memory


class Scorer:
    """Has a cell's model answer the rows of tasks.

    Args:
        model: The model, with the cell's adapter active.
        tokenizer: Its tokenizer.
        spec: The cell.
        adapter_name: Name of the adapter, whose experts' load is counted if the cell asks for it.
        report: Called with short texts on how far it is.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        spec: RunSpec,
        adapter_name: str,
        report: Callable[[str], None],
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.adapter_name = adapter_name
        self.report = report

    def score(self, rows: EvalSet) -> TaskResult:
        """The outcome of a task.

        Raises:
            FloatingPointError: A score is not finite.
            OutOfMemory: Memory ran out.
        """
        done, total = 0, len(rows.prompts)

        def count(number: int) -> None:
            nonlocal done
            done += number
            self.report(f"scored {done}/{total}")

        scoring = cast(Scoring, self.spec.scoring)
        if self.spec.evaluator == LM_EVAL:
            # Imported here, because lm-eval takes seconds to import.
            from .lm_eval import score_with_lm_eval

            with naming_out_of_memory(lambda: "scoring with lm-eval"):
                found = score_with_lm_eval(
                    self.model, self.tokenizer, rows, scoring, progress=count
                )
            return _task_result(rows, found, None, None)
        batch = (0, 0)

        def on_batch(rows: int, length: int) -> None:
            nonlocal batch
            batch = (rows, length)

        def where() -> str:
            return f"scoring, batch of {batch[0]} rows of {batch[1]} tokens after {done} prompts"

        live: list[nn.Module] = []
        if "eval-dropout" in self.spec.quirks:
            live = dropout_modules(self.model)
            # Dropout's masks are random.
            set_seed(self.spec.seed)
        with counting(self.model, self.spec) as load, naming_out_of_memory(where):
            predictions = score(
                self.model,
                self.tokenizer,
                rows.prompts,
                scoring,
                progress=count,
                on_batch=on_batch,
                live=live,
            )
        counts = None if load is None else load.counts[self.adapter_name].tolist()
        loss = None
        if self.spec.validation is not None:
            loss = -mean(
                prediction.scores[example.answer]
                for prediction, example in zip(predictions, rows.examples, strict=True)
            )
        return _task_result(rows, predictions, counts, loss)


def dropout_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that apply the adapters' dropout (for the quirk "eval-dropout")."""
    found: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, MixLoraFfn):
            found.append(module)
        elif isinstance(module, LoraLayer):
            # The layer itself as well, because PEFT's DoRA asks it whether to drop.
            found += [module, *module.lora_dropout.values()]
    return found


def _task_result(
    rows: EvalSet,
    predictions: list[Prediction],
    expert_load: list[list[int]] | None,
    loss: float | None,
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
        loss=loss,
    )
