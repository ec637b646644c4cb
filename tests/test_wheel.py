"""The wheel: what is in it, and that the README's lines run where it alone is installed."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import mixlora

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

#: What the package requires; beside the first three nothing that these do not require themselves.
LIBRARIES = {"torch", "transformers", "peft"} | {
    *("filelock", "huggingface-hub", "numpy", "safetensors", "tqdm"),
}

# pip fetches the build backend and, for the environment, the dependencies.
pytestmark = [pytest.mark.network, pytest.mark.slow]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ".")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_it_holds_the_library_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mixlora", "mixlora_repro"}
    assert "mixlora/py.typed" in names
    source = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mixlora").rglob("*.py")}
    assert source <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_metadata_names_the_librarys_dependencies_alone(metadata: Message) -> None:
    assert metadata["Version"] == mixlora.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    needs = metadata.get_all("Requires-Dist", [])
    plain = {re.split(r"[><=;\[ ]", need)[0] for need in needs if "extra ==" not in need}
    assert plain == LIBRARIES
    assert not {"harness", "test", "lint", "docs", "ray", "audit"} & set(
        metadata.get_all("Provides-Extra", [])
    )


def test_links_on_pypi_lead_somewhere(metadata: Message) -> None:
    text = metadata.get_payload()
    assert isinstance(text, str) and "# mixlora-repro" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and all(link.startswith("https://") for link in links)


def test_readme_runs_where_only_the_wheel_is_installed(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    folder = tmp_path / "elsewhere"
    (folder / "tasks" / "miniature").mkdir(parents=True)
    (folder / "tasks" / "miniature" / "model").symlink_to(ROOT / "tasks" / "miniature" / "model")
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    (text,) = re.findall(r"^```text\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert run(python, "-c", code, cwd=folder).strip() == text.strip()
    where = run(python, "-c", "import mixlora; print(mixlora.__file__)", cwd=folder)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
