"""Writes the eight miniature data sets from `world.py`: `python -m tasks.miniature.make`.

Every row has the columns of the real data set. Most tasks keep a share of the facts that they can
ask about (such as one thing's colour) for the evaluation split. Answers there cannot be learnt from
the training rows; the model must know them from the text it was pretrained on. SocialIQA and
HellaSwag have too few facts for that, and keep whole rows back instead.
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
# The fact that a question asks about, such as a thing and one of its attributes.
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Quiz:
    """A question with its right option and its wrong ones.

    `topic` is what it is about (a situation, an activity) where the data set has a column for that.
    """

    question: str
    right: str
    wrong: list[str]
    topic: str = ""


def strangers(rng: random.Random, thing: Thing, attribute: str, number: int) -> list[str]:
    """Returns the names of `number` things that have another value of `attribute`."""
    value = thing.get(attribute)
    return rng.sample([t.name for t in THINGS if t.get(attribute) != value], number)


def other_values(rng: random.Random, thing: Thing, attribute: str, number: int) -> list[str]:
    """Returns `number` values of `attribute` that the thing does not have."""
    return rng.sample([v for v in VALUES[attribute] if v != thing.get(attribute)], number)


def ask_easy(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """Asks for the value that a thing has, or for the thing that has a value."""
    value = thing.get(attribute)
    if rng.random() < 0.5:
        question = FORWARD[attribute].format(n=thing.name)
        return Quiz(question, value, other_values(rng, thing, attribute, 3))
    question = BACKWARD[attribute].format(v=value)
    return Quiz(question, thing.name, strangers(rng, thing, attribute, 3))


def ask_challenge(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """Asks for the thing that meets two conditions; each wrong option meets one of them."""
    value = thing.get(attribute)
    same_kind = [t.name for t in THINGS if t.kind == thing.kind and t.get(attribute) != value]
    same_value = [t.name for t in THINGS if t.kind != thing.kind and t.get(attribute) == value]
    wrong = [*rng.sample(same_kind, 2), rng.choice(same_value)]
    return Quiz(COMBINED[attribute].format(k=thing.kind, v=value), thing.name, wrong)


def ask_claim(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """Asks whether a claim about a thing is true."""
    form = rng.choice(CLAIMS[attribute])
    # There are fewer true claims than false ones, so true ones are more often dropped as repeats.
    # At 0.58, a little over half of those that stay are true.
    if rng.random() < 0.58:
        return Quiz(form.format(n=thing.name, v=thing.get(attribute)), "true", ["false"])
    value = other_values(rng, thing, attribute, 1)[0]
    return Quiz(form.format(n=thing.name, v=value), "false", ["true"])


def ask_stem(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """Gives the beginning of a sentence, which the right thing ends."""
    question = STEMS[attribute].format(v=thing.get(attribute))
    return Quiz(question, thing.name, strangers(rng, thing, attribute, 3))


def ask_goal(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """Gives a goal, which one of two things reaches."""
    verb = rng.choice(("take", "use", "find"))
    right, wrong = f"{verb} the {thing.name}.", strangers(rng, thing, attribute, 1)[0]
    return Quiz(GOALS[attribute].format(v=thing.get(attribute)), right, [f"{verb} the {wrong}."])


def ask_blank(rng: random.Random, thing: Thing, attribute: str) -> Quiz:
    """Gives a sentence with a blank for one of the two things that it names."""
    wrong = strangers(rng, thing, attribute, 1)[0]
    first, second = rng.sample([thing.name, wrong], 2)
    person, pronoun = rng.choice([*PRONOUNS.items()])
    clause = BLANKS[attribute].format(v=thing.get(attribute))
    sentence = f"{person} thought of the {first} and the {second}. Then {pronoun} {clause}"
    return Quiz(sentence, thing.name, [wrong])


def ask_social(rng: random.Random, situation: Situation, field: str) -> Quiz:
    """Asks what came before an event (the topic), how it feels, or what comes next."""
    person, right = rng.choice([*PRONOUNS]), getattr(situation, field)
    values = sorted({getattr(s, field) for s in SITUATIONS} - {right})
    return Quiz(
        SOCIAL[field].format(p=person), right, rng.sample(values, 2), f"{person} {situation.event}."
    )


def ask_ending(rng: random.Random, activity: Activity, done: int) -> Quiz:
    """Asks for the step that follows the first `done` steps of an activity (the topic)."""
    person, pronoun = rng.choice([*PRONOUNS.items()])
    now = activity.steps[done - 1]
    told = f"{person} is {activity.name} and {now}. Next {pronoun}"
    elsewhere = [s for a in ACTIVITIES if a is not activity for s in a.steps]
    near = [s for i, s in enumerate(activity.steps) if i not in (done - 1, done)]
    wrong = [rng.choice(near), *rng.sample(elsewhere, 2)]
    return Quiz(told, activity.steps[done] + ".", [f"{w}." for w in wrong], activity.name)


def arc_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Returns a row of ai2_arc."""
    choices = {"text": options, "label": [*LETTERS[: len(options)]]}
    return {
        "id": name, "question": quiz.question, "choices": choices, "answerKey": LETTERS[answer]
    }  # fmt: skip


def openbookqa_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Returns a row of openbookqa, which differs from ARC's in one column's name."""
    row = arc_row(quiz, options, answer, name)
    return {"question_stem" if k == "question" else k: v for k, v in row.items()}


def boolq_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Returns a row of boolq, whose passage no prompt shows."""
    return {"question": quiz.question, "answer": quiz.right == "true", "passage": ""}


def piqa_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Returns a row of piqa."""
    return {"goal": quiz.question, "sol1": options[0], "sol2": options[1], "label": answer}


def social_iqa_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Returns a row of social_i_qa."""
    answers = {f"answer{letter}": o for letter, o in zip("ABC", options, strict=True)}
    return {"context": quiz.topic, "question": quiz.question, **answers, "label": str(answer + 1)}


def hellaswag_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Returns a row of hellaswag."""
    ctx_a, _, ctx_b = quiz.question.rpartition(" Next ")
    split, number = name.rsplit("-", 1)
    return {
        "ind": int(number), "activity_label": quiz.topic.capitalize(), "ctx_a": ctx_a,
        "ctx_b": f"next {ctx_b}", "ctx": quiz.question, "endings": options, "source_id": "",
        "split": split, "split_type": "", "label": str(answer),
    }  # fmt: skip


def winogrande_row(quiz: Quiz, options: list[str], answer: int, name: str) -> Row:
    """Returns a row of winogrande."""
    return {
        "sentence": quiz.question, "option1": options[0], "option2": options[1],
        "answer": str(answer + 1),
    }  # fmt: skip


@dataclass(frozen=True)
class Miniature:
    """How one data set is made.

    Attributes:
        eval_split: name of the split beside `train`.
        keys: all facts that can be asked about.
        ask: function that makes a question about a fact.
        row: function that puts question, options, the answer's index and an id into the data set's
            columns.
        answers: index of the right option in each row; the sequence repeats.
        unseen_keys: whether the evaluation rows ask about facts that no training row asks about.
            Otherwise the two differ in their wrong options and in the persons that they name.
    """

    eval_split: str
    keys: list[Key]
    ask: Callable[..., Quiz]
    row: Callable[[Quiz, list[str], int, str], Row]
    answers: tuple[int, ...]
    unseen_keys: bool = True


def facts(attributes: Iterable[str]) -> list[Key]:
    """Returns all pairs of a thing and one of the attributes."""
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
    """Returns `number` rows that ask about the keys in turn.

    Args:
        rng: source of all random choices.
        task: the data set.
        split: name of the split.
        keys: facts to ask about.
        number: number of rows.
        seen: questions with their options that there are already in any split; none is asked
            again, and those of the new rows are added.
    """
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
    """Returns the rows of one miniature data set by split, the same on every call."""
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
    """Writes all eight data sets, `<directory>/<data set>/<split>.jsonl`."""
    for name in MINIATURES:
        for split, rows in generate(name).items():
            path = directory / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            path.write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data")
    write(parser.parse_args().output)


if __name__ == "__main__":
    main()
