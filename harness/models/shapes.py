"""Architectures of the models in the tables, as data: enough to count parameters without weights.

The paper's models are large and gated, but their parameter counts follow from a few numbers. A
model built on the meta device has every parameter's shape and takes no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.names import choose

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """One model's architecture and where its weights are published.

    Attributes:
        hub_id: Repository on the Hugging Face hub.
        revision: Commit of that repository.
        config_class: Name of the transformers config class.
        values: Arguments of the config class.
        nominal_parameters: Size the paper divides by for its "# Params" columns; None for models
            that are not the paper's, whose exact count is used. Source: arXiv 2404.15159 tables
            1, 2 and 8. Gemma's tied embedding is counted twice there.
    """

    hub_id: str
    revision: str
    config_class: str
    values: dict[str, Any]
    nominal_parameters: int | None


SHAPES: dict[str, Shape] = {
    "gemma-2b": Shape(
        hub_id="google/gemma-2b",
        revision="9cf48e52b224239de00d483ec8eb84fb8d0f3a3a",
        config_class="GemmaConfig",
        values={
            "vocab_size": 256000,
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_hidden_layers": 18,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
        nominal_parameters=3_030_000_000,
    ),
    "llama2-7b": Shape(
        hub_id="meta-llama/Llama-2-7b-hf",
        revision="01c7f73d771dfac7d292323805ebc428287df4f9",
        config_class="LlamaConfig",
        values={
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
        nominal_parameters=7_000_000_000,
    ),
    "llama3-8b": Shape(
        hub_id="meta-llama/Meta-Llama-3-8B",
        revision="8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920",
        config_class="LlamaConfig",
        values={
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "hidden_act": "silu",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "tie_word_embeddings": False,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
        nominal_parameters=8_000_000_000,
    ),
    "llama2-13b": Shape(
        hub_id="meta-llama/Llama-2-13b-hf",
        revision="5c31dfb671ce7cfe2d7bb7c04375e44c55e815b1",
        config_class="LlamaConfig",
        values={
            "vocab_size": 32000,
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
        nominal_parameters=13_000_000_000,
    ),
    "smollm2-135m": Shape(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        config_class="LlamaConfig",
        values={
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "hidden_act": "silu",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "tie_word_embeddings": True,
        },
        nominal_parameters=None,
    ),
}


def build_config(name: str, num_layers: int | None = None) -> PreTrainedConfig:
    """The transformers config of a model.

    Args:
        name: A key of `SHAPES`.
        num_layers: Layers to keep, None for all of them.

    Raises:
        ValueError: The name is unknown, or the number of layers is not one the model has.
    """
    shape = SHAPES[choose("model", name, SHAPES)]
    total_layers = shape.values["num_hidden_layers"]
    kept_layers = total_layers if num_layers is None else num_layers
    if not 1 <= kept_layers <= total_layers:
        raise ValueError(f"num_layers={num_layers}: {name} has 1 to {total_layers} layers to keep")

    import transformers

    config_class = getattr(transformers, shape.config_class)
    return config_class(**{**shape.values, "num_hidden_layers": kept_layers})


def kept_vocabulary(name: str, num_layers: int) -> int:
    """The vocabulary of a model cut to some layers, if its head is to keep its share of the work.

    One layer of LLaMA-2 7B beside its whole vocabulary would be measured for the head by 40 %,
    where the whole model's head is 2 %.

    Args:
        name: A key of `SHAPES`.
        num_layers: Layers kept.
    """
    values = SHAPES[name].values
    return -(-values["vocab_size"] * num_layers // values["num_hidden_layers"])


def build_meta(name: str, num_layers: int | None = None) -> PreTrainedModel:
    """The model on the meta device: parameters with shapes and names, but no memory.

    Args:
        name: A key of `SHAPES`.
        num_layers: Layers to keep, None for all of them.

    Raises:
        ValueError: See `build_config`.
    """
    config = build_config(name, num_layers)

    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
