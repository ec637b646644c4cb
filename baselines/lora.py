"""LoRA on PEFT: the paper's main baseline, with r = 80 there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import AdapterSettings, Method

if TYPE_CHECKING:
    from peft import PeftConfig


def lora_config(target_modules: list[str], settings: AdapterSettings, use_dora: bool) -> PeftConfig:
    """PEFT's own config for LoRA, or for DoRA if use_dora is set."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", target_modules=target_modules, use_dora=use_dora, **settings
    )


METHOD = Method("lora", "LoRA", lambda targets, settings: lora_config(targets, settings, False))
