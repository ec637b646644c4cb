"""Packed batches equal each adapter run alone: losses, logits, gradients, training steps."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from mixlora import MixLoraConfig
from mixlora.packing import BASE, Packing

from .models import VOCAB, make_model, relative_error

TOLERANCE = 1e-10
# The adapters' rows are interleaved, with one row of the frozen model, so rows must be grouped.
NAMES = ["one", "two", "one", BASE, "two", "one"]


def two_adapters(**settings: Any) -> Any:
    """A float64 llama with random adapters of different sizes, both trainable."""
    common: dict[str, Any] = {"lora_dropout": 0.0, "router_aux_loss_coef": 0.1} | settings
    first = MixLoraConfig(task_type="CAUSAL_LM", r=4, num_experts=4, **common)
    second = MixLoraConfig(task_type="CAUSAL_LM", r=2, num_experts=3, lora_alpha=3, **common)
    model = get_peft_model(make_model("llama"), first, "one")
    model.add_adapter("two", second)
    model = model.double().train()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.set_requires_grad(["one", "two"])
    return model


def make_batch() -> dict[str, Tensor]:
    """Rows of different lengths, padded on the left, so each scores its own number of tokens."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCAB, (len(NAMES), 9), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((3, 0, 1, 2, 0, 4)):
        mask[row, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def rows_of(batch: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    rows = [row for row, each in enumerate(NAMES) if each == name]
    return {key: value[rows] for key, value in batch.items()}


def run_alone(model: Any, name: str, batch: dict[str, Tensor], **extra: Any) -> Any:
    if name == BASE:
        with model.disable_adapter():
            return model(**rows_of(batch, name), **extra)
    model.set_adapter(name)
    return model(**rows_of(batch, name), **extra)


def take_gradients(model: Any) -> dict[str, Tensor]:
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


@pytest.mark.parametrize(
    ("implementation", "use_dora", "checkpointing"),
    [
        ("naive", False, False),
        *product(("vanilla", "shared", "masked", "auto"), (False, True), (False, True)),
    ],
)
def test_packed_equals_alone(implementation: str, use_dora: bool, checkpointing: bool) -> None:
    model = two_adapters(experts_implementation=implementation, use_dora=use_dora)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = make_batch()
    packed = model(**batch, adapter_names=NAMES, use_cache=False)
    packed.loss.backward()
    packed_gradients = take_gradients(model)

    total = 0.0
    for name in ("one", "two", BASE):
        alone = run_alone(model, name, batch, use_cache=False)
        rows = [row for row, each in enumerate(NAMES) if each == name]
        assert relative_error(packed.logits[rows], alone.logits) < TOLERANCE
        total += alone.loss.item()
        if name == BASE:
            continue
        alone.loss.backward()
        gradients = take_gradients(model)
        assert gradients
        for key, gradient in gradients.items():
            assert relative_error(packed_gradients.pop(key), gradient) < TOLERANCE, key
    assert packed_gradients == {}
    # transformers computes the loss in float32.
    assert packed.loss.item() == pytest.approx(total, rel=1e-6)


def test_rows_depend_on_their_adapter() -> None:
    # The comparison above would hold if names were ignored, so make sure that they are not.
    model, batch = two_adapters().eval(), make_batch()
    ids = batch["input_ids"][:1]
    with torch.no_grad():
        logits = [
            model(input_ids=ids, adapter_names=[name]).logits for name in ("one", "two", BASE)
        ]
    assert relative_error(logits[0], logits[1]) > 0.01
    assert relative_error(logits[0], logits[2]) > 0.01


def test_under_accumulation_each_loss_keeps_its_weight() -> None:
    model, batch = two_adapters(), make_batch()
    packed = model(**batch, adapter_names=NAMES, num_items_in_batch=40)
    alone = [run_alone(model, n, batch, num_items_in_batch=40).loss for n in ("one", "two", BASE)]
    assert packed.loss.item() == pytest.approx(sum(loss.item() for loss in alone), rel=1e-6)


def test_each_adapter_has_its_own_number_of_items() -> None:
    model, batch = two_adapters(), make_batch()
    numbers = {"one": 40, "two": 7, BASE: 11}
    packed = model(**batch, adapter_names=NAMES, num_items_in_batch=numbers)
    assert list(packed.adapter_losses) == list(numbers)
    total = 0.0
    for name, number in numbers.items():
        alone = run_alone(model, name, batch, num_items_in_batch=number).loss.item()
        assert packed.adapter_losses[name].item() == pytest.approx(alone, rel=1e-6)
        total += alone
    assert packed.loss.item() == pytest.approx(total, rel=1e-6)
    assert not any(loss.requires_grad for loss in packed.adapter_losses.values())
    with pytest.raises(ValueError, match="is of one, two: expected __base__ as well"):
        model(**batch, adapter_names=NAMES, num_items_in_batch={"one": 40, "two": 7})


def test_training_steps_equal_training_alone() -> None:
    """Three steps of AdamW, whose moments are per parameter, so packing must not change them."""
    batch = make_batch()
    packed_model = two_adapters()
    optimizer = torch.optim.AdamW([p for p in packed_model.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        packed_model(**batch, adapter_names=NAMES).loss.backward()
        optimizer.step()
    trained = dict(packed_model.named_parameters())

    for name in ("one", "two"):
        model = two_adapters()
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        model.set_adapter(name)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            run_alone(model, name, batch).loss.backward()
            optimizer.step()
        changed = 0
        for key, value in model.named_parameters():
            if value.requires_grad:
                # A step divides the gradient by the root of its mean square, which amplifies
                # rounding where both are tiny.
                assert relative_error(trained[key], value) < 1e-6, key
                changed += not torch.equal(value, before[key])
        assert changed > 10


def test_generation_with_a_cache() -> None:
    model = two_adapters().eval()
    ids = make_batch()["input_ids"][:3]
    names = ["two", "one", BASE]
    greedy: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    packed = model.generate(input_ids=ids, adapter_names=names, **greedy)
    for row, name in enumerate(names):
        if name == BASE:
            with model.disable_adapter():
                alone = model.generate(input_ids=ids[row : row + 1], **greedy)
        else:
            model.set_adapter(name)
            alone = model.generate(input_ids=ids[row : row + 1], **greedy)
        assert packed[row, : alone.shape[1]].tolist() == alone[0].tolist()


def test_dropout_is_the_same_in_every_process() -> None:
    # PEFT goes over the adapters of a batch in the order of a set of strings, which is random.
    packing = Packing(["two", "one", "two", BASE])
    assert packing.names == ["two", "one", BASE]
    rows = torch.arange(4)
    assert packing.grouped(rows).tolist() == [0, 2, 1, 3]
    assert packing.ungrouped(packing.grouped(rows)).tolist() == [0, 1, 2, 3]


def test_mistakes_are_named() -> None:
    model, batch = two_adapters(), make_batch()
    with pytest.raises(ValueError, match="adapter_names has c: the model has one, two, __base__"):
        model(**batch, adapter_names=["one", "two", "c", "one", "one", "one"])
    with pytest.raises(ValueError, match="got 2 and 6"):
        model(**batch, adapter_names=["one", "two"])
    model.base_model.set_adapter(["one", "two"])
    with pytest.raises(ValueError, match="one at a time"):
        model(**batch)
    # A failed forward leaves nothing behind.
    model.set_adapter("one")
    alone = run_alone(model, "one", batch).loss
    assert torch.isfinite(alone)


def test_packed_adapters_agree_on_how_they_are_computed() -> None:
    model = two_adapters()
    for config in model.peft_config.values():
        config.experts_implementation = "auto"
    model.peft_config["two"].experts_implementation = "vanilla"
    with pytest.raises(ValueError, match="experts_implementation="):
        model(**make_batch(), adapter_names=NAMES)
