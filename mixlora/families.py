"""Feed-forward layouts of the supported model families, as plain data.

A transformers decoder layer keeps its feed-forward network (FFN) in a submodule called ``mlp``.
Families differ in the names of its linear projections and in how their outputs are combined; no
other file of this package knows a family by name. To add a family, add a row to `FAMILIES`.

Shape legend: D hidden size, F inner size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Activation = Callable[[Tensor], Tensor]

FFN_MODULE = "mlp"


def _gated(activation: Activation, projected: list[Tensor]) -> Tensor:
    gate, up = projected
    return activation(gate) * up


def _gated_chunks(activation: Activation, projected: list[Tensor]) -> Tensor:
    gate, up = projected[0].chunk(2, dim=-1)
    return activation(gate) * up


def _plain(activation: Activation, projected: list[Tensor]) -> Tensor:
    return activation(projected[0])


@dataclass(frozen=True)
class FfnLayout:
    """How one kind of FFN is wired.

    Attributes:
        inputs: Names of the projections that read the FFN's input (D -> F, or D -> 2F when the gate
            and up projections are one matrix).
        down: Name of the projection back to the hidden size (F -> D).
        activation: Name of the activation module.
        combine: ``combine(activation, [projected, ...]) -> (..., F)``, the computation between the
            input projections and the down projection.
    """

    inputs: tuple[str, ...]
    down: str
    activation: str
    combine: Callable[[Activation, list[Tensor]], Tensor]

    @property
    def projections(self) -> tuple[str, ...]:
        """All projection names, inputs first."""
        return (*self.inputs, self.down)


@dataclass(frozen=True)
class FrozenFfn:
    """The transformers FFN module that the experts of a layer share.

    Attributes:
        mlp: The module, unchanged.
        layout: How it is wired.
    """

    mlp: nn.Module
    layout: FfnLayout

    def project(self, name: str, inputs: Tensor) -> Tensor:
        """One frozen projection, (..., in_features) -> (..., out_features)."""
        return getattr(self.mlp, name)(inputs)

    def hidden(self, projected: list[Tensor]) -> Tensor:
        """The inner activation (..., F) from the outputs of the input projections."""
        return self.layout.combine(getattr(self.mlp, self.layout.activation), projected)


@dataclass(frozen=True)
class ModelFamily:
    """What MixLoRA adapts in one model family.

    Attributes:
        attention: Names of the attention projections.
        layout: The layout of its FFN.
    """

    attention: tuple[str, ...]
    layout: FfnLayout


GATED = FfnLayout(("gate_proj", "up_proj"), "down_proj", "act_fn", _gated)
FUSED_GATE_UP = FfnLayout(("gate_up_proj",), "down_proj", "activation_fn", _gated_chunks)
PLAIN = FfnLayout(("fc1",), "fc2", "activation_fn", _plain)

_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")

#: Model family of each supported ``config.model_type`` of transformers.
FAMILIES: dict[str, ModelFamily] = {
    "llama": ModelFamily(_QKVO, GATED),
    "mistral": ModelFamily(_QKVO, GATED),
    "qwen2": ModelFamily(_QKVO, GATED),
    "qwen3": ModelFamily(_QKVO, GATED),
    "gemma": ModelFamily(_QKVO, GATED),
    "gemma2": ModelFamily(_QKVO, GATED),
    "gemma3_text": ModelFamily(_QKVO, GATED),
    "phi": ModelFamily(("q_proj", "k_proj", "v_proj", "dense"), PLAIN),
    "phi3": ModelFamily(("qkv_proj", "o_proj"), FUSED_GATE_UP),
}

_FFN_PROJECTIONS = frozenset(
    name for family in FAMILIES.values() for name in family.layout.projections
)


def get_family(model_type: str) -> ModelFamily:
    """The family of a transformers ``config.model_type``.

    Raises:
        ValueError: The family is not supported; the message lists those that are.
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"MixLoRA does not know the model type {model_type!r}; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def split_targets(target_modules: Iterable[str] | None) -> tuple[frozenset[str], frozenset[str]]:
    """Split projection names into (attention, FFN): those get plain LoRA, these get experts."""
    names = frozenset(target_modules or ())
    return names - _FFN_PROJECTIONS, names & _FFN_PROJECTIONS


def find_layout(mlp: nn.Module) -> FfnLayout:
    """The layout whose projections this FFN module has.

    Raises:
        ValueError: No known layout fits.
    """
    for layout in (GATED, FUSED_GATE_UP, PLAIN):
        if all(hasattr(mlp, name) for name in (*layout.projections, layout.activation)):
            return layout
    raise ValueError(
        f"no known FFN layout fits {type(mlp).__name__}; expected one of the layouts in FAMILIES"
    )


def projection_sizes(linear: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer, which may be a quantised one.

    Raises:
        ValueError: The module does not say its sizes.
    """
    sizes = getattr(linear, "in_features", None), getattr(linear, "out_features", None)
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError(
            f"expected a projection with in_features and out_features, got {type(linear).__name__}"
        )
    return int(sizes[0]), int(sizes[1])  # type: ignore[arg-type]


def base_device(module: nn.Module) -> torch.device:
    """The device of a module's first parameter, which may be quantised."""
    return next(module.parameters()).device
