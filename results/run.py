"""Runs one cell: load the model, add the adapter, fine-tune, score."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from peft import get_peft_model
from torch import nn
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from mixlora.ffn import get_family
from tasks.base import Scoring
from tasks.encoding import encode_training
from tasks.scoring import Prediction, score

from . import provenance
from .inputs import CellInputs, EvalSet
from .methods import BASE, get_method
from .records import RunRecord, TaskResult
from .spec import RunSpec
from .training import fine_tune
from .weights import load_model

# Bars of a second each would break up the bar over the cells.
disable_progress_bar()
# transformers renames "gradient" to "activation" checkpointing. PEFT reads the old name, and so do
# we: it works until version 6.
_RENAMED = r"`(is_)?gradient_checkpointing"
warnings.filterwarnings("ignore", message=_RENAMED, category=FutureWarning)


def target_modules(model_type: str) -> list[str]:
    """The projections every method adapts: q, k, v, o and all of the FFN (Table 3)."""
    family = get_family(model_type)
    return [*family.attention, *family.layout.projections]


def add_adapter(model: nn.Module, method: str, settings: dict[str, Any]) -> nn.Module:
    """The model with the method's fresh adapter; the base is frozen and the model unchanged."""
    targets = target_modules(cast(Any, model).config.model_type)
    return get_peft_model(cast(Any, model), get_method(method).config(targets, settings))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, frozen) parameters; tied weights count once."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters() if not p.requires_grad)


def run_cell(
    spec: RunSpec,
    inputs: CellInputs,
    report: Callable[[str], None],
    checkpointing: bool = False,
) -> RunRecord:
    """Run one cell from the model's weights to its record.

    Args:
        spec: What to run.
        inputs: On what.
        report: Called with short texts on how far it is.
        checkpointing: Train in less memory and more time, to the same numbers.

    Raises:
        FloatingPointError: A loss or score is not finite.
        ValueError: Prompts and tokenizer do not fit the scoring.
    """
    report("loading")
    clock = _Clock()
    base_model, tokenizer = load_model(inputs.weights, spec.dtype, spec.device)
    model: nn.Module = base_model
    # After loading, which may draw numbers too; before the adapter's initialisation.
    set_seed(spec.seed)
    training: dict[str, Any] = {}
    if spec.method == BASE:
        trainable, base = 0, sum(p.numel() for p in model.parameters())
        clock.lap("load")
    else:
        model = add_adapter(model, spec.method, dict(spec.adapter))
        trainable, base = count_parameters(model)
        clock.lap("load")
        if spec.train is None:
            raise ValueError(f"{spec.title}: a tuned method needs training settings")
        cutoff = spec.train.cutoff
        rows = [
            encode_training(tokenizer, prompt, answer, cutoff) for prompt, answer in inputs.train
        ]
        training = fine_tune(
            model,
            rows,
            spec.train,
            spec.seed,
            tokenizer.pad_token_id,
            lambda step, steps: report(f"step {step}/{steps}"),
            checkpointing,
        )
        clock.lap("train")

    tasks = {}
    for name, rows_of_task in inputs.evaluation.items():
        done = 0

        def count(number: int, total: int = len(rows_of_task.prompts)) -> None:
            nonlocal done
            done += number
            report(f"scored {done}/{total}")

        predictions = score(
            model, tokenizer, rows_of_task.prompts, cast(Scoring, spec.scoring), progress=count
        )
        tasks[name] = _task_result(rows_of_task, predictions)
    clock.lap("score")
    return RunRecord(
        spec=spec,
        fingerprints=inputs.fingerprints,
        trainable_parameters=trainable,
        base_parameters=base,
        tasks=tasks,
        training=training,
        seconds=clock.laps,
        provenance=provenance.collect(
            spec.device, _device_name(spec.device), torch.get_num_threads()
        )
        | {"data": inputs.data_label, "weights": inputs.weights.label},
    )


def _task_result(rows: EvalSet, predictions: list[Prediction]) -> TaskResult:
    normalised = [p.label_norm for p in predictions if p.label_norm is not None]
    return TaskResult(
        ids=[example.id for example in rows.examples],
        answers=[example.answer for example in rows.examples],
        predictions=[prediction.label for prediction in predictions],
        predictions_norm=normalised or None,
        num_options=[len(example.options) for example in rows.examples],
        truncated=sum(prediction.truncated for prediction in predictions),
    )


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else provenance.processor()


class _Clock:
    """Wall time in seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
