"""DoRA's magnitudes as a fresh adapter has them: MixDoRA's, and PEFT's in attention or alone."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from .dora import DoraNorms
from .experts import new_magnitude
from .layer import MixLoraFfn


@torch.no_grad()
def reset_magnitudes(model: nn.Module, adapter_name: str) -> None:
    """Set an adapter's magnitudes to the norms of its adapted weights, in place.

    DoRA scales ``W + s B A`` to its magnitude, so from here on the adapter acts as LoRA. Adapters
    and layers without magnitudes are left as they are.
    """
    for module in model.modules():
        if isinstance(module, MixLoraFfn):
            if adapter_name in module.configs:
                for each in module.experts(adapter_name).values():
                    if each.magnitude is not None:
                        fresh = new_magnitude(each.linear, each.lora_A, each.lora_B, each.scaling)
                        each.magnitude.copy_(fresh)
        elif isinstance(module, LoraLayer) and adapter_name in module.lora_magnitude_vector:
            layer: Any = module.lora_magnitude_vector[adapter_name]
            parts: Any = module.lora_A, module.lora_B
            A, B = (part[adapter_name].weight for part in parts)
            scaling, frozen = module.scaling[adapter_name], module.get_base_layer()
            norms = DoraNorms().of(frozen, A[None], B.T[None], scaling, training=True)
            layer.weight.copy_(norms[0])
