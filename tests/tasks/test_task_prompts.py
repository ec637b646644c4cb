"""The wording of prompts, and the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks import TASK_NAMES, Example, get_task
from tasks.base import SCORINGS
from tasks.prompts import TemplateError, load_templates, prompt_fingerprint, render

LETTERED = Example("id", "Where {is} it?", ("here", "over there"), ("A", "B"), 1)
WORDED = Example("id", "is it?", ("true", "false"), ("true", "false"), 0)


def test_label_prompt_lists_the_options_and_asks_for_a_letter() -> None:
    prompt = render(get_task("arc-e"), LETTERED, "label")
    first, *rest = prompt.text.split("\n")
    assert "letter" in first
    assert rest == ["Where {is} it?", "(A) here", "(B) over there", "Answer:"]
    assert prompt.continuations == (" A", " B")


def test_choice_prompt_names_no_option_and_no_letter() -> None:
    prompt = render(get_task("arc-e"), LETTERED, "choice")
    first, *rest = prompt.text.split("\n")
    assert "letter" not in first
    assert rest == ["Where {is} it?", "Answer:"]
    assert prompt.continuations == (" here", " over there")
    assert prompt.option_lengths == (4, 10)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_boolq_names_its_labels_in_the_instruction(scoring: Any) -> None:
    prompt = render(get_task("boolq"), WORDED, scoring)
    first, *rest = prompt.text.split("\n")
    assert "true" in first and "false" in first and "letter" not in first
    assert rest == ["is it?", "Answer:"]
    assert prompt.continuations == (" true", " false")


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("name", TASK_NAMES)
def test_every_prompt_is_one_instruction_line_and_ends_in_answer(name: str, scoring: Any) -> None:
    task = get_task(name)
    prompt = render(task, LETTERED if task.lettered else WORDED, scoring)
    assert "\n" not in task.instruction
    assert prompt.text.startswith(task.instruction)
    assert prompt.text.endswith("\nAnswer:")


def test_unknown_scoring_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown scoring 'letter'.*label, choice"):
        render(get_task("arc-e"), LETTERED, "letter")  # type: ignore[arg-type]


def test_fingerprint_tells_wordings_apart() -> None:
    tasks = [get_task(name) for name in ("arc-e", "boolq", "piqa")]
    seen = {prompt_fingerprint(task, scoring) for task in tasks for scoring in ("label", "choice")}
    seen.add(prompt_fingerprint(tasks[0], "label", "{question}\n{options}\nAnswer:"))
    # BoolQ's labels are its options, so that its two scorings word it alike.
    assert len(seen) == 6
    assert prompt_fingerprint(tasks[0], "label") in seen


def test_template_replaces_the_wording(tmp_path: Path) -> None:
    path = tmp_path / "templates.json"
    path.write_text(
        json.dumps(
            {"piqa": {"label": "{options}\n{{goal}} {question} =>", "choice": "{question}:"}}
        )
    )
    templates = load_templates(path)
    prompt = render(get_task("piqa"), LETTERED, "label", templates["piqa"]["label"])
    assert prompt.text == "(A) here\n(B) over there\n{goal} Where {is} it? =>"
    prompt = render(get_task("piqa"), LETTERED, "choice", templates["piqa"]["choice"])
    assert prompt.text == "Where {is} it?:"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected an object"),
        ('{"piqa": "x"}', "expected an object"),
        ('{"pica": {"label": "{question}"}}', "did you mean .*piqa"),
        ('{"piqa": {"letter": "{question}"}}', "unknown scoring 'letter'"),
        ('{"piqa": {"label": 1}}', "expected a text, got int"),
        ('{"piqa": {"choice": "{question} {goal}"}}', r"unknown field \{goal\}"),
        ('{"piqa": {"choice": "{question} {options}"}}', r"unknown field \{options\}"),
        ('{"boolq": {"label": "{question} {options}"}}', r"unknown field \{options\}"),
        ('{"piqa": {"label": "{question}"}}', r"expected the field \{options\}"),
        ('{"piqa": {"choice": "{instruction}"}}', r"expected the field \{question\}"),
        ('{"piqa": {"choice": "{question.upper}"}}', "unknown field"),
        ('{"piqa": {"choice": "{question!r}"}}', "unknown field"),
        ('{"piqa": {"choice": "{question:>9}"}}', "unknown field"),
        ('{"piqa": {"choice": "{} {question}"}}', "unknown field"),
        ('{"piqa": {"choice": "{question"}}', "literal brace"),
        ('{"piqa": {"choice": "{question} "}}', "ends in whitespace"),
    ],
)
def test_unusable_templates_are_named_in_one_line(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "templates.json"
    path.write_text(content)
    with pytest.raises(TemplateError, match=message) as caught:
        load_templates(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_template_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"nowhere\.json"):
        load_templates(tmp_path / "nowhere.json")
