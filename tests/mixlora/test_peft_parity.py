"""With one expert MixLoRA is LoRA, and MixDoRA is DoRA: PEFT's own layers are the oracle."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from .models import IMPLEMENTATION_CASES, gradients, make_block, make_mlp, relative_error
from .test_experts import Use


def as_peft(name: str, ours: torch.Tensor) -> torch.Tensor:
    """One expert's parameter in PEFT's shape; ours stores B transposed."""
    return ours.T if name.startswith("lora_B") else ours


@pytest.mark.parametrize(
    ("implementation", "use_dora"), [("naive", False), ("naive", True), *IMPLEMENTATION_CASES]
)
@pytest.mark.parametrize("layout", ["gated", "plain", "gate_up"])
def test_one_expert_equals_peft(layout: str, use_dora: bool, implementation: str, use: Use) -> None:
    mlp = make_mlp(layout)
    block = make_block(copy.deepcopy(mlp), num_experts=1, top_k=1, use_dora=use_dora)
    use(block, implementation)
    names = list(block.lora_A["default"])
    config = LoraConfig(r=3, lora_alpha=5, target_modules=names, use_dora=use_dora)
    oracle = inject_adapter_in_model(config, nn.ModuleDict({"mlp": mlp})).double()["mlp"]

    pairs: dict[str, tuple[torch.Tensor, nn.Parameter]] = {}
    for name in names:
        layer = getattr(oracle, name)
        pairs[f"lora_A.default.{name}"] = block.lora_A["default"][name], layer.lora_A.default.weight
        pairs[f"lora_B.default.{name}"] = block.lora_B["default"][name], layer.lora_B.default.weight
        if use_dora:
            magnitude = layer.lora_magnitude_vector.default.weight
            ours = block.lora_magnitude_vector["default"][name]
            pairs[f"lora_magnitude_vector.default.{name}"] = ours, magnitude
    with torch.no_grad():
        for name, (ours, theirs) in pairs.items():
            theirs.copy_(as_peft(name, ours[0]))

    tokens, weights = torch.randn(2, 9, 13, dtype=torch.float64)
    output, grads = gradients(block, tokens, weights)
    expected, expected_grads = gradients(oracle, tokens, weights)
    assert relative_error(output, expected) < 1e-10
    assert relative_error(grads["input"], expected_grads["input"]) < 1e-10
    for name, (_, theirs) in pairs.items():
        if theirs.grad is None:
            raise AssertionError(f"PEFT has no gradient for {name}")
        assert relative_error(as_peft(name, grads[name][0]), theirs.grad) < 1e-10, name
