"""The eight tasks: their rows become the right examples, and a bad field is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks import TASK_NAMES, Example, get_task
from tasks.fields import RowError

MISSING = object()

EXPECTED = {
    "arc-e": Example("q-2", "What burns?", ("a", "wood", "c", "d"), ("A", "B", "C", "D"), 1),
    "arc-c": Example(
        "q-3", "Which is a mammal?", ("bat", "ant", "cod", "oak"), ("A", "B", "C", "D"), 0
    ),
    "boolq": Example("row", "do fish fly?", ("true", "false"), ("true", "false"), 1),
    "obqa": Example("7-1", "The sun is", ("hot", "wet"), ("A", "B"), 1),
    "piqa": Example("row", "Dry a cup.", ("Wipe it.", "Fill it."), ("A", "B"), 0),
    "siqa": Example(
        "row", "Kim lost a shoe.\nHow does Kim feel?", ("glad", "proud", "cross"), tuple("ABC"), 2
    ),
    "hellaswag": Example("row", "He jumps. he", tuple("abcd"), tuple("ABCD"), 1),
    "winogrande": Example("row", "Jo met Al as _ ran.", ("Jo", "Al"), ("A", "B"), 1),
}


def test_names_are_the_papers_in_its_order() -> None:
    assert " ".join(TASK_NAMES) == "arc-e arc-c boolq obqa piqa siqa hellaswag winogrande"


@pytest.mark.parametrize("name", TASK_NAMES)
def test_row_becomes_the_example_it_says(name: str, rows: dict[str, Any]) -> None:
    assert get_task(name).parse(rows[name][-1], "row") == EXPECTED[name]


def test_question_mark_is_added_once(rows: dict[str, Any]) -> None:
    boolq = get_task("boolq")
    assert boolq.parse(rows["boolq"][0], "row").question == "is snow cold?"
    assert boolq.parse(rows["boolq"][0], "row").answer == 0


@pytest.mark.parametrize(
    ("name", "column"),
    [(name, column) for name in TASK_NAMES for column in get_task(name).columns],
)
@pytest.mark.parametrize("bad", [MISSING, None, 7.5, " ", [], {}, ["x"], "\ud800"])
def test_bad_field_is_named(name: str, column: str, bad: Any, rows: dict[str, Any]) -> None:
    row = rows[name][-1]
    if bad is MISSING:
        del row[column]
    else:
        row[column] = bad
    with pytest.raises(RowError) as caught:
        get_task(name).parse(row, "row")
    assert caught.value.column == column


@pytest.mark.parametrize(
    ("name", "column", "bad"),
    [
        ("piqa", "label", -1),
        ("piqa", "label", 2),
        ("piqa", "label", True),
        ("siqa", "label", "0"),
        ("siqa", "label", ""),
        ("hellaswag", "label", "4"),
        ("hellaswag", "endings", ["a", "b", "c"]),
        ("siqa", "label", 7),
        ("hellaswag", "label", 1.0),
        ("winogrande", "answer", 0),
        ("winogrande", "sentence", "Jo met Al."),
        ("arc-c", "answerKey", "E"),
        ("arc-c", "choices", {"text": ["a", "b"], "label": ["A"]}),
        ("arc-c", "choices", {"text": ["a", "b"], "label": ["A", "A"]}),
        ("arc-c", "choices", {"text": ["a", ""], "label": ["A", "B"]}),
    ],
)
def test_answer_and_options_out_of_range_are_refused(
    name: str, column: str, bad: Any, rows: dict[str, Any]
) -> None:
    row = rows[name][-1] | {column: bad}
    with pytest.raises(RowError) as caught:
        get_task(name).parse(row, "row")
    assert caught.value.column == column


@pytest.mark.parametrize(("name", "column"), [("siqa", "label"), ("hellaswag", "label")])
def test_number_and_digits_mean_the_same(name: str, column: str, rows: dict[str, Any]) -> None:
    row = rows[name][-1]
    as_number = row | {column: int(row[column])}
    assert get_task(name).parse(row, "row") == get_task(name).parse(as_number, "row")


def test_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown task 'arc_easy' .did you mean .*arc-e"
    ) as caught:
        get_task("arc_easy")
    assert "\n" not in str(caught.value)


def lm_eval_tasks() -> dict[str, dict[str, Any]]:
    """Returns lm-eval's own description of every task in its folders of our eight data sets."""

    class Loader(yaml.SafeLoader):
        """Reads the references to Python functions as None."""

    Loader.add_multi_constructor("!", lambda *_: None)
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0]) / "tasks"
    found = {}
    for folder in (
        *("arc", "openbookqa", "piqa", "siqa", "hellaswag", "winogrande"),
        "super_glue/boolq",
    ):
        for path in (root / folder).glob("*.yaml"):
            content = yaml.load(path.read_text(), Loader)
            if "include" in content:
                base = path.parent / content["include"]
                content = yaml.load(base.read_text(), Loader) | content
            found[content["task"]] = content
    return found


def test_hub_ids_and_names_are_those_of_lm_eval() -> None:
    theirs = lm_eval_tasks()
    for name in TASK_NAMES:
        task = get_task(name)
        reference = theirs[task.lm_eval.name]
        assert reference["training_split"] == task.train_split
        # SuperGLUE's copy of BoolQ, which lm-eval reads, keeps the answer in another column.
        if name != "boolq":
            assert reference["dataset_path"] == task.hub.path
        # The paper trains on WinoGrande's debiased subset.
        if name not in ("boolq", "winogrande"):
            assert reference["dataset_name"] == task.hub.config
