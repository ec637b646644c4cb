"""Fine-tunes an adapter with the Hugging Face Trainer, the loss on the answer alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from tasks.encoding import TrainingRow

from .spec import TrainSettings

_IGNORED = -100  # transformers' label for "no loss here"


class AnswerCollator:
    """Pads rows on the left and keeps logits for the answers only.

    On the left the answers of a batch end in the same column, so the language-model head, a fifth
    of a small model's work, runs at the last few positions alone (``logits_to_keep``).

    Args:
        pad_token_id: Any id; padding is masked out.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Rows of {"input_ids", "num_target"} to a batch.

        Returns:
            input_ids, attention_mask, position_ids (B, S) and labels (B, logits_to_keep), int64,
            and the int logits_to_keep.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        # One more than the longest answer: the prompt's last position predicts the first token.
        kept = 1 + max(row["num_target"] for row in rows)
        input_ids = torch.full((len(rows), longest), self.pad_token_id)
        attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), kept), _IGNORED)
        for index, row in enumerate(rows):
            ids, count = torch.tensor(row["input_ids"]), row["num_target"]
            input_ids[index, -len(ids) :] = ids
            attention_mask[index, -len(ids) :] = 1
            labels[index, -count:] = ids[-count:]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
            "labels": labels,
            "logits_to_keep": kept,
        }


class _Progress(TrainerCallback):
    """Collects the losses, stops at one that is not finite, and reports steps."""

    def __init__(self, on_step: Callable[[int, int], None]) -> None:
        self.on_step = on_step
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not torch.isfinite(torch.tensor(loss)):
            raise FloatingPointError(f"training loss is {loss} at step {state.global_step}")
        self.losses.append(float(loss))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(state.global_step, state.max_steps)


def fine_tune(
    model: nn.Module,
    rows: Sequence[TrainingRow],
    settings: TrainSettings,
    seed: int,
    pad_token_id: int,
    on_step: Callable[[int, int], None],
    checkpointing: bool = False,
) -> dict[str, Any]:
    """Train a PEFT model in place.

    Args:
        model: With its adapter, on its device.
        rows: Encoded training rows.
        settings: Epochs, batch, learning rate.
        seed: Of dropout and data order.
        pad_token_id: Of the tokenizer.
        on_step: Called with (steps done, steps in all).
        checkpointing: Recompute activations in the backward pass instead of keeping them: the same
            numbers for less memory and more time.

    Returns:
        {"rows", "truncated", "tokens", "steps", "first_loss", "last_loss"}; losses are means over
        the first and last tenth of the steps, tokens are of one epoch without padding.

    Raises:
        FloatingPointError: The loss is not finite.
    """
    device = next(model.parameters()).device
    progress = _Progress(on_step)
    dataset = [{"input_ids": row.input_ids, "num_target": row.num_target} for row in rows]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.micro_batch_size,
            gradient_accumulation_steps=settings.accumulation,
            weight_decay=settings.weight_decay,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
            seed=seed,
            data_seed=seed,
            use_cpu=device.type == "cpu",
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            logging_steps=1,
            # By default the Trainer logs a mean of earlier losses where one is not finite.
            logging_nan_inf_filter=False,
            gradient_checkpointing=checkpointing,
            # The reentrant kind would lose the gradient of MixLoRA's auxiliary loss.
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        # With several GPUs visible the Trainer would silently train with DataParallel.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=AnswerCollator(pad_token_id),
            callbacks=[progress],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    tenth = max(1, len(progress.losses) // 10)
    return {
        "rows": len(rows),
        "truncated": sum(row.truncated for row in rows),
        "tokens": sum(len(row.input_ids) for row in rows),
        "steps": len(progress.losses),
        "first_loss": sum(progress.losses[:tenth]) / tenth,
        "last_loss": sum(progress.losses[-tenth:]) / tenth,
    }
