"""Logits equal to the authors' package (PyPI mixlora==0.2.3) given the same weights.

The package has our import name, so it is installed into a folder of its own and run in another
process, on adapter files that this test writes in its format.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .models import FAMILY_CONFIGS, make_model, relative_error
from .test_families import IDS, adapted, logits

pytestmark = pytest.mark.network

#: The families that the package knows.
FAMILIES = ("llama", "gemma", "gemma2", "qwen2", "mistral", "phi", "phi3")

OFFICIAL = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from mixlora import MixLoraModelForCausalLM
model, _ = MixLoraModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32)
with torch.no_grad():
    torch.save(model.eval()(input_ids=torch.load(sys.argv[3])).logits, sys.argv[4])
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, str(folder), "mixlora==0.2.3"], check=True)
    return folder


def export(model: Any, base: Path, folder: Path) -> None:
    """Write our adapter as the package's adapter_config.json and adapter_model.bin."""
    config = model.peft_config["default"]
    weights: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(model.base_model.model.model.layers):
        prefix = f"mixlora.layers.{index}"
        for name, module in layer.self_attn.named_children():
            if name in config.attention_targets:
                key = f"{prefix}.self_attn.{name}"
                weights[f"{key}.lora_A.weight"] = module.lora_A.default.weight.data
                weights[f"{key}.lora_B.weight"] = module.lora_B.default.weight.data
        block = layer.mlp
        weights[f"{prefix}.mlp.moe_gate.weight"] = block.lora_router.default.weight.data
        for name in block.lora_A.default:
            for expert in range(config.num_experts):
                key = f"{prefix}.mlp.{name}.experts.{expert}"
                weights[f"{key}.lora_A.weight"] = block.lora_A.default[name].data[expert].clone()
                weights[f"{key}.lora_B.weight"] = (
                    block.lora_B.default[name].data[expert].T.contiguous()
                )
    folder.mkdir()
    torch.save(weights, folder / "adapter_model.bin")
    base_config = model.base_model.model.config
    activation = getattr(base_config, "hidden_activation", None) or base_config.hidden_act
    settings = {
        "base_model_name_or_path": str(base),
        "task_type": "CAUSAL_LM",
        "peft_type": "MIXLORA",
        "bias": "none",
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        # The package refuses 0, and its experts' dropout stays on in eval mode.
        "lora_dropout": 1e-12,
        "target_modules": sorted(config.target_modules),
        "routing_strategy": "mixlora",
        "num_experts": config.num_experts,
        "top_k": config.top_k,
        "act_fn": activation,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_official_package(family: str, package: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_model(family).save_pretrained(base)
    model = adapted(family, lora_dropout=0.0)
    export(model, base, tmp_path / "adapter")
    torch.save(IDS, tmp_path / "ids.pt")
    command = [sys.executable, "-c", OFFICIAL, str(package), str(tmp_path / "adapter")]
    command += [str(tmp_path / "ids.pt"), str(tmp_path / "logits.pt")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    official = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert relative_error(official, logits(model)) < 1e-4
    assert relative_error(official, logits(make_model(family))) > 1e-2


def test_the_families_are_ours_too() -> None:
    assert set(FAMILIES) < set(FAMILY_CONFIGS)
