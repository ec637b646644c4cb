"""What the code must not do: run text as code, read pickles, reach the network.

Rules of ruff find most of it: `pyproject.toml` selects them and `make lint` runs them. `findings`
looks for the rest. Both are checked on planted lines. What a run does to the machine is tested in
`test_containment.py`.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .audit_pins import audit

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("mixlora", "baselines", "tasks", "harness", "examples")
SOURCES = sorted(
    [ROOT / "reproduce.py", *(f for part in PARTS for f in (ROOT / part).rglob("*.py"))]
)

#: Arguments that a call must have, as they are written.
REQUIRED_ARGUMENTS = {"torch.load": ("weights_only", "True")}
#: Arguments that no call may have, but with this value.
RISKY_ARGUMENTS = {"shell": "False", "trust_remote_code": "False", "allow_pickle": "False"}

REFUSED_BY_RUFF = [
    "eval('1')",
    "import builtins\nbuiltins.exec('1')",
    "import os\nos.system('ls')",
    "from os import system as run\nrun('ls')",
    "import os as o\no.execv('/bin/ls', [])",
    "import subprocess\nsubprocess.run(['ls'], shell=True)",
    "import subprocess\nsubprocess.run(command, shell=flag)",
    "import subprocess\nsubprocess.run(f'ls {folder}')",
    "import subprocess\nsubprocess.getoutput('ls')",
    "from subprocess import Popen\nPopen('ls ' + folder)",
    "import pickle\npickle.loads(data)",
    "from pickle import load\nload(file)",
    "import marshal",
    "import dill",
    "from joblib import load",
    "import yaml\nyaml.load(text)",
    "import yaml\nyaml.load(text, Loader=yaml.Loader)",
    "import yaml\nyaml.unsafe_load(text)",
    "import torch\ntorch.hub.load(name)",
    "import pandas as pd\npd.read_pickle(path)",
    "import tarfile\ntarfile.open(path).extractall(folder)",
    "import shutil\nshutil.unpack_archive(path)",
    "import tempfile\ntempfile.mktemp()",
    "import socket",
    "import urllib.request",
    "from urllib import request",
    "import requests",
    "def f():\n    from http.client import HTTPConnection",
    "from jinja2 import Environment\nEnvironment(loader=x)",
    "assert x",
    "try:\n    x()\nexcept:\n    y()",
    "try:\n    x()\nexcept OSError:\n    pass",
]
REFUSED_HERE = [
    "compile('1', '', 'eval')",
    "__import__('os')",
    "import builtins\nbuiltins.compile('1')",
    "import torch\ntorch.load(path)",
    "import torch\ntorch.load(path, weights_only=False)",
    "from torch import load\nload(path)",
    "import subprocess\nsubprocess.run(command, shell=flag)",
    "import transformers\ntransformers.AutoConfig.from_pretrained(x, trust_remote_code=True)",
    "options = {'trust_remote_code': wanted}",
    "from transformers import AutoModelForCausalLM as A\nA.from_pretrained(x)",
    "import numpy as np\nnp.load(path, allow_pickle=True)",
]
ALLOWED = [
    "model.eval()\nre.compile('a')",
    "import torch\ntorch.load(path, weights_only=True)",
    "import numpy as np\nnp.load(path)",
    "from urllib.parse import quote",
    "from jinja2 import Environment\nEnvironment(autoescape=True)",
    "options = {'trust_remote_code': False}",
    "try:\n    x()\nexcept OSError:\n    raise",
]


def findings(source: str) -> list[str]:
    """What a module does that it must not and that ruff does not see, as "line: what"."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += _in_call(node, _full_name(node.func, names))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant):
                    found += _risky(node.lineno, str(key.value), value)
    return [f"{line}: {what}" for line, what in found]


def _in_call(node: ast.Call, full: str) -> Iterator[tuple[int, str]]:
    if full.removeprefix("builtins.") in ("compile", "__import__"):
        yield node.lineno, f"calls {full}"
    arguments = {each.arg: ast.unparse(each.value) for each in node.keywords}
    if full in REQUIRED_ARGUMENTS:
        name, value = REQUIRED_ARGUMENTS[full]
        if arguments.get(name) != value:
            yield node.lineno, f"calls {full} without {name}={value}"
    loads_model = full.startswith("transformers.AutoModel") and full.endswith(".from_pretrained")
    if loads_model and arguments.get("use_safetensors") != "True":
        yield node.lineno, "may read pickled weights: use_safetensors=True is missing"
    for keyword in node.keywords:
        yield from _risky(node.lineno, str(keyword.arg), keyword.value)


def _risky(line: int, name: str, value: ast.expr) -> Iterator[tuple[int, str]]:
    if name in RISKY_ARGUMENTS and ast.unparse(value) != RISKY_ARGUMENTS[name]:
        yield line, f"{name}={ast.unparse(value)}"


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The name that each import binds in the module, and the full name of what it is bound to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]  # `import a.b` binds a
                yield (alias.asname, alias.name) if alias.asname else (first, first)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _full_name(node: ast.expr, names: dict[str, str]) -> str:
    """The full name of a dotted expression, "numpy.load" for `np.load`.

    It begins with a dot where the expression begins with something else than a name.
    """
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def test_the_code_does_none_of_it() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{finding}"
        for file in SOURCES
        for finding in findings(file.read_text(encoding="utf-8"))
        # A copy of the example loads what its user names there; here it names a model of ours.
        if file.parent.name != "examples" or "use_safetensors" not in finding
    ]
    assert len(SOURCES) > 100
    assert found == []


@pytest.mark.parametrize("planted", REFUSED_HERE)
def test_planted_lines_are_found(planted: str) -> None:
    assert len(findings(planted)) >= 1


@pytest.mark.parametrize("allowed", ALLOWED)
def test_what_is_allowed_is_not_found(allowed: str) -> None:
    assert findings(allowed) == []


def test_ruff_refuses_planted_lines_and_no_others(tmp_path: Path) -> None:
    for number, code in enumerate([*REFUSED_BY_RUFF, *ALLOWED]):
        (tmp_path / f"{number}.py").write_text(f'"""A module."""\n\n{code}\n')
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json"]
    result = subprocess.run(
        [*command, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    refused = {
        int(Path(found["filename"]).stem)
        for found in json.loads(result.stdout)
        if re.fullmatch(r"S\d+|TID251|E722", found["code"])
    }
    assert refused == set(range(len(REFUSED_BY_RUFF)))


@pytest.fixture
def pip_audit(tmp_path: Path) -> Callable[[str], tuple[int, str]]:
    """`audit_pins.audit` with a program in pip-audit's place, given its code."""

    def run(code: str) -> tuple[int, str]:
        program = tmp_path / "program.py"
        program.write_text(code)
        return audit((sys.executable, str(program)))

    return run


def answer(*pins: dict[str, Any]) -> str:
    return f"print({json.dumps({'dependencies': pins})!r})"


SOUND = {"name": "a", "version": "1", "vulns": []}
FLAWED = {"name": "b", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (answer(SOUND), 0, "1 pins audited, no known vulnerability"),
        (answer(SOUND, UNKNOWN), 0, "1 pins audited, .*; unknown to the service: c"),
        (answer(SOUND, FLAWED, UNKNOWN) + "\nraise SystemExit(1)", 1, "b 2: X-1, fixed in 3"),
        (answer(UNKNOWN), 0, "pins not audited: .* knows none of the 1"),
        ("raise ConnectionError('no route')", 0, "pins not audited: .*no route"),
    ],
)
def test_only_a_vulnerability_fails_the_audit_of_the_pins(
    code: str, status: int, said: str, pip_audit: Callable[[str], tuple[int, str]]
) -> None:
    found = pip_audit(code)
    assert found[0] == status
    assert len(found[1].splitlines()) == 1
    assert re.search(said, found[1])
