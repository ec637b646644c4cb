"""Command lines: status 0, or 2 and one line on stderr; with rows of any kind, without training."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import types
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import harness.accuracy
from harness.messages import short
from harness.options import read_mapping
from harness.store.records import RecordStore, RunRecord
from harness.tables import get_table, table_names
from mixlora.lm_eval import cli
from reproduce import main
from tests.harness.builders import make_record

from .cases import cases, run, run_command
from .mutations import damaged, dumps, mutate, put_in_place
from .test_rows import good_row, split_by_hand

pytestmark = pytest.mark.long

#: Words that options take, right for one of them or for none.
WORDS = st.one_of(
    st.sampled_from(["tiny", "small", "paper", "main", "all", *table_names()]),
    st.sampled_from(["arc-e", "boolq,piqa", "arc-e,arc-e", ",", "base", "lora,mixlora", "mixdora"]),
    st.sampled_from(["label", "choice", "fused", "vanilla", "lm-eval", "own", "4bit", "upstream"]),
    st.sampled_from(["0", "1", "-1", "0,1", "1,1", "4294967295", "4294967296", "9" * 5_000, "1e3"]),
    st.sampled_from(["cpu", "cuda", "cuda:0", "mps", "auto", "float32", "bfloat16", "int8"]),
    st.sampled_from(
        ["llama2-7b", "smollm2-135m", "gemma-2b", "tokens", "8x96", "0x1", "eval-dropout"]
    ),
    st.sampled_from(
        ["", " ", "\n", "a\nb", "\x00", "\udcff", "é", "../..", "/", "x" * 5_000, "=", "--"]
    ),
    st.text(max_size=6),
)
NAMES = st.one_of(
    st.sampled_from(["table", "preset", "models", "methods", "tasks", "seeds", "settings"]),
    st.sampled_from(["limit-train", "limit-eval", "data-dir", "skip-bad-rows", "model-path"]),
    st.sampled_from(["prompts", "protocol", "quirk", "scoring", "quantize", "evaluator"]),
    st.sampled_from(["forward", "device", "dtype", "gradient-checkpointing", "auto-batch"]),
    st.sampled_from(["no-gradient-checkpointing", "checkpoint-steps", "packed", "verify"]),
    st.sampled_from(["shape", "layers", "tokens", "runs", "sweeps"]),
    st.sampled_from(["report", "fresh", "render-only", "tabel", "a\nb"]),
    st.text(max_size=4),
)


@st.composite
def options(draw: Any) -> list[str]:
    """A table with options, most of them of some table, with words, most of them of some option."""
    words = ["--table", draw(st.sampled_from(["main", *table_names()]))]
    for _ in range(draw(st.integers(0, 3))):
        name = f"--{draw(NAMES)}"
        value = draw(st.one_of(WORDS, st.none()))
        words += (
            [name] if value is None else draw(st.sampled_from([[name, value], [f"{name}={value}"]]))
        )
    # What makes OUTPUT is not what is tried here, and a run would be a real one.
    return [*words, "--dry-run"]


@cases(quick=80, torture=1600)
@given(words=options())
@example(words=["--a\nb", "--dry-run"]).via("a message of two lines")
@example(words=["--seeds", "4294967296", "--dry-run"]).via("a seed that no cell could be run with")
@example(words=["--data-dir", "\x00", "--dry-run"])
@example(words=["--table", "9" * 10_000, "--dry-run"]).via("a long name")
@example(words=["--limit-train=--", "--dry-run"]).via("what argparse makes a list of")
def test_arguments(words: list[str]) -> None:
    ended = run_command("command line", main, words)
    if ended.result is not None and "--help" not in words and "-h" not in words:
        assert ended.result.strip()


#: What a TOML file can hold, and the words of the command line.
VALUES = st.recursive(
    st.one_of(WORDS, st.booleans(), st.integers(), st.floats(), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=2)),
    max_leaves=4,
)


@cases(quick=80, torture=1600)
@given(table=st.sampled_from(table_names()), mapping=st.dictionaries(NAMES, VALUES, max_size=3))
def test_mappings(table: str, mapping: dict[str, Any]) -> None:
    """What is read is what the table's own options allow; everything else is refused by its key."""
    options = {option.name: option for option in get_table(table).options()}

    def read() -> dict[str, Any]:
        try:
            return read_mapping(options.values(), mapping, "a.toml, [b]")
        except ValueError as error:
            assert any(str(error).startswith(f"a.toml, [b], {key}: ") for key in mapping)
            # As the command line prints it.
            raise ValueError(short(str(error))) from error

    ended = run("command line", read)
    if ended.refusal:
        return
    assert len(ended.result) == len(mapping)
    for name, value in ended.result.items():
        assert options[name].check(value) == value


@pytest.fixture(scope="module")
def stand_in() -> Iterator[None]:
    """Cells of no time: the record says which rows the cell was given."""

    def run_job(job: Any) -> Iterator[RunRecord]:
        (cell,) = job.cells
        spec = cell.spec
        rows = cell.evaluation[spec.eval_tasks[0]]
        answers = [row.answer for row in rows]
        made = make_record(spec, answers, answers, answers)
        task = vars(made.tasks[spec.eval_tasks[0]]) | {
            "ids": [row.id for row in rows],
            "num_options": [len(row.options) for row in rows],
        }
        changes = {
            "fingerprints": cell.fingerprints,
            "tasks": {spec.eval_tasks[0]: type(made.tasks[spec.eval_tasks[0]])(**task)},
            "provenance": made.provenance | cell.provenance,
        }
        yield RunRecord(**vars(made) | changes)

    module: Any = types.ModuleType("harness.run.cell")
    module.run_job, module.release_memory = run_job, lambda: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "harness.run.cell", module)
        patch.setattr(harness.accuracy, "resolve_device", lambda name: "cpu")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("command")


@cases(quick=30, torture=700)
@given(data=st.data())
def test_rows_through_the_whole_command(stand_in: None, root: Path, data: Any) -> None:
    shutil.rmtree(root)
    (root / "data" / "openbookqa").mkdir(parents=True)
    rows = [data.draw(good_row("obqa", number)) for number in range(data.draw(st.integers(1, 4)))]
    for _ in range(data.draw(st.integers(0, 3))):
        mutate(data.draw, data.draw(st.sampled_from(rows)))
    content = b"".join(dumps(row) + b"\n" for row in rows)
    if data.draw(st.integers(0, 3)) == 0:
        content = data.draw(damaged(content))
    file = root / "data" / "openbookqa" / "test.jsonl"
    file.write_bytes(content)
    skip = data.draw(st.booleans())
    words = ["--tasks", "obqa", "--methods", "base", "--data-dir", str(root / "data")]
    words += ["--output", str(root / "output"), *(["--skip-bad-rows"] if skip else [])]
    ended = run_command("command line", main, words)
    good, bad = split_by_hand("obqa", "test", content)
    if not good or (bad and not skip):
        assert ended.result is None and str(file) in ended.refusal
        assert not bad or f"row {bad[0]}" in ended.refusal
        return
    assert ended.result is not None
    (record,) = RecordStore(root / "output").all()
    assert record.tasks["obqa"].ids == [row.id for row in good]
    assert record.provenance.get("skipped", {}) == ({"obqa test": len(bad)} if bad else {})
    assert (f"- bad rows left out: obqa test {len(bad)}\n" in ended.result) == bool(bad)


@cases(quick=30, torture=400)
@given(data=st.data())
def test_prompts_through_the_whole_command(stand_in: None, root: Path, data: Any) -> None:
    shutil.rmtree(root)
    root.mkdir()
    ours = "{instruction}\n{question}\nAnswer:"
    content: dict[str, Any] = {"obqa": {"choice": ours}, "boolq": {"label": ours}}
    before = json.dumps(content)
    for _ in range(data.draw(st.integers(0, 2))):
        mutate(data.draw, content)
    if data.draw(st.booleans()):
        content["obqa"] = {"choice": data.draw(st.text("{}!:[].a question\n ", max_size=24))}
    raw = dumps(content)
    if data.draw(st.integers(0, 3)) == 0:
        raw = data.draw(damaged(raw))
    file = root / "prompts.json"
    readable = put_in_place(data.draw, file, raw)
    words = ["--tasks", "obqa", "--methods", "base", "--limit-eval", "3", "--prompts", str(file)]
    ended = run_command("command line", main, [*words, "--output", str(root / "output")])
    if readable and raw == before.encode():
        assert ended.result is not None
    if ended.refusal:
        assert str(file) in ended.refusal
    else:
        said = json.loads(raw.decode())
        assert isinstance(said, dict) and set(said) <= {"obqa", "boolq", *said}
        template = said.get("obqa", {}).get("choice", ours)
        assert "{question}" in template and template == template.rstrip()


_LM_EVAL = st.dictionaries(
    st.sampled_from(["model", "model_args", "config", "include_path", "tasks"]),
    st.one_of(
        st.none(),
        st.sampled_from(["hf", "mixlora", "peft=a", "pretrained=a,peft=b", "a=,=b,,", "no/file"]),
        st.text(max_size=8),
        st.dictionaries(st.sampled_from(["peft", "pretrained"]), st.text(max_size=3), max_size=2),
    ),
    max_size=4,
)


@cases(quick=60, torture=500)
@given(given_arguments=_LM_EVAL, data=st.data())
def test_arguments_of_lm_eval(root: Path, given_arguments: dict[str, Any], data: Any) -> None:
    """What we change of its parsed command line: adapters by our class, our tasks found first."""
    root.mkdir(exist_ok=True)
    readable = None
    if "config" in given_arguments:
        file = root / "config.yaml"
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        file.unlink(missing_ok=True)
        (root.parent / "elsewhere").unlink(missing_ok=True)
        yaml = b"model: hf\nmodel_args:\n  pretrained: a\n  peft: b\n"
        raw = data.draw(damaged(yaml)) if data.draw(st.booleans()) else yaml
        readable = put_in_place(data.draw, file, raw)
        given_arguments["config"] = str(file)
    arguments = Namespace(**given_arguments)
    names = [str(given_arguments["config"])] if readable is False else []
    with contextlib.redirect_stderr(io.StringIO()):
        ended = run("command line", lambda: cli.prepare(arguments), (cli.CommandError,), names)
    assert ended.refusal or readable is not False
    if "include_path" in given_arguments and not ended.refusal:
        assert arguments.include_path[0] == str(cli.TASK_CONFIGS)
    args = given_arguments.get("model_args")
    if "config" not in given_arguments and isinstance(args, dict) and "peft" in args:
        theirs = given_arguments.get("model") or "hf"
        assert arguments.model == ("mixlora" if theirs == "hf" else given_arguments["model"])
