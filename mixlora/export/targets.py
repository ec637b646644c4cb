"""Which mixture of experts computes the same as a base with MixLoRA, and which bases have none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import MixLoraConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: What to do where there is no export.
INSTEAD = (
    "serve the adapter itself: peft.AutoPeftModelForCausalLM.from_pretrained, or PeftModel on a "
    "base that you load"
)

_QKV = frozenset({"q_proj", "k_proj", "v_proj"})

#: Settings of a base that mean the same in every target.
_CARRIED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "attention_dropout",
    "rope_parameters",
)
#: Inner size of the shared expert that Qwen2-MoE has beside the routed ones. Its weights are zero;
#: the size is one that divides among eight devices and into blocks of 16.
_SILENT_SIZE = 128


@dataclass(frozen=True)
class Target:
    """A transformers architecture with routed experts.

    Attributes:
        architecture: name of the model class.
        config_class: name of its configuration class.
        biases: attention projections that may have a bias.
        block: name of the mixture in a decoder layer, as checkpoints have it.
        projections: an expert's name for each of the base's projections.
        settings: configuration values of its own that do not depend on the base.
        sizes: its names for the numbers of experts, of experts per token, and for the experts'
            inner size.
        shared_expert: whether there is an expert that every token goes through.
    """

    architecture: str
    config_class: str
    biases: frozenset[str]
    block: str
    projections: dict[str, str]
    sizes: tuple[str, str, str]
    settings: dict[str, Any] = field(default_factory=dict)
    shared_expert: bool = False

    def config(self, base: PreTrainedConfig, adapter: MixLoraConfig) -> PreTrainedConfig:
        """The result's configuration."""
        import transformers

        values = {name: getattr(base, name) for name in _CARRIED if hasattr(base, name)}
        num_experts, per_token, inner_size = self.sizes
        values |= {
            num_experts: adapter.num_experts,
            per_token: adapter.top_k,
            inner_size: base.intermediate_size,
            "router_aux_loss_coef": adapter.router_aux_loss_coef,
            "architectures": [self.architecture],
        }
        if base.model_type == "mistral":
            values["sliding_window"] = base.sliding_window
        if base.model_type == "qwen3":
            values["attention_bias"] = base.attention_bias
        if values.get("head_dim") is None:
            values.pop("head_dim", None)
        return getattr(transformers, self.config_class)(**values, **self.settings)

    def rename(self, name: str) -> str:
        """A tensor's name in the checkpoint, from the one that `plan` gives it."""
        for ours, theirs in self.projections.items():
            if ".mlp.experts." in name:
                name = name.replace(f".{ours}.", f".{theirs}.")
        return name.replace(".mlp.", f".{self.block}.")

    def silent_expert(self, hidden_size: int) -> Iterator[tuple[str, tuple[int, int]]]:
        """(name in the block, shape) of weights that are zero, so that they add nothing."""
        if self.shared_expert:
            for name in ("gate_proj", "up_proj"):
                yield f"shared_expert.{name}.weight", (_SILENT_SIZE, hidden_size)
            yield "shared_expert.down_proj.weight", (hidden_size, _SILENT_SIZE)
            yield "shared_expert_gate.weight", (1, hidden_size)


_GATED = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_OF_QWEN = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")

MIXTRAL = Target(
    "MixtralForCausalLM",
    "MixtralConfig",
    frozenset(),
    # The names of the published checkpoint, which transformers, vLLM, SGLang and llama.cpp's
    # converter all read.
    block="block_sparse_moe",
    projections={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    sizes=("num_local_experts", "num_experts_per_tok", "intermediate_size"),
)
QWEN2_MOE = Target(
    "Qwen2MoeForCausalLM",
    "Qwen2MoeConfig",
    _QKV,
    block="mlp",
    projections=_GATED,
    sizes=_OF_QWEN,
    settings={
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": _SILENT_SIZE,
        "use_sliding_window": False,
    },
    shared_expert=True,
)
QWEN3_MOE = Target(
    "Qwen3MoeForCausalLM",
    "Qwen3MoeConfig",
    _QKV | {"o_proj"},
    block="mlp",
    projections=_GATED,
    sizes=_OF_QWEN,
    settings={"norm_topk_prob": True, "decoder_sparse_step": 1, "use_sliding_window": False},
)

#: By the base's model type.
TARGETS = {"llama": MIXTRAL, "mistral": MIXTRAL, "qwen2": QWEN2_MOE, "qwen3": QWEN3_MOE}


def check_adapter(config: MixLoraConfig) -> None:
    """Refuse an adapter that no mixture of experts computes.

    Raises:
        ValueError: Its routing or its task is not that of a mixture.
    """
    if config.routing != "top_k":
        why = {
            "top_p": "a mixture sends every token to the same number of experts",
            "switch": "a mixture has no capacity, and its weights add up to 1",
        }[config.routing]
        raise ValueError(f"routing={config.routing!r} cannot be exported: {why}; {INSTEAD}")
    if config.task_type not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"task_type={config.task_type!r} cannot be exported: expected CAUSAL_LM; {INSTEAD}"
        )


def check_base(config: PreTrainedConfig) -> None:
    """Refuse a base that has no counterpart with experts.

    Raises:
        ValueError: Its family or one of its settings has none.
    """
    kind = config.model_type
    if kind not in TARGETS:
        raise ValueError(
            f"model type {kind!r} cannot be exported: no mixture of experts in transformers has "
            f"its attention and norms (those of {', '.join(TARGETS)} have); {INSTEAD}"
        )
    if getattr(config, "use_sliding_window", False):
        raise ValueError(
            f"use_sliding_window=True cannot be exported for {kind}: servers of its mixture ignore "
            f"the window; {INSTEAD}"
        )
