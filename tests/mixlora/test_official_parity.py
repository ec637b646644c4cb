"""Logits equal to the authors' package (PyPI mixlora==0.2.3) given the same weights.

The package has the same import name as ours, so it is installed into a folder of its own and run in
another process, on adapter files in its format.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixlora import authors_format

from .models import FAMILY_CONFIGS, make_model, relative_error
from .test_authors_format import write_adapter
from .test_families import IDS, adapted, logits

pytestmark = pytest.mark.network

ROOT = Path(__file__).resolve().parents[2]
TINY_BASE = ROOT / "tasks" / "miniature" / "model"

#: Lines 4 to 8 are those of their README.
OFFICIAL = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from mixlora import MixLoraModelForCausalLM
from transformers import AutoTokenizer

model, config = MixLoraModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(config.base_model_name_or_path)
assert config.base_model_name_or_path == sys.argv[5] and len(tokenizer) > 100
with torch.no_grad():
    torch.save(model.eval()(input_ids=torch.load(sys.argv[3])).logits, sys.argv[4])
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, str(folder), "mixlora==0.2.3"], check=True)
    return folder


def save_base(family: str, folder: Path) -> None:
    make_model(family).save_pretrained(folder)
    for file in TINY_BASE.glob("tokenizer*"):
        shutil.copy(file, folder)


def run_official(package: Path, folder: Path, base: Path) -> torch.Tensor:
    """The logits of the package at a place, with the adapter in a folder."""
    torch.save(IDS, folder / "ids.pt")
    command = [sys.executable, "-c", OFFICIAL, str(package), str(folder)]
    command += [str(folder / "ids.pt"), str(folder / "logits.pt"), str(base)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return torch.load(folder / "logits.pt", weights_only=True)


@pytest.mark.parametrize("family", authors_format.MODEL_TYPES)
def test_the_package_runs_what_we_write(family: str, package: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_base(family, base)
    model = adapted(family, lora_dropout=0.1)
    model.peft_config["default"].base_model_name_or_path = str(base)
    authors_format.save(model, tmp_path / "adapter")
    official = run_official(package, tmp_path / "adapter", base)
    assert relative_error(official, logits(model)) < 1e-4
    assert relative_error(official, logits(make_model(family))) > 1e-2


@pytest.mark.parametrize("use_dora", [False, True], ids=["mixlora", "mixdora"])
def test_we_run_what_the_package_runs(use_dora: bool, package: Path, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_base("llama", base)
    settings = {"base_model_name_or_path": str(base), "use_dora": use_dora, "lora_dropout": 1e-12}
    write_adapter(adapter, **settings)
    official = run_official(package, adapter, base)
    assert relative_error(official, logits(authors_format.load(adapter))) < 1e-4
    # Code written for theirs, in a process that has ours alone.
    ours = run_official(ROOT, adapter, base)
    assert relative_error(ours, official) < 1e-4
    assert relative_error(official, logits(make_model())) > 1e-2


def test_the_families_are_ours_too() -> None:
    assert set(authors_format.MODEL_TYPES) < set(FAMILY_CONFIGS)
