"""The three forwards against a per-token reference written apart, and against each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixlora.dispatch import _kept
from mixlora.layer import MixLoraFfn
from mixlora.moe import FORWARDS

from .models import gradients, make_block, make_mlp, randomise, relative_error, set_forward

pytestmark = pytest.mark.usefixtures("middle_step")

TOLERANCE = 1e-10
LAYOUTS = ["gated", "plain", "gate_up"]


def adapted(block: MixLoraFfn, name: str, expert: int, x: Tensor) -> Tensor:
    """One expert's projection of one token, from the formed matrix W + s B A."""
    linear = getattr(block.base_layer, name)
    config = block.configs["default"]
    weight, bias = linear.weight, linear.bias if linear.bias is not None else 0.0
    if name not in block.lora_A["default"]:
        return weight @ x + bias
    scaling = config.lora_alpha / config.r
    update = (
        scaling * block.lora_B["default"][name][expert].T @ block.lora_A["default"][name][expert]
    )
    if not config.use_dora:
        return (weight + update) @ x + bias
    norm = (weight + update).detach().norm(dim=1)
    magnitude = block.lora_magnitude_vector["default"][name][expert]
    return (magnitude / norm) * ((weight + update) @ x) + bias


def expert_output(block: MixLoraFfn, e: int, x: Tensor) -> Tensor:
    """The FFN of expert e for one token, eq. 6."""
    mlp = block.base_layer
    if hasattr(mlp, "gate_proj"):
        hidden = F.silu(adapted(block, "gate_proj", e, x)) * adapted(block, "up_proj", e, x)
        return adapted(block, "down_proj", e, hidden)
    if hasattr(mlp, "gate_up_proj"):
        both = adapted(block, "gate_up_proj", e, x)
        half = len(both) // 2
        return adapted(block, "down_proj", e, F.silu(both[:half]) * both[half:])
    hidden = F.gelu(adapted(block, "fc1", e, x), approximate="tanh")
    return adapted(block, "fc2", e, hidden)


def expert_probabilities(block: MixLoraFfn, x: Tensor) -> Tensor:
    return torch.exp(F.log_softmax(block.lora_router["default"].weight @ x, dim=0))


def reference(block: MixLoraFfn, tokens: Tensor) -> Tensor:
    """MixLoRA of each token by itself, straight from eqs. 6 and 7."""
    config = block.configs["default"]
    outputs = []
    for x in tokens:
        probabilities = expert_probabilities(block, x)
        ranked = sorted(range(config.num_experts), key=lambda e: -probabilities[e].item())
        chosen = ranked[: config.top_k]
        total = sum(probabilities[e] for e in chosen)
        output = torch.zeros_like(x)
        for e in chosen:
            output = output + probabilities[e] / total * expert_output(block, e, x)
        outputs.append(output)
    return torch.stack(outputs)


def reference_gradients(
    block: MixLoraFfn,
    inputs: Tensor,
    weights: Tensor,
    outputs: Callable[[MixLoraFfn, Tensor], Tensor] = reference,
) -> tuple[Tensor, dict[str, Tensor]]:
    block.zero_grad()
    inputs = inputs.detach().clone().requires_grad_()
    output = outputs(block, inputs)
    (output * weights).sum().backward()
    grads = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
    return output.detach(), {"input": inputs.grad} | grads  # type: ignore[dict-item]


def assert_same(
    got: tuple[Tensor, dict[str, Tensor]],
    expected: tuple[Tensor, dict[str, Tensor]],
    tolerance: float = TOLERANCE,
) -> None:
    assert relative_error(got[0], expected[0]) < tolerance
    for name, gradient in expected[1].items():
        assert relative_error(got[1][name], gradient) < tolerance, name


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("top_k", "num_tokens"), [(1, 3), (2, 17), (5, 7)])
def test_vanilla_equals_the_per_token_reference(
    layout: str, top_k: int, num_tokens: int, use_dora: bool
) -> None:
    # One of (1, 3): three tokens of one expert each leave experts without tokens; 5 is K = E.
    block = make_block(make_mlp(layout), top_k=top_k, use_dora=use_dora, forward="vanilla")
    tokens, weights = torch.randn(2, num_tokens, 13, dtype=torch.float64)
    assert_same(gradients(block, tokens, weights), reference_gradients(block, tokens, weights))


@pytest.mark.parametrize("forward", ["shared", "fused"])
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("top_k", "num_tokens"), [(1, 3), (2, 17), (5, 7)])
def test_fast_forwards_equal_vanilla(
    forward: str, layout: str, top_k: int, num_tokens: int, use_dora: bool
) -> None:
    block = make_block(make_mlp(layout), top_k=top_k, use_dora=use_dora, forward="vanilla")
    tokens, weights = torch.randn(2, num_tokens, 13, dtype=torch.float64)
    expected = gradients(block, tokens, weights)
    # Without tokens an expert still has a gradient, which is zero: distributed training needs it.
    assert len(expected[1]) == 1 + sum(p.requires_grad for p in block.parameters())
    set_forward(block, forward)
    got = gradients(block, tokens, weights)
    assert got[1].keys() == expected[1].keys()
    assert_same(got, expected)


@pytest.mark.parametrize("forward", ["shared", "fused"])
def test_an_expert_that_no_token_chooses(forward: str) -> None:
    block = make_block(make_mlp("gated"), forward="vanilla")
    tokens, weights = torch.randn(2, 11, 13, dtype=torch.float64).abs()
    with torch.no_grad():
        block.lora_router["default"].weight[3] = -100.0  # against positive tokens: never chosen
    expected = gradients(block, tokens, weights)
    assert not expected[1]["lora_B.default.down_proj"][3].any()
    assert expected[1]["lora_B.default.down_proj"][[0, 1, 2, 4]].any()
    set_forward(block, forward)
    assert_same(gradients(block, tokens, weights), expected)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("targets", [["up_proj"], ["down_proj"], ["gate_proj", "down_proj"]])
def test_a_subset_of_the_projections(targets: list[str], use_dora: bool) -> None:
    block = make_block(
        make_mlp("gated"), target_modules=targets, use_dora=use_dora, forward="vanilla"
    )
    tokens, weights = torch.randn(2, 9, 13, dtype=torch.float64)
    expected = reference_gradients(block, tokens, weights)
    for forward in FORWARDS:
        set_forward(block, forward)
        assert_same(gradients(block, tokens, weights), expected)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_few_tokens_of_many_experts(layout: str, use_dora: bool) -> None:
    """Two tokens that share an expert, of 37: the others are not read, and have gradients of 0."""
    block = make_block(make_mlp(layout), num_experts=37, use_dora=use_dora)
    tokens, weights = torch.randn(2, 2, 13, dtype=torch.float64).abs()
    with torch.no_grad():
        block.lora_router["default"].weight[5] = 0.3 * tokens.sum(dim=0)
        chosen = block.lora_router["default"](tokens).selected
    expected = reference_gradients(block, tokens, weights)
    got = gradients(block, tokens, weights)
    assert_same(got, expected)
    down = got[1][f"lora_B.default.{block.layout.down}"]
    assert (chosen == 5).sum() == 2
    assert down.flatten(1).any(dim=1).nonzero().flatten().tolist() == chosen.unique().tolist()
    with torch.no_grad():
        assert_same((block(tokens), {}), (*expected[:1], {}))


def test_dropout_hides_the_units_it_should() -> None:
    """Every 20th unit, whatever the others do, in odd shapes too: a count per unit and per pair."""
    torch.manual_seed(7)
    drawn = torch.stack([_kept(torch.Size((3, 5)), 0.05, torch.device("cpu")) for _ in range(4000)])
    hidden = (drawn == 0).flatten(1).double()
    assert set(drawn.unique().tolist()) == {0, 1}
    # Standard errors: 0.0034 for a unit, 0.0009 for all 15, 0.0158 for a correlation.
    assert (hidden.mean(dim=0) - 0.05).abs().max() < 4.5 * 0.0034
    assert abs(hidden.mean() - 0.05) < 4.5 * 0.0009
    correlations = torch.corrcoef(hidden.T) - torch.eye(15, dtype=torch.float64)
    assert correlations.abs().max() < 4.5 * 0.0158


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_dropout_draws_the_same_masks_in_all_forwards(use_dora: bool) -> None:
    block = make_block(make_mlp("gated"), lora_dropout=0.4, use_dora=use_dora).train()
    tokens, weights = torch.randn(2, 12, 13, dtype=torch.float64)
    results = []
    for forward in FORWARDS:
        set_forward(block, forward)
        torch.manual_seed(5)
        results.append(gradients(block, tokens, weights))
    torch.manual_seed(6)
    other_masks = gradients(block, tokens, weights)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    assert relative_error(other_masks[0], results[0][0]) > 1e-3


@pytest.mark.parametrize("forward", FORWARDS)
def test_dropout_is_off_in_eval_mode(forward: str) -> None:
    block = make_block(make_mlp("gated"), lora_dropout=0.4, forward=forward).eval()
    tokens = torch.randn(12, 13, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(block(tokens), reference(block, tokens)) < TOLERANCE


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_base_with_float32_adapters(forward: str, dtype: torch.dtype) -> None:
    block = make_block(make_mlp("gated", 16, 32), r=4, forward=forward)
    tokens = 0.5 * torch.randn(20, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = block(tokens)
        block.float()
        block.base_layer.to(dtype)
        output = block(tokens.to(dtype))
    assert output.dtype == dtype
    assert block.lora_router["default"].weight.dtype == torch.float32
    # The base's rounding is what is left; a token whose routing it flips would be far off.
    close = (output.double() - expected).abs().amax(dim=1) < 0.05 * expected.abs().max()
    assert close.float().mean() > 0.9


def test_batch_shape_is_kept() -> None:
    block = make_block(make_mlp("gated"))
    tokens = torch.randn(2, 3, 13, dtype=torch.float64)
    with torch.no_grad():
        assert (
            relative_error(block(tokens), reference(block, tokens.view(6, 13)).view(2, 3, 13))
            < 1e-10
        )


def test_random_blocks_differ() -> None:
    # Guards the comparisons above: were the adapters ineffective, they would all hold.
    block = make_block(make_mlp("gated"))
    tokens = torch.randn(7, 13, dtype=torch.float64)
    with torch.no_grad():
        before = block(tokens)
        assert relative_error(before, block.base_layer(tokens)) > 0.05
        randomise(block.lora_B, 0.3)
        assert relative_error(block(tokens), before) > 0.05
