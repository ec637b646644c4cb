"""How an example is worded: the prompt's text and the continuations that compete to follow it.

There are two scorings, which are never mixed in one column of a table. `label`, the paper's, lists
the options under letters and asks for the letter. `choice`, that of lm-evaluation-harness, does not
list them and asks for the text of the option. Users can replace the wording of each task by a file,
see `load_templates`.
"""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import SCORINGS, Example, Scoring, Task
from tasks.fields import letters
from tasks.names import choose
from tasks.registry import get_task

_LABEL_REQUEST = "Reply with the letter of the best option."

_LISTED = "{instruction}\n{question}\n{options}\nAnswer:"
_UNLISTED = "{instruction}\n{question}\nAnswer:"


@dataclass(frozen=True)
class Prompt:
    """A worded example.

    Attributes:
        text: text that the model is given, without whitespace at its end.
        continuations: texts that may follow, one per option, each beginning with a space.
        option_lengths: number of characters of each option's text.
        id: id of the example, for messages.
        distractors: further labels that compete in label scoring although no option has them,
            written like the continuations; only the quirk "arc-nine-labels" has any.
    """

    text: str
    continuations: tuple[str, ...]
    option_lengths: tuple[int, ...]
    id: str
    distractors: tuple[str, ...] = ()


class TemplateError(ValueError):
    """A file of prompt templates cannot be used."""


def render(task: Task, example: Example, scoring: Scoring, template: str | None = None) -> Prompt:
    """Returns the prompt that asks an example.

    Args:
        task: the example's task.
        example: the question.
        scoring: whether the labels or the texts of the options compete.
        template: the user's wording, from `load_templates`; None takes ours.

    Raises:
        ValueError: `scoring` is unknown.
    """
    listed = lists_options(task, scoring)
    if template is None:
        template = _LISTED if listed else _UNLISTED
    fields = {
        "instruction": f"{task.instruction} {_LABEL_REQUEST}" if listed else task.instruction,
        "question": example.question,
    }
    if listed:
        pairs = zip(example.labels, example.options, strict=True)
        fields["options"] = "\n".join(f"({label}) {option}" for label, option in pairs)
    competing = example.labels if scoring == "label" else example.options
    return Prompt(
        text=template.format(**fields),
        continuations=tuple(f" {text}" for text in competing),
        option_lengths=tuple(len(option) for option in example.options),
        id=example.id,
    )


def lists_options(task: Task, scoring: str) -> bool:
    """Returns whether the prompts of a task list the options under letters.

    Raises:
        ValueError: `scoring` is unknown.
    """
    return choose("scoring", scoring, SCORINGS) == "label" and task.lettered


def prompt_fingerprint(task: Task, scoring: Scoring, template: str | None = None) -> str:
    """Returns the SHA-256, in hexadecimal, of a task's wording.

    It changes when any prompt of the task would.
    """
    options = ("first", "second") if task.lettered else ("true", "false")
    labels = letters(2) if task.lettered else options
    prompt = render(task, Example("id", "question", options, labels, 0), scoring, template)
    return hashlib.sha256(json.dumps([prompt.text, *prompt.continuations]).encode()).hexdigest()


def load_templates(path: Path) -> dict[str, dict[str, str]]:
    """Reads the user's wording from a JSON file, `{task: {scoring: template}}`.

    A template is a text with the fields `{instruction}`, `{question}` and, where options are listed
    under letters, `{options}`. Tasks and scorings that the file leaves out keep our wording.

    Returns:
        The templates, by name of the task and then by scoring.

    Raises:
        TemplateError: The file cannot be read, a task, scoring or field is unknown or missing, or
            a template ends in whitespace. The message is one line.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TemplateError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise TemplateError(f"{path}: expected an object {{task: {{scoring: template}}}}")
    for name, templates in content.items():
        try:
            task = get_task(name)
            for scoring, template in templates.items():
                _check_template(task, scoring, template)
        except ValueError as error:
            raise TemplateError(f"{path}, {name}: {error}") from error
    return content


def _check_template(task: Task, scoring: str, template: Any) -> None:
    allowed = {"instruction", "question"}
    required = {"question"}
    if lists_options(task, scoring):
        allowed.add("options")
        required.add("options")
    if not isinstance(template, str):
        raise ValueError(f"{scoring}: expected a text, got {type(template).__name__}")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{scoring}: {error} (a literal brace is written twice)") from error
    used = set()
    for _, field, spec, conversion in parts:
        if field is None:
            continue
        if field not in allowed or spec or conversion:
            names = ", ".join(f"{{{name}}}" for name in sorted(allowed))
            raise ValueError(f"{scoring}: unknown field {{{field}}}, fields are {names}")
        used.add(field)
    for field in sorted(required - used):
        raise ValueError(f"{scoring}: expected the field {{{field}}} in the template")
    if template != template.rstrip():
        # Most vocabularies join a space to the word after it. After a prompt that ends in a space,
        # no answer could begin with its usual token.
        raise ValueError(f"{scoring}: the template ends in whitespace, which begins the answer")
