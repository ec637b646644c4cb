"""The methods MixLoRA is compared with, each one file that defines `METHOD`."""

from __future__ import annotations

from .base import AdapterSettings, Method
from .dora import METHOD as DORA
from .lora import METHOD as LORA

#: In the order of the paper's tables.
BASELINES: tuple[Method, ...] = (LORA, DORA)

__all__ = ["BASELINES", "AdapterSettings", "Method"]
