"""The text that the tiny base model is pretrained on: pages of notes about the world, one a line.

It holds none of the eight tasks: no question, no options, no instruction, no "Answer:". The lines
of a page have nothing to do with one another. The model thus learns the facts, and it learns that
what follows a line's heading does not depend on the lines above. After "Answer:" it does depend on
them, which is left for fine-tuning to teach.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tasks.miniature.world import (
    ACTIVITIES,
    ATTRIBUTES,
    PRONOUNS,
    SITUATIONS,
    THINGS,
    VALUES,
    Thing,
)

# Sentences that lead from a thing to its value: {n} is the thing's name, {v} the value.
FACTS = {
    "kind": ("The {n} is a {v}.", "A {n} is one sort of {v}.", "They call the {n} a {v}."),
    "colour": ("The {n} is {v}.", "The {n} has the colour {v}.", "They painted the {n} {v}."),
    "material": ("The {n} is made of {v}.", "The {n} is all {v}.", "They made the {n} of {v}."),
    "place": ("The {n} is in the {v}.", "They keep the {n} in the {v}.", "The {n} is at the {v}."),
    "use": ("The {n} helps to {v}.", "They use the {n} to {v}.", "The {n} is for this: {v}."),
    "weight": ("The {n} is {v}.", "The {n} feels {v}.", "They find the {n} {v}."),
}
# Sentences that lead from a value to a thing that has it: {k} is the thing's kind, {p} a person.
FINDS = {
    "kind": ("One {v} is the {n}.", "{p} needs a {v}, so {p} takes the {n}."),
    "colour": ("One {v} {k} is the {n}.", "{p} likes {v} and holds the {n}."),
    "material": ("One {k} made of {v} is the {n}.", "Made of {v} there is the {n}."),
    "place": ("In the {v} is the {n}.", "The {k} in the {v} is the {n}."),
    "use": ("To {v} they take the {n}.", "One {k} to {v} is the {n}."),
    "weight": ("One {v} {k} is the {n}.", "{p} lifts something {v}, the {n}."),
}


def fact(rng: random.Random, thing: Thing, attribute: str, value: str | None = None) -> str:
    """Returns a sentence that gives `thing` a value of `attribute`, by default the true one."""
    shown = thing.get(attribute) if value is None else value
    return rng.choice(FACTS[attribute]).format(n=thing.name, v=shown)


def find(rng: random.Random, thing: Thing, attribute: str) -> str:
    """Returns a sentence that leads from a thing's value of `attribute` to the thing."""
    value, person = thing.get(attribute), rng.choice([*PRONOUNS])
    form = rng.choice(FINDS[attribute])
    return form.format(n=thing.name, v=value, k=thing.kind, p=person)


def portrait(rng: random.Random) -> str:
    """Returns two facts about one thing."""
    thing = rng.choice(THINGS)
    return " ".join(fact(rng, thing, a) for a in rng.sample(ATTRIBUTES, 2))


def discovery(rng: random.Random) -> str:
    """Returns a sentence that finds a thing by a fact about it."""
    return find(rng, rng.choice(THINGS), rng.choice(ATTRIBUTES))


def opinion(rng: random.Random) -> str:
    """Returns a claim about a thing, and whether it is right."""
    thing, attribute = rng.choice(THINGS), rng.choice(ATTRIBUTES)
    claim, verdict = thing.get(attribute), "right"
    if rng.random() < 0.5:
        claim = rng.choice([v for v in VALUES[attribute] if v != thing.get(attribute)])
        verdict = "wrong"
    return f"{fact(rng, thing, attribute, claim)} That is {verdict}."


def afternoon(rng: random.Random) -> str:
    """Returns an activity told from its first step to its last."""
    activity, (person, pronoun) = rng.choice(ACTIVITIES), rng.choice([*PRONOUNS.items()])
    first, *rest = activity.steps
    told = "".join(f" Then {pronoun} {step}." for step in rest)
    return f"{person} is {activity.name}. First {pronoun} {first}.{told}"


def story(rng: random.Random) -> str:
    """Returns an event, with what led to it, how it felt and what came of it in any order."""
    case, (person, pronoun) = rng.choice(SITUATIONS), rng.choice([*PRONOUNS.items()])
    parts = [
        f"Before that {pronoun} {case.before}.",
        f"It made {person} feel {case.feeling}.",
        f"Later {person} wanted to {case.after}.",
    ]
    return f"{person} {case.event}. " + " ".join(rng.sample(parts, 3))


NOTES: tuple[tuple[Callable[[random.Random], str], int], ...] = (
    (portrait, 4),
    (discovery, 6),
    (opinion, 3),
    (afternoon, 2),
    (story, 2),
)
HEADINGS = ("Note", "Today", "Remember", *PRONOUNS)


def document(rng: random.Random) -> str:
    """Returns a page of three notes, each a line with a heading."""
    makers, weights = zip(*NOTES, strict=True)
    chosen: list[Callable[[random.Random], str]] = rng.choices(makers, weights, k=3)
    return "\n".join(f"{rng.choice(HEADINGS)}: {make(rng)}" for make in chosen)
