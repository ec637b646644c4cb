"""What a run does to the machine: where it writes, what it starts, and that it tells no secret."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import reproduce
from harness.messages import redacted
from harness.models.files import WeightsError, weight_files
from harness.report import write_report
from harness.schedule.executor import execute
from harness.store.files import load_record, save_record
from harness.store.records import FailureStore, RecordStore, RunRecord
from tests.harness.builders import make_record, make_spec
from tests.harness.test_executor import cells, loader
from tests.test_processes import Grid

ROOT = Path(__file__).resolve().parents[1]
SECRET = "hf_thisIsNoTokenButItLooksLikeOne"
#: Beginnings of the commands that a run may start: git for the commit, and matplotlib's look for
#: the fonts of the machine.
PROGRAMS = ("git -C ", "fc-list ")
#: Folders of an output directory.
FOLDERS = ("records", "failures", "logs", "checkpoints", "locks", "tables", "figures")
ESCAPES = ["../../evil", "/tmp/evil", "..", "a/../../evil", "..\\evil", "evil\0"]


def not_allowed(events: list[tuple[str, str]], folders: list[Path]) -> list[tuple[str, str]]:
    """Returns the events that no run may cause.

    Args:
        events: what `tests.audited` has written down, each as kind and object.
        folders: the folders that the run may write into.
    """
    found = []
    for kind, what in events:
        inside = any(Path(what).resolve().is_relative_to(folder.resolve()) for folder in folders)
        writes = kind == "write" and (inside or what == os.devnull)
        starts = kind == "start" and what.startswith(PROGRAMS)
        if not writes and not starts:
            found.append((kind, what))
    return found


@pytest.mark.long
def test_a_run_writes_into_its_output_and_caches_and_connects_to_nothing(
    tmp_path: Path,
) -> None:
    output, home, scratch, log = (tmp_path / n for n in ("output", "home", "scratch", "log"))
    for folder in (home, scratch):
        folder.mkdir()
    # The run makes figures, checkpoints and the report, and a token is in its environment.
    command = [sys.executable, "-m", "tests.audited", str(log), "--table", "rank", "--report"]
    command += ["--settings", "r=2,r=4", "--tasks", "obqa", "--methods", "mixlora"]
    command += ["--limit-train", "8", "--limit-eval", "4", "--checkpoint-steps", "1"]
    # Libraries pass the folders that they have chosen in this process on by the environment.
    own = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
    own |= {"HOME": str(home), "TMPDIR": str(scratch), "HF_TOKEN": SECRET}
    own |= {"PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT,
        env=own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    events = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
    caches = [home / ".cache", home / ".config"]
    assert not_allowed(events, [output, scratch, *caches]) == []
    # The watch works: it has seen every file that is there, and git.
    written = {what for kind, what in events if kind == "write"}
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {str(path) for path in files} <= written and len(files) >= 10
    assert any(kind == "start" for kind, _ in events)
    said = [result.stdout, result.stderr, *(path.read_text(errors="replace") for path in files)]
    assert not any(SECRET in text for text in said)


@pytest.mark.parametrize(
    "event",
    [
        ("write", "/tmp/evil"),
        ("write", "OUTPUT/../evil"),
        ("write", "OUTPUT-evil/file"),
        ("start", "curl example.org"),
        ("connect", "('127.0.0.1', 80)"),
    ],
)
def test_what_is_not_allowed_is_seen(event: tuple[str, str], tmp_path: Path) -> None:
    output = tmp_path / "output"
    planted = (event[0], event[1].replace("OUTPUT", str(output)))
    fine = [("write", str(output / "records" / "a.json")), ("start", "git -C . status")]
    assert not_allowed([*fine, planted], [output]) == [planted]


def test_the_hook_sees_what_a_process_does(tmp_path: Path) -> None:
    code = (
        "import sys, os, socket, subprocess, pathlib, tests.audited as a; sys.addaudithook(a.hook);"
        "pathlib.Path('one').write_text(''); os.rename('one', 'two'); os.symlink('two', 'three');"
        "os.remove('two'); open(os.devnull).close(); subprocess.run(['true', 'x']);"
        "socket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 9)); print(a.EVENTS)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    line = [sys.executable, "-c", code]
    said = subprocess.check_output(line, cwd=tmp_path, env=environment, text=True)
    places = [str(tmp_path / name) for name in ("one", "one", "two", "three", "two")]
    expected = [*(("write", place) for place in places), ("start", "true x")]
    assert said.strip() == str([*expected, ("connect", "(('127.0.0.1', 9),)")])


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file that nothing may touch, nor may anything appear beside the folder."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "file").write_text("precious")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == "precious"
    assert not (tmp_path / "evil").exists() and not (tmp_path.parent / "evil").exists()
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_the_output_that_leads_elsewhere_is_refused(
    folder: str, tmp_path: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / folder).symlink_to(victim)
    assert reproduce.main(["--render-only", "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{output / folder} is a link out of the output directory" in line


def test_the_output_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "output").symlink_to(tmp_path / "real")
    assert reproduce.main(["--render-only", "--output", str(tmp_path / "output")]) == 0
    assert (tmp_path / "real" / "tables" / "main.md").exists()


@pytest.mark.long
def test_files_that_are_links_are_replaced_not_followed(tmp_path: Path, victim: Path) -> None:
    first = Grid(tmp_path / "first")
    first.output.mkdir(parents=True)
    assert first.run("oom", "--report")[0] == 1  # leaves failures and logs as well
    again = Grid(tmp_path)
    files = [path.relative_to(first.output) for path in first.output.rglob("*") if path.is_file()]
    for file in files:
        if file.parts[0] != "locks":
            place = again.output / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(victim / "file")
    status, _, said = again.run("oom", "--report")
    assert status == 1, said
    links = [path for path in again.output.rglob("*") if path.is_symlink()]
    # Links in place of records were set aside, as the links that they were.
    assert all(path.suffix == ".damaged" for path in links) and len(files) > 15


@pytest.mark.long
def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, victim: Path) -> None:
    grid = Grid(tmp_path)
    assert grid.run()[0] == 0
    for lock in (grid.output / "locks").iterdir():
        lock.unlink()
        lock.symlink_to(victim / "file")
    status, _, said = grid.run("run", "--fresh")
    assert status == 1 and "cannot write" in said.splitlines()[-1]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_within_records_name_no_files(
    name: str, tmp_path: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    spec = dataclasses.replace(make_spec(), model=name, method=name, eval_tasks=(name,))
    record = make_record(spec, [0], [0])
    RecordStore(output).save(record)
    FailureStore(output).note(spec, record.fingerprints, ValueError(name))
    assert sorted(path.stem for path in output.rglob("*.*")) == [record.id] * 3
    # A record that claims to be another one is set aside in its own folder.
    path = output / "records" / "a.json"
    save_record(path, record.to_json() | {"id": name})
    assert load_record(path, RecordStore.parse) is None
    assert path.with_name("a.json.damaged").exists()
    # Provenance names tables and figures; the report shows only those that lie in their folders.
    assert reproduce.main(["--table", "params", "--output", str(output)]) == 0
    facts = output / "tables" / "params.provenance.json"
    facts.write_text(json.dumps({"table": name, "name": name, "figures": [name], "command": name}))
    before = {path for path in tmp_path.rglob("*")}
    assert write_report(output) == output / "report.html"
    assert {path for path in tmp_path.rglob("*")} - before == {output / "report.html"}


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize(
    "option", ["--table", "--tasks", "--methods", "--models", "--preset", "--quirk", "--scoring"]
)
def test_names_on_the_command_line_are_known_ones(
    option: str, name: str, tmp_path: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [option, name, "--render-only", "--output", str(tmp_path / "output")]
    assert reproduce.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("arguments", [("rank", "--settings"), ("efficiency", "--shape")])
def test_names_of_settings_and_shapes_too(
    arguments: tuple[str, str], tmp_path: Path, victim: Path
) -> None:
    table, option = arguments
    line = ["--table", table, option, "../../evil", "--output", str(tmp_path / "output")]
    assert reproduce.main([*line, "--render-only"]) == 2
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"../../evil": {"choice": "{question}"}},
        {"piqa": {"../../evil": "{question}"}},
        {"piqa": {"choice": "{question.__class__.__mro__}"}},
        {"piqa": {"choice": "{question!r:>{question}}"}},
    ],
)
def test_prompts_name_tasks_and_fields_alone(
    content: Any, tmp_path: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(content))
    output = ["--output", str(tmp_path / "output")]
    assert reproduce.main(["--prompts", str(prompts), *output]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", [*ESCAPES[:4], "/etc/passwd", "sub/shard", "", 5, None])
def test_an_index_of_weights_names_files_beside_it(name: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path.parent / "evil", folder / "sub" / "shard"):
        place.write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    index = {"weight_map": {"weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    try:
        with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json|is missing"):
            weight_files(folder)
    finally:
        (tmp_path.parent / "evil").unlink()


@pytest.mark.parametrize(
    "text",
    [
        f"401 for https://example.org/api?token={SECRET}&x=1",
        f"headers: {{'Authorization': 'Bearer {SECRET}', 'x': 'y'}}",
        f"authorization: Bearer {SECRET}",
        f"cannot connect to proxy http://user:{SECRET}@proxy.example:3128/",
        f"the environment has {SECRET}",
    ],
)
@pytest.mark.parametrize("secret", [SECRET, "an-older-token-of-another-form"])
def test_secrets_are_taken_out(text: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text.replace(SECRET, secret)
    monkeypatch.setenv("HF_TOKEN", secret)
    shown = redacted(text)
    assert secret not in shown and "***" in shown
    assert shown.split()[0] == text.split()[0].replace(secret, "***")
    if "environment" not in text or secret == SECRET:
        monkeypatch.delenv("HF_TOKEN")
        assert secret not in redacted(text)


@pytest.mark.parametrize("text", ["loss is nan at step 3", "see https://example.org/a@b?x=hf_1"])
def test_other_text_stays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "nan")  # too short to be a token
    assert redacted(text) == text


def test_a_failure_tells_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_job(*arguments: Any) -> Iterator[RunRecord]:
        try:
            raise OSError(f"GET with Authorization: Bearer {SECRET}")
        except OSError as error:
            raise RuntimeError(f"no file at https://me:{SECRET}@example.org/") from error
        yield

    monkeypatch.setattr("harness.run.cell.run_job", run_job)
    outcome = execute(cells(methods=["lora"]), loader(), RecordStore(tmp_path), fresh=False)
    ((_, failure),) = outcome.failed.items()
    assert failure.reason.startswith("RuntimeError: no file at https://***@example.org/")
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("GET with Authorization: Bearer ***" in text for text in texts)  # the log
    assert not any(SECRET in text for text in [*texts, *capsys.readouterr()])


def test_the_command_line_tells_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(self: Any, *arguments: Any, **options: Any) -> None:
        raise ConnectionError(f"cannot reach http://me:{SECRET}@proxy.example:3128")

    monkeypatch.setattr("datasets.load_dataset", load)
    arguments = ["--preset", "paper", "--models", "gemma-2b", "--tasks", "piqa"]
    monkeypatch.setattr("harness.accuracy.resolve", lambda *a: loader().weights["tiny"])
    assert reproduce.main([*arguments, "--output", str(tmp_path / "output")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "http://***@proxy.example" in line and SECRET not in line
