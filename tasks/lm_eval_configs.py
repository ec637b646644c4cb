"""Writes the task configs for lm-evaluation-harness: `python -m tasks.lm_eval_configs`.

lm-eval describes a task by a YAML file whose texts are Jinja templates over the columns of a row.
The files of `mixlora/lm_eval/task_configs/` are made from `tasks/definitions/` and
`tasks/prompts.py`, so that wording and hub revisions stand in one place. They are committed because
the wheel contains `mixlora` alone.
"""

from __future__ import annotations

import json
import string
import textwrap
from pathlib import Path

from tasks.base import SCORINGS, Example, Scoring, Task
from tasks.prompts import lists_options, render
from tasks.registry import TASK_NAMES, get_task

CONFIG_DIR = Path(__file__).parents[1] / "mixlora" / "lm_eval" / "task_configs"

# JSON's notation of a text, a list or null is also YAML's.
_CONFIG = """\
# Written by `python -m tasks.lm_eval_configs` from the definition of {task.title}; do not edit.
task: {name}
custom_dataset: !function mixlora.lm_eval.data.load
dataset_kwargs:
  directory: {task.directory}
  split: {task.eval_split}
  hub_path: {task.hub.path}
  hub_name: {hub_name}
  hub_revision: {hub_revision}
{split_kind}_split: {task.eval_split}
output_type: multiple_choice
num_fewshot: 0
doc_to_text: |-
{text}
doc_to_choice: {choices}
doc_to_target: {target}
metric_list:
{metrics}
metadata:
  version: 1.0
"""
_METRIC = "  - {{metric: {}, aggregation: mean, higher_is_better: true}}"


def config_name(task: Task, scoring: Scoring) -> str:
    """Returns the name of a task of ours in lm-eval, which is also the name of its file."""
    return f"mixlora_{task.lm_eval.name}{'_choice' if scoring == 'choice' else ''}"


def config(task: Task, scoring: Scoring) -> str:
    """Returns the YAML that describes a task to lm-eval under one scoring."""
    letters, options = repr(string.ascii_uppercase), task.lm_eval.options
    question, option = task.lm_eval.question, "{{option.strip()}}"
    if lists_options(task, scoring):
        # The loop begins behind the question and ends behind the option, so that every option gets
        # the line that the prompt gives to its one option here.
        question += f"{{% for option in {options} %}}"
        option += "{% endfor %}"
    example = Example("", question, (option,), (f"{{{{{letters}[loop.index0]}}}}",), answer=0)
    if scoring == "label" and task.lettered:
        competing = f"{letters}[:{options} | length] | list"
    else:
        competing = f"{options} | map('trim') | list"
    metrics = ("acc", "acc_norm") if scoring == "choice" else ("acc",)
    return _CONFIG.format(
        task=task,
        name=config_name(task, scoring),
        hub_name=json.dumps(task.hub.config),
        hub_revision=json.dumps(task.hub.revision),
        split_kind="test" if task.eval_split == "test" else "validation",
        text=textwrap.indent(render(task, example, scoring).text, "  "),
        choices=json.dumps(f"{{{{{competing}}}}}"),
        target=json.dumps(f"{{{{{task.lm_eval.answer}}}}}"),
        metrics="\n".join(map(_METRIC.format, metrics)),
    )


def write(directory: Path) -> None:
    """Writes the configs of all tasks, `<directory>/<config name>.yaml`."""
    directory.mkdir(parents=True, exist_ok=True)
    for task in map(get_task, TASK_NAMES):
        for scoring in SCORINGS:
            path = directory / f"{config_name(task, scoring)}.yaml"
            path.write_text(config(task, scoring), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(CONFIG_DIR)
