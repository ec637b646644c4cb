"""The implementations of the experts: `naive` against formed matrices, the others against `naive`.

The reference in this file forms W + s B A, which no implementation does; so it is independent of
all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixlora.config import EXPERTS_IMPLEMENTATIONS
from mixlora.experts.plan import IMPLEMENTATIONS, dropout_mask
from mixlora.layer import MixLoraFfn

from .models import (
    IMPLEMENTATION_CASES,
    gradients,
    implementations,
    make_block,
    make_mlp,
    randomise,
    relative_error,
)

Use = Callable[[MixLoraFfn, str], None]
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


def test_every_name_is_implemented() -> None:
    assert set(IMPLEMENTATIONS) == set(EXPERTS_IMPLEMENTATIONS)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("top_k", "num_tokens"), [(1, 3), (2, 17), (5, 7)])
def test_naive_equals_the_formed_matrices(
    layout: str, top_k: int, num_tokens: int, use_dora: bool
) -> None:
    # With K = 1, three tokens leave some of the five experts without tokens; K = 5 is all experts.
    mlp = make_mlp(layout)
    block = make_block(mlp, top_k=top_k, use_dora=use_dora, experts_implementation="naive")
    tokens, weights = torch.randn(2, num_tokens, 13, dtype=torch.float64)
    assert_same(gradients(block, tokens, weights), reference_gradients(block, tokens, weights))


@pytest.mark.parametrize(("implementation", "use_dora"), IMPLEMENTATION_CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("top_k", "num_tokens"), [(1, 3), (2, 17), (5, 7)])
def test_every_implementation_equals_naive(
    implementation: str, layout: str, top_k: int, num_tokens: int, use_dora: bool, use: Use
) -> None:
    block = make_block(make_mlp(layout), top_k=top_k, use_dora=use_dora)
    tokens, weights = torch.randn(2, num_tokens, 13, dtype=torch.float64)
    use(block, "naive")
    expected = gradients(block, tokens, weights)
    # An expert without tokens still has a gradient, which is zero: distributed training needs it.
    assert len(expected[1]) == 1 + sum(p.requires_grad for p in block.parameters())
    use(block, implementation)
    got = gradients(block, tokens, weights)
    assert got[1].keys() == expected[1].keys()
    assert_same(got, expected)


@pytest.mark.parametrize("implementation", implementations())
def test_an_expert_that_no_token_chooses(implementation: str, use: Use) -> None:
    block = make_block(make_mlp("gated"))
    tokens, weights = torch.randn(2, 11, 13, dtype=torch.float64).abs()
    with torch.no_grad():
        block.lora_router["default"].weight[3] = -100.0  # against positive tokens: never chosen
    use(block, "naive")
    expected = gradients(block, tokens, weights)
    assert not expected[1]["lora_B.default.down_proj"][3].any()
    assert expected[1]["lora_B.default.down_proj"][[0, 1, 2, 4]].any()
    use(block, implementation)
    assert_same(gradients(block, tokens, weights), expected)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("targets", [["up_proj"], ["down_proj"], ["gate_proj", "down_proj"]])
def test_a_subset_of_the_projections(targets: list[str], use_dora: bool, use: Use) -> None:
    block = make_block(make_mlp("gated"), target_modules=targets, use_dora=use_dora)
    tokens, weights = torch.randn(2, 9, 13, dtype=torch.float64)
    expected = reference_gradients(block, tokens, weights)
    for implementation in ["naive", *implementations(use_dora)]:
        use(block, implementation)
        assert_same(gradients(block, tokens, weights), expected)


@pytest.mark.parametrize(("implementation", "use_dora"), IMPLEMENTATION_CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_few_tokens_of_many_experts(
    implementation: str, layout: str, use_dora: bool, use: Use
) -> None:
    """Two tokens share one of 37 experts; the experts that are not selected have gradients of 0."""
    block = make_block(make_mlp(layout), num_experts=37, use_dora=use_dora)
    use(block, implementation)
    tokens, weights = torch.randn(2, 2, 13, dtype=torch.float64).abs()
    with torch.no_grad():
        block.lora_router["default"].weight[5] = 0.3 * tokens.sum(dim=0)
        chosen = block.lora_router["default"](tokens).selected_experts
    expected = reference_gradients(block, tokens, weights)
    got = gradients(block, tokens, weights)
    assert_same(got, expected)
    down = got[1][f"lora_B.default.{block.layout.down}"]
    assert (chosen == 5).sum() == 2
    assert down.flatten(1).any(dim=1).nonzero().flatten().tolist() == chosen.unique().tolist()
    with torch.no_grad():
        assert_same((block(tokens), {}), (*expected[:1], {}))


def test_what_an_implementation_does_not_compute_is_refused() -> None:
    tokens = torch.randn(4, 13, dtype=torch.float64)
    naive = make_block(make_mlp("gated"), lora_dropout=0.1, experts_implementation="naive")
    with pytest.raises(ValueError, match="'naive' has no dropout"):
        naive.train()(tokens)
    dora = make_block(make_mlp("gated"), use_dora=True)
    dora.configs["default"].experts_implementation = "grouped"
    with pytest.raises(ValueError, match="'grouped' cannot compute DoRA"):
        dora(tokens)


def test_dropout_hides_the_units_it_should() -> None:
    """A fraction of 0.05 of the units, each independently of the others, in an odd shape."""
    torch.manual_seed(7)
    shape, device = torch.Size((3, 5)), torch.device("cpu")
    drawn = torch.stack([dropout_mask(shape, 0.05, device) for _ in range(4000)])
    hidden = (drawn == 0).flatten(1).double()
    assert set(drawn.unique().tolist()) == {0, 1}
    # Standard errors: 0.0034 for a unit, 0.0009 for all 15, 0.0158 for a correlation.
    assert (hidden.mean(dim=0) - 0.05).abs().max() < 4.5 * 0.0034
    assert abs(hidden.mean() - 0.05) < 4.5 * 0.0009
    correlations = torch.corrcoef(hidden.T) - torch.eye(15, dtype=torch.float64)
    assert correlations.abs().max() < 4.5 * 0.0158


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_dropout_draws_the_same_masks_in_all_implementations(use_dora: bool, use: Use) -> None:
    block = make_block(make_mlp("gated"), lora_dropout=0.4, use_dora=use_dora).train()
    tokens, weights = torch.randn(2, 12, 13, dtype=torch.float64)
    results = []
    for implementation in implementations(use_dora):
        use(block, implementation)
        torch.manual_seed(5)
        results.append(gradients(block, tokens, weights))
    torch.manual_seed(6)
    other_masks = gradients(block, tokens, weights)
    for result in results[1:]:
        assert_same(result, results[0])
    assert relative_error(other_masks[0], results[0][0]) > 1e-3


@pytest.mark.parametrize("implementation", ["naive", *implementations()])
def test_dropout_is_off_in_eval_mode(implementation: str, use: Use) -> None:
    block = make_block(make_mlp("gated"), lora_dropout=0.4).eval()
    use(block, implementation)
    tokens = torch.randn(12, 13, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(block(tokens), reference(block, tokens)) < TOLERANCE


@pytest.mark.parametrize("implementation", ["naive", *implementations()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_base_with_float32_adapters(
    implementation: str, dtype: torch.dtype, use: Use
) -> None:
    block = make_block(make_mlp("gated", 16, 32), r=4)
    use(block, implementation)
    tokens = 0.5 * torch.randn(20, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = block(tokens)
        block.float()
        block.base_layer.to(dtype)
        output = block(tokens.to(dtype))
    assert output.dtype == dtype
    assert block.lora_router["default"].weight.dtype == torch.float32
    # What is left is the base's rounding; a token whose routing it changes would be far off.
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
    # All comparisons above would hold if the adapters had no effect, so make sure they have one.
    block = make_block(make_mlp("gated"))
    tokens = torch.randn(7, 13, dtype=torch.float64)
    with torch.no_grad():
        before = block(tokens)
        assert relative_error(before, block.base_layer(tokens)) > 0.05
        randomise(block.lora_B, 0.3)
        assert relative_error(block(tokens), before) > 0.05
