"""What a fine-tuning method is to the harness: a name, a title and a PEFT config."""

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
        name: As in reported.csv ("lora").
        title: As printed in tables ("LoRA").
        config: ``config(target_modules, settings) -> PeftConfig`` for ``get_peft_model``. All
            methods are given the same target modules; settings hold the keys the method's config
            takes, an unknown one is a `TypeError`. PEFT is imported inside, so that a table can be
            rendered without loading torch.
    """

    name: str
    title: str
    config: Callable[[list[str], AdapterSettings], PeftConfig]
