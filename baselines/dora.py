"""DoRA on PEFT: LoRA with the magnitude of each weight trained apart from its direction."""

from __future__ import annotations

from .base import Method
from .lora import lora_config

METHOD = Method("dora", "DoRA", lambda targets, settings: lora_config(targets, settings, True))
