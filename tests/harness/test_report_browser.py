"""The report in headless Chromium: sorting, the toggle, a phone's width, print, no request."""

from __future__ import annotations

import functools
import html
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from harness.report import write_report

from .report_builders import SORTED, hostile, measured_and_reported, sortable

pytestmark = pytest.mark.browser

DRIVER = Path(__file__).parent / "report_driver.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that starts it; the test is skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is in PATH")
    profile = tmp_path_factory.mktemp("profile")
    options = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
    options += ["--virtual-time-budget=5000", "--window-size=1280,1000"]
    # Chromium has no sandbox for root, as whom containers run.
    return [found, *options, *(["--no-sandbox"] if os.geteuid() == 0 else [])]


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder and notes what was asked for."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served."""
    Handler.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def used(chromium: list[str], served: tuple[Path, str]) -> dict[str, Any]:
    """What the driver finds in the report of the folder."""
    folder, address = served
    write_report(folder)
    shutil.copy(DRIVER, folder / "driver.html")
    page = run([*chromium, "--dump-dom", f"{address}/driver.html"])
    match = re.search(r'<pre id="found">(.+?)</pre>', page, flags=re.DOTALL)
    if match is None:
        raise AssertionError("the driver found nothing: it failed, or ran out of time")
    return json.loads(html.unescape(match[1]))


def test_sorting_showing_and_a_phone(chromium: list[str], served: tuple[Path, str]) -> None:
    sortable(served[0])
    found = used(chromium, served)
    order = [text.replace("**", "") for text in SORTED]
    up, down, back = found["sorts"]
    assert [each["aria"] for each in found["sorts"]] == ["ascending", "descending", "none"]
    assert all(each["focused"] for each in found["sorts"])
    # Text after numbers, and what is missing last, in the order in which it was.
    assert up["order"] == order
    assert down["order"] == [*order[4::-1], "OOM", "-", ""]
    assert back["order"] == [order[i] for i in (4, 6, 3, 0, 5, 2, 7, 1)]
    # A difference stays under the number it belongs to.
    assert found["pairs"] == ["70.5", "71.5", "-2.5", "72.5", "+1.5"]

    here, reported = set(found["views"]["view-here"]), set(found["views"]["view-reported"])
    everything = set(found["views"]["view-all"])
    assert {"1,234", "1,234.5 ± 6.7", "70.5"} <= here and not {"72.5", "+1.5", "99.5"} & here
    assert reported == {"paper", "72.5", "71.5", "99.5"}
    assert here | reported | {"measured - paper", "+1.5", "-2.5"} == everything

    assert found["overflow"] == 0
    assert found["scrolled"] == 300 and abs(found["sticky"]) < 1
    assert found["smallest"] >= 12
    assert found["open"] == [0, found["details"], 0] and found["details"] == 1
    assert sorted(Handler.asked) == ["/driver.html", "/report.html"]


def test_brackets_figures_and_whole_sections(chromium: list[str], served: tuple[Path, str]) -> None:
    root = Path(__file__).resolve().parents[2]
    shutil.copytree(root / "results" / "speed", served[0], dirs_exist_ok=True)
    measured_and_reported(served[0])
    found = used(chromium, served)
    here, reported = set(found["views"]["view-here"]), set(found["views"]["view-reported"])
    assert {"485.0", "360.5", "77.8 ± 4.4"} <= here and "(268.8)" not in here
    assert {"(268.8)", "71.9"} <= reported and not {"485.0", "360.5", "77.8 ± 4.4"} & reported
    # The two scaling tables have nothing from the paper.
    assert found["sections"] == [5, 3, 5]
    assert found["overflow"] == 0
    figures = list((served[0] / "figures").glob("*.svg"))
    assert len(found["images"]) == len(figures) > 5 and min(found["images"]) > 200


def test_hostile_text_runs_nothing(chromium: list[str], served: tuple[Path, str]) -> None:
    """An alert would stop the page; a picture from elsewhere, or x, would be asked for."""
    hostile(served[0])
    assert used(chromium, served)["overflow"] == 0
    assert sorted(Handler.asked) == ["/driver.html", "/report.html"]


def test_a_screenshot_and_a_print(chromium: list[str], tmp_path: Path) -> None:
    sortable(tmp_path)
    address = write_report(tmp_path).as_uri()
    picture, paper = tmp_path / "report.png", tmp_path / "report.pdf"
    run([*chromium, f"--screenshot={picture}", address])
    run([*chromium, f"--print-to-pdf={paper}", address])
    pixels = imread(picture)
    assert pixels.shape[:2] == (1000, 1280)
    # Ink on a white page.
    assert 0.01 < (pixels[..., :3].min(axis=2) < 0.5).mean() < 0.3
    assert paper.read_bytes().startswith(b"%PDF")
