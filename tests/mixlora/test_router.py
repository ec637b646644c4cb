"""The router, and the load-balancing loss, which equals transformers' own for Mixtral."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mixlora import load_balancing_loss
from mixlora.router import TopKRouter


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_loss_equals_transformers_mixtral(top_k: int, padded: bool) -> None:
    layers, batch, length, experts = 3, 4, 7, 5
    logits = [torch.randn(batch * length, experts, requires_grad=True) for _ in range(layers)]
    mask = torch.ones(batch, length, dtype=torch.long)
    if padded:
        mask[0, :3] = 0
        mask[2, 5:] = 0
    expected = load_balancing_loss_func(tuple(logits), experts, top_k, mask if padded else None)
    expected_grads = torch.autograd.grad(expected, logits)

    token_mask = mask.reshape(-1).bool().repeat(layers) if padded else None
    loss = load_balancing_loss(torch.cat(logits), top_k, token_mask)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), expected_grads)


def test_uniform_routing_gives_top_k() -> None:
    # Every expert is the first choice of one token and the second of another: perfect balance.
    logits = torch.zeros(4, 4, dtype=torch.float64)
    for token in range(4):
        logits[token, token] = 1e-9
        logits[token, (token + 1) % 4] = 1e-10
    assert load_balancing_loss(logits, 2).item() == pytest.approx(2.0, abs=1e-6)


def test_padding_alone_has_no_loss() -> None:
    mask = torch.zeros(6, dtype=torch.bool)
    assert load_balancing_loss(torch.randn(6, 5), 2, mask).item() == 0.0


def test_weights_are_the_renormalised_largest_probabilities() -> None:
    router = TopKRouter(hidden_size=6, num_experts=5, top_k=3, init_std=1.0).double()
    tokens = torch.randn(40, 6, dtype=torch.float64)
    routing = router(tokens)
    probabilities = torch.softmax(tokens @ router.weight.T, dim=1)
    for token in range(40):
        ranked = probabilities[token].sort(descending=True)
        assert routing.selected_experts[token].tolist() == ranked.indices[:3].tolist()
        torch.testing.assert_close(
            routing.routing_weights[token], ranked.values[:3] / ranked.values[:3].sum()
        )


def test_routing_is_float32_under_autocast_and_a_half_precision_base() -> None:
    router = TopKRouter(hidden_size=64, num_experts=5, top_k=2, init_std=1.0)
    tokens = torch.randn(50, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(tokens)
    assert routing.router_logits.dtype == routing.routing_weights.dtype == torch.float32
    torch.testing.assert_close(routing.router_logits, tokens @ router.weight.T)
    half = router(tokens.bfloat16())
    torch.testing.assert_close(half.router_logits, tokens.bfloat16().float() @ router.weight.T)


def test_initialisation_has_the_standard_deviation_asked_for() -> None:
    weight = TopKRouter(hidden_size=1000, num_experts=50, top_k=1, init_std=0.02).weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weight.mean().item()) < 0.001
