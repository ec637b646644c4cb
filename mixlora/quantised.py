"""Prepares the frozen layers of bitsandbytes for training under adapters, on a CPU as on a GPU."""

from __future__ import annotations

from typing import Any

from torch import nn


def prepare_quantised(model: nn.Module) -> None:
    """Change how the bitsandbytes layers of a model behave, if it has any, but not its weights.

    - A 4-bit layer that runs in evaluation mode on a CPU with AVX512-BF16 repacks its weights for
      inference: from then on it computes in bfloat16, passes no gradient on and cannot be
      dequantised, which DoRA needs. The repacking is switched off.
    - When PEFT dequantises an 8-bit layer on a CPU, the layer loses its scales and its next forward
      fails. A hook puts them back.

    Raises:
        ValueError: A layer's weights are already repacked.
    """
    for module in model.modules():
        if not type(module).__module__.startswith("bitsandbytes"):
            continue
        layer: Any = module
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
                raise ValueError(
                    "the 4-bit base model has run in evaluation mode on this CPU, for which "
                    "bitsandbytes repacked its weights; load it anew and add the adapter first"
                )
            layer.support_avx512bf16_for_cpu = False
        is_8bit = hasattr(layer, "init_8bit_state")
        if is_8bit and _restore_scales not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_restore_scales)


def _restore_scales(layer: Any, args: Any) -> None:
    if layer.weight.CB is not None and layer.weight.SCB is None:
        layer.weight.SCB = layer.state.SCB
