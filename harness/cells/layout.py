"""What an accuracy table shows: its rows and columns, and the cells that fill them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks import TASK_NAMES

from ..request.request import Request
from .methods import BASE, METHOD_TITLES
from .spec import OWN, RunSpec


@dataclass(frozen=True)
class Setting:
    """What a table varies beside model, method and task.

    Attributes:
        name: As in reported.csv: "st" (one task at a time), "mt", "r=16", ...
        title: Printed beside the method; "" in a table of one setting.
        cells: The cells that fill it.
    """

    name: str
    title: str
    cells: Callable[[Request], list[RunSpec]]


def single_task(
    changes: Mapping[str, Any] | None = None, quirks: Sequence[str] = ()
) -> Callable[[Request], list[RunSpec]]:
    """One cell per model, task, method and seed, tuned and scored on that task.

    Args:
        changes: What differs from the preset's settings of the method.
        quirks: Of the released code, beside the request's.
    """

    def cells(request: Request) -> list[RunSpec]:
        return [
            request.cell(model, method, [task], [task], seed, changes, quirks)
            for model in request.models
            for task in request.tasks
            for method in request.methods
            # The untuned base knows no seeds.
            for seed in (request.seeds if method != BASE else request.seeds[:1])
        ]

    return cells


def all_tasks(
    changes: Mapping[str, Any] | None = None,
) -> Callable[[Request], list[RunSpec]]:
    """One cell per model, method and seed, tuned on all tasks mixed; none of the untuned base.

    Of mixtures, the load of the experts is counted as well, but where lm-eval scores: it runs a
    prompt once for each option.

    Args:
        changes: What differs from the preset's settings of the method.
    """

    def cells(request: Request) -> list[RunSpec]:
        mixed = [
            request.cell(model, method, request.tasks, request.tasks, seed, changes)
            for model in request.models
            for method in request.methods
            for seed in request.seeds
            if method != BASE
        ]
        return [
            dataclasses.replace(cell, expert_load=cell.is_mixture and cell.evaluator == OWN)
            for cell in mixed
        ]

    return cells


@dataclass(frozen=True)
class TableLayout:
    """One table of the paper's accuracies.

    Attributes:
        name: As on the command line; also the name of its output files.
        title: Its heading.
        paper_tables: Numbers of the paper's tables it reproduces.
        settings: What its rows are, beside methods.
        main: Name of the setting that the others are compared with.
        methods: Those that the paper's tables have, and the untuned base.
        tasks: Those that the paper's tables have.
    """

    name: str
    title: str
    paper_tables: tuple[str, ...]
    settings: tuple[Setting, ...]
    main: str
    methods: tuple[str, ...] = tuple(METHOD_TITLES)
    tasks: tuple[str, ...] = TASK_NAMES
