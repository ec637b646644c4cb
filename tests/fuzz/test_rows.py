"""Rows of every task: what is read is what the file says, bad rows are named or left out."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks import TASK_NAMES, Example, get_task
from tasks.sources import DataError, open_source

from .cases import cases, check_line, run
from .mutations import damaged, damaged_gzip, dumps, mutate, put_in_place, unpacked

pytestmark = pytest.mark.long

_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.sampled_from(["a _ b", " x ", "?", "\x00", "a\u2028b"]),
).filter(str.strip)


@st.composite
def good_row(draw: Any, name: str, number: int) -> dict[str, Any]:
    """A row in the columns of the data set."""

    def texts(count: int) -> list[str]:
        return [draw(_TEXT) for _ in range(count)]

    def place(first: int, count: int) -> int | str:
        index = draw(st.integers(first, first + count - 1))
        return draw(st.sampled_from([index, str(index)]))

    if name in ("arc-e", "arc-c", "obqa"):
        count = draw(st.integers(2, 5))
        labels = draw(st.sampled_from(["ABCDE", "12345"]))[:count]
        return {
            "id": f"id {number}",
            "question_stem" if name == "obqa" else "question": draw(_TEXT),
            "choices": {"text": texts(count), "label": list(labels)},
            "answerKey": draw(st.sampled_from(labels)),
        }
    if name == "boolq":
        return {"question": draw(_TEXT), "answer": draw(st.booleans()), "passage": ""}
    if name == "piqa":
        goal, first, second = texts(3)
        return {"goal": goal, "sol1": first, "sol2": second, "label": place(0, 2)}
    if name == "siqa":
        names = ("context", "question", "answerA", "answerB", "answerC")
        return dict(zip(names, texts(5), strict=True)) | {"label": place(1, 3)}
    if name == "hellaswag":
        return {"ctx": draw(_TEXT), "endings": texts(4), "label": place(0, 4)}
    first, second = texts(2)
    options = {"option1": first, "option2": second}
    return {"sentence": f"{draw(_TEXT)}_", **options, "answer": place(1, 2)}


class NoRow(Exception):
    """A line is not what the data set's columns allow."""


def expected(name: str, line: bytes, row_id: str) -> Example:
    """What a line says, worked out apart from `tasks`."""

    def no_repeat(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if max(Counter(key for key, _ in pairs).values(), default=1) > 1:
            raise NoRow
        return dict(pairs)

    def no_number(text: str) -> None:
        raise NoRow

    try:
        row = json.loads(line.decode(), object_pairs_hook=no_repeat, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise NoRow from error
    if type(row) is not dict:
        raise NoRow

    def text(value: Any) -> str:
        if type(value) is not str or not value.strip() or re.search("[\ud800-\udfff]", value):
            raise NoRow
        return value.strip()

    def texts(value: Any) -> tuple[str, ...]:
        if type(value) is not list or len(value) not in range(2, 27):
            raise NoRow
        return tuple(map(text, value))

    def place(value: Any, allowed: str) -> int:
        if type(value) not in (int, str) or str(value).strip() not in list(allowed):
            raise NoRow
        return allowed.index(str(value).strip())

    try:
        if name in ("arc-e", "arc-c", "obqa"):
            row_id = text(row["id"])
            question = text(row["question_stem" if name == "obqa" else "question"])
            choices = row["choices"]
            if type(choices) is not dict:
                raise NoRow
            options, names = texts(choices["text"]), texts(choices["label"])
            if len(options) != len(names) or len({*names}) < len(names):
                raise NoRow
            if text(row["answerKey"]) not in names:
                raise NoRow
            answer = names.index(text(row["answerKey"]))
        elif name == "boolq":
            question = text(row["question"]).rstrip("?").rstrip() + "?"
            if type(row["answer"]) is not bool:
                raise NoRow
            options, answer = ("true", "false"), int(not row["answer"])
        elif name == "piqa":
            question, options = text(row["goal"]), (text(row["sol1"]), text(row["sol2"]))
            answer = place(row["label"], "01")
        elif name == "siqa":
            question = f"{text(row['context'])}\n{text(row['question'])}"
            options = (text(row["answerA"]), text(row["answerB"]), text(row["answerC"]))
            answer = place(row["label"], "123")
        elif name == "hellaswag":
            question, options = text(row["ctx"]), texts(row["endings"])
            if len(options) != 4:
                raise NoRow
            answer = place(row["label"], "0123")
        else:
            question, options = text(row["sentence"]), (text(row["option1"]), text(row["option2"]))
            if "_" not in question:
                raise NoRow
            answer = place(row["answer"], "12")
    except KeyError as error:
        raise NoRow from error
    labels = options if name == "boolq" else tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)])
    return Example(row_id, question, options, labels, answer)


def split_by_hand(name: str, split: str, content: bytes) -> tuple[list[Example], list[int]]:
    """The good rows of a file's content, and the numbers of the bad ones."""
    good: list[Example] = []
    bad = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines if lines[-1] else lines[:-1], start=1):
        try:
            row = expected(name, line, f"{split}-{number}")
        except NoRow:
            bad.append(number)
            continue
        if row.id in [each.id for each in good]:
            bad.append(number)
        else:
            good.append(row)
    return good, bad


def check(root: Path, name: str, file: Path, content: bytes | None, changed: set[str]) -> None:
    """Read a file both ways and compare with what its content says; None: it cannot be read."""
    task, source = get_task(name), open_source(root)
    good, bad = split_by_hand(name, task.eval_split, content or b"")
    where = str(file.with_suffix("").with_suffix(""))
    ended = run("rows", lambda: source.load(task, task.eval_split), (DataError,), [where])
    left_out: list[DataError] = []
    skipped = run(
        "rows", lambda: source.load(task, task.eval_split, left_out), (DataError,), [where]
    )
    if content is None:
        assert ended.refusal and skipped.refusal
        return
    assert skipped.result == (good or None)
    assert ended.result == (None if bad else good or None)
    for number, problem in zip(bad, left_out, strict=True):
        check_line(str(problem), [f"{file}, row {number}"])
    if bad:
        assert ended.refusal == str(left_out[0])
    columns = {str(e).partition(", column ")[2].partition(":")[0] for e in left_out} - {""}
    assert columns <= set(task.columns)
    if changed:
        # The answer's label may be gone with the choices.
        assert columns <= changed | ({"answerKey"} if "choices" in changed else set()) | {"id"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@cases(quick=150, torture=2400)
@given(data=st.data(), name=st.sampled_from(TASK_NAMES))
def test_mutated_rows(folder: Path, data: Any, name: str) -> None:
    rows = [data.draw(good_row(name, number)) for number in range(data.draw(st.integers(1, 4)))]
    changed = set()
    for _ in range(data.draw(st.integers(0, 3))):
        changed.add(mutate(data.draw, data.draw(st.sampled_from(rows))))
    if data.draw(st.integers(0, 3)) == 0:
        rows.append(data.draw(st.sampled_from(rows)))  # with its id
    ascii_only = data.draw(st.booleans())
    content = b"".join(dumps(row, ascii_only) + b"\n" for row in rows)
    file = fresh(folder, name, ".jsonl")
    file.write_bytes(content)
    check(folder, name, file, content, changed)


def test_a_label_of_a_megabyte_is_not_repeated(folder: Path) -> None:
    choices = {"text": ["a", "b"], "label": ["A" * 1_000_000, "B"]}
    row = {"id": "0", "question": "?", "choices": choices, "answerKey": "A"}
    content = dumps(row) + b"\n"
    file = fresh(folder, "arc-e", ".jsonl")
    file.write_bytes(content)
    check(folder, "arc-e", file, content, {"choices"})


@cases(quick=80, torture=1600)
@given(data=st.data(), name=st.sampled_from(TASK_NAMES))
def test_damaged_files(folder: Path, data: Any, name: str) -> None:
    rows = [data.draw(good_row(name, number)) for number in range(data.draw(st.integers(1, 3)))]
    content = b"".join(dumps(row) + b"\n" for row in rows)
    if data.draw(st.booleans()):
        content = data.draw(damaged(content))
    suffix = data.draw(st.sampled_from([".jsonl", ".jsonl.gz"]))
    file = fresh(folder, name, suffix)
    packed = data.draw(damaged_gzip(content)) if suffix == ".jsonl.gz" else content
    is_there = put_in_place(data.draw, file, packed)
    readable = unpacked(packed) if suffix == ".jsonl.gz" else packed
    check(folder, name, file, readable if is_there else None, set())


@cases(quick=40, torture=400)
@given(data=st.data())
@example(data=None).via("a file of no bytes")
def test_damaged_parquet(folder: Path, data: Any) -> None:
    """Its bytes have no oracle: either the rows are as they were written, or the file is named."""
    import pyarrow
    import pyarrow.parquet

    name, task = "piqa", get_task("piqa")
    rows = [{"goal": "g", "sol1": "a", "sol2": f"b{n}", "label": n % 2} for n in range(3)]
    file = fresh(folder, name, ".parquet")
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), file, write_page_checksum=True, compression="none"
    )
    content = file.read_bytes()
    new = b"" if data is None else data.draw(damaged(content))
    file.write_bytes(new)
    load = lambda: open_source(folder).load(task, task.eval_split)  # noqa: E731
    ended = run("rows", load, (DataError,), [str(file)])
    if new == content:
        assert [example.options[1] for example in ended.result] == ["b0", "b1", "b2"]


def fresh(root: Path, name: str, suffix: str) -> Path:
    """Where the scored split of a task belongs, with nothing there or beside it."""
    task = get_task(name)
    parent = root / task.directory
    shutil.rmtree(parent, ignore_errors=True)
    parent.mkdir()
    return parent / f"{task.eval_split}{suffix}"
