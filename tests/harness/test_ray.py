"""Cells as tasks of a Ray cluster: the table of a run here, a killed worker, what is refused."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.schedule import cluster
from harness.store.files import OutputError
from harness.store.records import RecordStore
from reproduce import main

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
GRID = ("--tasks", "arc-e", "--methods", "lora,mixlora", "--limit-train", "64", "--limit-eval", "8")
# Of a table, what is another's whenever it is run.
TIMES = ("- seconds:", "written:")

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no ray here")


def start(output: Path) -> subprocess.Popen[str]:
    line = [sys.executable, "reproduce.py", *GRID, "--output", str(output)]
    line += ["--executor", "ray", "--cpus-per-cell", "1", "--checkpoint-steps", "2"]
    changed = {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""}
    environment = {name: text for name, text in (os.environ | changed).items() if text}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        line,
        cwd=ROOT,
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        # A shell starts what runs in its background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_checkpoint(process: subprocess.Popen[str], output: Path) -> str:
    """Until a cell is in training; the name of its file."""
    deadline = time.monotonic() + 200
    while not (found := list((output / "checkpoints").glob("*.pt"))):
        assert process.poll() is None and time.monotonic() < deadline, "no cell was begun"
        time.sleep(0.005)
    return found[0].stem


def workers(output: Path) -> dict[int, str]:
    """Process id -> id of the pack whose lock it has open."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            files = [os.readlink(handle) for handle in (entry / "fd").iterdir()]
        except OSError:  # it has ended, or is another user's
            files = []
        for file in map(Path, files):
            if file.parent == output / "locks":
                found[int(entry.name)] = file.stem
    return found


def lines(table: str) -> list[str]:
    return [line for line in table.splitlines() if not line.startswith(TIMES)]


@needs_ray
def test_a_killed_workers_cell_is_tried_again_and_the_table_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GRID, "--output", str(tmp_path / "here")]) == 0
    here = capsys.readouterr().out
    output = tmp_path / "ray"
    process = start(output)
    cell = wait_for_checkpoint(process, output)
    (worker,) = [number for number, pack in workers(output).items() if pack == cell]
    os.kill(worker, signal.SIGKILL)
    printed, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert lines(printed) == lines(here)
    for kind in (".csv", ".json"):
        made = [folder / "tables" / f"main{kind}" for folder in (output, tmp_path / "here")]
        assert made[0].read_bytes() == made[1].read_bytes()
    assert {record.id for record in RecordStore(output).all()} == {
        record.id for record in RecordStore(tmp_path / "here").all()
    }
    assert [list((output / name).glob("*")) for name in ("failures", "checkpoints")] == [[], []]
    assert said.count("cell 1/2:") == said.count("cell 2/2:") == 1


@needs_ray
def test_ctrl_c_stops_the_workers(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for_checkpoint(process, tmp_path)
    running = workers(tmp_path)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=200)
    assert (process.returncode, printed) == (130, "")
    assert said.splitlines()[-1].startswith("stopped by SIGINT; finished cells are kept")
    assert running and not workers(tmp_path)


def test_without_ray_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = ["--tasks", "arc-e", "--methods", "base", "--executor", "ray"]
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "reproduce.py: --executor ray: ray is not installed; pip install --group ray"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--executor slurm", "unknown executor 'slurm'"),
        ("--cpus-per-cell 2", "cpus-per-cell is 2: expected at least 1, and --executor ray"),
        ("--executor ray --cpus-per-cell 0", "cpus-per-cell is 0: expected at least 1"),
        ("--executor ray --verify 1", "--verify draws from all stored cells"),
    ],
)
def test_mistakes_are_one_line(
    options: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options.split(), "--output", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"reproduce.py: {said}") and len(line.splitlines()) == 1


def nodes(*resources: dict[str, float]) -> Any:
    listed = [{"Alive": "dead" not in each, "Resources": each} for each in resources]
    return SimpleNamespace(nodes=lambda: listed)


def test_what_no_node_has_is_refused_and_not_waited_for() -> None:
    needs = {"CPU": 4, "GPU": 1}
    cluster._check_nodes(nodes({"CPU": 2}, {"CPU": 4, "GPU": 1}), needs)
    # Not of two nodes together, and not of one that is gone.
    for found in ([{"CPU": 8}, {"CPU": 2, "GPU": 8}], [{"CPU": 8, "GPU": 1, "dead": 1}, {}]):
        with pytest.raises(ValueError, match="a cell needs 4 CPUs and 1 GPUs of one node"):
            cluster._check_nodes(nodes(*found), needs)


def test_an_error_of_a_worker_is_told_here_as_it_was() -> None:
    error = OutputError(Path("records/a.json"), OSError(28, "No space left on device"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
