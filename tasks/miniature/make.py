"""Writes the eight miniature data sets from `world.py`: `python -m tasks.miniature.make`.

Every row has the columns of the real data set. Most tasks keep a share of what they can ask about
(such as a thing's colour) for the evaluation split alone: an answer there cannot be learnt from the
training rows, only known from the pretraining text. The two with few things to ask about, SocialIQA
and HellaSwag, keep whole rows back instead.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.miniature.wording import (
    BACKWARD,
    BLANKS,
    CLAIMS,
    COMBINED,
    FORWARD,
    GOALS,
    SOCIAL,
    STEMS,
)
from tasks.miniature.world import (
    ACTIVITIES,
    PRONOUNS,
    SITUATIONS,
    THINGS,
    VALUES,
    Activity,
    Situation,
    Thing,
)

SEED = 42
TRAIN_ROWS, EVAL_ROWS = 320, 200
EVAL_SHARE = 0.25
LETTERS = "ABCDE"

Row = dict[str, Any]
# What a question is about; a key belongs to the training rows or to the evaluation rows.
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Quiz:
    """A question with its right option and its wrong ones."""

    question: str
    right: str
    wrong: list[str]
    topic: str = ""


def strangers(rng: random.Random, thing: Thing, attribute: str, number: int) -> list[str]:
    """Names of `number` things that do not share the thing's value of `attribute`."""
    value = thing.get(attribute)
    return rng.sample([t.name for t in THINGS if t.get(attribute) != value], number)


def other_values(rng: random.Random, thing: Thing, attribute: str, number: int) -> list[str]:
    """`number` values of `attribute` that the thing does not have."""
    return rng.sample([v for v in VALUES[attribute] if v != thing.get(attribute)], number)


def ask_easy(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """A thing's value, or the thing that has a value."""
    value = thing.get(attribute)
    if rng.random() < 0.5:
        question = FORWARD[attribute].format(n=thing.name)
        return Quiz(question, value, other_values(rng, thing, attribute, 3))
    question = BACKWARD[attribute].format(v=value)
    return Quiz(question, thing.name, strangers(rng, thing, attribute, 3))


def ask_challenge(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """Two conditions at once; wrong options meet one of them."""
    value = thing.get(attribute)
    same_kind = [t.name for t in THINGS if t.kind == thing.kind and t.get(attribute) != value]
    same_value = [t.name for t in THINGS if t.kind != thing.kind and t.get(attribute) == value]
    wrong = [*rng.sample(same_kind, 2), rng.choice(same_value)]
    return Quiz(COMBINED[attribute].format(k=thing.kind, v=value), thing.name, wrong)


def ask_claim(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """A claim about a thing, true or false."""
    form = rng.choice(CLAIMS[attribute])
    # True claims come up again sooner and repeats are dropped: a little over half stay true.
    if rng.random() < 0.58:
        return Quiz(form.format(n=thing.name, v=thing.get(attribute)), "true", ["false"])
    value = other_values(rng, thing, attribute, 1)[0]
    return Quiz(form.format(n=thing.name, v=value), "false", ["true"])


def ask_stem(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """The beginning of a sentence that the right thing ends."""
    question = STEMS[attribute].format(v=thing.get(attribute))
    return Quiz(question, thing.name, strangers(rng, thing, attribute, 3))


def ask_goal(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """A goal that one of two things reaches."""
    verb = rng.choice(("take", "use", "find"))
    right, wrong = f"{verb} the {thing.name}.", strangers(rng, thing, attribute, 1)[0]
    return Quiz(GOALS[attribute].format(v=thing.get(attribute)), right, [f"{verb} the {wrong}."])


def ask_blank(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """A sentence with a blank for one of the two things that it names."""
    wrong = strangers(rng, thing, attribute, 1)[0]
    first, second = rng.sample([thing.name, wrong], 2)
    person, pronoun = rng.choice([*PRONOUNS.items()])
    clause = BLANKS[attribute].format(v=thing.get(attribute))
    sentence = f"{person} thought of the {first} and the {second}. Then {pronoun} {clause}"
    return Quiz(sentence, thing.name, [wrong])


def ask_social(rng: random.Random, situation: Situation, field: str) -> Quiz:
    """What came before an event, how it feels, what comes next; the topic is the event."""
    person, right = rng.choice([*PRONOUNS]), getattr(situation, field)
    values = sorted({getattr(s, field) for s in SITUATIONS} - {right})
    return Quiz(
        SOCIAL[field].format(p=person), right, rng.sample(values, 2), f"{person} {situation.event}."
    )


def ask_ending(rng: random.Random, activity: Activity, done: int) -> Quiz:
    """The next step of an activity, after its first `done` steps; the topic is the activity."""
    person, pronoun = rng.choice([*PRONOUNS.items()])
    now = activity.steps[done - 1]
    told = f"{person} is {activity.name} and {now}. Next {pronoun}"
    elsewhere = [s for a in ACTIVITIES if a is not activity for s in a.steps]
    near = [s for i, s in enumerate(activity.steps) if i not in (done - 1, done)]
    wrong = [rng.choice(near), *rng.sample(elsewhere, 2)]
    return Quiz(told, activity.steps[done] + ".", [f"{w}." for w in wrong], activity.name)


def arc_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Columns of ai2_arc."""
    choices = {"text": options, "label": [*LETTERS[: len(options)]]}
    return {
        "id": name, "question": quiz.question, "choices": choices, "answerKey": LETTERS[answer]
    }  # fmt: skip


def openbookqa_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Columns of openbookqa: ARC's, but for the question's."""
    row = arc_row(quiz, options, answer, name)
    return {"question_stem" if k == "question" else k: v for k, v in row.items()}


def boolq_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Columns of boolq, whose passage is never shown."""
    return {"question": quiz.question, "answer": quiz.right == "true", "passage": ""}


def piqa_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Columns of piqa."""
    return {"goal": quiz.question, "sol1": options[0], "sol2": options[1], "label": answer}


def social_iqa_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Columns of social_i_qa."""
    answers = {f"answer{letter}": o for letter, o in zip("ABC", options, strict=True)}
    return {"context": quiz.topic, "question": quiz.question, **answers, "label": str(answer + 1)}


def hellaswag_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Columns of hellaswag."""
    ctx_a, _, ctx_b = quiz.question.rpartition(" Next ")
    split, number = name.rsplit("-", 1)
    return {
        "ind": int(number), "activity_label": quiz.topic.capitalize(), "ctx_a": ctx_a,
        "ctx_b": f"next {ctx_b}", "ctx": quiz.question, "endings": options, "source_id": "",
        "split": split, "split_type": "", "label": str(answer),
    }  # fmt: skip


def winogrande_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Columns of winogrande."""
    return {
        "sentence": quiz.question, "option1": options[0], "option2": options[1],
        "answer": str(answer + 1),
    }  # fmt: skip


@dataclass(frozen=True)
class Miniature:
    """How one data set is made.

    Attributes:
        eval_split: Name of the split beside `train`.
        keys: All that can be asked about.
        ask: Makes a question about a key.
        row: Puts question, options and the answer's index into the data set's columns.
        answers: Index of the right option, row after row, over and over.
        unseen_keys: Whether the evaluation rows ask about keys that the training rows never do.
            Otherwise only the rows differ, in their wrong options and persons.
    """

    eval_split: str
    keys: list[Key]
    ask: Callable[..., Quiz]
    row: Callable[[Quiz, list[str], int, str], Row]
    answers: tuple[int, ...]
    unseen_keys: bool = True


def facts(attributes: Iterable[str]) -> list[Key]:
    """All pairs of a thing and one of the attributes."""
    return [(thing, attribute) for thing in THINGS for attribute in attributes]


MINIATURES = {
    "arc_easy": Miniature("test", facts(FORWARD), ask_easy, arc_row, (0, 1, 2, 3)),
    "arc_challenge": Miniature("test", facts(COMBINED), ask_challenge, arc_row, (0, 1, 2, 3)),
    "boolq": Miniature("validation", facts(CLAIMS), ask_claim, boolq_row, (0, 1)),
    "openbookqa": Miniature("test", facts(STEMS), ask_stem, openbookqa_row, (0, 1, 2, 3)),
    "piqa": Miniature("validation", facts(GOALS), ask_goal, piqa_row, (0, 1)),
    "social_iqa": Miniature(
        "validation",
        [(s, field) for s in SITUATIONS for field in SOCIAL],
        ask_social,
        social_iqa_row,
        (0, 1, 2),
        unseen_keys=False,
    ),
    "hellaswag": Miniature(
        "validation",
        [(a, done) for a in ACTIVITIES for done in range(1, len(a.steps))],
        ask_ending,
        hellaswag_row,
        (0, 1, 2, 3),
        unseen_keys=False,
    ),
    "winogrande": Miniature("validation", facts(BLANKS), ask_blank, winogrande_row, (0, 1)),
}


def split_rows(
    rng: random.Random,
    task: Miniature,
    split: str,
    keys: list[Key],
    number: int,
    seen: set[tuple[Any, ...]],
) -> list[Row]:
    """`number` rows, the keys in turn, no question with the same options twice in all splits."""
    rows: list[Row] = []
    upcoming: list[Key] = []
    while len(rows) < number:
        if not upcoming:
            upcoming = rng.sample(keys, len(keys))
        quiz = task.ask(rng, *upcoming.pop())
        answer = task.answers[len(rows) % len(task.answers)]
        options = rng.sample(quiz.wrong, len(quiz.wrong))
        options.insert(answer, quiz.right)
        row = task.row(quiz, options, answer, f"{split}-{len(rows)}")
        identity = (quiz.topic, quiz.question, *sorted(options))
        if identity not in seen:
            seen.add(identity)
            rows.append(row)
    rng.shuffle(rows)
    return rows


def generate(name: str) -> dict[str, list[Row]]:
    """The rows of one miniature data set, by split."""
    task = MINIATURES[name]
    rng = random.Random(f"{SEED} {name}")
    keys = rng.sample(task.keys, len(task.keys))
    cut = round(len(keys) * EVAL_SHARE)
    train, held_out = (keys[cut:], keys[:cut]) if task.unseen_keys else (keys, keys)
    seen: set[tuple[Any, ...]] = set()
    return {
        "train": split_rows(rng, task, "train", train, TRAIN_ROWS, seen),
        task.eval_split: split_rows(rng, task, task.eval_split, held_out, EVAL_ROWS, seen),
    }


def write(directory: Path) -> None:
    """Writes `<directory>/<data set>/<split>.jsonl` for all eight."""
    for name in MINIATURES:
        for split, rows in generate(name).items():
            path = directory / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            path.write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data")
    write(parser.parse_args().output)


if __name__ == "__main__":
    main()
