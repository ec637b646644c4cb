"""Runs one job, a cell or a pack of them: load the model, add adapters, fine-tune, score."""

from __future__ import annotations

import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from mixlora.checks import NoEffectError, require_effect
from mixlora.families import get_family
from mixlora.layer import reset_magnitudes
from mixlora.quantised import prepare_quantised
from mixlora.router import Router
from tasks.encoding import encode_training

from ..cells.methods import BASE, get_method
from ..cells.spec import TRAINED, UNIFORM, RunSpec, TrainSettings
from ..messages import first_line
from ..models.weights import load_model
from ..store.records import RunRecord
from . import processes, provenance
from .batches import TrainingSet
from .checkpoint import Checkpoint
from .checkpoint import read as read_checkpoint
from .inputs import Cell, EvalSet, Job, say_nothing
from .load_log import LoadLog, counting
from .memory import BatchTooLarge, naming_out_of_memory, release_memory
from .scoring import Scorer
from .training import fine_tune

logger = logging.getLogger(__name__)

# transformers' bars, of a second each, would break up the bar over the cells.
disable_progress_bar()
# transformers renames "gradient" to "activation" checkpointing. PEFT reads the old name, which
# works until version 6, so the old name is used here as well.
_RENAMED = r"`(is_)?gradient_checkpointing"
warnings.filterwarnings("ignore", message=_RENAMED, category=FutureWarning)


def target_modules(model_type: str) -> list[str]:
    """The projections that every method adapts: q, k, v, o and all of the FFN (Table 3)."""
    family = get_family(model_type)
    return [*family.attention, *family.layout.projections]


def add_adapter(
    model: nn.Module, method: str, settings: dict[str, Any], name: str = "default"
) -> nn.Module:
    """The model with a fresh adapter of the method.

    The first adapter freezes the base and is active and trainable; further ones, which must be of
    the same method, are neither.
    """
    own = {key: _listed(value) for key, value in settings.items()}
    targets = own.pop("target_modules", None)
    if targets is None:
        targets = target_modules(cast(Any, model).config.model_type)
    config = get_method(method).config(targets, own)
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        return model
    return get_peft_model(cast(Any, model), config, name)


def _listed(value: Any) -> Any:
    """A setting's value with lists for the tuples that a cell holds."""
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, frozen) parameters; tied weights count once."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters() if not p.requires_grad)


def run_job(job: Job) -> Iterator[RunRecord]:
    """Run a job from the model's weights to its records.

    Of several processes, the first has the others train with it and scores alone.

    Args:
        job: The cells, and how they are run.

    Yields:
        The record of each wanted cell when it is scored. Each cell of a pack is said to have taken
        an equal share of the time for loading and training.

    Raises:
        FloatingPointError: A loss or score is not finite.
        OtherProcessFailed: Training failed in another process.
        OutOfMemory: Memory ran out.
        ProcessLost: Another process is gone.
        mixlora.checks.NoEffectError: An adapter does nothing to the prompts.
        ValueError: Prompts and tokenizer do not fit the scoring.
    """
    tuned = _tuned_in_any_batch(job)
    for name, cell in tuned.adapters.items():
        spec = cell.spec
        if job.wanted is not None and spec not in job.wanted:
            continue
        trainable = 0
        evaluation = {task: cell.eval_set(task) for task in spec.eval_tasks}
        if spec.method != BASE:
            cast(PeftModel, tuned.model).set_adapter(name)
            trainable, _ = count_parameters(tuned.model)
            _check_effect(tuned.model, tuned.tokenizer, next(iter(evaluation.values())))
        scorer = Scorer(tuned.model, tuned.tokenizer, spec, name, job.report)
        tasks = {task: scorer.score(rows) for task, rows in evaluation.items()}
        tuned.clock.lap("score")
        yield RunRecord(
            spec=spec,
            fingerprints=cell.fingerprints,
            trainable_parameters=trainable,
            base_parameters=tuned.base_parameters,
            tasks=tasks,
            training=tuned.training.get(name, {}),
            seconds=dict(tuned.clock.laps),
            provenance=_provenance(spec) | cell.provenance,
        )


def follow() -> None:
    """Train what the first of several processes says, in the others, until it has no more.

    Raises:
        ProcessLost: Another process is gone.
    """
    processes.follow(_tuned)


@dataclass(frozen=True)
class _Tuned:
    """A model with the trained adapters of a job.

    Attributes:
        model: The model, in PEFT's wrapping unless it is the untuned base.
        tokenizer: Its tokenizer.
        adapters: Adapter name -> the cell that it belongs to.
        base_parameters: Number of parameters of the frozen model.
        training: Adapter name -> the facts of its training.
        clock: A clock that stands after the training.
    """

    model: nn.Module
    tokenizer: Any
    adapters: dict[str, Cell]
    base_parameters: int
    training: dict[str, dict[str, Any]]
    clock: _Clock


def _tuned_in_any_batch(job: Job) -> _Tuned:
    """Train in all processes, with --auto-batch in the largest micro-batches that memory allows."""
    if job.spec.method == BASE:
        return _tuned(job)
    if job.options.auto_batch and job.checkpoint is not None:
        state = read_checkpoint(job.checkpoint)
        if state is not None:
            job = dataclasses.replace(job, accumulation=state["made_by"]["accumulation"])
    while True:
        try:
            # Without its report, which cannot be sent to other processes.
            with processes.together(dataclasses.replace(job, report=say_nothing)):
                return _tuned(job)
        except BatchTooLarge as error:
            train = job.train
            if not job.options.auto_batch or train is None or train.micro_batch_size == 1:
                raise
            job = dataclasses.replace(job, accumulation=2 * train.accumulation)
            smaller = cast(TrainSettings, job.train).micro_batch_size
            logger.warning(
                "%s: %s; begun again with micro-batches of %d",
                job.spec.title,
                first_line(error),
                smaller,
            )
        # Only now, because the exception kept alive what its frames held.
        release_memory()


def _tuned(job: Job) -> _Tuned:
    """Load the model and train the job's adapters."""
    job.report("loading")
    clock = _Clock()
    spec = job.spec
    adapters = {f"cell{number}": cell for number, cell in enumerate(job.cells)}
    with naming_out_of_memory(lambda: "loading the model"):
        base_model, tokenizer = load_model(
            job.cells[0].weights, spec.dtype, spec.device, spec.quantize
        )
        # MixLoRA's own adapters do so; the baselines' do not.
        prepare_quantised(base_model)
        # By transformers, which knows that 4-bit weights are two to a number.
        base_parameters = base_model.num_parameters()
        model: nn.Module = base_model
        if spec.method != BASE:
            for name, cell in adapters.items():
                # Seeded for each, so that every adapter begins as it does alone.
                set_seed(cell.spec.seed)
                model = add_adapter(model, cell.spec.method, _settings(cell.spec), name)
    clock.lap("load", len(adapters))
    training: dict[str, dict[str, Any]] = {}
    if spec.method != BASE:
        training = _train(model, tokenizer, adapters, job, clock)
        clock.lap("train", len(adapters))
    return _Tuned(model, tokenizer, adapters, base_parameters, training, clock)


def _train(
    model: nn.Module, tokenizer: Any, adapters: Mapping[str, Cell], job: Job, clock: _Clock
) -> dict[str, dict[str, Any]]:
    """Fine-tune all adapters; returns the facts of each."""
    spec, train = job.spec, job.train
    if train is None:
        raise ValueError(f"{spec.title}: a tuned method needs training settings")
    checkpoint = None
    if job.checkpoint is not None:
        made_by = _made_by(spec, train)
        checkpoint = Checkpoint(
            job.checkpoint, job.options.checkpoint_steps, made_by, {"clock": clock}
        )
    sets = {}
    for name, cell in adapters.items():
        rows = [
            encode_training(
                tokenizer,
                prompt,
                answer,
                train.cutoff,
                loss_on_prompt="loss-on-prompt" in spec.quirks,
                truncate_answer="truncate-answer" in spec.quirks,
            )
            for prompt, answer in cell.training_prompts()
        ]
        sets[name] = TrainingSet(rows, cell.spec.seed)
    cast(PeftModel, model).set_requires_grad(list(sets))
    control_router(model, train.router)
    frozen_magnitude = "frozen-dora-magnitude" in spec.quirks
    if frozen_magnitude:
        freeze_magnitudes(model)

    with counting(model, spec) as load:
        log = None if load is None else LoadLog(load, list(sets))
        if checkpoint is not None and log is not None:
            checkpoint = checkpoint.keeping(expert_load=log)

        def on_step(step: int, steps: int) -> None:
            job.report(f"step {step}/{steps}")
            if log is not None:
                log.on_step(step, steps)

        facts = fine_tune(
            model,
            sets,
            train,
            tokenizer.pad_token_id,
            on_step,
            job.options.gradient_checkpointing,
            spec.quirks,
            checkpoint,
        )
    if frozen_magnitude:
        # The adapter is then as it is after the released code has saved and loaded it.
        for name in sets:
            reset_magnitudes(model, name)
    if log is None:
        return facts
    return {name: own | {"expert_load": log.entries[name]} for name, own in facts.items()}


def freeze_magnitudes(model: nn.Module) -> None:
    """Leave DoRA's magnitudes, PEFT's and MixDoRA's, untrained ("frozen-dora-magnitude")."""
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.requires_grad_(False)


def control_router(model: nn.Module, router: str) -> None:
    """Do to the routers of all mixtures what `TrainSettings.router` says.

    A router that is not trained adds no auxiliary loss, which would have nothing to act on.
    """
    if router == TRAINED:
        return
    for module in model.modules():
        if isinstance(module, Router):
            if router == UNIFORM:
                module.choose = _uniform(module.choose)  # type: ignore[method-assign]
            else:
                module.requires_grad_(False)


def _uniform(choose: Callable[..., Any]) -> Callable[..., Any]:
    def chosen(probabilities: Tensor, row_length: int) -> tuple[Tensor, Tensor, None]:
        weights, selected, _ = choose(probabilities, row_length)
        return torch.full_like(weights, 1 / weights.shape[1]), selected, None

    return chosen


def _made_by(spec: RunSpec, train: TrainSettings) -> dict[str, Any]:
    """What the numbers of a training depend on beside its cell."""
    facts = _provenance(spec)
    return {
        "accumulation": train.accumulation,
        **{key: facts[key] for key in ("python", "versions", "hardware")},
    }


def _provenance(spec: RunSpec) -> dict[str, Any]:
    return provenance.collect(spec.device, _device_name(spec.device), torch.get_num_threads())


def _check_effect(model: nn.Module, tokenizer: Any, rows: EvalSet) -> None:
    """Refuse an active adapter that changes nothing in the scores of a few prompts."""
    texts = [prompt.text for prompt in rows.prompts[:4]]
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=128)
    device = next(model.parameters()).device
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    if any("lora_B" in name for name, _ in model.named_parameters()):
        require_effect(model, ids, mask)
        return
    # The other methods of PEFT have no matrix that could be set to zero.
    with torch.inference_mode(), cast(PeftModel, model).disable_adapter():
        plain = model(input_ids=ids, attention_mask=mask).logits
    with torch.inference_mode():
        if torch.equal(plain, model(input_ids=ids, attention_mask=mask).logits):
            raise NoEffectError("the adapter leaves the base model's logits unchanged")


def _settings(spec: RunSpec) -> dict[str, Any]:
    settings = dict(spec.adapter)
    return settings | {"aux_loss_over_padding": True} if "aux-over-pad" in spec.quirks else settings


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else provenance.processor()


class _Clock:
    """Wall time in seconds between laps, including earlier runs that a checkpoint continues."""

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
