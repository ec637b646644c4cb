"""`MixLoraModel`: PEFT's tuner for MixLoRA, which injects blocks and attention adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import EMBEDDING_LAYER_NAMES
from torch import Tensor, nn

from .checks import check_fit
from .config import MixLoraConfig
from .dora import LeanDoraLayer
from .families import FFN_MODULE, get_family, split_targets
from .layer import MixLoraFfn
from .losses import AuxiliaryLoss
from .packing import BASE, Packing, packed
from .quantised import prepare_quantised

#: What a `PeftModel` puts before the keys of the model that it wraps.
_WRAPPING = "base_model.model."
#: Ends of the keys under which PEFT saves resized embeddings.
_EMBEDDINGS = tuple(f"{name}.weight" for name in EMBEDDING_LAYER_NAMES)


class MixLoraModel(LoraModel):
    """The tuner behind ``get_peft_model(model, MixLoraConfig(...))``.

    It is a `LoraModel` because MixLoRA's attention adapters are PEFT's own LoRA (or DoRA) layers,
    with everything PEFT knows about quantised and sharded linear layers; only the FFN is ours.

    Attributes:
        context: `ForwardContext` that the blocks, the auxiliary loss and packed batches share.
    """

    prefix: str = "lora_"
    # Both the attention's LoraLayer and MixLoraFfn.
    tuner_layer_cls: Any = BaseTunerLayer

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.context = AuxiliaryLoss.install(model)
        for module in model.modules():
            if isinstance(module, MixLoraFfn):
                module.context = self.context
        prepare_quantised(model)

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Nothing to prepare (LoRA replicates layers here)."""

    def _prepare_adapter_config(
        self, peft_config: Any, model_config: dict[str, Any]
    ) -> MixLoraConfig:
        """Resolve target_modules with the projections that the model's family has.

        Raises:
            ValueError: Unknown family, unknown projection name, or no FFN projection targeted.
        """
        model_type = model_config.get("model_type", "")
        family = get_family(model_type)
        available = (*family.attention, *family.layout.projections)
        if peft_config.target_modules is None:
            peft_config.target_modules = set(available)
        unknown = sorted(set(peft_config.target_modules) - set(available))
        if unknown:
            raise ValueError(f"target_modules={unknown}: {model_type} has {', '.join(available)}")
        if not split_targets(peft_config.target_modules)[1]:
            raise ValueError(
                f"target_modules={sorted(peft_config.target_modules)}: expected at least one of "
                f"{', '.join(family.layout.projections)}; for attention alone use LoraConfig"
            )
        return peft_config

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Pack the batch while a forward with ``adapter_names`` runs; `PeftModel` enters this.

        Raises:
            ValueError: A name is not an adapter's.
        """
        adapter_names = kwargs.get("adapter_names")
        if adapter_names is None:
            yield
            return
        unknown = sorted(set(adapter_names) - {*self.peft_config, BASE})
        if unknown:
            known = ", ".join([*self.peft_config, BASE])
            raise ValueError(f"adapter_names has {', '.join(unknown)}: the model has {known}")
        # Beam search repeats each row.
        beams = kwargs.get("num_beams") or 1
        packing = Packing([name for name in adapter_names for _ in range(beams)])
        with packed(self.model, self.context, packing):
            yield

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool:
        parent, _, name = key.rpartition(".")
        # Attention lives beside the FFN, never inside it. The blocks' own submodules, which are
        # there once a first adapter is, are no targets.
        attention_targets, _ = split_targets(peft_config.target_modules)
        return name == FFN_MODULE or (
            name in attention_targets and FFN_MODULE not in parent.split(".")
        )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if target_name != FFN_MODULE:
            attention = _attention_config(peft_config)
            super()._create_and_replace(
                attention, adapter_name, target, target_name, parent, current_key
            )
            if attention.use_dora:
                magnitudes = getattr(parent, target_name).lora_magnitude_vector
                magnitudes[adapter_name] = LeanDoraLayer(magnitudes[adapter_name])
        elif isinstance(target, MixLoraFfn):
            target.update_layer(adapter_name, peft_config)
        else:
            block = MixLoraFfn(target, adapter_name, peft_config)
            if adapter_name not in self.active_adapters:
                block.requires_grad_(False)
            block.train(target.training)
            setattr(parent, target_name, block)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Refuse a checkpoint that does not fit; PEFT calls this before it loads one.

        PEFT passes over missing and unknown keys, and a part that was never loaded then runs, or is
        trained, as it was initialised.

        Raises:
            ValueError: A key is missing, unknown or has another shape.
        """
        own = get_peft_model_state_dict(model, None, adapter_name, save_embedding_layers=False)
        given = {
            key.removeprefix(_WRAPPING): value
            for key, value in state_dict.items()
            if not key.endswith(_EMBEDDINGS)
        }
        expected = {key.removeprefix(_WRAPPING): value for key, value in own.items()}
        check_fit(f"the state dict for adapter {adapter_name!r}", given, expected)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "MixLoRA cannot be merged: the experts that run are chosen per token; "
            "mixlora.export(model, DIR) writes a mixture of experts, unload() drops the adapter"
        )

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: experts and routers of different adapters have no weighted sum.

        Raises:
            ValueError: Always.
        """
        raise ValueError("MixLoRA adapters cannot be combined into a weighted adapter")


def _attention_config(config: MixLoraConfig) -> LoraConfig:
    """The attention projections' `LoraConfig`: same rank, scale, dropout and DoRA switch."""
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        use_dora=config.use_dora,
        init_lora_weights=config.init_lora_weights,
        target_modules=sorted(split_targets(config.target_modules)[0]),
        inference_mode=config.inference_mode,
    )
