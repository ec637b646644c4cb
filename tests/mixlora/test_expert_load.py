"""Counts of tokens per expert equal a routing worked out by hand from the blocks' inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mixlora import ExpertLoad

from .models import VOCAB, make_model
from .test_families import IDS, adapted
from .test_packing import NAMES, make_batch, rows_of, run_alone, two_adapters


def routed_by_hand(model: Any, mask: torch.Tensor, **inputs: Any) -> list[dict[int, int]]:
    """For each layer, expert -> number of tokens, worked out token by token."""
    blocks = [layer.mlp for layer in model.base_model.model.model.layers]
    seen: list[torch.Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _m, args: seen.append(args[0])) for b in blocks]
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=mask, **inputs)
    for hook in hooks:
        hook.remove()
    found = []
    for block, hidden in zip(blocks, seen, strict=True):
        counts: dict[int, int] = dict.fromkeys(range(5), 0)
        for row, real in zip(hidden, mask, strict=True):
            for token in row[real.bool()]:
                scores = (block.lora_router["default"].weight @ token).tolist()
                for expert in sorted(range(5), key=lambda e: -scores[e])[:2]:
                    counts[expert] += 1
        found.append(counts)
    return found


def as_dicts(counts: torch.Tensor) -> list[dict[int, int]]:
    return [dict(enumerate(row)) for row in counts.tolist()]


def test_counts_are_those_of_the_real_tokens() -> None:
    model = adapted()
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    expected = routed_by_hand(model, mask)
    with ExpertLoad(model) as load, torch.no_grad():
        model(input_ids=IDS, attention_mask=mask)
        once = load.counts["default"].clone()
        model(input_ids=IDS, attention_mask=mask)
    assert as_dicts(once) == expected
    assert torch.equal(load.counts["default"], 2 * once)
    assert once.sum(dim=1).tolist() == [2 * int(mask.sum())] * 2
    model(input_ids=IDS)  # after the block nothing is counted
    assert torch.equal(load.counts["default"], 2 * once)


def test_without_a_mask_all_tokens_count_and_take_starts_again() -> None:
    model = adapted()
    with ExpertLoad(model) as load, torch.no_grad():
        model(IDS)
        assert load.take()["default"].sum(dim=1).tolist() == [2 * IDS.numel()] * 2
        assert load.counts == {}
        model(IDS[:1])
    assert load.counts["default"].sum(dim=1).tolist() == [2 * IDS.shape[1]] * 2


def test_a_cache_counts_every_token_once() -> None:
    model = adapted()
    mask = torch.ones_like(IDS)
    mask[2, :3] = 0
    with ExpertLoad(model) as load, torch.no_grad():
        first = model(input_ids=IDS[:, :6], attention_mask=mask[:, :6], use_cache=True)
        model(input_ids=IDS[:, 6:], attention_mask=mask, past_key_values=first.past_key_values)
    assert load.counts["default"].sum(dim=1).tolist() == [2 * int(mask.sum())] * 2


def test_checkpointing_counts_once() -> None:
    model = adapted(lora_dropout=0.0).train()
    counts = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with ExpertLoad(model) as load:
            model(input_ids=IDS, labels=IDS).loss.backward()
        counts.append(load.counts["default"])
    assert torch.equal(counts[1], counts[0]) and counts[0].any()


def test_packed_adapters_are_counted_apart() -> None:
    model, batch = two_adapters().eval(), make_batch()
    with ExpertLoad(model) as together, torch.no_grad():
        model(**batch, adapter_names=NAMES)
    for name in ("one", "two"):
        with ExpertLoad(model) as alone, torch.no_grad():
            run_alone(model, name, batch)
        assert list(alone.counts) == [name]
        assert torch.equal(together.counts[name], alone.counts[name])
        real = int(rows_of(batch, name)["attention_mask"].sum())
        assert together.counts[name].sum(dim=1).tolist() == [2 * real] * 2


def test_a_forward_that_fails_counts_nothing_afterwards() -> None:
    model = adapted()
    with ExpertLoad(model) as load:
        with pytest.raises(IndexError):
            model(input_ids=torch.full_like(IDS, VOCAB))
        block = model.base_model.model.model.layers[0].mlp
        block(torch.zeros(1, 3, 32))  # a block alone, outside a forward of the model
    assert load.counts == {}


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM has no MixLoRA block"):
        ExpertLoad(make_model())
