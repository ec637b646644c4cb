"""Every command and example of the README is true: it parses, exists or runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.command_line import parse

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: Ways to start the command line; torchrun and accelerate start it several times.
REPRODUCE = (
    "python reproduce.py",
    "torchrun --nproc_per_node 8 reproduce.py",
    "accelerate launch --multi_gpu --num_processes 8 --mixed_precision no reproduce.py",
)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """Arguments of every command line of the README's shell blocks that runs this program."""
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    size = len(shlex.split(program))
    return [line[size:] for line in words if line[:size] == shlex.split(program)]


def test_there_are_commands_to_check() -> None:
    assert len(commands("python reproduce.py")) >= 4
    assert all(commands(program) for program in REPRODUCE)
    assert ["reproduce"] in commands("make") and ["test"] in commands("make")


@pytest.mark.parametrize(
    "arguments", [each for program in REPRODUCE for each in commands(program)], ids=" ".join
)
def test_reproduce_commands_parse(arguments: list[str]) -> None:
    table, options = parse(arguments)
    assert len(table.plan(options).listing()) > 1


@pytest.mark.parametrize("arguments", commands("make"), ids=" ".join)
def test_make_targets_exist(arguments: list[str]) -> None:
    result = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_examples_run(code: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "trainable params" in result.stdout


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_named_files_exist(text: str) -> None:
    named = set(re.findall(r"`((?:[\w.]+/)+[\w.]*\.(?:py|csv|md|txt|json))`", text))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
