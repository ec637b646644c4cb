"""The auxiliary loss in ``outputs.loss``: value, padding, copies, accumulation, the Trainer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import Trainer, TrainingArguments
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mixlora import MixLoraConfig

from .models import VOCAB, make_model, relative_error
from .test_families import IDS, adapted, logits


def router_logits(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Every layer's router logits of one forward, caught by the test's own hooks."""
    caught = []
    handles = [
        block.mlp.lora_router["default"].register_forward_hook(
            lambda _m, _i, out: caught.append(out.router_logits)
        )
        for block in model.base_model.model.model.layers
    ]
    logits(model, ids, attention_mask=mask)
    for handle in handles:
        handle.remove()
    return tuple(caught)


def test_loss_is_cross_entropy_plus_the_weighted_mixtral_loss() -> None:
    model = adapted(router_aux_loss_coef=0.3)
    mask = torch.ones_like(IDS)
    mask[1, 6:] = 0
    labels = IDS.masked_fill(mask == 0, -100)
    loss = model(input_ids=IDS, attention_mask=mask, labels=labels).loss

    scores = logits(model, attention_mask=mask)[:, :-1].reshape(-1, VOCAB)
    cross_entropy = torch.nn.functional.cross_entropy(scores, labels[:, 1:].reshape(-1))
    aux = load_balancing_loss_func(router_logits(model, IDS, mask), 5, 2, mask)
    torch.testing.assert_close(loss, cross_entropy + 0.3 * aux)
    as_tuple = model(input_ids=IDS, attention_mask=mask, labels=labels, return_dict=False)
    torch.testing.assert_close(as_tuple[0], loss)


def test_without_labels_nothing_is_kept() -> None:
    model = adapted()
    model(input_ids=IDS)
    model(input_ids=IDS, labels=IDS)
    contexts = {layer.mlp.context for layer in model.base_model.model.model.layers}
    assert [each.router_logits for each in contexts] == [None]
    assert contexts == {model.base_model.context}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_is_wired_by_itself(copied: Callable[[Any], Any]) -> None:
    model = adapted(router_aux_loss_coef=0.5)
    expected = model(input_ids=IDS, labels=IDS).loss
    twin = copied(model)
    assert twin.base_model.context is not model.base_model.context
    torch.testing.assert_close(twin(input_ids=IDS, labels=IDS).loss, expected, rtol=0, atol=0)
    with torch.no_grad():
        for layer in twin.base_model.model.model.layers:
            layer.mlp.lora_router["default"].weight.mul_(5.0)
    assert (twin(input_ids=IDS, labels=IDS).loss - expected).abs() > 1e-3
    torch.testing.assert_close(model(input_ids=IDS, labels=IDS).loss, expected, rtol=0, atol=0)
    # Rows of the base in a packed batch: the copy's blocks and attention hear of it, too.
    packed = twin(input_ids=IDS, labels=IDS, adapter_names=["__base__"] * 3)
    with model.disable_adapter():
        plain = model(input_ids=IDS, labels=IDS)
    torch.testing.assert_close(packed.logits, plain.logits)


def test_a_second_adapter_does_not_add_the_loss_twice() -> None:
    """After unloading and adapting the same model again, too."""
    model = adapted(router_aux_loss_coef=0.5)
    expected = model(input_ids=IDS, labels=IDS).loss
    model.add_adapter("second", model.peft_config["default"])
    torch.testing.assert_close(model(input_ids=IDS, labels=IDS).loss, expected, rtol=0, atol=0)
    base = model.unload()
    again = get_peft_model(base, MixLoraConfig("CAUSAL_LM", r=4, router_aux_loss_coef=0.5)).eval()
    fresh = get_peft_model(make_model(), again.peft_config["default"]).eval()
    fresh.load_state_dict(again.state_dict())
    torch.testing.assert_close(
        again(input_ids=IDS, labels=IDS).loss, fresh(input_ids=IDS, labels=IDS).loss
    )


def test_coefficient_zero_leaves_the_loss_alone() -> None:
    model = adapted(router_aux_loss_coef=0.0)
    scores = logits(model)[:, :-1].reshape(-1, VOCAB)
    cross_entropy = torch.nn.functional.cross_entropy(scores, IDS[:, 1:].reshape(-1))
    torch.testing.assert_close(model(input_ids=IDS, labels=IDS).loss, cross_entropy)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batch_mates_change_nothing(side: str) -> None:
    model = adapted(router_aux_loss_coef=0.5)
    row, mates = IDS[:1, :7], IDS[1:]
    alone = logits(model, row)
    alone_loss = model(input_ids=row, labels=row).loss
    pad = torch.zeros(1, 4, dtype=torch.long)
    parts = [pad, row] if side == "left" else [row, pad]
    ids = torch.cat(parts, dim=1)
    mask = (ids != 0).long()
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    real = slice(4, None) if side == "left" else slice(0, 7)

    padded = logits(model, ids, attention_mask=mask, position_ids=position_ids)
    assert relative_error(padded[:, real], alone) < 1e-5
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, real][:, 0] = -100  # without padding, no token before it predicts it
    inputs = {"attention_mask": mask, "position_ids": position_ids, "labels": labels}
    torch.testing.assert_close(model(input_ids=ids, **inputs).loss, alone_loss)

    batch = torch.cat([ids, mates])
    batch_mask = torch.cat([mask, torch.ones_like(mates)])
    batch_positions = (batch_mask.cumsum(dim=1) - 1).clamp(min=0)
    together = logits(model, batch, attention_mask=batch_mask, position_ids=batch_positions)
    assert relative_error(together[:1, real], alone) < 1e-5


def test_accumulated_micro_batches_average_by_their_tokens() -> None:
    model = adapted(router_aux_loss_coef=0.5)
    labels = IDS.clone()
    labels[0, :8] = -100  # the micro-batches score different numbers of tokens
    scored = (labels[:, 1:] != -100).sum()
    accumulated, expected = 0.0, 0.0
    for row in range(3):
        ids, label = IDS[row : row + 1], labels[row : row + 1]
        accumulated += model(input_ids=ids, labels=label, num_items_in_batch=scored).loss.item()
        share = ((label[:, 1:] != -100).sum() / scored).item()
        expected += share * model(input_ids=ids, labels=label).loss.item()
    assert accumulated == pytest.approx(expected, rel=1e-5)


def test_gradient_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = adapted(lora_dropout=0.0, router_aux_loss_coef=0.5).train()
        if checkpointing:
            options = {"use_reentrant": False}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_reentrant_checkpointing_is_refused() -> None:
    model = adapted().train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant"):
        model(input_ids=IDS, labels=IDS)


def test_a_mask_that_does_not_tell_padding_is_refused() -> None:
    mask = torch.ones(3, 1, 11, 11, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="4 dimensions"):
        adapted()(input_ids=IDS, attention_mask=mask, labels=IDS)


def test_trainer_trains_it_as_it_is(tmp_path: Path) -> None:
    model = adapted()
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=30,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)  # type: ignore[arg-type]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.75 * losses[0]
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
