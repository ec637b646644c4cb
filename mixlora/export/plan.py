"""What an exported model consists of: each tensor's name and shape, and how it is made.

Names are those of the base with ``mlp.gate.weight`` for the router and
``mlp.experts.<e>.<projection>.weight`` for the experts. Shape legend: E experts, r rank, I
in_features, O out_features, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..families import FAMILIES, split_targets
from ..messages import printable_name

if TYPE_CHECKING:
    from . import Source

#: What a `PeftModel` puts before the names of the model that it wraps.
_WRAPPING = "base_model.model."
#: Left in old checkpoints; computed from the configuration since.
_COMPUTED = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Planned:
    """A tensor of the result.

    Attributes:
        name: its name, see above.
        shape: its shape.
        make: computes it, in the base's data type or in the one it was merged in.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def plan(source: Source, biases: frozenset[str], target: str) -> list[Planned]:
    """All tensors of the result, in the order in which they are to be written.

    Args:
        source: What is exported.
        biases: Attention projections that may have a bias.
        target: What the result is, for messages.

    Raises:
        ValueError: A tensor is missing, has another shape than it should, is not finite, or has
            no place in the result; the message names it.
    """
    builder = _Builder(source, biases, target)
    planned = list(builder.tensors())
    builder.check_all_used()
    return planned


class _Builder:
    def __init__(self, source: Source, biases: frozenset[str], target: str) -> None:
        self.base, self.adapter = source.base, source.adapter
        self.config, self.biases, self.target = source.adapter_config, biases, target
        self.base_config = source.base_config
        self.family = FAMILIES[source.base_config.model_type]
        self.scaling = self.config.lora_alpha / self.config.r
        self.attention_targets, self.ffn_targets = split_targets(self.config.target_modules)
        self.used_base: set[str] = set()
        self.used_adapter: set[str] = set()

    def tensors(self) -> Iterator[Planned]:
        yield self._embedding("model.embed_tokens.weight")
        for layer in range(self.base_config.num_hidden_layers):
            yield from self._layer(f"model.layers.{layer}")
        yield self._copy("model.norm.weight")
        if self.base_config.tie_word_embeddings:
            self.used_base.add("lm_head.weight")
            self.used_adapter.add(f"{_WRAPPING}lm_head.weight")
        else:
            yield self._embedding("lm_head.weight")

    def _layer(self, layer: str) -> Iterator[Planned]:
        yield self._copy(f"{layer}.input_layernorm.weight")
        for name in self.family.attention:
            yield self._merged(f"{layer}.self_attn.{name}", name in self.attention_targets)
            if f"{layer}.self_attn.{name}.bias" in self.base.names() and name in self.biases:
                yield self._copy(f"{layer}.self_attn.{name}.bias")
        for name in ("q_norm", "k_norm"):
            if f"{layer}.self_attn.{name}.weight" in self.base.names():
                yield self._copy(f"{layer}.self_attn.{name}.weight")
        yield self._copy(f"{layer}.post_attention_layernorm.weight")
        experts, hidden_size = self.config.num_experts, self.base_config.hidden_size
        router = self._adapter(f"{layer}.mlp.lora_router.weight", (experts, hidden_size))
        yield Planned(f"{layer}.mlp.gate.weight", (experts, hidden_size), router)
        for name in self.family.layout.projections:
            yield from self._experts(layer, name)

    def _copy(self, name: str) -> Planned:
        self.used_base.add(name)
        return Planned(name, self.base.shape(name), partial(self.base.read, name))

    def _embedding(self, name: str) -> Planned:
        """Of a resized vocabulary the adapter has its own."""
        key = _WRAPPING + name
        if key not in self.adapter.names():
            return self._copy(name)
        self.used_base.add(name)
        self.used_adapter.add(key)
        return Planned(name, self.adapter.shape(key), partial(self.adapter.read, key))

    def _merged(self, path: str, adapted: bool) -> Planned:
        """An attention projection with its LoRA, or DoRA."""
        copied = self._copy(f"{path}.weight")
        if not adapted:
            return copied
        (out_features, in_features), rank = copied.shape, self.config.r
        A = self._adapter(f"{path}.lora_A.weight", (rank, in_features))
        B = self._adapter(f"{path}.lora_B.weight", (out_features, rank))
        magnitude = None
        if self.config.use_dora:
            magnitude = self._adapter(f"{path}.lora_magnitude_vector", (out_features,))

        def make() -> Tensor:
            scale = None if magnitude is None else magnitude()
            return merge(copied.make(), A(), B(), self.scaling, scale)

        return Planned(copied.name, copied.shape, make)

    def _experts(self, layer: str, projection: str) -> Iterator[Planned]:
        copied = self._copy(f"{layer}.mlp.{projection}.weight")
        (out_features, in_features), rank = copied.shape, self.config.r
        experts = self.config.num_experts
        adapted = projection in self.ffn_targets
        A = B = magnitude = None
        if adapted:
            path = f"{layer}.mlp"
            A = self._adapter(f"{path}.lora_A.{projection}", (experts, rank, in_features))
            B = self._adapter(f"{path}.lora_B.{projection}", (experts, rank, out_features))
            if self.config.use_dora:
                shape = experts, out_features
                magnitude = self._adapter(f"{path}.lora_magnitude_vector.{projection}", shape)

        def make(expert: int) -> Tensor:
            if A is None or B is None:
                return copied.make()
            scale = None if magnitude is None else magnitude()[expert]
            return merge(copied.make(), A()[expert], B()[expert].T, self.scaling, scale)

        for expert in range(experts):
            name = f"{layer}.mlp.experts.{expert}.{projection}.weight"
            yield Planned(name, copied.shape, partial(make, expert))

    def _adapter(self, path: str, shape: tuple[int, ...]) -> Callable[[], Tensor]:
        """What reads one of the adapter's tensors, which is looked at first."""
        key = _WRAPPING + path
        self.used_adapter.add(key)
        found = self.adapter.shape(key)
        if found != shape:
            raise ValueError(f"the adapter has {key} of shape {found}: expected {shape}")
        if not self.adapter.read(key).isfinite().all():
            raise ValueError(f"the adapter has NaN or infinity in {key}")
        return partial(self.adapter.read, key)

    def check_all_used(self) -> None:
        left = {name for name in self.base.names() - self.used_base if not self._computed(name)}
        with_bias = sorted(name for name in left if name.endswith(".bias"))
        if with_bias:
            raise ValueError(
                f"the base has {printable_name(with_bias[0])}: {self.target} has no bias there"
            )
        for whose, names in (("base", left), ("adapter", self.adapter.names() - self.used_adapter)):
            if names:
                name = printable_name(min(names))
                raise ValueError(f"the {whose} has {name}: {self.target} has no place for it")

    @staticmethod
    def _computed(name: str) -> bool:
        return name.endswith(_COMPUTED)


def merge(
    weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float, magnitude: Tensor | None
) -> Tensor:
    """``W + s B A``, with DoRA's rows scaled to the magnitude; in float32 or wider.

    Args:
        weight: W (O, I).
        lora_A: (r, I).
        lora_B: (O, r).
        scaling: s.
        magnitude: (O,), or None for LoRA.

    Source: LoRA, arXiv 2106.09685 eq. 3; DoRA, arXiv 2402.09353 eq. 5.
    """
    dtype = torch.promote_types(torch.promote_types(weight.dtype, lora_A.dtype), torch.float32)
    lora_A, lora_B = (each.to(weight.device, dtype) for each in (lora_A, lora_B))
    merged = torch.addmm(weight.to(dtype), lora_B, lora_A, alpha=scaling)
    if magnitude is not None:
        norm = torch.linalg.vector_norm(merged, dim=1)
        merged.mul_((magnitude.to(norm) / norm).unsqueeze(1))
    return merged
