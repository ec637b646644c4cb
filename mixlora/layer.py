"""`MixLoraFfn`: the module that takes an FFN's place and holds the adapters' parameters.

Shape legend: B rows, S tokens per row, T = B * S tokens, D hidden size, E experts, r rank, I
in_features, O out_features.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .context import ForwardContext
from .dora import DoraNorms, new_magnitude
from .experts.plan import IMPLEMENTATIONS, ExpertPlan, ProjectionExperts
from .families import FrozenFfn, base_device, find_layout, projection_sizes, split_targets
from .router import Router, SwitchRouter, TopKRouter, TopPRouter

if TYPE_CHECKING:
    from .config import MixLoraConfig


class MixLoraFfn(nn.Module, BaseTunerLayer):
    """A frozen FFN shared by the experts of one or more named adapters.

    Parameters are stored as PEFT's layers store theirs, in containers keyed by adapter name, so
    that PEFT's saving, loading, switching and deleting work on them:
    ``lora_router.<adapter>.weight`` (E, D) and, for each adapted projection,
    ``lora_A.<adapter>.<projection>`` (E, r, I), ``lora_B...`` (E, r, O) and for DoRA
    ``lora_magnitude_vector...`` (E, O).

    Args:
        base_layer: The transformers FFN module to wrap; it is not changed.
        adapter_name: Name of the first adapter.
        config: Its settings, with the target modules' names resolved.
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
        # In a model, the tuner puts the one of the whole model in its place.
        self.context = ForwardContext()
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: MixLoraConfig) -> None:
        """Add an adapter, freshly initialised, or replace the one of that name."""
        base, device = self.base_layer, base_device(self.base_layer)
        lora_A, lora_B, magnitude = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        hidden_size, _ = projection_sizes(getattr(base, self.layout.inputs[0]))
        _, ffn_targets = split_targets(config.target_modules)
        for name in self.layout.projections:
            if name not in ffn_targets:
                continue
            linear = getattr(base, name)
            sizes = projection_sizes(linear)
            lora_A[name], lora_B[name] = _new_lora(
                config.num_experts, config.r, sizes, config.init_lora_weights, device
            )
            if config.use_dora:
                scaling = config.lora_alpha / config.r
                magnitude[name] = nn.Parameter(
                    new_magnitude(linear, lora_A[name], lora_B[name], scaling)
                )
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
        """The experts of one adapter, by the name of the projection that they adapt."""
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

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The mixture of the active adapter, or in a packed batch of each row's own adapter.

        Args:
            hidden_states: The FFN's input, (B, S, D) or (T, D).

        Returns:
            The shape and dtype of hidden_states. Rows without an adapter go through the frozen FFN.

        Raises:
            ValueError: More than one adapter is active (a mixture of mixtures is not defined), or
                packed adapters have different values of ``experts_implementation``.
        """
        packing = self.context.packing
        active = [name for name in self.active_adapters if name in self.configs]
        if self.disable_adapters or (not active and packing is None):
            return self.base_layer(hidden_states)
        if packing is not None:
            rows = list(zip(packing.names, packing.sizes, strict=True))
            return packing.ungrouped(self._run(packing.grouped(hidden_states), rows))
        if len(active) > 1:
            raise ValueError(
                f"active adapters {active}: MixLoRA runs one at a time, use set_adapter(name), or "
                "adapter_names=[...] with one name per row"
            )
        return self._run(hidden_states, [(active[0], len(hidden_states))])

    def _run(self, hidden_states: Tensor, rows: list[tuple[str, int]]) -> Tensor:
        """Consecutive rows through their adapters, given as (adapter name, number of rows)."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        row_length = len(tokens) // len(hidden_states)
        names = {
            self.configs[name].experts_implementation for name, _ in rows if name in self.configs
        }
        if len(names) > 1:
            raise ValueError(
                f"packed adapters have experts_implementation={sorted(names)}: expected one value"
            )
        plans, start = [], 0
        for name, num_rows in rows:
            stop = start + num_rows * row_length
            plans.append(self._plan(name, tokens[start:stop], row_length))
            start = stop
        if not names:
            return self.base_layer(hidden_states)
        run = IMPLEMENTATIONS[names.pop()]
        output = run(FrozenFfn(self.base_layer, self.layout), tokens, plans)
        return output.reshape(hidden_states.shape)

    def _plan(self, adapter_name: str, tokens: Tensor, row_length: int) -> ExpertPlan:
        """Route tokens (T, D) to the experts of an adapter, or to the frozen FFN without one."""
        if adapter_name not in self.configs:
            return ExpertPlan(len(tokens), {}, None)
        router: Any = self.lora_router[adapter_name]
        routing = router(tokens, row_length)
        self.context.collect(adapter_name, routing.router_logits, router.weight.requires_grad)
        dropout = self.configs[adapter_name].lora_dropout if self.training else 0.0
        return ExpertPlan(len(tokens), self.experts(adapter_name), routing, dropout)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: the experts that run depend on the token, so no single weight equals them.

        Raises:
            ValueError: Always.
        """
        raise ValueError("MixLoRA cannot be merged: the experts that run are chosen per token")


@torch.no_grad()
def reset_magnitudes(model: nn.Module, adapter_name: str) -> None:
    """Set an adapter's DoRA magnitudes to the norms of its adapted weights, in place.

    DoRA scales ``W + s B A`` to its magnitude, so from then on the adapter acts as LoRA. PEFT's
    DoRA layers are included; adapters and layers without magnitudes are left as they are.
    """
    for module in model.modules():
        if isinstance(module, MixLoraFfn):
            if adapter_name in module.configs:
                for each in module.experts(adapter_name).values():
                    if each.magnitude is not None:
                        fresh = new_magnitude(each.linear, each.lora_A, each.lora_B, each.scaling)
                        each.magnitude.copy_(fresh)
        elif isinstance(module, LoraLayer) and adapter_name in module.lora_magnitude_vector:
            magnitude: Any = module.lora_magnitude_vector[adapter_name]
            parts: Any = module.lora_A, module.lora_B
            A, B = (part[adapter_name].weight for part in parts)
            scaling, frozen = module.scaling[adapter_name], module.get_base_layer()
            norms = DoraNorms().compute(frozen, A[None], B.T[None], scaling, training=True)
            magnitude.weight.copy_(norms[0])


def _new_lora(
    num_experts: int, rank: int, sizes: tuple[int, int], is_identity: bool, device: torch.device
) -> tuple[nn.Parameter, nn.Parameter]:
    """Freshly initialised float32 (lora_A (E, r, I), lora_B (E, r, O)) for sizes (I, O).

    Each expert is initialised as PEFT's LoRA is: A Kaiming-uniform, B zero, so that the adapter
    starts as the identity. With is_identity=False B is drawn as well.
    """
    in_features, out_features = sizes
    lora_A = torch.empty(num_experts, rank, in_features, dtype=torch.float32, device=device)
    lora_B = torch.zeros(num_experts, rank, out_features, dtype=torch.float32, device=device)
    for expert in range(num_experts):
        nn.init.kaiming_uniform_(lora_A[expert], a=5**0.5)
        if not is_identity:
            nn.init.kaiming_uniform_(lora_B[expert].T, a=5**0.5)
    return nn.Parameter(lora_A), nn.Parameter(lora_B)


def _new_router(hidden_size: int, config: MixLoraConfig) -> Router:
    sizes = hidden_size, config.num_experts
    init_std: Any = config.router_init_std  # a number, once the configuration is made
    if config.routing == "top_p":
        return TopPRouter(*sizes, config.top_p, init_std)
    if config.routing == "switch":
        return SwitchRouter(*sizes, config.expert_capacity, init_std)
    return TopKRouter(*sizes, config.top_k, init_std)
