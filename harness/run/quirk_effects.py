"""What quirks of the released code (`quirks`) do to an adapter around its training and scoring."""

from __future__ import annotations

from peft.tuners.lora import LoraLayer
from torch import nn

from mixlora.layer import MixLoraFfn


def freeze_magnitudes(model: nn.Module) -> None:
    """DoRA's magnitudes, PEFT's and MixDoRA's, are not trained ("frozen-dora-magnitude")."""
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.requires_grad_(False)


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
