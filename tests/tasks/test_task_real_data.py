"""Every real row that is at hand becomes an example."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tasks import get_task
from tasks.base import SCORINGS
from tasks.prompts import render
from tasks.sources import open_source

pytestmark = pytest.mark.shared_data

# Number of rows, as the list of files that came with the data states it, and the smallest and the
# largest number of options.
FILES = [
    ("arc-e", "train", 2251, 3, 5),
    ("arc-e", "test", 1782, 3, 5),
    ("arc-c", "train", 1119, 3, 5),
    ("arc-c", "validation", 221, 4, 4),
    ("arc-c", "test", 879, 3, 5),
    ("boolq", "train", 9427, 2, 2),
    ("boolq", "validation", 2452, 2, 2),
    ("obqa", "train", 4957, 4, 4),
    ("obqa", "validation", 375, 4, 4),
    ("obqa", "test", 375, 4, 4),
    ("piqa", "train", 16113, 2, 2),
    ("piqa", "validation", 1378, 2, 2),
    ("siqa", "train", 33410, 3, 3),
    ("siqa", "validation", 1466, 3, 3),
    ("hellaswag", "validation", 7532, 4, 4),
    ("winogrande", "train", 10234, 2, 2),
    ("winogrande", "validation", 950, 2, 2),
]


@pytest.mark.parametrize(("name", "split", "num_rows", "fewest", "most"), FILES)
def test_every_row_parses(
    name: str, split: str, num_rows: int, fewest: int, most: int, shared_data: Path
) -> None:
    task = get_task(name)
    examples = open_source(shared_data).load(task, split)
    assert len(examples) == num_rows
    counts = Counter(len(example.options) for example in examples)
    assert (min(counts), max(counts)) == (fewest, most)
    for example in examples:
        assert 0 <= example.answer < len(example.options) == len(example.labels)
    answers = Counter(example.answer for example in examples)
    # Answers are spread evenly, but 62 % of BoolQ's are true. A label that is read one place off
    # would show here.
    shares = [answers[index] / num_rows for index in range(fewest)]
    if name == "boolq":
        assert shares[0] == pytest.approx(0.62, abs=0.02)
    else:
        assert shares == pytest.approx([sum(shares) / fewest] * fewest, abs=0.07)
    for scoring in SCORINGS:
        prompt = render(task, examples[0], scoring)
        assert examples[0].question in prompt.text


def test_hellaswag_has_no_train_split(shared_data: Path) -> None:
    source = open_source(shared_data)
    hellaswag = get_task("hellaswag")
    problem = source.unavailable(hellaswag, "train")
    assert problem is not None
    assert "hellaswag" in problem
    assert str(shared_data / "hellaswag" / "train.jsonl") in problem
    assert source.unavailable(hellaswag, "validation") is None


def test_known_rows_read_as_they_stand(shared_data: Path) -> None:
    source = open_source(shared_data)
    first = source.load(get_task("siqa"), "validation")[0]
    assert first.id == "validation-1"
    assert first.options[first.answer] == "Find somewhere to go"
    first = source.load(get_task("winogrande"), "validation")[0]
    assert first.options[first.answer] == "Maria"
    first = source.load(get_task("hellaswag"), "validation")[0]
    assert first.options[first.answer] == "stands and lifts the weight over her head."
    first = source.load(get_task("arc-c"), "test")[0]
    assert first.options[first.answer] == "Planetary days will become shorter."
