"""DoRA's norms without forming weights: equal to PEFT's own layer, and computed again in time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.helpers import DoraCaching
from torch import nn

from mixlora import MixLoraConfig
from mixlora.dora import LeanDoraLayer

from .models import gradients, make_block, make_mlp, make_model, randomise, relative_error


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_the_lean_layer_equals_peft(bias: bool, dropout: float) -> None:
    config = LoraConfig(
        r=3, lora_alpha=5, lora_dropout=dropout, target_modules=["q"], use_dora=True
    )
    model = nn.ModuleDict({"q": nn.Linear(13, 7, bias=bias)})
    layer: Any = inject_adapter_in_model(config, model).double()["q"]
    randomise(layer)
    layer.train()
    inputs, weights = torch.randn(9, 13).double(), torch.randn(9, 7).double()
    torch.manual_seed(3)
    expected = gradients(layer, inputs, weights)
    magnitudes = layer.lora_magnitude_vector
    magnitudes["default"] = LeanDoraLayer(magnitudes["default"])
    torch.manual_seed(3)
    got = gradients(layer, inputs, weights)
    assert relative_error(got[0], expected[0]) < 1e-10
    assert got[1].keys() == expected[1].keys() and len(got[1]) >= 4
    for name, gradient in expected[1].items():
        assert relative_error(got[1][name], gradient) < 1e-10, name


def test_attention_of_mixdora_has_it_and_saves_as_peft_does() -> None:
    model = get_peft_model(make_model("llama"), MixLoraConfig(task_type="CAUSAL_LM", use_dora=True))
    layers = [m for m in model.modules() if isinstance(m, LeanDoraLayer)]
    assert len(layers) == 2 * 4
    names = [name for name, _ in model.named_parameters() if "self_attn.q_proj.lora_magn" in name]
    assert names[0].endswith("q_proj.lora_magnitude_vector.default.weight")


def test_a_changed_base_weight_is_seen() -> None:
    block = make_block(make_mlp("gated"), use_dora=True, experts_implementation="auto")
    tokens = torch.randn(6, 13, dtype=torch.float64)
    with torch.no_grad():
        block(tokens)
        block.base_layer.gate_proj.weight.mul_(1.7)
        after = block(tokens)
        block.configs["default"].experts_implementation = "naive"
        assert relative_error(after, block(tokens)) < 1e-10


def test_norms_are_kept_inside_pefts_caching_only() -> None:
    block = make_block(make_mlp("gated"), use_dora=True, experts_implementation="auto").eval()
    tokens = torch.randn(6, 13, dtype=torch.float64)
    with torch.no_grad():
        first = block(tokens)
        randomise(block.lora_B)
        changed = block(tokens)
        assert relative_error(changed, first) > 0.01
        with DoraCaching():
            assert relative_error(block(tokens), changed) < 1e-12
            # Inside, the user promises that adapters do not change, so the norms are not updated.
            randomise(block.lora_B)
            kept = block(tokens)
        fresh = block(tokens)
        assert relative_error(kept, fresh) > 1e-3
        block.configs["default"].experts_implementation = "naive"
        assert relative_error(fresh, block(tokens)) < 1e-10
