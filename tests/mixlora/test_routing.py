"""Top-p and switch routing: against a per-token reference, at extreme settings, in whole models."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from mixlora import ExpertLoad, load_balancing_loss
from mixlora.config import EXPERTS_IMPLEMENTATIONS
from mixlora.layer import MixLoraFfn
from mixlora.losses import z_loss

from .models import (
    VOCAB,
    gradients,
    implementations,
    make_block,
    make_mlp,
    make_model,
    relative_error,
)
from .test_experts import (
    LAYOUTS,
    TOLERANCE,
    Use,
    assert_same,
    expert_output,
    expert_probabilities,
    reference_gradients,
)
from .test_families import IDS, adapted, logits
from .test_packing import NAMES, make_batch, run_alone, two_adapters

#: Routing -> settings under which tokens are sent to some of their selected experts only.
VARIANTS: dict[str, dict[str, Any]] = {
    "top_p": {"routing": "top_p", "top_p": 0.7},
    "switch": {"routing": "switch", "expert_capacity": 2},
}


def taken_by_hand(probabilities: list[float], counts: Counter[int], config: Any) -> list[int]:
    """The experts that a token is sent to.

    counts has the number of tokens of the same row for which each expert was the first choice so
    far; it is updated.
    """
    ranked = sorted(range(len(probabilities)), key=lambda e: -probabilities[e])
    if config.routing == "switch":
        counts[ranked[0]] += 1
        return ranked[:1] if counts[ranked[0]] <= config.expert_capacity else []
    chosen: list[int] = []
    while len(chosen) < len(ranked) and sum(probabilities[e] for e in chosen) <= config.top_p:
        chosen.append(ranked[len(chosen)])
    return chosen


def by_hand(block: MixLoraFfn, rows: Tensor) -> Tensor:
    """The block's output for (B, S, D), token by token; the weights are plain probabilities."""
    outputs = []
    for row in rows:
        counts: Counter[int] = Counter()
        for x in row:
            p = expert_probabilities(block, x)
            output = 0.0 * x
            for e in taken_by_hand(p.tolist(), counts, block.configs["default"]):
                output = output + p[e] * expert_output(block, e, x)
            outputs.append(output)
    return torch.stack(outputs).view(rows.shape)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_implementations_equal_the_per_token_reference(
    variant: str, layout: str, use_dora: bool, use: Use
) -> None:
    block = make_block(make_mlp(layout), use_dora=use_dora, **VARIANTS[variant])
    rows, weights = torch.randn(2, 3, 7, 13, dtype=torch.float64)
    expected = reference_gradients(block, rows, weights, by_hand)
    with torch.no_grad():
        routing = block.lora_router["default"](rows.view(21, 13), 7)
    assert routing.selection_mask.any() and not routing.selection_mask.all()
    for implementation in ["naive", *implementations(use_dora)]:
        use(block, implementation)
        assert_same(gradients(block, rows, weights), expected)


@pytest.mark.parametrize("targets", [["up_proj"], ["down_proj"]])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_subset_of_the_projections(variant: str, targets: list[str], use: Use) -> None:
    """Includes a down projection that is not adapted but has a bias."""
    block = make_block(make_mlp("gated"), target_modules=targets, **VARIANTS[variant])
    rows, weights = torch.randn(2, 2, 9, 13, dtype=torch.float64)
    expected = reference_gradients(block, rows, weights, by_hand)
    for implementation in ["naive", *implementations()]:
        use(block, implementation)
        got = gradients(block, rows, weights)
        assert_same(got, expected)
        assert got[1].keys() >= expected[1].keys()


@pytest.mark.parametrize("implementation", EXPERTS_IMPLEMENTATIONS)
def test_top_p_of_one_is_all_experts(implementation: str) -> None:
    block = make_block(
        make_mlp("plain"), routing="top_p", top_p=1.0, experts_implementation=implementation
    )
    every = make_block(make_mlp("plain"), top_k=5, experts_implementation=implementation)
    every.load_state_dict(block.state_dict())
    rows, weights = torch.randn(2, 2, 9, 13, dtype=torch.float64)
    assert_same(gradients(block, rows, weights), gradients(every, rows, weights))


@pytest.mark.parametrize("implementation", EXPERTS_IMPLEMENTATIONS)
def test_a_tiny_top_p_and_a_large_capacity_are_the_first_expert(implementation: str) -> None:
    """The expert is the one of top_k=1; the weight is its probability, which top_k=1 makes 1."""
    first = make_block(make_mlp("gated"), top_k=1, experts_implementation=implementation)
    rows = torch.randn(2, 9, 13, dtype=torch.float64)
    settings = ({"routing": "top_p", "top_p": 1e-9}, {"routing": "switch", "expert_capacity": 9})
    with torch.no_grad():
        highest = torch.stack([expert_probabilities(first, x).max() for x in rows.view(18, 13)])
        expected = highest.view(2, 9, 1) * first(rows)
        for each in settings:
            block = make_block(make_mlp("gated"), experts_implementation=implementation, **each)
            block.load_state_dict(first.state_dict())
            assert relative_error(block(rows), expected) < TOLERANCE


@pytest.mark.parametrize("implementation", EXPERTS_IMPLEMENTATIONS)
def test_tokens_beyond_the_capacity_get_nothing(implementation: str) -> None:
    block = make_block(
        make_mlp("plain"),
        routing="switch",
        expert_capacity=2,
        experts_implementation=implementation,
    )
    rows = torch.randn(2, 6, 13, dtype=torch.float64).abs()
    with torch.no_grad():
        block.lora_router["default"].weight[3] = 5.0  # every token's first choice
        output = block(rows)
    assert [row.any(dim=1).tolist() for row in output] == [[True] * 2 + [False] * 4] * 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_graph(variant: str) -> None:
    torch.compiler.reset()
    block = make_block(make_mlp("plain"), **VARIANTS[variant])
    rows, weights = torch.randn(2, 2, 9, 13, dtype=torch.float64)
    expected = gradients(block, rows, weights)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_same(gradients(compiled, rows, weights), (expected[0], {"input": expected[1]["input"]}))
    for name, parameter in block.named_parameters():
        if parameter.grad is not None:
            assert relative_error(parameter.grad, expected[1][name]) < TOLERANCE, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_adapters_equal_each_alone(variant: str) -> None:
    model, batch = two_adapters(**VARIANTS[variant], router_z_loss_coef=0.1), make_batch()
    packed = model(**batch, adapter_names=NAMES)
    packed.loss.backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    total = 0.0
    for name in dict.fromkeys(NAMES):
        model.zero_grad()
        alone = run_alone(model, name, batch)
        total += alone.loss.item()
        if "base" in name:
            continue
        alone.loss.backward()
        rows = [row for row, each in enumerate(NAMES) if each == name]
        assert relative_error(packed.logits[rows], alone.logits) < TOLERANCE
        for key, parameter in model.named_parameters():
            if f".{name}." in key:
                assert relative_error(together[key], parameter.grad) < TOLERANCE, key
    assert packed.loss.item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_models(variant: str, tmp_path: Path) -> None:
    """The losses in ``outputs.loss`` without padding, tokens per expert, gradients, saved files."""
    model = adapted(router_aux_loss_coef=0.3, router_z_loss_coef=0.2, **VARIANTS[variant])
    mask = torch.ones_like(IDS)
    mask[1, 6:] = 0
    labels = IDS.masked_fill(mask == 0, -100)
    layers = model.base_model.model.model.layers
    routers = [layer.mlp.lora_router["default"] for layer in layers]
    caught: list[Tensor] = []
    hooks = [
        router.register_forward_hook(lambda _module, _args, out: caught.append(out.router_logits))
        for router in routers
    ]
    with ExpertLoad(model) as load:
        loss = model(input_ids=IDS, attention_mask=mask, labels=labels).loss
    for hook in hooks:
        hook.remove()
    config = model.peft_config["default"]

    counts, chosen, summed, squares, tokens = (
        [Counter() for _ in routers],
        Counter(),
        [0.0] * 5,
        0.0,
        0,
    )
    for layer, scores in enumerate(caught):
        for row, real in zip(scores.view(3, 11, 5).tolist(), mask.tolist(), strict=True):
            in_row: Counter[int] = Counter()
            for token, is_real in zip(row, real, strict=True):
                normaliser = sum(math.exp(each) for each in token)
                p = [math.exp(each) / normaliser for each in token]
                taken = taken_by_hand(p, in_row, config)
                if not is_real:
                    continue
                tokens += 1
                counts[layer].update(taken)
                # Switch routing's loss counts the first choice even if that expert had no room.
                chosen.update(taken if variant == "top_p" else [p.index(max(p))])
                summed = [a + b for a, b in zip(summed, p, strict=True)]
                squares += math.log(normaliser) ** 2
    aux = 5 * sum(chosen[e] / tokens * summed[e] / tokens for e in range(5))
    expected = 0.3 * aux + (0.2 * squares / tokens if variant == "switch" else 0.0)
    scores = logits(model, attention_mask=mask)[:, :-1].reshape(-1, VOCAB)
    cross_entropy = torch.nn.functional.cross_entropy(scores, labels[:, 1:].reshape(-1)).item()
    assert loss.item() == pytest.approx(cross_entropy + expected, rel=1e-5)
    assert load.counts["default"].tolist() == [[each[e] for e in range(5)] for each in counts]

    loss.backward()
    assert all(r.weight.grad.any() and r.weight.grad.isfinite().all() for r in routers)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(make_model(), tmp_path)), logits(model))


def test_z_loss_without_a_load_balancing_loss() -> None:
    model = adapted(routing="switch", router_aux_loss_coef=0.0, router_z_loss_coef=0.0)
    plain = model(input_ids=IDS, labels=IDS).loss.item()
    model.peft_config["default"].router_z_loss_coef = 0.5
    assert model(input_ids=IDS, labels=IDS).loss.item() > plain + 0.1


def test_losses_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]], dtype=torch.float64)
    # Up to 0.7 these tokens select two experts, one and two: expert 1 three times, expert 0 twice.
    balance = load_balancing_loss(p.log(), 1, top_p=0.7)
    assert balance.item() == pytest.approx(3 * (2 / 3 * 1.2 / 3 + 3 / 3 * 1.4 / 3))
    # The log-sum-exp of log-probabilities is 0; shifted by c it is c.
    shifted = p.log() + torch.tensor([[1.0], [2.0], [5.0]], dtype=torch.float64)
    assert z_loss(shifted).item() == pytest.approx((1 + 4 + 25) / 3)
    assert z_loss(shifted, torch.tensor([True, True, False])).item() == pytest.approx(5 / 2)


def test_generation_with_and_without_a_cache_agrees() -> None:
    model = adapted(**VARIANTS["top_p"])
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    cached = model.generate(input_ids=IDS, use_cache=True, **options)
    assert cached.tolist() == model.generate(input_ids=IDS, use_cache=False, **options).tolist()
