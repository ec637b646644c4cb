"""What quirks of the released code (`quirks`) do to an adapter around its training and scoring."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from torch import nn

from mixlora.dora import frozen_weight
from mixlora.layer import MixLoraFfn


def freeze_magnitudes(model: nn.Module) -> None:
    """DoRA's magnitudes, PEFT's and MixDoRA's, are not trained ("frozen-dora-magnitude")."""
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.requires_grad_(False)


@torch.no_grad()
def reset_magnitudes(model: nn.Module) -> None:
    """Set every DoRA magnitude to the norm of the adapted weight, as if the adapter were new.

    DoRA scales W + s B A to that magnitude, so from here on it acts as LoRA.
    """
    for module in model.modules():
        if isinstance(module, MixLoraFfn):
            for name, config in module.configs.items():
                if config.use_dora:
                    for experts in module.experts(name).values():
                        # magnitude / norm is the scale, which becomes 1.
                        magnitude: Any = experts.magnitude
                        magnitude.div_(experts.dora_scales())
        elif isinstance(module, LoraLayer):
            for name, layer in module.lora_magnitude_vector.items():
                _reset(module, name, layer)


def _reset(module: Any, name: str, layer: Any) -> None:
    if not isinstance(layer, DoraLinearLayer):
        raise TypeError(f"{type(layer).__name__}: expected DoRA of a linear layer")
    low_rank = module.lora_B[name].weight @ module.lora_A[name].weight
    weight = frozen_weight(module.get_base_layer(), low_rank.dtype)
    layer.weight.copy_(layer.get_weight_norm(weight, low_rank, module.scaling[name]))


def dropout_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that apply the adapters' dropout ("eval-dropout")."""
    found: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, MixLoraFfn):
            found.append(module)
        elif isinstance(module, LoraLayer):
            # The layer itself as well: PEFT's DoRA asks it whether to drop.
            found += [module, *module.lora_dropout.values()]
    return found
