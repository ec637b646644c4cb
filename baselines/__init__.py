"""The methods that MixLoRA is compared with; each is one file that defines `METHOD`."""

from __future__ import annotations

from .base import AdapterSettings, Method
from .dora import METHOD as DORA
from .lora import METHOD as LORA

#: The methods in the order of the paper's tables.
BASELINES: tuple[Method, ...] = (LORA, DORA)

__all__ = ["BASELINES", "AdapterSettings", "Method"]
