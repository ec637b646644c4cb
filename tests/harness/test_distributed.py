"""Two processes train a cell as one does: the same losses, counts and predictions to rounding."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cells.spec import TrainSettings
from harness.run import processes
from harness.store.records import RecordStore, RunRecord
from reproduce import main

from . import several

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
GRID = ("--tasks", "arc-e", "--methods", "lora,dora,mixlora,mixdora")
GRID += ("--limit-train", "17", "--limit-eval", "16")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")

Cases = dict[str, dict[str, Any]]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


# What trains is loaded after the processes have met, as in `reproduce.py`.
LEAVE = """
import weakref
from harness.run import processes
groups = []
def train(job):
    import transformers.trainer
    from torch import distributed
    groups.append(weakref.ref(distributed.group.WORLD))
with processes.joined() as follows:
    if follows:
        processes.follow(train)
    else:
        for number in range(2):
            with processes.together(number) as job:
                train(job)
if [group() for group in groups] != [None, None]:
    raise SystemExit("a group, with its threads, outlives its training")
"""


def start_two(*arguments: str) -> None:
    """Have two processes of Python run the same, and see that both end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    line = [sys.executable, *arguments]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(line, cwd=ROOT, env=environment(RANK=rank, **common), stderr=-1)
        for rank in "01"
    ]
    said = [process.communicate(timeout=300)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)


def in_two(folder: Path) -> Cases:
    """The cases of `several` in two processes."""
    start_two("-m", "tests.harness.several", str(folder))
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the processes that are started here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cases, Cases]:
    """Of one process and of two."""
    return several.results(tmp_path_factory.mktemp("one")), in_two(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", ["by row", "by micro-batch", "switch"])
def test_two_processes_have_the_losses_of_one(name: str, cases: tuple[Cases, Cases]) -> None:
    """With an auxiliary loss as large as the other, so that a part of it left out would show."""
    one, two = (each[name] for each in cases)
    assert len(one["losses"]) == 3
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5, abs=1e-5)
    assert (one["processes"], two["processes"]) == (None, 2)
    assert tokens(one) == tokens(two)
    assert two["predictions"] == one["predictions"]


def tokens(case: dict[str, Any]) -> list[int]:
    """How many went to experts in each part of the training; to which, rounding can change."""
    return [sum(map(sum, entry["counts"])) for entry in case["facts"]["expert_load"]]


def test_each_process_draws_dropout_masks_of_its_own(cases: tuple[Cases, Cases]) -> None:
    one, two = (each["dropout"]["losses"] for each in cases)
    assert two[1] != pytest.approx(one[1], rel=1e-5)
    assert [each["interrupted"]["others draw the same"] for each in cases] == [[], [False]]


def test_a_stopped_training_goes_on_bit_for_bit(cases: tuple[Cases, Cases]) -> None:
    for each in cases:
        assert each["interrupted"]["record"] == each["dropout"]


def test_what_fails_in_one_process_fails_the_cell_and_no_other(
    cases: tuple[Cases, Cases],
) -> None:
    one, two = cases
    failed = two["fails in the second"]
    assert failed["status"] == "failed"
    assert failed["reason"].startswith(
        "OtherProcessFailed: RuntimeError: only here (in process 2 of 2) (traceback in logs/"
    )
    assert "training loss is nan at step 2" in two["nan"]["reason"]
    # What comes after it.
    last = "by micro-batch"
    assert two[last]["losses"] == pytest.approx(one[last]["losses"], rel=1e-5)


def test_what_is_too_large_for_one_process_is_smaller_for_all(cases: tuple[Cases, Cases]) -> None:
    _, two = cases
    # Of 8 rows first each had 4, then each one of two micro-batches of 4, then two rows at a time.
    assert two["too large for the second"]["facts"]["accumulation"] == 4


def test_no_thread_of_the_group_is_left_at_the_end() -> None:
    """One that is ends with the interpreter, now and then in an abort."""
    start_two("-c", LEAVE)


def by_method(output: Path) -> dict[str, RunRecord]:
    return {record.spec.method: record for record in RecordStore(output).all()}


def test_torchrun_makes_the_records_of_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GRID, "--output", str(tmp_path / "one")]) == 0
    alone = capsys.readouterr().out
    line = [sys.executable, *TORCHRUN, "reproduce.py", *GRID, "--output", str(tmp_path / "two")]
    both = subprocess.run(
        line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert both.returncode == 0, both.stderr
    one, two = by_method(tmp_path / "one"), by_method(tmp_path / "two")
    assert set(one) == set(two) == {"lora", "dora", "mixlora", "mixdora"}
    for method, record in one.items():
        other = two[method]
        assert (other.id, other.tasks) == (record.id, record.tasks)
        for fact, value in record.training.items():
            assert other.training[fact] == pytest.approx(value, rel=1e-5), (method, fact)
        assert other.provenance["hardware"]["processes"] == 2
    # One process prints, and but for what the numbers are made of it prints the same.
    assert both.stdout.partition("- commit:")[0] == alone.partition("- commit:")[0]
    assert "processes 2" in both.stdout


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first of three processes on a machine with two GPUs."""
    monkeypatch.setattr(processes._state, "count", 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--table main", "batch size 8: a step of 1 micro-batches of 8 rows cannot be divided"),
        ("--table main --packed 2", "--packed 2 runs in one process, and here are 3"),
        ("--table main --executor ray", "--executor ray runs in one process, and here are 3"),
        ("--table audit", "table audit runs in one process, and here are 3"),
        ("--table efficiency", "table efficiency runs in one process, and here are 3"),
    ],
)
def test_what_several_processes_cannot_do_is_one_line(
    options: str, said: str, three: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options.split(), "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"reproduce.py: {said}")


def test_each_process_needs_a_gpu(three: None) -> None:
    with pytest.raises(ValueError, match="device 'cuda': 3 processes and 2 GPUs"):
        processes.check_training(TrainSettings(batch_size=6), "cuda")
    processes.check_training(TrainSettings(batch_size=6), "cpu")
    processes.check_training(TrainSettings(batch_size=6, accumulation=3), "cpu")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed precision bf16"),
    ],
)
def test_accelerate_must_not_change_what_a_cell_is(
    variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_state", processes._State())
    for name, text in (("WORLD_SIZE", "2"), ("RANK", "0"), (variable, value)):
        monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=f"accelerate is set up for {said}"), processes.joined():
        raise AssertionError("must not be reached")
