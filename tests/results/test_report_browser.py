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

from results.report import write_report

from .report_builders import SORTED, hostile, measured_and_reported, sortable

pytestmark = pytest.mark.browser

PHONE = 375

#: Shows the report in a frame as wide as a phone, uses it, and prints what it finds as JSON.
DRIVER = """<!doctype html><title>driver</title><link rel="icon" href="data:,">
<body style="margin: 0"><iframe width="WIDTH" height="700" src="/report.html" style="border: 0"></iframe>
<pre id="found"></pre><script>
document.querySelector("iframe").onload = ({ target }) => {
  const page = target.contentDocument, view = target.contentWindow, found = {};
  const seen = (element) => element.getClientRects().length > 0;
  const cells = (table, column) =>
    [...table.tBodies[0].rows].map((row) => row.cells[column].textContent.trim());
  const rootOf = (table) => table.closest("section").querySelector("h2").textContent;
  const tables = [...page.querySelectorAll("table")].filter((t) => rootOf(t) === "Sortable");
  const sort = (table, column) => {
    const heading = table.tHead.rows[0].cells[column], button = heading.querySelector("button");
    button.focus();
    const focused = page.activeElement === button;
    button.click();
    return { order: cells(table, column), aria: heading.getAttribute("aria-sort"), focused };
  };
  if (tables.length) {
    found.sorts = [sort(tables[0], 1), sort(tables[0], 1), sort(tables[0], 1)];
    sort(tables[1], 2);
    found.pairs = cells(tables[1], 2);
    const region = tables[3].closest(".scroll"), name = tables[3].rows[1].cells[0];
    region.scrollLeft = 300;
    found.scrolled = region.scrollLeft;
    found.sticky = name.getBoundingClientRect().left - region.getBoundingClientRect().left;
  }
  found.views = {};
  for (const id of ["view-here", "view-reported", "view-all"]) {
    page.getElementById(id).click();
    found.views[id] = [...page.querySelectorAll("td, td span")]
      .filter((cell) => seen(cell) && !cell.querySelector(".measured"))
      .map((cell) => cell.textContent.trim());
    found.sections = [...(found.sections ?? []), [...page.querySelectorAll("section")].filter(seen).length];
  }
  const root = page.documentElement;
  found.overflow = root.scrollWidth - root.clientWidth;
  const words = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT), sizes = [];
  while (words.nextNode()) {
    const parent = words.currentNode.parentElement;
    if (seen(parent) && words.currentNode.data.trim()) sizes.push(parseFloat(view.getComputedStyle(parent).fontSize));
  }
  found.smallest = Math.min(...sizes);
  const details = [...page.querySelectorAll("details")];
  found.open = ["", "beforeprint", "afterprint"].map((name) => {
    if (name) view.dispatchEvent(new Event(name));
    return details.filter((each) => each.open).length;
  });
  found.details = details.length;
  found.images = [...page.images].map((image) => image.naturalWidth);
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>"""


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


def used(chromium: list[str], served: tuple[Path, str], width: int = PHONE) -> dict[str, Any]:
    """What the driver finds in the report of the folder."""
    folder, address = served
    write_report(folder)
    (folder / "driver.html").write_text(DRIVER.replace("WIDTH", str(width)))
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
    assert found["pairs"] == ["71.5", "-2.5", "72.5", "+1.5"]

    here, reported = set(found["views"]["view-here"]), set(found["views"]["view-reported"])
    everything = set(found["views"]["view-all"])
    assert {"1,234", "1,234.5 ± 6.7"} <= here and not {"72.5", "+1.5", "99.5"} & here
    assert reported == {"paper", "72.5", "71.5", "99.5"}
    assert here | reported | {"measured - paper", "+1.5", "-2.5"} == everything

    assert found["overflow"] == 0
    assert found["scrolled"] == 300 and abs(found["sticky"]) < 1
    assert found["smallest"] >= 12
    assert found["open"] == [0, found["details"], 0] and found["details"] == 1
    assert sorted(Handler.asked) == ["/driver.html", "/report.html"]


def test_brackets_figures_and_whole_sections(
    chromium: list[str], served: tuple[Path, str]
) -> None:
    root = Path(__file__).resolve().parents[2]
    shutil.copytree(root / "results" / "reference" / "speed", served[0], dirs_exist_ok=True)
    measured_and_reported(served[0])
    found = used(chromium, served)
    here, reported = set(found["views"]["view-here"]), set(found["views"]["view-reported"])
    assert {"485.0", "360.5", "77.8 ± 4.4"} <= here and "(268.8)" not in here
    assert {"(268.8)", "71.9"} <= reported and not {"485.0", "360.5", "77.8 ± 4.4"} & reported
    # The two scaling tables have nothing from the paper.
    assert found["sections"] == [5, 3, 5]
    assert found["overflow"] == 0
    assert len(found["images"]) == 9 and min(found["images"]) > 200


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
