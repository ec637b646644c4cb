"""Bases with adapters for the tests of `mixlora.export`: odd sizes, every parameter random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import get_peft_model
from torch import Tensor

from mixlora import MixLoraConfig

from .models import FAMILY_CONFIGS, VOCAB, randomise

IDS = torch.randint(3, VOCAB, (3, 17), generator=torch.Generator().manual_seed(1))

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 36,
    "intermediate_size": 29,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 5000.0, **values}}


LLAMA3_ROPE = rope(
    "llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN_ROPE = rope("yarn", factor=4.0, original_max_position_embeddings=16)

#: Name -> model type, and settings of its configuration.
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with one head of keys": ("llama", {"num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
    "llama with tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "llama with wide heads": ("llama", {"head_dim": 10}),
    "llama with gelu": ("llama", {"hidden_act": "gelu"}),
    "llama with llama3 rope": ("llama", LLAMA3_ROPE),
    "llama with linear rope": ("llama", rope("linear", factor=3.0)),
    "llama with yarn rope": ("llama", YARN_ROPE),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen2 with tied embeddings": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 10}),
    "qwen3 with biases": ("qwen3", {"head_dim": 6, "attention_bias": True}),
}


def make_base(name: str, **settings: Any) -> Any:
    """A random base of `BASES`, or of a model type, float32, eval mode."""
    family, extra = BASES.get(name, (name, {}))
    config_class = getattr(transformers, FAMILY_CONFIGS[family][0])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**_SIZES | extra | settings))
    randomise(model, scale=0.1)
    return model.eval()


def make_adapted(base: Any, **settings: Any) -> Any:
    """A base with a random MixLoRA adapter, eval mode."""
    values: dict[str, Any] = {"r": 3, "lora_alpha": 5, "num_experts": 5, "top_k": 2}
    config = MixLoraConfig(task_type="CAUSAL_LM", **values | settings)
    model = get_peft_model(base, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                scale = 0.5 if "lora_router" in name else 0.2
                parameter.add_(torch.randn_like(parameter), alpha=scale)
    return model.eval()


def save(model: Any, folder: Path) -> tuple[Path, Path]:
    """The directories of its base and its adapter."""
    base, adapter = folder / "base", folder / "adapter"
    model.save_pretrained(adapter)
    with_adapters = model.base_model.model
    plain = type(with_adapters)(with_adapters.config).to(with_adapters.dtype)
    frozen = {
        name.replace(".base_layer.", "."): value
        for name, value in with_adapters.state_dict().items()
        if "lora_" not in name
    }
    plain.load_state_dict(frozen)
    plain.generation_config = with_adapters.generation_config
    plain.save_pretrained(base)
    return base, adapter


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The exported model; every weight must be in the file, and no others."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, experts_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits
