"""The package itself: it refuses to be used beside the authors' package of the same import name."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import mixlora


def test_importing_stops_beside_the_authors_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "mixlora-0.2.3.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mixlora\nVersion: 0.2.3\n")
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(tmp_path))
        with pytest.raises(ImportError, match=r"mixlora 0\.2\.3.*pip uninstall mixlora") as error:
            importlib.reload(mixlora)
    assert "\n" not in str(error.value)
    importlib.reload(mixlora)


def test_its_types_are_published() -> None:
    assert Path(mixlora.__file__).with_name("py.typed").is_file()
