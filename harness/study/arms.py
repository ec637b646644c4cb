"""From an arm of a study file to the cells that it is run as, and checks of its settings."""

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


def check_arm(arm: Arm, preset_settings: dict[str, Any]) -> PeftConfig | None:
    """Checks an arm's settings against its method's config, which loads PEFT.

    Args:
        arm: One of a study file.
        preset_settings: The preset's settings of the arm's method, which the arm changes; empty for
            a method of PEFT.

    Returns:
        A config with these settings; None for the untuned base.

    Raises:
        ValueError: The method of PEFT or a setting is unknown (the message suggests near names), or
            a value is not allowed.
    """
    if arm.name == BASE:
        if arm.settings:
            raise ValueError(f"settings: the untuned {BASE} has none")
        return None
    # Imported here, because it loads torch. The model is not known yet: any of its targets will do.
    from mixlora.families import FAMILIES

    families = FAMILIES.values()
    every_target = sorted(
        {name for f in families for name in (*f.attention, *f.layout.projections)}
    )
    method = get_method(arm.name)
    kind = type(method.config(every_target, dict(preset_settings)))
    hints = get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if f.init and f.name not in _NOT_SETTINGS]
    for name, value in arm.settings.items():
        _check_setting(choose(f"setting of {kind.__name__}", name, known), value, hints[name])
    settings = preset_settings | arm.settings
    targets = settings.pop("target_modules", every_target)
    try:
        return method.config(targets, settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings: {error}") from error


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
