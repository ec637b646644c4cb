"""Runs one cell, or a pack of them: load the model, add adapters, fine-tune, score."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from mixlora import ExpertLoad
from mixlora.effect import require_effect
from mixlora.ffn import get_family
from mixlora.quantised import prepare_quantised
from tasks.base import Scoring
from tasks.data import fingerprint
from tasks.encoding import encode_training
from tasks.scoring import Prediction, score

from . import provenance
from .batches import TrainingSet
from .inputs import CellInputs, EvalSet
from .methods import BASE, get_method
from .quirk_effects import dropout_modules, freeze_magnitudes, reset_magnitudes
from .records import RunRecord, TaskResult
from .spec import LM_EVAL, RunSpec
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


def add_adapter(
    model: nn.Module, method: str, settings: dict[str, Any], name: str = "default"
) -> nn.Module:
    """The model with a fresh adapter of the method.

    The first freezes the base and is active and trainable; further ones, of the same method, wait.
    """
    targets = target_modules(cast(Any, model).config.model_type)
    config = get_method(method).config(targets, settings)
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        return model
    return get_peft_model(cast(Any, model), config, name)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, frozen) parameters; tied weights count once."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters() if not p.requires_grad)


def run_pack(
    cells: Sequence[tuple[RunSpec, CellInputs]],
    wanted: Collection[RunSpec],
    report: Callable[[str], None],
    checkpointing: bool = False,
) -> Iterator[RunRecord]:
    """Run a pack of cells from the model's weights to their records.

    Args:
        cells: What to run on what: a cell alone, or those that `packing.make_packs` put together.
        wanted: The cells to be scored; all are trained.
        report: Called with short texts on how far it is.
        checkpointing: Train in less memory and more time, to the same numbers.

    Yields:
        The record of each wanted cell when it is scored. Loading and training count with an equal
        share of their time for each cell of the pack.

    Raises:
        FloatingPointError: A loss or score is not finite.
        mixlora.effect.NoEffectError: An adapter does nothing to the prompts.
        ValueError: Prompts and tokenizer do not fit the scoring.
    """
    report("loading")
    clock = _Clock()
    first, inputs = cells[0]
    base_model, tokenizer = load_model(inputs.weights, first.dtype, first.device, first.quantize)
    # MixLoRA's own adapters do so; the baselines' do not.
    prepare_quantised(base_model)
    # By transformers, which knows that 4-bit weights are two to a number.
    base = base_model.num_parameters()
    model: nn.Module = base_model
    adapters = {f"cell{number}": cell for number, cell in enumerate(cells)}
    if first.method != BASE:
        for name, (spec, _) in adapters.items():
            # Anew for each, so that every adapter begins as it does alone.
            set_seed(spec.seed)
            model = add_adapter(model, spec.method, _settings(spec), name)
    clock.lap("load", len(cells))
    training: dict[str, dict[str, Any]] = {}
    if first.method != BASE:
        training = _train(model, tokenizer, adapters, report, checkpointing)
        clock.lap("train", len(cells))

    for name, (spec, inputs) in adapters.items():
        if spec not in wanted:
            continue
        trainable = 0
        if first.method != BASE:
            cast(PeftModel, model).set_adapter(name)
            trainable, _ = count_parameters(model)
            _check_effect(model, tokenizer, inputs)
        tasks = {
            task: _score(model, tokenizer, rows, spec, name, report)
            for task, rows in inputs.evaluation.items()
        }
        clock.lap("score")
        yield RunRecord(
            spec=spec,
            fingerprints=inputs.fingerprints,
            trainable_parameters=trainable,
            base_parameters=base,
            tasks=tasks,
            training=training.get(name, {}),
            seconds=dict(clock.laps),
            provenance=provenance.collect(
                spec.device, _device_name(spec.device), torch.get_num_threads()
            )
            | {"data": inputs.data_label, "weights": inputs.weights.label},
        )


def _train(
    model: nn.Module,
    tokenizer: Any,
    adapters: Mapping[str, tuple[RunSpec, CellInputs]],
    report: Callable[[str], None],
    checkpointing: bool,
) -> dict[str, dict[str, Any]]:
    """Fine-tune all adapters; returns the facts of each."""
    first, _ = next(iter(adapters.values()))
    if first.train is None:
        raise ValueError(f"{first.title}: a tuned method needs training settings")
    sets = {}
    for name, (spec, inputs) in adapters.items():
        rows = [
            encode_training(
                tokenizer,
                prompt,
                answer,
                first.train.cutoff,
                loss_on_prompt="loss-on-prompt" in spec.quirks,
                truncate_answer="truncate-answer" in spec.quirks,
            )
            for prompt, answer in inputs.train
        ]
        sets[name] = TrainingSet(rows, spec.seed)
    cast(PeftModel, model).set_requires_grad(list(sets))
    frozen_magnitude = "frozen-dora-magnitude" in first.quirks
    if frozen_magnitude:
        freeze_magnitudes(model)
    loads: dict[str, list[dict[str, Any]]] = {name: [] for name in sets}

    def on_step(step: int, steps: int) -> None:
        report(f"step {step}/{steps}")
        # Ten times over the training, and at its end.
        if load is not None and (step % max(1, steps // 10) == 0 or step == steps):
            for name, counts in load.take().items():
                loads[name].append({"step": step, "counts": counts.tolist()})

    with _counting(model, first) as load:
        facts = fine_tune(
            model,
            sets,
            first.train,
            tokenizer.pad_token_id,
            on_step,
            checkpointing,
            first.quirks,
        )
    if frozen_magnitude:
        reset_magnitudes(model)
    if load is None:
        return facts
    return {name: own | {"expert_load": loads[name]} for name, own in facts.items()}


def _check_effect(model: nn.Module, tokenizer: Any, inputs: CellInputs) -> None:
    """Run a few scored prompts with and without the active adapter."""
    first = next(iter(inputs.evaluation.values()))
    texts = [prompt.text for prompt in first.prompts[:4]]
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=128)
    device = next(model.parameters()).device
    require_effect(model, batch["input_ids"].to(device), batch["attention_mask"].to(device))


def _settings(spec: RunSpec) -> dict[str, Any]:
    settings = dict(spec.adapter)
    return settings | {"aux_loss_over_padding": True} if "aux-over-pad" in spec.quirks else settings


def _counting(model: nn.Module, spec: RunSpec) -> AbstractContextManager[ExpertLoad | None]:
    return ExpertLoad(model) if spec.expert_load else nullcontext()


def _score(
    model: nn.Module,
    tokenizer: Any,
    rows: EvalSet,
    spec: RunSpec,
    adapter_name: str,
    report: Callable[[str], None],
) -> TaskResult:
    done, total = 0, len(rows.prompts)

    def count(number: int) -> None:
        nonlocal done
        done += number
        report(f"scored {done}/{total}")

    scoring = cast(Scoring, spec.scoring)
    if spec.evaluator == LM_EVAL:
        # Here, because lm-eval takes seconds to import.
        from .lm_eval import score_with_lm_eval

        found = score_with_lm_eval(model, tokenizer, rows, scoring, progress=count)
        return _task_result(rows, found, None)
    live: list[nn.Module] = []
    if "eval-dropout" in spec.quirks:
        live = dropout_modules(model)
        set_seed(spec.seed)  # of the masks
    with _counting(model, spec) as load:
        predictions = score(model, tokenizer, rows.prompts, scoring, progress=count, live=live)
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


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else provenance.processor()


class _Clock:
    """Wall time in seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str, shared_by: int = 1) -> None:
        now = time.perf_counter()
        self.laps[name] = round((now - self._last) / shared_by, 3)
        self._last = now
