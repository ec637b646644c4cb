"""Finds the tasks: every file of `tasks/definitions/` is one."""

from __future__ import annotations

import importlib
import pkgutil

from tasks import definitions
from tasks.base import Task
from tasks.names import choose

_PAPER_ORDER = ("arc-e", "arc-c", "boolq", "obqa", "piqa", "siqa", "hellaswag", "winogrande")


def _discover() -> dict[str, Task]:
    found: dict[str, Task] = {}
    for module_info in pkgutil.iter_modules(definitions.__path__, f"{definitions.__name__}."):
        task: Task = importlib.import_module(module_info.name).TASK
        if task.name in found:
            raise ValueError(f"{module_info.name}: a task named {task.name!r} exists already")
        found[task.name] = task
    ranks = {name: rank for rank, name in enumerate(_PAPER_ORDER)}
    names = sorted(found, key=lambda name: (ranks.get(name, len(ranks)), name))
    return {name: found[name] for name in names}


_TASKS = _discover()

TASK_NAMES: tuple[str, ...] = tuple(_TASKS)
"""Names of all tasks: the paper's eight in the order of its tables, then any others by name."""


def get_task(name: str) -> Task:
    """Returns the task called `name`.

    Raises:
        ValueError: No task has this name; the message suggests similar names.
    """
    return _TASKS[choose("task", name, TASK_NAMES)]
