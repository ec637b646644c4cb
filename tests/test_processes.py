"""Whole processes: killed, stopped, several at once, on a full disk; the results stay right.

The cells are stand-ins that only take a moment (`tests/harness/stand_in.py`). `tests/torture` does
the same with real cells.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.store.records import RecordStore

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
GRID = ("--tasks", "arc-e,obqa", "--methods", "lora,dora,mixlora")
CELLS = 6


class Grid:
    """Commands that run a grid of cells into one output directory.

    Args:
        folder: folder that gets the output directory and the log of the cells that were begun.
    """

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"
        self.log = folder / "log"

    def start(
        self, mode: str = "run", *arguments: str, prepare: Callable[[], None] | None = None
    ) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "tests.harness.stand_in", str(self.log), mode]
        line += [*GRID, "--output", str(self.output), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            line, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=prepare
        )

    def run(
        self, mode: str = "run", *arguments: str, prepare: Callable[[], None] | None = None
    ) -> tuple[int, str, str]:
        """Runs a command to its end; returns its exit status, standard output and error output."""
        process = self.start(mode, *arguments, prepare=prepare)
        printed, said = process.communicate(timeout=60)
        return process.returncode, printed, said

    def begun(self) -> Counter[str]:
        """Returns how often each cell was begun."""
        return Counter(self.log.read_text().splitlines() if self.log.exists() else [])

    def wait_for(self, cells: int) -> None:
        """Waits until so many cells were begun."""
        deadline = time.monotonic() + 60
        while sum(self.begun().values()) < cells:
            assert time.monotonic() < deadline, "no cell was begun"
            time.sleep(0.01)


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return Grid(tmp_path)


def test_a_killed_run_loses_the_cell_in_flight_only(
    grid: Grid, tmp_path: Path, fault: Callable[[str], None]
) -> None:
    whole = Grid(tmp_path / "whole")
    whole.output.mkdir(parents=True)
    _, table, _ = whole.run()
    killed = grid.start()
    grid.wait_for(3)
    fault("SIGKILL")
    killed.kill()
    killed.communicate()
    kept = {path.name for path in (grid.output / "records").iterdir()}
    before = grid.begun()
    status, printed, _ = grid.run()
    assert (status, printed) == (0, table)
    # A kill that hits between the writing of a record and the next cell costs no cell at all.
    assert sum(grid.begun().values()) <= CELLS + 1
    assert len(before) - len(kept) <= 1
    assert max(grid.begun().values()) <= 2
    assert len(grid.begun()) == CELLS


def test_processes_share_the_cells(grid: Grid) -> None:
    processes = [grid.start() for _ in range(3)]
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert grid.begun() == dict.fromkeys(grid.begun(), 1) and len(grid.begun()) == CELLS
    assert len({printed for printed, _ in ends}) == 1
    assert len(RecordStore(grid.output).all()) == CELLS
    assert {path.suffix for path in grid.output.rglob("*") if path.is_file()} == {
        *(".json", ".lock", ".md", ".csv")
    }


def test_the_lock_of_a_dead_process_is_taken_over(grid: Grid, fault: Callable[[str], None]) -> None:
    dead = grid.start("hang")
    grid.wait_for(1)
    waiting = grid.start()
    said = next(line for line in waiting.stderr or () if not line.startswith("cell "))
    assert said == "waiting: another process runs 1 cells\n"
    fault("SIGKILL")
    dead.kill()
    dead.communicate()
    waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert sorted(grid.begun().values()) == [1] * (CELLS - 1) + [2]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_a_signal_stops_with_a_line_on_how_to_go_on(
    number: signal.Signals, status: int, grid: Grid, fault: Callable[[str], None]
) -> None:
    process = grid.start("hang")
    grid.wait_for(1)
    fault(number.name)
    process.send_signal(number)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (status, "")
    line = said.splitlines()[-1]
    assert line.startswith(f"stopped by {number.name}; finished cells are kept")
    assert line.endswith(f"python reproduce.py {' '.join(GRID)} --output {grid.output}")
    assert "Traceback" not in said


def test_a_record_being_written_is_finished_before_a_signal_stops(
    grid: Grid, fault: Callable[[str], None]
) -> None:
    fault("SIGTERM")
    status, _, said = grid.run("stop")
    assert status == 143, said
    assert len(RecordStore(grid.output).all()) == 1
    assert [path.suffix for path in (grid.output / "records").iterdir()] == [".json"]
    assert sum(grid.begun().values()) == 1


@pytest.mark.parametrize(
    ("mode", "status", "reason"),
    [
        ("oom", "OOM", "training step 3, micro-batch of 8 rows of 96 tokens: no memory left"),
        ("nan", "failed", "FloatingPointError: training loss is nan at step 3"),
    ],
)
def test_a_failed_cell_shows_in_every_table(
    mode: str, status: str, reason: str, grid: Grid, fault: Callable[[str], None]
) -> None:
    for _ in range(2):
        fault({"oom": "out of memory", "nan": "nan loss"}[mode])
    first = grid.run(mode)
    later = grid.run("run", "--render-only")
    for exit_status, printed, _ in (first, later):
        assert exit_status == 1
        row = next(line for line in printed.splitlines() if line.startswith("| MixLoRA "))
        assert [cell.strip() for cell in row.split("|")][4:6] == [status, status]
        assert printed.count(f"- {status}: tiny mixlora") == 2
        assert printed.count(reason) == 2
    assert later[1] == first[1]
    status_now, printed, _ = grid.run()
    assert status_now == 0 and reason not in printed
    assert sorted(grid.begun().values()) == [1, 1, 1, 1, 2, 2]
    assert list((grid.output / "failures").iterdir()) == []


def test_a_full_disk_is_known_before_anything_is_run(
    grid: Grid, fault: Callable[[str], None]
) -> None:
    """A limit on the size of files stands in for a full disk: the kernel refuses the write."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    fault("disk full")
    status, printed, said = grid.run(prepare=limit)
    assert (status, printed) == (2, "")
    assert len(said.splitlines()) == 1
    assert "cannot write" in said and "--output DIR" in said
    assert not grid.begun()


@pytest.mark.parametrize("place", ["/proc/no-such", "file/output"])
def test_an_output_that_cannot_be_written_is_one_line(
    place: str, grid: Grid, fault: Callable[[str], None]
) -> None:
    fault("output not writable")
    grid.log.parent.joinpath("file").write_text("")
    status, printed, said = grid.run("run", "--output", str(grid.log.parent / place))
    assert (status, printed) == (2, "")
    assert len(said.splitlines()) == 1 and "cannot write" in said
    assert not grid.begun()


def test_a_disk_that_fills_up_loses_nothing_that_is_done(
    grid: Grid, fault: Callable[[str], None]
) -> None:
    """The limit lets the first probe and the records through, but not the table in long form."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    fault("disk full")
    status, printed, said = grid.run(prepare=limit)
    assert status == 1
    last = said.splitlines()[-1]
    assert "cannot write" in last and "to go on with the rest: python reproduce.py" in last
    assert "| MixLoRA" in printed  # the table is printed although it cannot be written
    assert len(RecordStore(grid.output).all()) == CELLS
    assert grid.run()[:2] == (0, printed)


def test_a_clock_that_jumps_changes_nothing(
    grid: Grid, tmp_path: Path, fault: Callable[[str], None]
) -> None:
    fault("clock that jumps")
    _, table, _ = grid.run()
    other = Grid(tmp_path / "other")
    other.output.mkdir(parents=True)
    status, printed, _ = other.run("clock")
    assert (status, printed) == (0, table)
