"""Settings are checked when made, and survive a round trip through a file."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig

from mixlora import MixLoraConfig


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("r", 0, "at least 1"),
        ("r", 2.5, "whole number"),
        ("r", 2**31, "at most 65536"),
        ("r", True, "whole number"),
        ("num_experts", 0, "at least 1"),
        ("top_k", 0, "at least 1"),
        ("top_k", 9, r"at most num_experts \(8\)"),
        ("lora_alpha", 0, "above 0"),
        ("lora_alpha", float("inf"), "finite"),
        ("lora_dropout", 1.0, "below 1"),
        ("lora_dropout", -0.1, "at least 0"),
        ("router_aux_loss_coef", -1e-3, "at least 0"),
        ("router_aux_loss_coef", "0.1", "finite number"),
        ("router_init_std", float("nan"), "finite"),
        ("use_dora", "yes", "True or False"),
        ("forward", "fast", "vanilla, shared, fused"),
        ("experts_implementation", "fused", "auto, naive, vanilla, shared, masked, grouped"),
        ("routing", "nucleus", "top_k, top_p, switch"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "at most 1"),
        ("expert_capacity", 0, "at least 1"),
        ("router_z_loss_coef", -0.1, "at least 0"),
        ("target_modules", "q_proj", "list of names"),
        ("target_modules", [], "at least one"),
        ("target_modules", [1], "list of names"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"{field}=.*{allowed}") as error:
        MixLoraConfig(**{field: value})
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="num_expert"):
        MixLoraConfig(num_expert=4)  # type: ignore[call-arg]


@given(
    experts=st.integers(1, 64),
    rank=st.integers(1, 256),
    alpha=st.floats(0.1, 1e3),
    data=st.data(),
)
def test_round_trip_through_json(
    tmp_path_factory: Any, experts: int, rank: int, alpha: float, data: Any
) -> None:
    config = MixLoraConfig(
        r=rank,
        lora_alpha=alpha,
        num_experts=experts,
        top_k=data.draw(st.integers(1, experts)),
        use_dora=data.draw(st.booleans()),
        routing=data.draw(st.sampled_from(["top_k", "top_p", "switch"])),
        top_p=data.draw(st.floats(0.01, 1.0)),
        expert_capacity=data.draw(st.integers(1, 100)),
        target_modules=["up_proj", "q_proj"],
    )
    directory: Path = tmp_path_factory.mktemp("config")
    config.save_pretrained(directory)
    loaded = PeftConfig.from_pretrained(directory)
    assert type(loaded) is MixLoraConfig
    assert loaded.to_dict() | {"target_modules": None} == config.to_dict() | {
        "target_modules": None
    }
    assert set(loaded.target_modules or ()) == {"up_proj", "q_proj"}


def test_the_routers_initialisation_is_the_released_codes() -> None:
    stds = [MixLoraConfig(routing=r).router_init_std for r in ("top_k", "top_p", "switch")]
    assert stds == [0.02, 0.02, 1.0]
    assert MixLoraConfig(routing="switch", router_init_std=0.5).router_init_std == 0.5


def test_a_config_saved_before_there_was_a_choice_is_top_k(tmp_path: Path) -> None:
    MixLoraConfig().save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text())
    added = ("routing", "top_p", "expert_capacity", "router_z_loss_coef")
    file.write_text(json.dumps({k: v for k, v in settings.items() if k not in added}))
    config: Any = PeftConfig.from_pretrained(tmp_path)
    assert (len(settings), config.routing) == (len(json.loads(file.read_text())) + 4, "top_k")


@pytest.mark.parametrize(
    ("former", "implementation"), [("vanilla", "vanilla"), ("shared", "shared"), ("fused", "auto")]
)
def test_the_former_name_of_the_implementation_is_read_and_not_written(
    former: str, implementation: str, tmp_path: Path
) -> None:
    config = MixLoraConfig(forward=former)
    assert config.experts_implementation == implementation
    config.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text())
    assert settings.pop("experts_implementation") == implementation
    assert "forward" not in settings
    file.write_text(json.dumps(settings | {"forward": former}))
    loaded: Any = PeftConfig.from_pretrained(tmp_path)
    assert loaded.experts_implementation == implementation


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="forward='vanilla': expected it alone"):
        MixLoraConfig(forward="vanilla", experts_implementation="shared")
    with pytest.raises(ValueError, match=r"experts_implementation=.grouped.*use_dora=True"):
        MixLoraConfig(experts_implementation="grouped", use_dora=True)


def test_copies() -> None:
    config = MixLoraConfig(r=3)
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config and twin.peft_type.value == "MIXLORA"
