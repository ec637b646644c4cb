"""Arms as PEFT's configs: the settings given arrive, and mistakes in them are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, VeraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from harness.cells.presets import get_preset
from harness.models.weights import TINY_BASE
from harness.run.cell import add_adapter
from harness.study.arms import check_arm
from harness.study.file import Arm, read_study
from mixlora import MixLoraConfig

STUDIES = Path(__file__).parents[3] / "studies"


def made(preset: dict[str, Any] | None = None, **keys: Any) -> Any:
    return check_arm(Arm(title="an arm", **keys), preset or {})


def test_a_method_of_this_project_has_the_presets_settings_and_the_changes() -> None:
    config = made({"r": 4, "top_k": 2, "num_experts": 8}, method="mixlora", settings={"top_k": 8})
    assert isinstance(config, MixLoraConfig)
    assert (config.r, config.num_experts, config.top_k, config.use_dora) == (4, 8, 8, False)
    assert {"q_proj", "up_proj"} < config.target_modules
    assert made({"r": 4}, method="mixdora").use_dora


def test_a_method_of_peft_has_its_settings_and_the_same_targets() -> None:
    config = made(peft_type="VERA", settings={"r": 64})
    assert isinstance(config, VeraConfig)
    assert (config.r, config.task_type) == (64, "CAUSAL_LM")
    assert {"q_proj", "up_proj"} < config.target_modules
    config = made(peft_type="LORA", settings={"use_rslora": True, "target_modules": ["up_proj"]})
    assert isinstance(config, LoraConfig)
    assert config.use_rslora
    assert config.target_modules == {"up_proj"}


def test_a_method_without_targets_is_given_none() -> None:
    config = made(peft_type="LN_TUNING")
    assert isinstance(config, LNTuningConfig)


def test_the_base_has_no_config() -> None:
    assert made(method="base") is None
    with pytest.raises(ValueError, match="the untuned base has none"):
        made(method="base", settings={"r": 4})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_type": "VERAA"}, r"unknown peft_type 'VERAA' \(did you mean VERA"),
        ({"peft_type": "MIXLORA"}, r"unknown peft_type 'MIXLORA'"),
        (
            {"peft_type": "VERA", "settings": {"rank": 8}},
            r"unknown setting of VeraConfig 'rank'.*known: r, target_modules, ",
        ),
        (
            {"peft_type": "LORA", "settings": {"use_rslra": True}},
            r"unknown setting of LoraConfig 'use_rslra' \(did you mean use_rslora",
        ),
        ({"peft_type": "VERA", "settings": {"r": "many"}}, r"settings\.r: is 'many': expected a"),
        ({"peft_type": "PROMPT_TUNING"}, r"'PROMPT_TUNING' puts tokens of its own before the"),
        ({"method": "mixlora", "settings": {"top_k": 9}}, r"settings: top_k=9: expected a whole"),
        ({"method": "mixlora", "settings": {"topk": 2}}, r"setting of MixLoraConfig 'topk' \(did"),
        ({"method": "lora", "settings": {"task_type": "X"}}, r"unknown setting of LoraConfig"),
    ],
)
def test_a_mistake_is_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        made(**keys)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tiny-fair", "smollm2-fair"])
def test_all_arms_of_the_studies_can_be_made(name: str) -> None:
    study = read_study(STUDIES / f"{name}.toml").study
    adapters = get_preset(study.preset).adapters
    for key, arm in study.arms.items():
        config = check_arm(arm, adapters.get(arm.name, {}))
        assert (config is None) == (key == "base")


def test_parameters_of_the_arms_are_as_the_study_says() -> None:
    study = read_study(STUDIES / "tiny-fair.toml").study
    adapters = get_preset(study.preset).adapters
    trained = {}
    for key in ("lora", "lora-ffn", "mixlora", "mixlora-one-small"):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY_BASE))
            settings = adapters[study.arms[key].name] | study.arms[key].settings
            adapted = add_adapter(model, study.arms[key].name, settings)
        trained[key] = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained["lora-ffn"] == 215_040
    assert trained["mixlora"] == 217_088
    assert trained["lora"] == pytest.approx(trained["mixlora"], rel=0.06)
    assert trained["mixlora-one-small"] < trained["mixlora"] / 4
