"""`MixLoraConfig`: made from any values and read from any file, it is right or says what is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixlora import MixLoraConfig

from .cases import cases, run
from .mutations import ODD, damaged, dumps, put_in_place

pytestmark = pytest.mark.long

#: Values that JSON cannot hold, beside those of `ODD`.
_PYTHON = st.one_of(
    ODD,
    st.floats(),
    st.sampled_from([10**400, -(10**5_000), float("nan"), float("inf"), 1j, b"r", (), object, {1}]),
    st.sampled_from([{"q_proj": False}, ("q_proj",), {"q_proj", "up_proj"}, ["q_proj", 3], [[]]]),
)


def whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def number(value: Any) -> bool:
    # A whole number that no float can hold is none.
    return type(value) in (int, float) and -(2**1024) < value < 2**1024


#: Field -> whether a value is allowed there, by the help of the field and the paper.
ALLOWED: dict[str, Any] = {
    "base_model_name_or_path": lambda v: v is None or type(v) is str,
    "revision": lambda v: v is None or type(v) is str,
    "r": lambda v: whole(v, 1) and v <= 65_536,
    "num_experts": lambda v: whole(v, 1) and v <= 65_536,
    "expert_capacity": lambda v: whole(v, 1),
    "lora_alpha": lambda v: number(v) and v > 0,
    "lora_dropout": lambda v: number(v) and 0 <= v < 1,
    "router_aux_loss_coef": lambda v: number(v) and v >= 0,
    "router_z_loss_coef": lambda v: number(v) and v >= 0,
    "router_init_std": lambda v: v is None or (number(v) and v >= 0),
    "top_p": lambda v: number(v) and 0 < v <= 1,
    "use_dora": lambda v: type(v) is bool,
    "aux_loss_over_padding": lambda v: type(v) is bool,
    "init_lora_weights": lambda v: type(v) is bool,
    "forward": lambda v: type(v) is str and v in ("vanilla", "shared", "fused"),
    "routing": lambda v: type(v) is str and v in ("top_k", "top_p", "switch"),
    "target_modules": lambda v: (
        v is None
        or (
            type(v) in (list, tuple, set)
            and len(v) > 0
            and all(type(name) is str and name for name in v)
        )
    ),
}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(MixLoraConfig)}


def wrong_in(settings: dict[str, Any]) -> set[str]:
    """The fields whose value is not allowed."""
    wrong = {name for name, value in settings.items() if not ALLOWED.get(name, bool)(value)}
    wrong -= {"top_k"}
    experts, top_k = (settings.get(n, _DEFAULTS[n]) for n in ("num_experts", "top_k"))
    if not whole(top_k, 1) or (whole(experts, 1) and top_k > experts):
        wrong.add("top_k")
    return wrong


@cases(quick=250, torture=2200)
@given(settings=st.dictionaries(st.sampled_from([*ALLOWED, "top_k"]), _PYTHON, max_size=4))
@example(settings={"lora_alpha": 10**400}).via("OverflowError")
@example(settings={"r": -(10**5_000)}).via("a message that Python would not write")
@example(settings={"num_experts": 2**31}).via("asked for more memory than there is")
@example(settings={"target_modules": 7}).via("TypeError")
@example(settings={"target_modules": {"q_proj": False}}).via("taken for a list of names")
@example(settings={"top_p": 1, "lora_alpha": 3, "router_init_std": 0, "num_experts": 2})
def test_a_config_has_allowed_values_or_is_refused(settings: dict[str, Any]) -> None:
    wrong = wrong_in(settings)
    ended = run("configs", lambda: MixLoraConfig(**settings))
    if wrong:
        assert ended.refusal.partition("=")[0] in wrong, ended
        return
    for name, value in settings.items():
        kept = getattr(ended.result, name)
        if name == "target_modules" and value is not None:
            assert kept == set(value)
        elif name != "router_init_std" or value is not None:
            assert kept == value and type(kept) is type(value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


@cases(quick=60, torture=600)
@given(data=st.data())
def test_a_config_file_gives_its_values_or_is_named(folder: Path, data: Any) -> None:
    values: dict[str, Any] = {
        "peft_type": "MIXLORA",
        "task_type": "CAUSAL_LM",
        "r": 3,
        "lora_alpha": 5.5,
        "num_experts": 4,
        "target_modules": ["q_proj", "up_proj"],
    }
    values["peft_type"] = data.draw(
        st.sampled_from(9 * ["MIXLORA"] + ["MIX\nLORA", "", 3, None, []])
    )
    name = data.draw(st.sampled_from([*ALLOWED, "top_k", "nothing"]))
    if name != "nothing":
        values[name] = data.draw(ODD)
    content = dumps(values)
    if data.draw(st.booleans()):
        content = data.draw(damaged(content))
    file = folder / "adapter_config.json"
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    file.unlink(missing_ok=True)
    readable = put_in_place(data.draw, file, content)
    ended = run("configs", lambda: MixLoraConfig.from_pretrained(str(folder)), names=[str(folder)])
    try:
        said = json.loads(content.decode()) if readable else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or said.get("peft_type", "MIXLORA") != "MIXLORA":
        assert ended.refusal
        return
    known = {key: said[key] for key in [*ALLOWED, "top_k"] if key in said}
    if wrong_in(known):
        assert ended.refusal
    elif ended.result is not None:
        for key, value in known.items():
            kept = getattr(ended.result, key)
            if value is not None:
                assert kept == (set(value) if key == "target_modules" else value)
