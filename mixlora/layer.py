"""`MixLoraFfn`: the module that takes an FFN's place and holds the adapters' parameters."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .config import MixLoraConfig
from .dispatch import FrozenFfn, Mixture, Share
from .dora import DoraNorms
from .experts import ProjectionExperts, new_lora, new_magnitude
from .ffn import base_device, find_layout, projection_sizes
from .moe import FORWARDS
from .packed import Packing
from .router import Router, RouterTap, SwitchRouter, TopKRouter, TopPRouter


class MixLoraFfn(nn.Module, BaseTunerLayer):
    """A frozen FFN shared by the experts of one or more named adapters.

    Parameters are kept PEFT's way, in containers keyed by adapter name, so that PEFT's own saving,
    loading, switching and deleting work on them: ``lora_router.<adapter>.weight`` (E, D) and, per
    adapted projection, ``lora_A.<adapter>.<projection>`` (E, r, I), ``lora_B...`` (E, r, O) and for
    DoRA ``lora_magnitude_vector...`` (E, O).

    Args:
        base_layer: The transformers FFN module to wrap; it is not changed.
        adapter_name: Name of the first adapter.
        config: Its settings, target_modules resolved.
    """

    adapter_layer_names = ("lora_router", "lora_A", "lora_B", "lora_magnitude_vector")
    other_param_names = ("configs",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: MixLoraConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layout = find_layout(base_layer)
        self.lora_router = nn.ModuleDict()
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.lora_magnitude_vector = nn.ModuleDict()
        self.configs: dict[str, MixLoraConfig] = {}
        self.dora_norms: defaultdict[tuple[str, str], DoraNorms] = defaultdict(DoraNorms)
        # Of the model that the block is part of, see aux_loss.py.
        self.router_tap = RouterTap()
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: MixLoraConfig) -> None:
        """Add an adapter (or replace the one of that name), freshly initialised."""
        base, device = self.base_layer, base_device(self.base_layer)
        lora_A, lora_B, magnitude = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        hidden_size, _ = projection_sizes(getattr(base, self.layout.inputs[0]))
        for name in self.layout.projections:
            if name not in config.ffn_targets:
                continue
            linear = getattr(base, name)
            sizes = projection_sizes(linear)
            lora_A[name], lora_B[name] = new_lora(
                config.num_experts, config.r, sizes, config.init_lora_weights, device
            )
            if config.use_dora:
                scaling = config.lora_alpha / config.r
                magnitude[name] = new_magnitude(linear, lora_A[name], lora_B[name], scaling)
        self.lora_router[adapter_name] = _new_router(hidden_size, config).to(device)
        self.lora_A[adapter_name] = lora_A
        self.lora_B[adapter_name] = lora_B
        if config.use_dora:
            self.lora_magnitude_vector[adapter_name] = magnitude
        for name in lora_A:
            self.dora_norms.pop((adapter_name, name), None)
        self.configs[adapter_name] = config
        self.set_adapter(self.active_adapters)

    def experts(self, adapter_name: str) -> dict[str, ProjectionExperts]:
        """The experts of one adapter, by projection."""
        config = self.configs[adapter_name]
        lora_A: Any = self.lora_A[adapter_name]
        lora_B: Any = self.lora_B[adapter_name]
        magnitudes: Any = self.lora_magnitude_vector[adapter_name] if config.use_dora else {}
        return {
            name: ProjectionExperts(
                linear=getattr(self.base_layer, name),
                lora_A=lora_A[name],
                lora_B=lora_B[name],
                magnitude=magnitudes[name] if config.use_dora else None,
                scaling=config.lora_alpha / config.r,
                norms=self.dora_norms[adapter_name, name],
                training=self.training,
            )
            for name in lora_A
        }

    def forward(self, hidden_states: Tensor, packing: Packing | None = None) -> Tensor:
        """(B, S, D) or (T, D), in and out: the mixture of each row's adapter.

        Args:
            hidden_states: The FFN's input.
            packing: Which adapter each of B rows goes through; None: all through the active one.
                Without an adapter a row goes through the frozen FFN.

        Raises:
            ValueError: More than one adapter is active (a mixture of mixtures is not defined), or
                packed adapters are set to be computed in different ways.
        """
        active = [name for name in self.active_adapters if name in self.configs]
        if self.disable_adapters or (not active and packing is None):
            return self.base_layer(hidden_states)
        if packing is not None:
            rows = list(zip(packing.names, packing.sizes, strict=True))
            return packing.ungrouped(self._forward_shares(packing.grouped(hidden_states), rows))
        if len(active) > 1:
            raise ValueError(
                f"active adapters {active}: MixLoRA runs one at a time, use set_adapter(name), or "
                "adapter_names=[...] with one name per row"
            )
        return self._forward_shares(hidden_states, [(active[0], len(hidden_states))])

    def _forward_shares(self, hidden_states: Tensor, rows: list[tuple[str, int]]) -> Tensor:
        """Rows that stand in the order of (adapter, number of rows)."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        per_row = len(tokens) // len(hidden_states)
        forwards = {self.configs[name].forward for name, _ in rows if name in self.configs}
        if len(forwards) > 1:
            raise ValueError(f"packed adapters have forward={sorted(forwards)}: expected one value")
        shares, start = [], 0
        for name, num_rows in rows:
            stop = start + num_rows * per_row
            mixture = (
                self._route(name, tokens[start:stop], per_row) if name in self.configs else None
            )
            shares.append(Share(stop - start, mixture))
            start = stop
        if not forwards:
            return self.base_layer(hidden_states)
        ffn = FrozenFfn(self.base_layer, self.layout)
        return FORWARDS[forwards.pop()](ffn, tokens, shares).reshape(hidden_states.shape)

    def _route(self, adapter_name: str, tokens: Tensor, row_length: int) -> Mixture:
        """An adapter's experts, and the way of these tokens (T, D) through them."""
        router: Any = self.lora_router[adapter_name]
        routing = router(tokens, row_length)
        if self.router_tap.is_open:
            self.router_tap.keep(adapter_name, routing.logits, router.weight.requires_grad)
        dropout = self.configs[adapter_name].lora_dropout if self.training else 0.0
        return Mixture(self.experts(adapter_name), routing, dropout)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: which experts run depends on the token, so no single weight equals them.

        Raises:
            ValueError: Always.
        """
        raise ValueError("MixLoRA cannot be merged: the experts that run are chosen per token")


def _new_router(hidden_size: int, config: MixLoraConfig) -> Router:
    sizes = hidden_size, config.num_experts
    init_std: Any = config.router_init_std  # a number, once the configuration is made
    if config.routing == "top_p":
        return TopPRouter(*sizes, config.top_p, init_std)
    if config.routing == "switch":
        return SwitchRouter(*sizes, config.expert_capacity, init_std)
    return TopKRouter(*sizes, config.top_k, init_std)
