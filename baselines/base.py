"""`Method`: what the harness knows of a fine-tuning method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftConfig

#: Settings of an adapter by name, such as {"r": 80, "lora_alpha": 160}.
AdapterSettings = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One fine-tuning method.

    Attributes:
        name: identifier of the method in reported.csv and on the command line, for example "lora".
        title: name of the method in tables, for example "LoRA".
        config: function ``config(target_modules, settings) -> PeftConfig`` that makes the config
            for ``get_peft_model``. All methods are given the same target modules. The keys of
            settings are fields of the method's config; an unknown one is a `TypeError`. The
            function imports PEFT when it is called, so that a table can be rendered without torch.
    """

    name: str
    title: str
    config: Callable[[list[str], AdapterSettings], PeftConfig]
