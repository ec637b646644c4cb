"""The project's own rules, checked on its source: import directions, sizes, things not done."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 350

# Part -> the parts it may import.
ALLOWED_PARTS: dict[str, set[str]] = {
    "mixlora": set(),
    "baselines": set(),
    "tasks": set(),
    "harness": {"mixlora", "baselines", "tasks"},
    "reproduce": {"harness", "baselines", "tasks"},
}
# Part -> all third-party packages it may import. A wheel holds `mixlora` and requires torch,
# transformers and peft; its profiler imports pynvml inside a function and does without it, its
# command for lm-eval comes with an extra.
ALLOWED_PACKAGES: dict[str, set[str]] = {
    "mixlora": {"torch", "transformers", "peft", "lm_eval", "datasets"},
    "baselines": {"peft"},
}
# Within harness/, a part imports from those in the lines before its own.
LAYERS: list[set[str]] = [
    {"messages"},
    {"models"},
    {"cells"},
    {"store"},
    {"request"},
    {"run"},
    {"schedule"},
    {"tables", "paper", "report", "speed", "accuracy"},
]


def sources(*parts: str) -> list[Path]:
    files = [ROOT / "reproduce.py"] if "reproduce" in parts else []
    files += [file for part in parts for file in (ROOT / part).rglob("*.py")]
    return sorted(files)


PRODUCT = sources(*ALLOWED_PARTS)
TESTS = sources("tests")


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), name_of(file))


def imported_packages(file: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every absolute import, inside functions too."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.fail(result.stderr)
    return result.stdout.strip()


def test_the_parts_are_found() -> None:
    found = {name_of(file).partition("/")[0].removesuffix(".py") for file in PRODUCT}
    assert found == set(ALLOWED_PARTS)
    assert len(TESTS) > 1


@pytest.mark.parametrize("part", ALLOWED_PARTS)
def test_imports_point_down(part: str) -> None:
    forbidden = set(ALLOWED_PARTS) - ALLOWED_PARTS[part] - {part}
    wrong = [
        f"{name_of(file)}:{line} imports {package}"
        for file in sources(part)
        for line, package in imported_packages(file)
        if package in forbidden
    ]
    assert wrong == []


def parts_of_harness_imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and part of every import from harness/, absolute or relative, inside functions too."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            names = (*start, *(node.module or "").split("."))
            if names[0] == "harness":
                found = names[1:2] if len(names) > 1 and names[1] else [a.name for a in node.names]
                yield from ((node.lineno, part) for part in found)


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_imports_within_harness_point_down(number: int) -> None:
    below = set[str]().union(*LAYERS[:number])
    wrong = [
        f"{name_of(file)}:{line} imports {imported}"
        for part in sorted(LAYERS[number])
        for file in sources("harness")
        if file.relative_to(ROOT / "harness").parts[0] in (part, f"{part}.py")
        for line, imported in parts_of_harness_imported(file)
        if imported not in below | {part}
    ]
    assert wrong == []


def test_every_part_of_harness_has_a_layer() -> None:
    found = {file.relative_to(ROOT / "harness").parts[0] for file in sources("harness")}
    layered = {part for layer in LAYERS for part in layer}
    assert {name.removesuffix(".py") for name in found} - layered == {"__init__"}


@pytest.mark.parametrize("part", ALLOWED_PACKAGES)
def test_third_party_imports_are_the_declared_ones(part: str) -> None:
    allowed = ALLOWED_PACKAGES[part] | sys.stdlib_module_names | {part}
    wrong = [
        f"{name_of(file)}:{line} imports {package}"
        for file in sources(part)
        for line, package in imported_packages(file)
        if package not in allowed
    ]
    assert wrong == []


def test_tasks_import_torch_only_to_score_and_to_make_the_model() -> None:
    users = {
        name_of(file)
        for file in sources("tasks")
        for _, package in imported_packages(file)
        if package == "torch"
    }
    assert users == {"tasks/scoring.py", "tasks/miniature/make_model.py"}


@pytest.mark.parametrize(
    "modules",
    [
        "tasks",
        "harness.tables.show.accuracy, harness.tables.numbers.comparison",
        "harness.store.records, harness.tables",
        "harness.cells.presets, harness.models.shapes, harness.models.weights",
        "reproduce, harness.tables.main, harness.tables.efficiency, harness.tables.scaling",
    ],
)
def test_importing_loads_no_torch(modules: str) -> None:
    heavy = "{'torch', 'transformers', 'peft', 'datasets'}"
    assert run_python(f"import sys, {modules}; print({heavy} & set(sys.modules))") == "set()"


@pytest.mark.parametrize("file", PRODUCT + TESTS, ids=name_of)
def test_module_is_documented_and_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module docstring says what the module is for"
    assert len(text.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("file", PRODUCT, ids=name_of)
def test_what_is_not_done(file: Path) -> None:
    wrong = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Assert):
            wrong.append(f"line {node.lineno}: assert vanishes under python -O; raise an error")
        elif isinstance(node, ast.ExceptHandler):
            if node.type is None:
                wrong.append(f"line {node.lineno}: bare except")
            if all(isinstance(statement, ast.Pass) for statement in node.body):
                wrong.append(f"line {node.lineno}: exception passed over in silence")
    assert wrong == []
