"""The sentences in which the miniature tasks ask about the world, by attribute.

The fields are {n} for a thing's name, {v} for a value of the attribute, {k} for a thing's kind and
{p} for a person.
"""

FORWARD = {
    "kind": "What is the {n}?",
    "colour": "What colour is the {n}?",
    "material": "What is the {n} made of?",
    "place": "Where is the {n}?",
    "use": "What is the {n} for?",
}
BACKWARD = {
    "kind": "Which of these is a {v}?",
    "colour": "Which of these is {v}?",
    "material": "Which of these is made of {v}?",
    "place": "Which of these is in the {v}?",
    "use": "Which of these helps to {v}?",
}
COMBINED = {
    "colour": "Which {k} is {v}?",
    "material": "Which {k} is made of {v}?",
    "place": "Which {k} is in the {v}?",
}
CLAIMS = {
    "kind": ("is the {n} a {v}", "is a {n} one sort of {v}"),
    "colour": ("is the {n} {v}", "does the {n} have the colour {v}"),
    "material": ("is the {n} made of {v}", "did they make the {n} from {v}"),
    "place": ("is the {n} in the {v}", "do they keep the {n} in the {v}"),
    "use": ("does the {n} help to {v}", "do they use the {n} to {v}"),
    "weight": ("is the {n} {v}", "does the {n} feel {v}"),
}
STEMS = {
    "kind": "Among things that are a {v} you can count the",
    "colour": "Of a {v} colour you can see the",
    "material": "Made of {v} you can buy the",
    "place": "In the {v} you can find the",
    "use": "To {v} you should take the",
}
GOALS = {
    "kind": "To get a {v},",
    "colour": "To show something {v},",
    "material": "To find something made of {v},",
    "place": "To fetch something from the {v},",
    "use": "To {v},",
}
BLANKS = {
    "kind": "wanted a {v} and took the _.",
    "colour": "wanted something {v} and took the _.",
    "material": "wanted something made of {v} and took the _.",
    "place": "walked into the {v} and found the _.",
    "use": "wanted to {v} and took the _.",
    "weight": "wanted something {v} and took the _.",
}
SOCIAL = {
    "before": "What did {p} do before this?",
    "feeling": "How does {p} feel now?",
    "after": "What does {p} want to do next?",
}
