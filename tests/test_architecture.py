"""Rules about imports that no linter expresses; all others are contracts in `pyproject.toml`.

`make lint` checks those: which part imports which (import-linter), and what no module may do
(ruff). Here: which libraries a part may use at all, and what is loaded when a module is imported.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Part -> all libraries that it may import. The wheel holds `mixlora` alone; gguf, lm-eval and
#: datasets come with extras, the others are requirements.
LIBRARIES = {
    "mixlora": {"torch", "transformers", "peft", "lm_eval", "datasets"}
    | {"filelock", "gguf", "huggingface_hub", "numpy", "safetensors", "tqdm"},
    "baselines": {"peft"},
}
#: Importing these takes seconds, or needs a working GPU driver.
HEAVY = ("torch", "transformers", "peft", "datasets")
#: What must be quick: parsing a command line, reading records, making tables.
LIGHT = (
    *("tasks.data", "tasks.encoding", "tasks.prompts", "tasks.sources"),
    *("harness.cells.presets", "harness.models.shapes", "harness.models.weights"),
    *("harness.store.records", "harness.show.accuracy", "harness.numbers.comparison"),
    *("harness.tables.main", "harness.tables.efficiency", "harness.tables.scaling"),
    *("tasks", "harness.tables", "reproduce"),
)


@pytest.mark.parametrize("part", LIBRARIES)
def test_a_part_imports_the_libraries_it_declares(part: str) -> None:
    graph = grimp.build_graph(part, include_external_packages=True, cache_dir=None)
    imported = {module for module in graph.modules if "." not in module}
    assert imported - {part} - sys.stdlib_module_names - LIBRARIES[part] == set()
    assert imported >= {"peft"}


def test_what_must_be_quick_imports_no_heavy_library() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print([n for n in {HEAVY} if n in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
