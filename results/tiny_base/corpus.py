"""The text the tiny base model is pretrained on: the world's facts in prose, and lettered lists.

None of the eight tasks is in here: no question, no instruction line, no "Answer:". The lists teach
what a larger model has from the web, to find an item and to name its letter.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from tasks.miniature.world import (
    ACTIVITIES,
    ATTRIBUTES,
    PRONOUNS,
    SITUATIONS,
    THINGS,
    VALUES,
    Thing,
)

LETTERS = "ABCDE"

# {n} is the thing's name and {v} the value of the attribute.
FACTS = {
    "kind": ("The {n} is a {v}.", "A {n} is one sort of {v}.", "They call the {n} a {v}."),
    "colour": ("The {n} is {v}.", "The {n} has the colour {v}.", "They painted the {n} {v}."),
    "material": ("The {n} is made of {v}.", "The {n} is all {v}.", "They made the {n} from {v}."),
    "place": ("The {n} is in the {v}.", "They keep the {n} in the {v}.", "In the {v} is the {n}."),
    "use": ("The {n} helps to {v}.", "They use the {n} to {v}.", "To {v} they take the {n}."),
    "weight": ("The {n} is {v}.", "The {n} feels {v}.", "They find the {n} {v}."),
}
# Noun phrases for "a thing with this value", to look for one in a list.
PHRASES = {
    "kind": ("the {v}", "some {v}"),
    "colour": ("the {v} thing", "something {v}"),
    "material": ("the thing made of {v}", "something made of {v}", "something {v}"),
    "place": ("the thing from the {v}", "something in the {v}", "something from the {v}"),
    "use": ("the thing to {v}", "something to {v}"),
    "weight": ("the {v} thing", "something {v}"),
}


def fact(rng: random.Random, thing: Thing, attribute: str, value: str | None = None) -> str:
    """One sentence that gives `thing` the value (by default the true one) of `attribute`."""
    shown = thing.get(attribute) if value is None else value
    return rng.choice(FACTS[attribute]).format(n=thing.name, v=shown)


def lettered(items: Sequence[str]) -> str:
    """The items as lines "(A) item", "(B) item" and so on."""
    return "".join(f"\n({letter}) {item}" for letter, item in zip(LETTERS, items, strict=False))


def portrait(rng: random.Random) -> str:
    """All about one thing."""
    thing = rng.choice(THINGS)
    return " ".join(fact(rng, thing, a) for a in rng.sample(ATTRIBUTES, rng.randint(3, 6)))


def gathering(rng: random.Random) -> str:
    """Things that share a value."""
    attribute = rng.choice(ATTRIBUTES)
    value = rng.choice(VALUES[attribute])
    names = [t.name for t in THINGS if t.get(attribute) == value]
    some = rng.sample(names, min(len(names), 4))
    return f"{rng.choice(PHRASES[attribute]).format(v=value)} : {', '.join(some)}."


def opinions(rng: random.Random) -> str:
    """People say things about the world, and are set right."""
    lines = []
    for _ in range(3):
        thing, attribute = rng.choice(THINGS), rng.choice(ATTRIBUTES)
        person = rng.choice([*PRONOUNS])
        if rng.random() < 0.5:
            claim, verdict = thing.get(attribute), "right"
        else:
            claim = rng.choice([v for v in VALUES[attribute] if v != thing.get(attribute)])
            verdict = "wrong"
        said = fact(rng, thing, attribute, claim)
        lines.append(f"{person} said: {said} That was {verdict}. {fact(rng, thing, attribute)}")
    return " ".join(lines)


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


# A list's items, and for each of them a phrase that fits that item alone.
Items = tuple[list[str], list[str]]


def things(rng: random.Random, size: int) -> Items:
    """Things, told apart by their names or by what is true of one of them only."""
    listed = rng.sample(THINGS, size)
    phrases = []
    for thing in listed:
        telling = [
            a for a in ATTRIBUTES if sum(t.get(a) == thing.get(a) for t in listed) == 1
        ]
        if telling and rng.random() < 0.7:
            attribute = rng.choice(telling)
            phrases.append(rng.choice(PHRASES[attribute]).format(v=thing.get(attribute)))
        else:
            phrases.append(f"the {thing.name}")
    return [t.name for t in listed], phrases


def values(rng: random.Random, size: int) -> Items:
    """Values of one attribute, told apart by things that have them."""
    attribute = rng.choice([a for a in ATTRIBUTES if len(VALUES[a]) >= size])
    listed = rng.sample(VALUES[attribute], size)
    owners = [rng.choice([t for t in THINGS if t.get(attribute) == v]) for v in listed]
    return listed, [f"the {owner.name}" for owner in owners]


def deeds(rng: random.Random, size: int) -> Items:
    """What people do, told apart by what it belongs to or by the words themselves."""
    if rng.random() < 0.5:
        pairs = [pair for activity in ACTIVITIES for pair in pairwise(activity.steps)]
    else:
        field = rng.choice(("before", "feeling", "after"))
        pairs = [(case.event, getattr(case, field)) for case in SITUATIONS]
    listed = rng.sample(sorted({item for _, item in pairs}), size)
    phrases = []
    for item in listed:
        cue = rng.choice([c for c, other in pairs if other == item])
        phrases.append(cue if rng.random() < 0.7 else item)
    return listed, phrases


def some_items(rng: random.Random) -> Items:
    """Two to five items of one sort."""
    make: Callable[[random.Random, int], Items] = rng.choices((things, values, deeds), (5, 2, 2))[0]
    return make(rng, rng.choice((2, 3, 4, 4, 5, 5)))


def list_read_twice(rng: random.Random) -> str:
    """A lettered list and once more the same list."""
    items, _ = some_items(rng)
    return f"List{lettered(items)}\nList{lettered(items)}"


def list_then_search(rng: random.Random) -> str:
    """A lettered list, then the letters of some items and the items of some letters."""
    items, phrases = some_items(rng)
    found = ""
    # With repeats, or the letters left over would give the last ones away.
    for i in rng.choices(range(len(items)), k=6):
        if rng.random() < 0.7:
            found += f"\n{phrases[i]} : {LETTERS[i]}"
        else:
            found += f"\n{LETTERS[i]} : {items[i]}"
    return f"List{lettered(items)}{found}"


def search_then_list(rng: random.Random) -> str:
    """What some people want, a lettered list, and the letters of the items that fit."""
    items, phrases = some_items(rng)
    people = rng.sample([*PRONOUNS], rng.randint(1, 3))
    wanted = rng.choices(range(len(items)), k=len(people))
    wishes = [f"{p} wants {phrases[i]}." for p, i in zip(people, wanted, strict=True)]
    found = [f"\n{p} : {LETTERS[i]}" for p, i in zip(people, wanted, strict=True)]
    return " ".join(wishes) + lettered(items) + "".join(found)


DOCUMENTS: tuple[tuple[Callable[[random.Random], str], int], ...] = (
    (portrait, 3),
    (gathering, 2),
    (opinions, 3),
    (afternoon, 1),
    (story, 1),
    (list_read_twice, 3),
    (list_then_search, 8),
    (search_then_list, 8),
)


def document(rng: random.Random) -> str:
    """One document of a random sort."""
    makers, weights = zip(*DOCUMENTS, strict=True)
    make: Callable[[random.Random], str] = rng.choices(makers, weights)[0]
    return make(rng)
