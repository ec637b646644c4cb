"""Random tiny models and blocks for the tests of `mixlora`: odd sizes, non-zero adapters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi.modeling_phi import PhiMLP
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from mixlora import MixLoraConfig
from mixlora.families import find_layout
from mixlora.layer import MixLoraFfn

VOCAB = 61
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: Model type -> its config's name and what it needs beside the common values.
FAMILY_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"mlp_bias": True}),
    "mistral": ("MistralConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 6}),
    "gemma": ("GemmaConfig", {"head_dim": 6}),
    "gemma2": ("Gemma2Config", {"head_dim": 6, "sliding_window": 8}),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 6, "sliding_window": 8}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {}),
}


def make_model(family: str = "llama", seed: int = 0) -> Any:
    """A random causal language model of a family, float32, eval mode."""
    name, extra = FAMILY_CONFIGS[family]
    config = getattr(transformers, name)(**_COMMON | extra)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    # Freshly made biases are 0 and norms are 1, which would hide an error in using them.
    randomise(model, scale=0.1)
    return model.eval()


def randomise(module: nn.Module, scale: float = 0.3) -> None:
    """Shift every parameter by Gaussian noise, adapters' zero B included."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)


def make_mlp(kind: str, hidden_size: int = 13, inner_size: int = 29) -> nn.Module:
    """A random float64 FFN: "gated" (with biases), "plain" (with biases) or "gate_up" fused."""
    # A config of the family would refuse odd sizes because of its attention.
    config: Any = SimpleNamespace(hidden_size=hidden_size, intermediate_size=inner_size)
    mlp: nn.Module
    if kind == "gated":
        config.hidden_act, config.mlp_bias = "silu", True
        mlp = LlamaMLP(config)
    elif kind == "plain":
        config.hidden_act = "gelu_new"
        mlp = PhiMLP(config)
    else:
        config.hidden_act = "silu"
        mlp = Phi3MLP(config)
    randomise(mlp)
    return mlp.double().requires_grad_(False)


def make_block(mlp: nn.Module, **settings: Any) -> MixLoraFfn:
    """A float64 MixLoRA block around an FFN, every adapter parameter random."""
    values: dict[str, Any] = {
        "r": 3,
        "lora_alpha": 5,
        "lora_dropout": 0.0,
        "num_experts": 5,
        "top_k": 2,
        "target_modules": find_layout(mlp).projections,
    }
    block = MixLoraFfn(mlp, "default", MixLoraConfig(**values | settings)).double()
    for name, parameter in block.named_parameters():
        if "base_layer" not in name:
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return block


def implementations(use_dora: bool = False) -> list[str]:
    """Every implementation that must equal the naive one, for LoRA or DoRA experts."""
    names = ["vanilla", "shared", "masked", "auto"]
    return names if use_dora else [*names, "grouped", "grouped in blocks"]


#: (implementation, use_dora) of every pair that exists.
IMPLEMENTATION_CASES = [(name, dora) for dora in (False, True) for name in implementations(dora)]


def relative_error(value: Tensor, expected: Tensor) -> float:
    """The largest difference, divided by the largest expected magnitude or by 0.001.

    The second is for gradients that are zero in exact arithmetic, as the router's are with top_k=1.
    """
    if value.shape != expected.shape:
        raise ValueError(f"shapes differ: {tuple(value.shape)} and {tuple(expected.shape)}")
    scale = expected.abs().max().clamp(min=1e-3)
    return float((value - expected).abs().max() / scale)


def gradients(
    module: nn.Module, inputs: Tensor, weights: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of sum(output * weights) for the parameters and the input."""
    module.zero_grad()
    inputs = inputs.detach().clone().requires_grad_()
    output = module(inputs)
    (output * weights).sum().backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return output.detach(), {"input": inputs.grad} | grads  # type: ignore[dict-item]
