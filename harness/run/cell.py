"""Runs one cell, or a pack of them: load the model, add adapters, fine-tune, score."""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from tqdm import tqdm
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from mixlora.checks import require_effect
from mixlora.families import get_family
from mixlora.layer import reset_magnitudes
from mixlora.quantised import prepare_quantised
from tasks.encoding import encode_training

from ..cells.methods import BASE, get_method
from ..cells.spec import RunOptions, RunSpec, TrainSettings
from ..messages import first_line
from ..models.weights import load_model
from ..store.records import RunRecord
from . import processes, provenance
from .batches import TrainingSet
from .checkpoint import Checkpoint
from .checkpoint import read as read_checkpoint
from .inputs import CellInputs, made_from
from .load_log import LoadLog, counting
from .memory import BatchTooLarge, naming_out_of_memory, release_memory
from .quirk_effects import freeze_magnitudes
from .scored import score_task
from .training import fine_tune

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
    options: RunOptions,
    checkpoint: Path | None = None,
) -> Iterator[RunRecord]:
    """Run a pack of cells from the model's weights to their records.

    Of several processes the first has the others train with it, and scores alone.

    Args:
        cells: What to run on what: a cell alone, or those that `packing.make_packs` put together.
        wanted: The cells to be scored; all are trained.
        report: Called with short texts on how far it is.
        options: How.
        checkpoint: File that training goes on from, if it is there, and writes to.

    Yields:
        The record of each wanted cell when it is scored. Loading and training count with an equal
        share of their time for each cell of the pack.

    Raises:
        FloatingPointError: A loss or score is not finite.
        OtherProcessFailed: Training failed in another process.
        OutOfMemory: Memory ran out.
        ProcessLost: Another process is gone.
        mixlora.checks.NoEffectError: An adapter does nothing to the prompts.
        ValueError: Prompts and tokenizer do not fit the scoring.
    """
    first = cells[0][0]
    if processes.rank() == 0 and first.method != BASE:
        processes.tell((cells, options, checkpoint))
    train = first.train
    if options.auto_batch and train is not None and checkpoint is not None:
        train = _as_in(checkpoint, train)
    while True:
        try:
            with processes.together() if first.method != BASE else nullcontext():
                tuned = _tuned(cells, train, report, options, checkpoint)
            break
        except BatchTooLarge as error:
            if not options.auto_batch or train is None or train.micro_batch_size == 1:
                raise
            train = dataclasses.replace(train, accumulation=2 * train.accumulation)
            what = f"micro-batches of {train.micro_batch_size}"
            if processes.rank() == 0:
                said = f"{first.title}: {first_line(error)}; begun again with {what}"
                tqdm.write(said, file=sys.stderr)
        # The exception is gone by now, and with it what its frames held.
        release_memory()
    model, clock, training = tuned.model, tuned.clock, tuned.training
    adapters = tuned.adapters

    for name, (spec, inputs) in adapters.items():
        if spec not in wanted:
            continue
        trainable = 0
        if first.method != BASE:
            cast(PeftModel, model).set_adapter(name)
            trainable, _ = count_parameters(model)
            _check_effect(model, tuned.tokenizer, inputs)
        tasks = {
            task: score_task(model, tuned.tokenizer, rows, spec, name, report)
            for task, rows in inputs.evaluation.items()
        }
        clock.lap("score")
        yield RunRecord(
            spec=spec,
            fingerprints=inputs.fingerprints,
            trainable_parameters=trainable,
            base_parameters=tuned.base_parameters,
            tasks=tasks,
            training=training.get(name, {}),
            seconds=dict(clock.laps),
            provenance=_provenance(spec) | made_from(inputs),
        )


@dataclass(frozen=True)
class _Tuned:
    """A model with the trained adapters of a pack.

    Attributes:
        model: In PEFT's wrapping, but for the untuned base.
        tokenizer: Its tokenizer.
        adapters: Adapter name -> the cell it is of.
        base_parameters: Parameters of the frozen model.
        training: Adapter name -> the facts of its training.
        clock: Stands after the training.
    """

    model: nn.Module
    tokenizer: Any
    adapters: dict[str, tuple[RunSpec, CellInputs]]
    base_parameters: int
    training: dict[str, dict[str, Any]]
    clock: _Clock


def _tuned(
    cells: Sequence[tuple[RunSpec, CellInputs]],
    train: TrainSettings | None,
    report: Callable[[str], None],
    options: RunOptions,
    checkpoint: Path | None,
) -> _Tuned:
    """Load the model and train the pack's adapters with these settings."""
    report("loading")
    clock = _Clock()
    first, inputs = cells[0]
    adapters = {f"cell{number}": cell for number, cell in enumerate(cells)}
    with naming_out_of_memory(lambda: "loading the model"):
        base_model, tokenizer = load_model(
            inputs.weights, first.dtype, first.device, first.quantize
        )
        # MixLoRA's own adapters do so; the baselines' do not.
        prepare_quantised(base_model)
        # By transformers, which knows that 4-bit weights are two to a number.
        base = base_model.num_parameters()
        model: nn.Module = base_model
        if first.method != BASE:
            for name, (spec, _) in adapters.items():
                # Anew for each, so that every adapter begins as it does alone.
                set_seed(spec.seed)
                model = add_adapter(model, spec.method, _settings(spec), name)
    clock.lap("load", len(cells))
    training: dict[str, dict[str, Any]] = {}
    if first.method != BASE:
        if train is None:
            raise ValueError(f"{first.title}: a tuned method needs training settings")
        saved = None
        if checkpoint is not None:
            made_by = _made_by(first, train)
            saved = Checkpoint(checkpoint, options.checkpoint_steps, made_by, {"clock": clock})
        training = _train(model, tokenizer, adapters, train, report, options, saved)
        clock.lap("train", len(cells))
    return _Tuned(model, tokenizer, adapters, base, training, clock)


def _train(
    model: nn.Module,
    tokenizer: Any,
    adapters: Mapping[str, tuple[RunSpec, CellInputs]],
    train: TrainSettings,
    report: Callable[[str], None],
    options: RunOptions,
    checkpoint: Checkpoint | None,
) -> dict[str, dict[str, Any]]:
    """Fine-tune all adapters; returns the facts of each."""
    first, _ = next(iter(adapters.values()))
    sets = {}
    for name, (spec, inputs) in adapters.items():
        rows = [
            encode_training(
                tokenizer,
                prompt,
                answer,
                train.cutoff,
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

    with counting(model, first) as load:
        log = None if load is None else LoadLog(load, list(sets))
        if checkpoint is not None and log is not None:
            checkpoint = checkpoint.keeping(expert_load=log)

        def on_step(step: int, steps: int) -> None:
            report(f"step {step}/{steps}")
            if log is not None:
                log.on_step(step, steps)

        facts = fine_tune(
            model,
            sets,
            train,
            tokenizer.pad_token_id,
            on_step,
            options.gradient_checkpointing,
            first.quirks,
            checkpoint,
        )
    if frozen_magnitude:
        # As the adapter is when the released code has saved and loaded it.
        for name in sets:
            reset_magnitudes(model, name)
    if log is None:
        return facts
    return {name: own | {"expert_load": log.entries[name]} for name, own in facts.items()}


def _made_by(spec: RunSpec, train: TrainSettings) -> dict[str, Any]:
    """What a training depends on beside its cell."""
    facts = _provenance(spec)
    return {
        "accumulation": train.accumulation,
        **{key: facts[key] for key in ("python", "versions", "hardware")},
    }


def _as_in(checkpoint: Path, train: TrainSettings) -> TrainSettings:
    """The settings with the micro-batches of the checkpoint, where there is one."""
    with processes.together():
        state = processes.from_first(lambda: read_checkpoint(checkpoint))
    if state is None:
        return train
    return dataclasses.replace(train, accumulation=state["made_by"]["accumulation"])


def _provenance(spec: RunSpec) -> dict[str, Any]:
    return provenance.collect(spec.device, _device_name(spec.device), torch.get_num_threads())


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


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else provenance.processor()


class _Clock:
    """Wall time in seconds between laps, of a checkpoint's earlier runs as well."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str, shared_by: int = 1) -> None:
        now = time.perf_counter()
        self.laps[name] = round((now - self._last) / shared_by, 3)
        self._last = now

    def state_dict(self) -> float:
        return time.perf_counter() - self._last

    def load_state_dict(self, state: float) -> None:
        self._last -= state
