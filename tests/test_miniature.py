"""The miniature data sets say what the world says, and training rows do not give answers away."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from tasks.base import Example
from tasks.miniature import make
from tasks.miniature.world import ACTIVITIES, ATTRIBUTES, SITUATIONS, THINGS, VALUES
from tasks.registry import TASK_NAMES, get_task

DATA = Path(make.__file__).parent / "data"
BASE = Path(__file__).parents[1] / "tasks" / "miniature" / "model"
BY_NAME = {thing.name: thing for thing in THINGS}
CHOICE_AMONG_THINGS = ("arc-e", "arc-c", "obqa", "piqa", "winogrande")


def read(name: str, split: str) -> list[Example]:
    task = get_task(name)
    lines = (DATA / task.directory / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [task.parse(json.loads(line), str(number)) for number, line in enumerate(lines)]


def splits(name: str) -> tuple[list[Example], list[Example]]:
    task = get_task(name)
    return read(name, task.train_split), read(name, task.eval_split)


def words_of(text: str, vocabulary: object) -> list[str]:
    return [w for w in vocabulary if re.search(rf"\b{w}\b", text)]  # type: ignore[attr-defined]


def mentioned(text: str) -> dict[str, str]:
    """Returns the values that the text names, by attribute."""
    found = {a: words_of(text, VALUES[a]) for a in ATTRIBUTES}
    return {attribute: values[0] for attribute, values in found.items() if values}


def asked_fact(example: Example) -> tuple[str, str]:
    """Returns the thing and the attribute that decide the answer to a question on things."""
    right = example.options[example.answer]
    things = words_of(right, BY_NAME)
    if things:
        attributes = [a for a in mentioned(example.question) if a != "kind"] or ["kind"]
        return things[0], attributes[0]
    [thing] = words_of(example.question, BY_NAME)
    [attribute] = mentioned(example.question if example.labels[0] == "true" else right)
    return thing, attribute


def test_regenerating_gives_the_files_that_are_there(tmp_path: Path) -> None:
    make.write(tmp_path)
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    stored = {p.relative_to(DATA): p.read_bytes() for p in DATA.rglob("*.jsonl")}
    assert made == stored
    assert sum(map(len, stored.values())) < 2_500_000


@pytest.mark.parametrize("name", TASK_NAMES)
def test_rows_are_many_distinct_and_balanced(name: str) -> None:
    train, held_out = splits(name)
    assert len(train) == make.TRAIN_ROWS
    assert len(held_out) == make.EVAL_ROWS
    for rows in (train, held_out):
        assert len({(e.question, frozenset(e.options)) for e in rows}) == len(rows)
        counts = Counter(e.answer for e in rows)
        share_of_first = counts[0] / len(rows)
        if name == "boolq":
            assert 0.45 <= share_of_first <= 0.65  # the real one's is 0.62
        else:
            assert max(counts.values()) - min(counts.values()) <= 1
        assert all(len(set(e.options)) == len(e.options) for e in rows)


@pytest.mark.parametrize("name", CHOICE_AMONG_THINGS)
def test_right_thing_fits_and_wrong_things_do_not(name: str) -> None:
    for example in [row for rows in splits(name) for row in rows]:
        for index, option in enumerate(example.options):
            named = words_of(option, BY_NAME)
            if named:
                fits = all(
                    BY_NAME[named[0]].get(a) == v for a, v in mentioned(example.question).items()
                )
            else:
                [thing] = words_of(example.question, BY_NAME)
                fits = option in {BY_NAME[thing].get(a) for a in ATTRIBUTES}
            assert fits == (index == example.answer), example


def test_boolq_answers_agree_with_the_world() -> None:
    for example in [row for rows in splits("boolq") for row in rows]:
        [thing] = words_of(example.question, BY_NAME)
        [(attribute, value)] = mentioned(example.question).items()
        assert (BY_NAME[thing].get(attribute) == value) == (example.answer == 0), example


def test_social_answers_agree_with_the_world() -> None:
    fields = {"before": "before", "feel": "feeling", "next": "after"}
    for example in [row for rows in splits("siqa") for row in rows]:
        [case] = [s for s in SITUATIONS if f" {s.event}." in example.question]
        [field] = [fields[word] for word in words_of(example.question.split("\n")[1], fields)]
        fits = [option == getattr(case, field) for option in example.options]
        assert fits.index(True) == example.answer and sum(fits) == 1, example


def test_endings_are_the_next_step() -> None:
    for example in [row for rows in splits("hellaswag") for row in rows]:
        [activity] = [a for a in ACTIVITIES if f" is {a.name} and " in example.question]
        [now] = [i for i, s in enumerate(activity.steps) if f" {s}." in example.question]
        fits = [option == f"{activity.steps[now + 1]}." for option in example.options]
        assert fits.index(True) == example.answer and sum(fits) == 1, example


@pytest.mark.parametrize("name", [*CHOICE_AMONG_THINGS, "boolq"])
def test_no_evaluated_fact_is_asked_in_training(name: str) -> None:
    train, held_out = splits(name)
    assert {asked_fact(e) for e in train}.isdisjoint(asked_fact(e) for e in held_out)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_no_evaluated_row_is_trained_on(name: str) -> None:
    train, held_out = splits(name)
    rows = {(e.question, frozenset(e.options)) for e in train}
    assert rows.isdisjoint((e.question, frozenset(e.options)) for e in held_out)


def test_pretraining_text_holds_no_task() -> None:
    from tasks.miniature.corpus import document

    rng = random.Random(7)
    text = "\n".join(document(rng) for _ in range(5000))
    for forbidden in ("?", "Answer", "answer", "option", "true", "false"):
        assert forbidden not in text
    for name in TASK_NAMES:
        _, held_out = splits(name)
        assert get_task(name).instruction not in text
        assert not any(example.question in text for example in held_out)


def test_tiny_base_is_small_and_knows_the_labels() -> None:
    transformers = pytest.importorskip("transformers")
    files = [path for path in BASE.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    prompt = tokenizer("Which?\n(A) one\nAnswer:")["input_ids"]
    for label in ("A", "B", "C", "D", "E", "true", "false"):
        with_label = tokenizer(f"Which?\n(A) one\nAnswer: {label}")["input_ids"]
        assert with_label[:-1] == prompt
        assert tokenizer.decode(with_label[-1:]) == f" {label}"
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE)
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
