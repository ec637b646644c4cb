"""The command line: a user's mistake is one line and exit status 2, never a traceback."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.speed.records import MeasureStore
from harness.store.records import RecordStore
from tests.harness.builders import make_record, make_request
from tests.harness.measure_builders import make_measure_record, make_plan

ROOT = Path(__file__).resolve().parents[1]


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "reproduce.py"), *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a mistake is answered with."""
    from reproduce import main

    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--table", "mian"], ["unknown table 'mian'", "did you mean main"]),
        (["--preset", "tinny"], ["unknown preset 'tinny'", "did you mean tiny"]),
        (["--models", "tiy"], ["unknown model 'tiy'", "did you mean tiny"]),
        (["--methods", "lora,mixlra"], ["unknown method 'mixlra'", "did you mean mixlora"]),
        (["--tasks", "arc-e,bolq"], ["unknown task 'bolq'", "did you mean boolq"]),
        (["--forward", "fussed"], ["unknown forward 'fussed'", "did you mean fused"]),
        (["--scoring", "labels"], ["unknown scoring 'labels'", "did you mean label"]),
        (["--evaluator", "lm_eval"], ["unknown evaluator 'lm_eval'", "did you mean lm-eval"]),
        (["--quantize", "5bit"], ["unknown quantize '5bit'", "4bit, 8bit"]),
        (["--dtype", "float31"], ["unknown dtype 'float31'", "did you mean float32"]),
        (["--device", "gpu"], ["unknown device 'gpu'", "cuda"]),
        (["--limit-train", "0"], ["limit-train is 0", "at least 1"]),
        (["--limit-eval", "many"], ["--limit-eval", "many"]),
        (["--packed", "0"], ["packed is 0", "at least 1"]),
        (["--packed", "two"], ["--packed", "two"]),
        (["--checkpoint-steps", "-1"], ["checkpoint-steps is -1", "0 or more"]),
        (["--table", "efficiency", "--packed", "2"], ["--table efficiency takes no --packed"]),
        (["--seeds", "0,0"], ["seeds are [0, 0]", "distinct"]),
        (["--seeds", "a"], ["--seeds", "a"]),
        (["--tasks", ","], ["no task given"]),
        (["--tabel", "main"], ["--table main takes no --tabel"]),
        (["--shape", "llama2-7b"], ["--table main takes no --shape"]),
        (["--table", "efficiency", "--tasks", "piqa"], ["--table efficiency takes no --tasks"]),
        (["--table", "scaling", "--methods", "lora"], ["--table scaling takes no --methods"]),
        (
            ["--table", "efficiency", "--shape", "lama2-7b"],
            ["unknown shape 'lama2-7b'", "did you mean llama2-7b"],
        ),
        (
            ["--table", "efficiency", "--methods", "lora,mixlora/fussed"],
            ["unknown method 'mixlora/fussed'", "did you mean mixlora/fused"],
        ),
        (["--table", "scaling", "--sweeps", "token"], ["unknown sweep 'token'", "mean tokens"]),
        (["--table", "efficiency", "--layers", "31"], ["layers is 31", "smollm2-135m has 1 to 30"]),
        (["--table", "efficiency", "--tokens", "8x"], ["--tokens", "'8x'", "8x96"]),
        (["--table", "efficiency", "--tokens", "0"], ["--tokens", "'0'"]),
        (["--table", "efficiency", "--runs", "0"], ["runs is 0", "at least 1"]),
        (["--table", "efficiency", "--dtype", "float31"], ["did you mean float32"]),
        (["--data-dir", "no-such-folder"], ["no-such-folder", "no such directory"]),
        (["--model-path", "no-such-folder"], ["no-such-folder"]),
        (["--prompts", "no-such-file"], ["no-such-file"]),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = mistake(capsys, *arguments, "--output", str(tmp_path))
    for text in expected:
        assert text in line


def test_one_model_path_for_several_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--models" in mistake(capsys, "--preset", "paper", "--model-path", ".")


def test_no_traceback_from_a_real_process(tmp_path: Path) -> None:
    result = command("--table", "mian", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("reproduce.py: unknown table 'mian'")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.long
def test_paper_lists_its_128_cells_without_weights() -> None:
    result = command("--table", "main", "--preset", "paper", "--dry-run")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[-1] == "128 cells"
    cells = [tuple(line.split()[:3]) for line in lines[1:-1]]
    assert len(cells) == len(set(cells)) == 128
    ours = "llama2-7b     mixlora  piqa           0   203,423,744   6,738,415,616  r 16 a 0.001"
    assert ours in lines


def test_a_missing_column_names_file_row_and_column(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "piqa"
    folder.mkdir(parents=True)
    row = '{"goal": "open it", "sol1": "pull", "sol2": "push", "label": 0}\n'
    (folder / "train.jsonl").write_text(row)
    (folder / "validation.jsonl").write_text(row + row.replace('"sol2": "push", ', ""))
    arguments = ["--data-dir", str(tmp_path / "data"), "--tasks", "piqa"]
    line = mistake(capsys, *arguments, "--output", str(tmp_path))
    assert "validation.jsonl, row 2, column sol2" in line


def test_rendering_stored_records_loads_no_torch(tmp_path: Path) -> None:
    request = make_request(tasks=["arc-e"], device="cuda")
    RecordStore(tmp_path).save(
        make_record(request.cell("tiny", "lora", ["arc-e"], ["arc-e"], 0), [0, 1, 1], [0, 1, 0])
    )
    code = (
        "import sys, reproduce\n"
        f"arguments = ['--render-only', '--scoring', 'label', '--tasks', 'arc-e']\n"
        f"arguments += ['--output', {str(tmp_path)!r}]\n"
        "status = reproduce.main(arguments)\n"
        "sys.exit(status or ('torch' in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "| LoRA" in result.stdout and "66.7" in result.stdout


def test_rendering_stored_measurements_loads_no_torch(tmp_path: Path) -> None:
    plan = make_plan("--table", "scaling", "--sweeps", "r", "--render-only", "--device", "cuda")
    for spec in plan.specs:
        times = [{"forward": [0.5], "backward": [0.5]} for _ in spec.subjects]
        MeasureStore(tmp_path).save(make_measure_record(spec, times))
    code = (
        "import sys, reproduce\n"
        "arguments = ['--table', 'scaling', '--sweeps', 'r', '--render-only']\n"
        f"status = reproduce.main([*arguments, '--output', {str(tmp_path)!r}])\n"
        "sys.exit(status or ('torch' in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "## By rank" in result.stdout and "| 100.0 |" in result.stdout.replace("  ", "")


@pytest.mark.long
def test_help_is_of_the_table_asked_for() -> None:
    helps = {name: command("--table", name, "--help").stdout for name in ("main", "efficiency")}
    assert "--tasks" in helps["main"] and "--shape" not in helps["main"]
    assert "--shape" in helps["efficiency"] and "--tasks" not in helps["efficiency"]
    assert all("--render-only" in text and "--table" in text for text in helps.values())


ARGUMENTS = ("--tasks", "arc-e,boolq", "--methods", "base,mixlora", "--limit-train", "32")


def run_here(output: Path) -> str:
    """Runs four small cells in this process and returns what that prints."""
    from reproduce import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*ARGUMENTS, "--limit-eval", "20", "--output", str(output)]) == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An output folder filled by a run of four small cells, and what the run printed."""
    output = tmp_path_factory.mktemp("run")
    return output, run_here(output)


@pytest.mark.long
def test_a_second_run_computes_nothing_and_shows_the_same(first_run: tuple[Path, str]) -> None:
    output, printed = first_run
    records = {path: path.stat().st_mtime_ns for path in (output / "records").iterdir()}
    assert len(records) == 4
    again = command(*ARGUMENTS, "--limit-eval", "20", "--output", str(output))
    assert again.stdout == printed
    assert {p: p.stat().st_mtime_ns for p in (output / "records").iterdir()} == records


@pytest.mark.long
def test_the_same_cell_gives_the_same_record(first_run: tuple[Path, str], tmp_path: Path) -> None:
    output, _ = first_run
    shutil.copytree(output, tmp_path / "copy")
    store, copy = RecordStore(output), RecordStore(tmp_path / "copy")
    limits = ["--limit-eval", "20", "--output", str(tmp_path / "copy"), "--fresh"]
    result = command("--tasks", "arc-e", "--methods", "mixlora", "--limit-train", "32", *limits)
    assert result.returncode == 0, result.stderr
    for record in store.all():
        again = copy.load(record.id)
        if again is None:
            raise AssertionError(f"{record.spec.title} went missing")
        assert again.tasks == record.tasks
        assert again.training == record.training
        rerun = record.spec.method == "mixlora" and record.spec.eval_tasks == ("arc-e",)
        assert (again.seconds != record.seconds) == rerun


@pytest.mark.long
def test_deleting_a_record_runs_that_cell_only(first_run: tuple[Path, str], tmp_path: Path) -> None:
    output, printed = first_run
    shutil.copytree(output, tmp_path / "copy")
    records = sorted((tmp_path / "copy" / "records").iterdir())
    before = {path: path.stat().st_mtime_ns for path in records[1:]}
    records[0].unlink()
    again = run_here(tmp_path / "copy")
    assert records[0].exists()
    assert {path: path.stat().st_mtime_ns for path in records[1:]} == before
    assert [line for line in again.splitlines() if line.startswith("| ")] == [
        line for line in printed.splitlines() if line.startswith("| ")
    ]
