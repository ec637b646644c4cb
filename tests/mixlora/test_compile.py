"""torch.compile without a graph break, autocast, half-precision bases, and saved memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from mixlora import MixLoraConfig

from .models import VOCAB, gradients, make_block, make_mlp, make_model, relative_error

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def make_tuned(**settings: Any) -> Any:
    values: dict[str, Any] = {"r": 4, "num_experts": 4, "lora_dropout": 0.0}
    model = get_peft_model(make_model("llama"), MixLoraConfig("CAUSAL_LM", **values | settings))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def assert_compiles(backend: str) -> None:
    """A whole model in one graph, in a training step with the auxiliary loss and in evaluation."""
    model = make_tuned().train()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    ids = torch.randint(3, VOCAB, (2, 11))
    losses, grads = [], []
    for each in (model, compiled):
        model.zero_grad()
        loss = each(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.detach())
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    assert relative_error(losses[1], losses[0]) < 1e-5
    assert len(grads[0]) == 30
    for name, gradient in grads[0].items():
        assert relative_error(grads[1][name], gradient) < 1e-4, name
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        assert relative_error(compiled(input_ids=ids).logits, expected) < 1e-4


def test_one_graph() -> None:
    assert_compiles("aot_eager")


@pytest.mark.slow  # compiles C++
def test_one_graph_with_inductor() -> None:
    assert_compiles("inductor")


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("layout", ["gated", "plain", "gate_up"])
@pytest.mark.parametrize(("num_tokens", "num_experts"), [(17, 5), (2, 37)])
def test_a_block_in_one_graph(
    num_tokens: int, num_experts: int, layout: str, use_dora: bool
) -> None:
    block = make_block(make_mlp(layout), use_dora=use_dora, num_experts=num_experts)
    tokens, weights = torch.randn(2, num_tokens, 13, dtype=torch.float64)
    expected = gradients(block, tokens, weights)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    block.zero_grad()
    inputs = tokens.clone().requires_grad_()
    output = compiled(inputs)
    (output * weights).sum().backward()
    assert relative_error(output, expected[0]) < 1e-10
    assert relative_error(inputs.grad, expected[1]["input"]) < 1e-10  # type: ignore[arg-type]
    for name, parameter in block.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            assert relative_error(parameter.grad, expected[1][name]) < 1e-10, name


def test_dropout_in_one_graph() -> None:
    """Compiled code draws its masks in another way: new ones at each call, unbiased on average."""
    torch.manual_seed(8)
    block = make_block(make_mlp("gated"), lora_dropout=0.5, target_modules=["down_proj"]).train()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    tokens = torch.randn(4, 13, dtype=torch.float64)
    with torch.no_grad():
        outputs = torch.stack([compiled(tokens) for _ in range(400)])
        expected = block.eval()(tokens)
    error = outputs.std(dim=0) / 400**0.5
    assert (outputs.std(dim=0) > 0).all()
    # The output is linear in the down projection's input, so dropout there keeps the mean.
    assert ((outputs.mean(dim=0) - expected).abs() < 4.5 * error).all()


@pytest.mark.parametrize("num_tokens", [2, 64], ids=["masked", "grouped"])
def test_autocast(num_tokens: int) -> None:
    """bfloat16 autocast over float32 rounds the frozen products but not the router's."""
    torch.manual_seed(4)
    block = make_block(make_mlp("gated", 16, 32), r=4, num_experts=4).float()
    tokens, weights = torch.randn(2, num_tokens, 16)
    expected = gradients(block, tokens, weights)
    routers: list[torch.dtype] = []
    router = block.lora_router["default"]
    router.register_forward_hook(lambda *call: routers.append(call[2].router_logits.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(block, tokens, weights)
    assert routers == [torch.float32]
    assert relative_error(got[0].float(), expected[0]) < 0.05
    for name, gradient in expected[1].items():
        assert got[1][name].dtype == gradient.dtype
        assert relative_error(got[1][name], gradient) < 0.1, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_tokens", [2, 64], ids=["masked", "grouped"])
def test_training_over_a_half_precision_base(num_tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    block = make_block(make_mlp("gated", 16, 32), r=4, num_experts=4).float()
    tokens, weights = torch.randn(2, num_tokens, 16)
    expected = gradients(block, tokens, weights)
    block.base_layer.to(dtype)
    got = gradients(block, tokens.to(dtype), weights)
    assert got[0].dtype == dtype
    assert relative_error(got[0].float(), expected[0]) < 0.05
    for name, gradient in expected[1].items():
        if name != "input":
            assert got[1][name].dtype == torch.float32
        assert relative_error(got[1][name].float(), gradient) < 0.1, name


def test_one_token_at_a_time_with_a_cache() -> None:
    model = make_tuned().eval()
    ids = torch.randint(3, VOCAB, (3, 12))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        outputs = model(input_ids=ids[:, :4], use_cache=True)
        steps = [outputs.logits]
        for position in range(4, 12):
            outputs = model(
                input_ids=ids[:, position : position + 1],
                past_key_values=outputs.past_key_values,
                use_cache=True,
            )
            steps.append(outputs.logits)
    assert relative_error(torch.cat(steps, dim=1), expected) < 1e-4


def test_saved_for_backward_is_about_what_lora_saves() -> None:
    """Counts exactly the bytes that autograd saves between the forward and the backward pass."""
    from peft import LoraConfig, inject_adapter_in_model

    def saved_bytes(module: nn.Module, inputs: torch.Tensor) -> int:
        storages: dict[int, int] = {}
        known = {p.untyped_storage().data_ptr() for p in module.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = module(inputs)
        del output
        return sum(storages.values())

    names = ["gate_proj", "up_proj", "down_proj"]
    inputs = torch.randn(512, 64, requires_grad=True)
    mixlora = make_block(make_mlp("gated", 64, 176), r=4, num_experts=8, lora_dropout=0.05)
    lora = inject_adapter_in_model(
        LoraConfig(r=20, lora_dropout=0.05, target_modules=names),
        nn.ModuleDict({"mlp": make_mlp("gated", 64, 176)}),
    )["mlp"]
    assert saved_bytes(mixlora.float().train(), inputs) < saved_bytes(lora.float().train(), inputs)
