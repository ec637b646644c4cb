"""The long versions, of real cells: 30 kills at random moments, and eight processes at once.

`make torture` runs them and prints what they counted.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
GRID = ("--tasks", "arc-e,obqa", "--methods", "base,lora,dora,mixlora,mixdora")
GRID += ("--limit-train", "32", "--limit-eval", "16")
CELLS = 10
KILLS = 30

pytestmark = pytest.mark.slow


def start(output: Path, *arguments: str) -> subprocess.Popen[str]:
    line = [sys.executable, "reproduce.py", *GRID, "--output", str(output), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    printed, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return printed, said


def records(output: Path) -> dict[str, Any]:
    """The records' contents, but for times."""
    found = {}
    for path in (output / "records").glob("*.json"):
        content = json.loads(path.read_text())
        for times in ("checksum", "seconds"):
            del content[times]
        del content["provenance"]["finished"]
        found[path.name] = json.dumps(content)
    return found


def without_times(table: str) -> list[str]:
    return [line for line in table.splitlines() if not line.startswith("- seconds:")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted run: its output, and what it printed."""
    output = tmp_path_factory.mktemp("whole")
    printed, _ = finish(start(output))
    assert len(records(output)) == CELLS
    return output, printed


def test_thirty_kills_at_random_moments(
    whole: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[[str], None],
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    output = tmp_path / "output"
    kills = lost = begun = inside = 0
    while kills < KILLS:
        before = {path: path.stat().st_mtime_ns for path in (output / "records").glob("*.json")}
        if len(before) == CELLS:
            # All done too soon: some cells are to be run again.
            for path in chance.sample(sorted(before), CELLS // 2):
                path.unlink()
                del before[path]
        process = start(output, "--checkpoint-steps", "1")
        # The imports take longer than cells do, so most kills wait for the first cell.
        if chance.random() < 0.8:
            for line in process.stderr or ():
                if line.startswith("cell "):
                    break
            time.sleep(chance.uniform(0, 6))
        else:
            time.sleep(chance.uniform(0, 8))
        hit = process.poll() is None
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        if hit:
            fault("SIGKILL")
        kills += hit
        with capsys.disabled():
            print(f"\r{kills} kills", end="", flush=True)
        inside += hit and any((output / "checkpoints").glob("*.pt"))
        after = {path: path.stat().st_mtime_ns for path in (output / "records").glob("*.json")}
        lost += sum(after.get(path) != stamp for path, stamp in before.items())
        begun += said.count("cell ")
    printed, said = finish(start(output, "--checkpoint-steps", "1"))
    with capsys.disabled():
        print(
            f"\nseed {seed}: {kills} kills, {inside} with a checkpoint left, {lost} records "
            f"lost or written again; the last run had {said.count('cell ')} cells to run"
        )
    assert lost == 0
    assert records(output) == records(whole[0])
    assert without_times(printed) == without_times(whole[1])
    assert list((output / "checkpoints").glob("*.pt")) == []
    assert "warning" not in said


def test_eight_processes_on_one_output(
    whole: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[[str], None],
) -> None:
    """One of them is killed on its way."""
    processes = [start(tmp_path) for _ in range(8)]
    for line in processes[0].stderr or ():
        if line.startswith("cell "):
            break
    fault("SIGKILL")
    processes[0].kill()
    processes[0].communicate()
    ends = [finish(process) for process in processes[1:]]
    begun = [said.count("cell ") for _, said in ends]
    with capsys.disabled():
        print(f"\ncells begun by each of seven: {begun}, and by the one killed at least 1")
    assert records(tmp_path) == records(whole[0])
    assert {"\n".join(without_times(printed)) for printed, _ in ends} == {
        "\n".join(without_times(whole[1]))
    }
    # The killed one had one cell in flight, and may have ended others.
    assert sum(begun) <= CELLS
    assert [path for path in tmp_path.rglob("*.damaged")] == []


def test_all_stored_cells_verify(
    whole: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    printed, _ = finish(start(whole[0], "--verify", str(CELLS)))
    with capsys.disabled():
        print(f"\n{printed.splitlines()[0]}")
    assert f"{CELLS} of {CELLS} stored cells give the same" in printed
