"""The usual trainers: accumulation, resuming, gradient checkpointing, TRL, and the example."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl import SFTConfig, SFTTrainer

from mixlora import MixLoraConfig

from .models import VOCAB, relative_error
from .test_families import adapted

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "tasks" / "miniature" / "model"
COMMON: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
}


def make_rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Rows padded on the right, each with a different number of scored tokens."""
    generator = torch.Generator().manual_seed(4)
    rows = []
    for index in range(count):
        ids = torch.randint(3, VOCAB, (12,), generator=generator)
        mask = torch.ones_like(ids)
        mask[12 - index % 5 :] = 0
        labels = ids.masked_fill(mask == 0, -100)
        labels[: 1 + index] = -100
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return rows


def gradients_by_hand(model: Any, batches: list[dict[str, torch.Tensor]], coef: float) -> Any:
    """Gradients of the mean cross-entropy over all tokens plus the micro-batches' auxiliary losses,
    weighted by their numbers of tokens. The test computes these losses itself.
    """
    caught: list[torch.Tensor] = []
    hooks = [
        layer.mlp.lora_router["default"].register_forward_hook(
            lambda _module, _args, routing: caught.append(routing.router_logits)
        )
        for layer in model.base_model.model.model.layers
    ]
    scored = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    total: Any = 0.0
    for batch, count in zip(batches, scored, strict=True):
        caught.clear()
        ids, mask = batch["input_ids"], batch["attention_mask"]
        scores = model(input_ids=ids, attention_mask=mask).logits[:, :-1].reshape(-1, VOCAB)
        labels = batch["labels"][:, 1:].reshape(-1)
        summed = torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
        aux = load_balancing_loss_func(tuple(caught), 5, 2, mask)
        total = total + (summed + coef * aux * count) / sum(scored)
    for hook in hooks:
        hook.remove()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(trained, torch.autograd.grad(total, list(trained.values())), strict=True))


@pytest.mark.parametrize(
    ("rows_per_batch", "accumulation", "coef"), [(8, 1, 0.5), (2, 4, 0.5), (2, 4, 0.0)]
)
def test_a_step_of_the_trainer_is_the_gradient_by_hand(
    rows_per_batch: int, accumulation: int, coef: float, tmp_path: Path
) -> None:
    """Plain gradient descent with a rate of 1 in float64, with and without accumulation.

    Without an auxiliary loss, four batches of two rows equal one of eight. The auxiliary loss is a
    function of a batch, so there the expected value is the mean over the four.
    """
    model = adapted(lora_dropout=0.0, router_aux_loss_coef=coef).double().train()
    seen: list[dict[str, torch.Tensor]] = []
    keys = ("input_ids", "attention_mask", "labels")
    hook = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append({key: kwargs[key] for key in keys}),
        with_kwargs=True,
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=rows_per_batch,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        **COMMON,
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Trainer(model=model, args=arguments, train_dataset=make_rows(8)).train()  # type: ignore[arg-type]
    hook.remove()
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert len(seen) == accumulation
    if coef == 0.0:
        seen = [{key: torch.cat([batch[key] for batch in seen]) for key in keys}]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    expected = gradients_by_hand(model, seen, coef)
    for name, gradient in expected.items():
        assert relative_error(before[name] - after[name], gradient) < 1e-6, name
    assert expected["base_model.model.model.layers.0.mlp.lora_router.default.weight"].any()


def train(model: Any, folder: Path, resume: str | None = None, **settings: Any) -> Trainer:
    values: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 2}
    values |= {"learning_rate": 1e-2, "gradient_checkpointing": True}
    arguments = TrainingArguments(output_dir=str(folder), **COMMON | values | settings)
    trainer = Trainer(model=model, args=arguments, train_dataset=make_rows(6))  # type: ignore[arg-type]
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    """The same bits: dropout, the optimiser's moments and the order of the rows are resumed too."""
    whole = adapted(lora_dropout=0.2)
    train(whole, tmp_path, save_strategy="steps", save_steps=2)
    checkpoint = tmp_path / "checkpoint-2"
    resumed = adapted(lora_dropout=0.2)
    with torch.no_grad():
        for parameter in resumed.parameters():
            if parameter.requires_grad:
                parameter.zero_()  # so that the whole adapter must come from the checkpoint
    train(resumed, tmp_path / "resumed", str(checkpoint))
    halfway = load_file(checkpoint / "adapter_model.safetensors")
    expected = dict(whole.named_parameters())
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, expected[name]), name
        if parameter.requires_grad:
            assert not torch.equal(parameter, halfway[name.replace(".default", "")]), name


def test_the_trainer_refuses_reentrant_checkpointing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use_reentrant"):
        train(adapted(), tmp_path, gradient_checkpointing_kwargs={"use_reentrant": True})


class SFTTrainerWithAuxLoss(SFTTrainer):
    """What the README tells users of TRL to write."""

    compute_loss = Trainer.compute_loss


def sft_trainer(kind: type[SFTTrainer], folder: Path, max_steps: int, **settings: Any) -> Any:
    texts = [f"Question: what is {n} plus one?\nAnswer: {n + 1}" for n in range(8)]
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        bf16=False,
        **COMMON,
    )
    return kind(
        model=AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=AutoTokenizer.from_pretrained(BASE),
        peft_config=MixLoraConfig(task_type="CAUSAL_LM", r=4, **settings),
    )


def test_trl_trains_with_the_auxiliary_loss(tmp_path: Path) -> None:
    losses = []
    for coef, max_steps in ((0.0, 6), (1.0, 1)):
        settings = {"router_aux_loss_coef": coef, "lora_dropout": 0.0}
        trainer = sft_trainer(SFTTrainerWithAuxLoss, tmp_path, max_steps, **settings)
        trainer.train()
        losses.append([each["loss"] for each in trainer.state.log_history if "loss" in each])
    assert losses[0][-1] < 0.7 * losses[0][0]
    # A new router routes almost uniformly, and then the auxiliary loss is top_k.
    assert losses[1][0] - losses[0][0] == pytest.approx(2.0, abs=0.3)


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="the last TRL for Python 3.10 has no such LM head"
)
def test_trl_is_not_left_to_drop_the_auxiliary_loss(tmp_path: Path) -> None:
    trainer = sft_trainer(SFTTrainer, tmp_path, 1)
    with pytest.raises(ValueError, match=r"compute_loss = transformers\.Trainer\.compute_loss"):
        trainer.train()


def test_the_example_runs(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "examples/finetune.py", str(tmp_path)]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Question: what is 7 plus one?\nAnswer:" in result.stdout
    history = json.loads(next(tmp_path.glob("checkpoint-*/trainer_state.json")).read_text())
    losses = [entry["loss"] for entry in history["log_history"] if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 4 * (8 + 6 + 1)
