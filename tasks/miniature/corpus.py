"""The text the tiny base model is pretrained on: pages of notes about the world, one a line.

None of the eight tasks is in here: no question, no options, no instruction line, no "Answer:". The
lines of a page have nothing to do with one another, so the model learns the facts, and that what
comes after a line's heading does not depend on the lines above. That it does after "Answer:" is
what fine-tuning has to teach.
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

# {n} is the thing's name and {v} the value of the attribute: from the thing to its value.
FACTS = {
    "kind": ("The {n} is a {v}.", "A {n} is one sort of {v}.", "They call the {n} a {v}."),
    "colour": ("The {n} is {v}.", "The {n} has the colour {v}.", "They painted the {n} {v}."),
    "material": ("The {n} is made of {v}.", "The {n} is all {v}.", "They made the {n} of {v}."),
    "place": ("The {n} is in the {v}.", "They keep the {n} in the {v}.", "The {n} is at the {v}."),
    "use": ("The {n} helps to {v}.", "They use the {n} to {v}.", "The {n} is for this: {v}."),
    "weight": ("The {n} is {v}.", "The {n} feels {v}.", "They find the {n} {v}."),
}
# From the value to a thing that has it; {k} is the thing's kind.
FINDS = {
    "kind": ("One {v} is the {n}.", "{p} needs a {v}, so {p} takes the {n}."),
    "colour": ("One {v} {k} is the {n}.", "{p} likes {v} and holds the {n}."),
    "material": ("One {k} made of {v} is the {n}.", "Made of {v} there is the {n}."),
    "place": ("In the {v} is the {n}.", "The {k} in the {v} is the {n}."),
    "use": ("To {v} they take the {n}.", "One {k} to {v} is the {n}."),
    "weight": ("One {v} {k} is the {n}.", "{p} lifts something {v}, the {n}."),
}


def fact(rng: random.Random, thing: Thing, attribute: str, value: str | None = None) -> str:
    """One sentence that gives `thing` the value (by default the true one) of `attribute`."""
    shown = thing.get(attribute) if value is None else value
    return rng.choice(FACTS[attribute]).format(n=thing.name, v=shown)


def find(rng: random.Random, thing: Thing, attribute: str) -> str:
    """One sentence that leads from the value of `attribute` to `thing`."""
    value, person = thing.get(attribute), rng.choice([*PRONOUNS])
    form = rng.choice(FINDS[attribute])
    return form.format(n=thing.name, v=value, k=thing.kind, p=person)


def portrait(rng: random.Random) -> str:
    """Some of what is true of one thing."""
    thing = rng.choice(THINGS)
    return " ".join(fact(rng, thing, a) for a in rng.sample(ATTRIBUTES, 2))


def discovery(rng: random.Random) -> str:
    """A thing, found by what is true of it."""
    return find(rng, rng.choice(THINGS), rng.choice(ATTRIBUTES))


def opinion(rng: random.Random) -> str:
    """Somebody's claim about a thing, and whether it holds."""
    thing, attribute = rng.choice(THINGS), rng.choice(ATTRIBUTES)
    claim, verdict = thing.get(attribute), "right"
    if rng.random() < 0.5:
        claim = rng.choice([v for v in VALUES[attribute] if v != thing.get(attribute)])
        verdict = "wrong"
    return f"{fact(rng, thing, attribute, claim)} That is {verdict}."


def afternoon(rng: random.Random) -> str:
    """An activity from its first step to its last."""
    activity, (person, pronoun) = rng.choice(ACTIVITIES), rng.choice([*PRONOUNS.items()])
    first, *rest = activity.steps
    told = "".join(f" Then {pronoun} {step}." for step in rest)
    return f"{person} is {activity.name}. First {pronoun} {first}.{told}"


def story(rng: random.Random) -> str:
    """What led to an event and what came of it."""
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
    """A page of three notes, each a line with a heading."""
    makers, weights = zip(*NOTES, strict=True)
    chosen: list[Callable[[random.Random], str]] = rng.choices(makers, weights, k=3)
    return "\n".join(f"{rng.choice(HEADINGS)}: {make(rng)}" for make in chosen)
