"""The methods a table compares: the untuned base, the baselines, and ours."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

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
    """The method of that name: one of this project, or in capitals one of PEFT, such as "VERA".

    Raises:
        ValueError: There is none of this project; the message suggests near names. A method of PEFT
            is looked up when its config is made.
    """
    if name.isupper():
        return Method(name, name, partial(_peft_config, name))
    return _METHODS[choose("method", name, _METHODS)]


def _peft_config(
    peft_type: str, target_modules: list[str], settings: AdapterSettings
) -> PeftConfig:
    """The config of any of PEFT's methods; the targets are left out where it has none.

    Raises:
        ValueError: PEFT has no such method, or it is one that cannot be compared here.
    """
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known: dict[str, Any] = {str(t.value): c for t, c in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    # It is a method of this project.
    known.pop("MIXLORA", None)
    kind = known[choose("peft_type", peft_type, known)]
    if issubclass(kind, PromptLearningConfig):
        raise ValueError(
            f"peft_type {peft_type!r} puts tokens of its own before the prompt, and options are "
            "scored by their positions; expected a method that adapts modules"
        )
    fields = {field.name for field in dataclasses.fields(kind)}
    targets = {"target_modules": target_modules} if "target_modules" in fields else {}
    config: PeftConfig = kind(task_type="CAUSAL_LM", **targets, **settings)
    return config
