"""An adapter that does nothing is refused, and the check leaves the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mixlora import MixLoraConfig
from mixlora.checks import NoEffectError, require_effect

from .models import VOCAB, make_model, randomise

IDS = torch.randint(VOCAB, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)

CONFIGS: dict[str, Any] = {
    "lora": lambda: LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"]),
    "mixlora": lambda: MixLoraConfig(task_type="CAUSAL_LM", r=2, num_experts=3),
    "mixdora": lambda: MixLoraConfig(task_type="CAUSAL_LM", r=2, num_experts=3, use_dora=True),
}


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Any:
    """A model with a fresh adapter, which is the identity."""
    return get_peft_model(make_model(), CONFIGS[request.param]())


def parameter_of(model: Any, name: str) -> torch.nn.Parameter:
    return next(p for n, p in model.named_parameters() if name in n)


def test_a_fresh_adapter_is_refused(model: Any) -> None:
    with pytest.raises(NoEffectError, match="unchanged"):
        require_effect(model, IDS, MASK)


def test_one_projection_of_one_layer_is_enough(model: Any) -> None:
    randomise(torch.nn.ParameterList([parameter_of(model, "layers.1.self_attn.q_proj.lora_B")]))
    require_effect(model, IDS, MASK)


def test_an_adapter_that_is_off_is_refused(model: Any) -> None:
    randomise(model)
    model.base_model.disable_adapter_layers()
    with pytest.raises(NoEffectError):
        require_effect(model, IDS, MASK)


def test_the_effect_of_another_adapter_does_not_count(model: Any) -> None:
    randomise(model)
    model.add_adapter("fresh", model.peft_config["default"])
    require_effect(model, IDS, MASK)
    model.set_adapter("fresh")
    with pytest.raises(NoEffectError):
        require_effect(model, IDS, MASK)


def test_a_model_without_an_adapter_is_refused() -> None:
    with pytest.raises(NoEffectError, match="expected a model with LoRA"):
        require_effect(make_model(), IDS, MASK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base(model: Any, dtype: torch.dtype) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    with pytest.raises(NoEffectError):
        require_effect(model, IDS, MASK)
    randomise(torch.nn.ParameterList([parameter_of(model, "layers.1.self_attn.q_proj.lora_B")]))
    require_effect(model, IDS, MASK)


def test_asking_changes_nothing(model: Any) -> None:
    randomise(model)
    model.train()
    model.get_input_embeddings().eval()
    kept = parameter_of(model, "lora_B")
    kept.requires_grad_(False)
    before = {
        "training": [module.training for module in model.modules()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "active": model.active_adapters,
        "values": [p.sum().item() for p in model.parameters()],
    }
    require_effect(model, IDS, MASK)
    assert before == {
        "training": [module.training for module in model.modules()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "active": model.active_adapters,
        "values": [p.sum().item() for p in model.parameters()],
    }
    assert not kept.requires_grad
