"""Every command, example and named file of the README and the documentation is true.

Commands of `sh` blocks parse, or name what exists. Blocks marked `python` are run, a page's blocks
one after the other as in a notebook; a `text` block right after one is what it prints.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.command_line import parse
from mixlora.export.__main__ import _parser as export_parser

pytestmark = pytest.mark.long

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for pattern in ("*.md", "docs/**/*.md", "results/*.md", "results/*/README.md")
    for path in sorted(ROOT.glob(pattern))
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: A block of Python and, right after it, what it prints.
EXAMPLE = re.compile(
    r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE
)
#: Programs that start reproduce.py once or several times.
LAUNCHERS = (
    ["python"],
    shlex.split("torchrun --nproc_per_node 8"),
    shlex.split("accelerate launch --multi_gpu --num_processes 8 --mixed_precision no"),
)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every line of every shell block."""
    for page, text in PAGES.items():
        for language, block in BLOCK.findall(text):
            if language == "sh":
                for line in block.splitlines():
                    if words := shlex.split(line, comments=True):
                        yield page, words


def by_launcher(words: list[str]) -> list[str] | None:
    """Arguments of reproduce.py if this is a command that starts it."""
    for launcher in LAUNCHERS:
        if words[: len(launcher) + 1] == [*launcher, "reproduce.py"]:
            return words[len(launcher) + 1 :]
    return None


def check_pip(words: list[str]) -> None:
    groups = [name for option, name in itertools.pairwise(words) if option == "--group"]
    assert set(groups) <= set(PYPROJECT["dependency-groups"])
    for extra in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
        assert set(extra.split(",")) <= set(PYPROJECT["project"]["optional-dependencies"])


def check_make(words: list[str]) -> None:
    result = subprocess.run(
        ["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]), words
    else:
        assert (ROOT / words[0]).is_file(), words


def check_files(words: list[str]) -> None:
    """The files among a program's arguments exist."""
    files = [word for word in words if re.fullmatch(r"[\w./-]+\.(py|yaml)|tests/\w+", word)]
    assert files and all((ROOT / file).exists() for file in files), words


def check_lm_eval(words: list[str]) -> None:
    options = [word for word in words if word.startswith("--")]
    assert options == ["--model", "--model_args", "--tasks", "--metadata"]
    tasks = words[words.index("--tasks") + 1].split(",")
    configs = ROOT / "mixlora" / "lm_eval" / "task_configs"
    assert all((configs / f"{name}.yaml").exists() for name in tasks if name.startswith("mixlora"))


def check_export(words: list[str]) -> None:
    export_parser().parse_args(words)


CHECKS = {
    "accelerate": check_files,
    "make": check_make,
    "mixlora-export": check_export,
    "mixlora-lm-eval": check_lm_eval,
    "pip": check_pip,
    "pytest": check_files,
    "python": check_python,
}
REPRODUCE = {shlex.join(words): words for _, words in commands() if by_launcher(words) is not None}
OTHERS = {shlex.join(words): words for _, words in commands() if by_launcher(words) is None}


def test_there_are_commands_to_check() -> None:
    assert len(REPRODUCE) >= 30
    assert {words[0] for words in REPRODUCE.values()} == {"python", "torchrun", "accelerate"}
    assert {words[0] for words in OTHERS.values()} == set(CHECKS)
    assert {"make reproduce", "make test"} <= set(OTHERS)


@pytest.mark.parametrize("words", REPRODUCE.values(), ids=REPRODUCE)
def test_reproduce_commands_parse(words: list[str]) -> None:
    arguments = by_launcher(words)
    assert arguments is not None
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            parse(arguments)
    else:
        table, options = parse(arguments)
        assert table.plan(options).listing()


@pytest.mark.parametrize("words", OTHERS.values(), ids=OTHERS)
def test_other_commands_name_what_exists(words: list[str]) -> None:
    CHECKS[words[0]](words[1:])


#: Runs the pages that it reads from standard input, each in a namespace of its own, and prints what
#: each of their blocks printed.
NOTEBOOK = """
import contextlib, io, json, sys, traceback

results = []
for page, blocks in json.load(sys.stdin):
    namespace = {"__name__": "__main__"}
    for block in blocks:
        printed, error = io.StringIO(), None
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(block, page, "exec"), namespace)
            except Exception:
                error = traceback.format_exc()
        results.append((page, printed.getvalue(), error))
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """(page, what was printed, error) of every Python block, in order; all in one process."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "tasks").symlink_to(ROOT / "tasks")
    pages = [(page, [code for code, _ in EXAMPLE.findall(text)]) for page, text in PAGES.items()]
    result = subprocess.run(
        [sys.executable, "-c", NOTEBOOK],
        cwd=folder,
        input=json.dumps(pages),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


EXAMPLES = [(page, text) for page, source in PAGES.items() for _, text in EXAMPLE.findall(source)]


@pytest.mark.parametrize(
    ("index", "page", "text"), [(index, *each) for index, each in enumerate(EXAMPLES)]
)
def test_python_examples_print_what_the_page_says(
    printed: Any, index: int, page: str, text: str
) -> None:
    ran, output, error = printed[index]
    assert ran == page
    assert error is None, error
    assert text, "a block of Python is followed by what it prints"
    assert output.strip() == text.strip()


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    named = set(re.findall(r"`((?:[\w.]+/)+[\w.]*\.(?:py|csv|md|txt|json|yaml))`", PAGES[page]))
    places = (ROOT, ROOT / "tests" / "mixlora")
    missing = [name for name in sorted(named) if not any((at / name).exists() for at in places)]
    assert [name for name in missing if not name.startswith("output/")] == []


def test_readme_is_short_and_names_the_other_package() -> None:
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 140
    install = readme[readme.index("pip install") : readme.index("## Use")]
    assert "0.2.3" in install and "pip uninstall mixlora" in install


def test_declared_versions_are_those_of_the_readme() -> None:
    needs = "\n".join(PYPROJECT["project"]["dependencies"])
    declared = dict(re.findall(r"^(torch|transformers|peft)>=([\d.]+)", needs, re.MULTILINE))
    assert len(declared) == 3
    for name, version in declared.items():
        assert re.search(rf"\b{name} from {re.escape(version)}\b", PAGES["README.md"]), name
