"""Fine-tunes one adapter, or several at once, with the Hugging Face Trainer."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..cells.spec import TrainSettings
from . import data_parallel, processes
from .batches import StepCollator, TrainingSet, joint_steps
from .checkpoint import Checkpoint, restore_random_state
from .memory import BatchTooLarge, naming_out_of_memory


class _StepTrainer(Trainer):
    """A Trainer whose data set's items are whole optimiser steps, as `StepCollator` makes them.

    The Trainer's own accumulation would count micro-batches and scored tokens over all adapters
    together, of which each may have numbers of its own. Of several processes each computes its
    part of a step (`data_parallel`).

    Args:
        losses: Adapter name -> the loss of each of its steps, those that are done; added to.
        done: Steps that are done, before those of the data set.
        settings: How a step is divided.
        **kwargs: Of `Trainer`.
    """

    def __init__(
        self, losses: dict[str, list[float]], done: int, settings: TrainSettings, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.losses = losses
        self.done = done
        self.settings = settings
        self._shape: tuple[int, ...] = (0, 0)

    @property
    def place(self) -> str:
        """Where the training is now: "step 3, micro-batch of 2 rows of 96 tokens"."""
        rows, length = self._shape
        step = self.done + self.state.global_step + 1
        return f"step {step}, micro-batch of {rows} rows of {length} tokens"

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of a step; returns its loss, summed over adapters.

        Raises:
            FloatingPointError: A loss is not finite.
        """
        model.train()
        device = self.args.device
        losses: dict[str, list[Tensor]] = defaultdict(list)
        for micro_batch in data_parallel.own_part(inputs["micro_batches"], self.settings, device):
            self._shape = micro_batch["input_ids"].shape
            outputs = model(**self._prepare_inputs(micro_batch))
            self.accelerator.backward(outputs.loss)
            if len(self.losses) > 1:
                own = outputs.adapter_losses
            else:
                own = dict.fromkeys(self.losses, outputs.loss.detach())
            for name, loss in own.items():
                losses[name].append(loss)

        data_parallel.add_up_gradients(model.parameters())
        total = torch.zeros((), device=device)
        # A packed adapter may have no rows in a step; of several processes one may have none.
        for name in losses if processes.count() == 1 else self.losses:
            parts = losses[name] or [torch.zeros_like(total)]
            loss = processes.add_up(torch.stack(parts).sum())
            value = loss.item()
            if not math.isfinite(value):
                whose = f" of {name}" if len(self.losses) > 1 else ""
                step = self.done + self.state.global_step + 1
                raise FloatingPointError(f"training loss{whose} is {value} at step {step}")
            self.losses[name].append(value)
            total += loss
        return total


class _Progress(TrainerCallback):
    """Reports steps, and goes on from and writes checkpoints.

    Args:
        on_step: Called with (steps done, steps in all).
        checkpoint: Where to write, or None.
        state: The checkpoint that training goes on from, or None.
        device: Of the model.
    """

    def __init__(
        self,
        on_step: Callable[[int, int], None],
        checkpoint: Checkpoint | None,
        state: Mapping[str, Any] | None,
        device: torch.device,
    ) -> None:
        self.on_step = on_step
        self.checkpoint = checkpoint
        self.state = state
        self.device = device
        self.done = 0 if state is None else state["step"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        data_parallel.draw_apart(args.seed)
        if self.state is not None:
            kwargs["optimizer"].load_state_dict(self.state["optimizer"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Only now: to begin an epoch draws a number as well.
        if self.state is not None:
            restore_random_state(self.state, self.device)
            self.state = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, steps = self.done + state.global_step, self.done + state.max_steps
        self.on_step(step, steps)
        if self.checkpoint is not None and self.checkpoint.due(step, steps):
            self.checkpoint.save(step, kwargs["model"], kwargs["optimizer"], self.device)


class _Losses:
    """The losses as a checkpoint keeps them."""

    def __init__(self, adapter_names: Iterable[str]) -> None:
        self.by_adapter: dict[str, list[float]] = {name: [] for name in adapter_names}

    def state_dict(self) -> dict[str, list[float]]:
        return self.by_adapter

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.by_adapter = state


def fine_tune(
    model: nn.Module,
    sets: Mapping[str, TrainingSet],
    settings: TrainSettings,
    pad_token_id: int,
    on_step: Callable[[int, int], None],
    checkpointing: bool = False,
    quirks: Collection[str] = (),
    checkpoint: Checkpoint | None = None,
) -> dict[str, dict[str, Any]]:
    """Train the adapters of a PEFT model in place, the loss on the rows' targets alone.

    Several adapters, which must be MixLoRA's, are trained on packed batches: each on its own rows
    in its own order with its own loss, as it would be alone, but for rounding and dropout masks.

    Args:
        model: On its device; these adapters, and nothing else, are trainable.
        sets: Adapter name -> what it is trained on. The first one's seed is dropout's too.
        settings: Epochs, batch, learning rate.
        pad_token_id: Of the tokenizer.
        on_step: Called with (steps done, steps in all).
        checkpointing: Recompute activations in the backward pass instead of keeping them: the same
            numbers for less memory and more time.
        quirks: Of `quirks.QUIRKS`, for the batches.
        checkpoint: Where training goes on from, and writes where it has got to.

    Returns:
        Adapter name -> {"rows", "truncated", "tokens", "steps", "accumulation", "first_loss",
        "last_loss"}; losses are means over the first and last tenth of the steps, tokens are of one
        epoch without padding.

    Raises:
        FloatingPointError: A loss is not finite.
        BatchTooLarge: Memory ran out.
    """
    device = next(model.parameters()).device
    losses = _Losses(sets)
    state = None
    if checkpoint is not None:
        checkpoint = checkpoint.keeping(losses=losses)
        state = checkpoint.load()
        if state is not None:
            checkpoint.restore(state, model)
    done = 0 if state is None else state["step"]
    steps = joint_steps(sets, settings)[done:]
    if not steps:
        return _facts(sets, losses.by_adapter, settings)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            # The data set's items are the steps of all epochs.
            num_train_epochs=1,
            per_device_train_batch_size=1,
            train_sampling_strategy="sequential",
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            lr_scheduler_type="constant",
            # Clipping would couple adapters that are trained together.
            max_grad_norm=0.0,
            seed=next(iter(sets.values())).seed,
            use_cpu=device.type == "cpu",
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            logging_strategy="no",
            gradient_checkpointing=checkpointing,
            # The reentrant kind would lose the gradient of MixLoRA's auxiliary loss.
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        # With several GPUs visible the Trainer would silently train with DataParallel.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = _StepTrainer(
            losses.by_adapter,
            done,
            settings,
            model=model,
            args=arguments,
            train_dataset=steps,
            data_collator=StepCollator(pad_token_id, len(sets) > 1, quirks),
            callbacks=[_Progress(on_step, checkpoint, state, device)],
        )
        trainer.remove_callback(PrinterCallback)
        data_parallel.begin_alike(model)
        place = naming_out_of_memory(lambda: f"training {trainer.place}", BatchTooLarge)
        with place, data_parallel.balance(model, settings):
            trainer.train()
    return _facts(sets, losses.by_adapter, settings)


def _facts(
    sets: Mapping[str, TrainingSet], losses: Mapping[str, list[float]], settings: TrainSettings
) -> dict[str, dict[str, Any]]:
    facts = {}
    for name, own in sets.items():
        tenth = max(1, len(losses[name]) // 10)
        facts[name] = {
            "rows": len(own.rows),
            "truncated": sum(row.truncated for row in own.rows),
            "tokens": sum(len(row.input_ids) for row in own.rows),
            "steps": len(losses[name]),
            "accumulation": settings.accumulation,
            "first_loss": sum(losses[name][:tenth]) / tenth,
            "last_loss": sum(losses[name][-tenth:]) / tenth,
        }
    return facts
