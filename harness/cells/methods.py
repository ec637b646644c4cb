"""The methods a table compares: the untuned base, the baselines, and ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baselines import BASELINES, AdapterSettings, Method
from tasks.names import choose

if TYPE_CHECKING:
    from peft import PeftConfig

#: Name of the untuned model, which has no adapter.
BASE = "base"

#: The keys of `mixlora.config.FORWARDS`, repeated here because that module loads torch.
FORWARDS = ("vanilla", "shared", "fused")


def _mixlora_config(
    target_modules: list[str], settings: AdapterSettings, use_dora: bool
) -> PeftConfig:
    from mixlora.config import MixLoraConfig

    return MixLoraConfig(
        task_type="CAUSAL_LM", target_modules=target_modules, use_dora=use_dora, **settings
    )


_METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *BASELINES,
        Method("mixlora", "MixLoRA", lambda targets, s: _mixlora_config(targets, s, False)),
        Method("mixdora", "MixDoRA", lambda targets, s: _mixlora_config(targets, s, True)),
    )
}

#: Name of a method -> its title, in the order of the tables' rows.
METHOD_TITLES: dict[str, str] = {BASE: "base (untuned)"} | {
    name: method.title for name, method in _METHODS.items()
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: There is none; the message suggests near names.
    """
    return _METHODS[choose("method", name, _METHODS)]
