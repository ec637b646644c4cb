"""What the code must not do, seen on its source: run text as code, read pickles, reach the network.

The check is itself checked on planted lines. What a run does is in `test_containment.py`.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .audit_pins import audit
from .test_architecture import PRODUCT, ROOT, name_of

SOURCES = [*PRODUCT, *sorted((ROOT / "examples").rglob("*.py"))]

#: Modules that read objects by running code, or that reach the network; never needed here.
FORBIDDEN_MODULES = {
    *("marshal", "shelve", "dill", "cloudpickle", "joblib"),
    *("socket", "requests", "httpx", "aiohttp", "urllib.request", "http.client", "ftplib"),
    *("smtplib", "webbrowser"),
}
FORBIDDEN_CALLS = {
    *(f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__")),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "torch.hub.load"),
    *("tempfile.mktemp", "shutil.unpack_archive"),
}
#: Arguments that a call must have, as they are written.
REQUIRED_ARGUMENTS = {
    "torch.load": ("weights_only", "True"),
    "yaml.load": ("Loader", "yaml.SafeLoader"),
    "jinja2.Environment": ("autoescape", "True"),
}
#: Arguments that no call may have, but with this value.
RISKY_ARGUMENTS = {"shell": "False", "trust_remote_code": "False", "allow_pickle": "False"}


def findings(source: str) -> list[str]:
    """What a module does that it must not, as "line: what"."""
    return [f"{line}: {what}" for line, what in _findings(ast.parse(source))]


def _findings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for full in dict(_imported(node)).values():
                if any(f"{full}.".startswith(f"{module}.") for module in FORBIDDEN_MODULES):
                    yield node.lineno, f"imports {full}"
        elif isinstance(node, ast.Attribute | ast.Name):
            full = _full_name(node, names)
            # The one exception that torch's safe reader raises is named there.
            if full.startswith("pickle.") and full != "pickle.UnpicklingError":
                yield node.lineno, full
        elif isinstance(node, ast.Call):
            yield from _of_call(node, _full_name(node.func, names))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in RISKY_ARGUMENTS:
                    yield from _risky(node.lineno, str(key.value), value)


def _of_call(node: ast.Call, full: str) -> Iterator[tuple[int, str]]:
    if full in FORBIDDEN_CALLS or full.startswith(("os.exec", "os.spawn")):
        yield node.lineno, f"calls {full}"
    if full.endswith(".extractall"):
        yield node.lineno, "unpacks an archive to wherever it says"
    arguments = {each.arg: ast.unparse(each.value) for each in node.keywords}
    if full in REQUIRED_ARGUMENTS:
        name, value = REQUIRED_ARGUMENTS[full]
        if arguments.get(name) != value:
            yield node.lineno, f"calls {full} without {name}={value}"
    loads_model = full.startswith("transformers.AutoModel") and full.endswith(".from_pretrained")
    if loads_model and arguments.get("use_safetensors") != "True":
        yield node.lineno, "may read pickled weights: use_safetensors=True is missing"
    texts = ast.JoinedStr | ast.Constant | ast.BinOp
    if full.startswith("subprocess.") and node.args and isinstance(node.args[0], texts):
        yield node.lineno, "runs a command that is one text"
    for keyword in node.keywords:
        if keyword.arg in RISKY_ARGUMENTS:
            yield from _risky(node.lineno, keyword.arg, keyword.value)


def _risky(line: int, name: str, value: ast.expr) -> Iterator[tuple[int, str]]:
    if ast.unparse(value) != RISKY_ARGUMENTS[name]:
        yield line, f"{name}={ast.unparse(value)}"


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Local name -> full name, of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import a.b` binds a.
                bound = alias.asname or alias.name.partition(".")[0]
                yield bound, alias.name if alias.asname or "." not in alias.name else bound
                if "." in alias.name and not alias.asname:
                    yield alias.name, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _full_name(node: ast.expr, names: dict[str, str]) -> str:
    """Of a chain of names, "numpy.load" for ``np.load``; "" before what is computed."""
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    if isinstance(node, ast.Name):
        own = f"builtins.{node.id}" if hasattr(builtins, node.id) else node.id
        return names.get(node.id, own)
    return ""


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_nothing_of_it_is_in_the_code(file: Path) -> None:
    found = findings(file.read_text(encoding="utf-8"))
    # A copy of the example loads what its user names there, a directory of this project here.
    if file.parent.name == "examples":
        found = [each for each in found if "use_safetensors" not in each]
    assert found == []


@pytest.mark.parametrize(
    "planted",
    [
        "eval('1')",
        "import builtins\nbuiltins.exec('1')",
        "compile('1', '', 'eval')",
        "__import__('os')",
        "import os\nos.system('ls')",
        "from os import system as run\nrun('ls')",
        "import os as o\no.execv('/bin/ls', [])",
        "import subprocess\nsubprocess.run(['ls'], shell=True)",
        "import subprocess\nsubprocess.run(command, shell=flag)",
        "import subprocess\nsubprocess.run(f'ls {folder}')",
        "from subprocess import Popen\nPopen('ls ' + folder)",
        "import pickle\npickle.loads(data)",
        "from pickle import load\nload(file)",
        "import dill",
        "from joblib import load",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "from torch import load\nload(path)",
        "import transformers\ntransformers.AutoConfig.from_pretrained(x, trust_remote_code=True)",
        "options = {'trust_remote_code': wanted}",
        "from transformers import AutoModelForCausalLM as A\nA.from_pretrained(x)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import pandas as pd\npd.read_pickle(path)",
        "import tarfile\ntarfile.open(path).extractall(folder)",
        "import tempfile\ntempfile.mktemp()",
        "import urllib.request",
        "from urllib import request",
        "import requests",
        "def f():\n    from http.client import HTTPConnection",
        "from jinja2 import Environment\nEnvironment(loader=x)",
    ],
)
def test_planted_lines_are_found(planted: str) -> None:
    assert len(findings(planted)) >= 1


@pytest.mark.parametrize(
    "fine",
    [
        "model.eval()\nre.compile('a')",
        "import subprocess\nsubprocess.run(['git', 'status'], check=True)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import pickle\ntry:\n    x()\nexcept pickle.UnpicklingError:\n    raise",
        "import numpy as np\nnp.load(path)",
        "from urllib.parse import quote",
        "from jinja2 import Environment\nEnvironment(autoescape=True)",
    ],
)
def test_what_is_fine_is_not(fine: str) -> None:
    assert findings(fine) == []


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
