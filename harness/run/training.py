"""Fine-tunes one adapter, or several at once, with the Hugging Face Trainer."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, cast

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from mixlora.losses import balanced_over

from ..cells.spec import TrainSettings
from . import processes
from .batches import StepCollator, TrainingSet, joint_steps, parts_of
from .checkpoint import Checkpoint, restore_random_state
from .memory import BatchTooLarge, naming_out_of_memory


class _StepTrainer(Trainer):
    """A Trainer whose data set's items are whole optimiser steps, as `StepCollator` makes them.

    The Trainer's own accumulation would count micro-batches and scored tokens over all adapters
    together, of which each may have numbers of its own. Of several processes each computes its
    part of a step (`parts_of`), and DDP adds up the gradients.

    Args:
        losses: Adapter name -> the losses of its steps that are done; added to.
        done: Number of steps that are done, before those of the data set.
        settings: How a step is divided.
        **kwargs: Arguments of `Trainer`.
    """

    def __init__(
        self, losses: dict[str, list[float]], done: int, settings: TrainSettings, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.losses = losses
        self.done = done
        self.settings = settings
        self._shape: tuple[int, ...] = (0, 0)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's AdamW; some parameters may have learning rates of their own."""
        settings, adapted = self.settings, cast(PeftModel, self.model)
        if settings.lora_plus_ratio is not None and self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = create_loraplus_optimizer(
                adapted,
                kind,
                loraplus_lr_ratio=settings.lora_plus_ratio,
                loraplus_weight_decay=settings.weight_decay,
                **options,
            )
        optimizer = super().create_optimizer(model)
        if settings.router_rate_factor != 1:
            routers = {
                id(parameter)
                for name, parameter in adapted.named_parameters()
                if "lora_router" in name
            }
            for group in list(optimizer.param_groups):
                apart = [each for each in group["params"] if id(each) in routers]
                if apart:
                    group["params"] = [e for e in group["params"] if id(e) not in routers]
                    rate = group["lr"] * settings.router_rate_factor
                    optimizer.add_param_group({**group, "params": apart, "lr": rate})
        return optimizer

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
        rank, count = processes.rank(), processes.count()
        losses: dict[str, list[Tensor]] = defaultdict(list)
        parts = parts_of(inputs["micro_batches"], self.settings, rank, count)
        for part in parts:
            self._shape = part.inputs["input_ids"].shape
            with ExitStack() as stack:
                if part is not parts[-1]:
                    # DDP adds up gradients in the last backward pass of a step.
                    stack.enter_context(self.accelerator.no_sync(model))
                if part.shared:
                    stack.enter_context(balanced_over(self.model, self._sum))
                outputs = model(**self._prepare_inputs(part.inputs))
                # DDP takes the mean over the processes, and the sum is wanted: the losses are
                # divided by the scored tokens of the whole step already.
                self.accelerator.backward(outputs.loss * (count if part.counts else 0))
            if not part.counts:
                continue
            if len(self.losses) > 1:
                own = outputs.adapter_losses
            else:
                own = dict.fromkeys(self.losses, outputs.loss.detach())
            for name, loss in own.items():
                losses[name].append(loss)

        total = torch.zeros((), device=self.args.device)
        # A packed adapter may have no rows in a step. There is no packing in several processes,
        # but a process may have nothing that counts.
        for name in losses if count == 1 else self.losses:
            loss = self._sum(torch.stack(losses[name] or [torch.zeros_like(total)]).sum())
            value = loss.item()
            if not math.isfinite(value):
                whose = f" of {name}" if len(self.losses) > 1 else ""
                step = self.done + self.state.global_step + 1
                raise FloatingPointError(f"training loss{whose} is {value} at step {step}")
            self.losses[name].append(value)
            total += loss
        return total

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(values.detach(), "sum")


class _Progress(TrainerCallback):
    """Reports steps, and goes on from and writes checkpoints.

    Args:
        on_step: Called with (steps done, steps in all).
        checkpoint: Where checkpoints are written, or None.
        state: Content of the checkpoint that training goes on from, or None.
        device: Device of the model.
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
        if processes.rank():
            # The processes draw different dropout masks; the first one draws those of one alone.
            torch.manual_seed(args.seed + (processes.rank() << 32))
        if self.state is not None:
            kwargs["optimizer"].load_state_dict(self.state["optimizer"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Not earlier, because the beginning of an epoch draws a random number too.
        if self.state is not None:
            restore_random_state(self.state, self.device)
            self.state = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, steps = self.done + state.global_step, self.done + state.max_steps
        self.on_step(step, steps)
        if self.checkpoint is not None and self.checkpoint.due(step, steps):
            self.checkpoint.save(step, kwargs["model"], kwargs["optimizer"], self.device)


class _Losses:
    """The losses of all steps, by adapter, in the form that a checkpoint keeps."""

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
    in its own order with its own loss, as it would be alone but for rounding and dropout masks.

    Args:
        model: A PEFT model on its device; these adapters, and nothing else, are trainable.
        sets: Adapter name -> what it is trained on. The seed of the first is dropout's too.
        settings: Epochs, batch, learning rate.
        pad_token_id: The tokenizer's padding token.
        on_step: Called with (steps done, steps in all).
        checkpointing: Recompute activations in the backward pass instead of keeping them: the same
            numbers for less memory and more time.
        quirks: Names in `harness.cells.quirks.QUIRKS` that concern the batches.
        checkpoint: Where training goes on from, and writes where it has got to.

    Returns:
        Adapter name -> {"rows", "truncated", "tokens", "steps", "accumulation", "first_loss",
        "last_loss"}. The losses are means over the first and the last tenth of the steps; tokens
        are counted over one epoch, without padding.

    Raises:
        FloatingPointError: A loss is not finite.
        BatchTooLarge: Memory ran out.
    """
    device = next(model.parameters()).device
    losses = _Losses(sets)
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
            # Every parameter that is trained has a gradient in every step, the experts' too.
            ddp_find_unused_parameters=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        # With several GPUs visible the Trainer would silently train with DataParallel.
        arguments._n_gpu = min(arguments.n_gpu, 1)
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
        trainer = _StepTrainer(
            losses.by_adapter,
            done,
            settings,
            model=model,
            args=arguments,
            # accelerate deals the items to the processes in turn, so that each has every step.
            train_dataset=[step for step in steps for _ in range(processes.count())],
            data_collator=StepCollator(pad_token_id, len(sets) > 1, quirks),
            callbacks=[_Progress(on_step, checkpoint, state, device)],
        )
        trainer.remove_callback(PrinterCallback)
        with naming_out_of_memory(lambda: f"training {trainer.place}", BatchTooLarge):
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
