"""From an arm of a study file to PEFT's config. PEFT is loaded inside the functions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from harness.cells.methods import BASE, get_method
from tasks.names import choose

from .file import Arm

if TYPE_CHECKING:
    from peft import PeftConfig

#: Fields of every config that the harness sets, or that say where a saved adapter came from.
_NOT_SETTINGS = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
    *("revision", "task_type"),
}


def peft_config(
    arm: Arm, target_modules: list[str], preset_settings: dict[str, Any]
) -> PeftConfig | None:
    """The config for ``get_peft_model``; None for the untuned base.

    Args:
        arm: One of a study file.
        target_modules: Names of the modules that every arm adapts unless its settings name others.
            A method of PEFT that has no target modules, such as prompt tuning, is given none.
        preset_settings: The preset's settings of the arm's method, which the arm changes; empty for
            a method of PEFT.

    Raises:
        ValueError: The method of PEFT or a setting is unknown (the message suggests near names), or
            a value is not allowed.
    """
    if arm.method == BASE:
        if arm.settings:
            raise ValueError(f"settings: the untuned {BASE} has none")
        return None
    if arm.method is not None:
        settings = dict(preset_settings)
        kind = type(get_method(arm.method).config(target_modules, settings))
    else:
        kind, settings = _peft_class(arm.peft_type or ""), {}
    hints = get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if f.init and f.name not in _NOT_SETTINGS]
    for name, value in arm.settings.items():
        _check_setting(choose(f"setting of {kind.__name__}", name, known), value, hints[name])
    settings |= arm.settings
    targets = settings.pop("target_modules", target_modules)
    try:
        if arm.method is not None:
            return get_method(arm.method).config(targets, settings)
        given = {"target_modules": targets} if "target_modules" in known else {}
        return kind(task_type="CAUSAL_LM", **given, **settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings: {error}") from error


def _peft_class(peft_type: str) -> type[PeftConfig]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    # MixLoRA registers its own name there, and is a method of this project.
    classes = {str(name.value): kind for name, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    classes.pop("MIXLORA", None)
    kind: type[PeftConfig] = classes[choose("peft_type", peft_type, classes)]
    return kind


def _check_setting(name: str, value: Any, hint: Any) -> None:
    """Checks a value's type, which PEFT's own configs do not.

    Raises:
        ValueError: It is not of the field's type.
    """
    adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].replace("Input should be", "expected")
        raise ValueError(f"settings.{name}: is {value!r}: {problem}") from error
