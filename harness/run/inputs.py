"""From a cell to the rows, prompts and weights it is run on, and their fingerprints. Torch-free.

A table may have hundreds of cells, and all of their rows are read before the first one runs, so
that a bad row is known at once. Every split is read once and shared by the cells that use it. What
a cell has of its own, the worded prompts, is made when the cell runs and let go after it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tasks import Example, get_task
from tasks.base import Scoring, Task
from tasks.data import fingerprint, mix, select, split_validation
from tasks.prompts import Prompt, prompt_fingerprint, render
from tasks.sources import DataError, Source

from ..cells.packing import pack_id
from ..cells.quirks import is_arc
from ..cells.spec import (
    VALIDATION,
    Fingerprints,
    RunOptions,
    RunSpec,
    TrainSettings,
    cell_id,
)
from ..models.weights import ResolvedWeights

logger = logging.getLogger(__name__)

#: The labels that the released code scores ARC over; see `harness.cells.quirks`.
_ARC_LABELS = tuple(f" {label}" for label in "1234ABCDE")

#: The part of a training split that is trained on.
_TRAINED = "training"

#: (task, split, most rows taken or None for all, how validation rows are cut from the split or None
#: for not at all, which of the two parts is taken).
_Selection = tuple[str, str, int | None, tuple[float, int] | None, str]


@dataclass(frozen=True)
class EvalSet:
    """The scored rows of one task, and how they are worded."""

    examples: list[Example]
    prompts: list[Prompt]


@dataclass(frozen=True)
class Cell:
    """A cell with everything that it is run on.

    Attributes:
        spec: What is run.
        fingerprints: Hashes of everything below.
        train: Per task trained on, its training rows.
        evaluation: Per task scored, its scored rows.
        templates: Task name -> the user's wording of its prompts; ours where there is none.
        weights: Where the model comes from.
        data_label: Where the rows come from, for tables.
        skipped: "<task> <split>" -> how many rows of it were left out because they cannot be used;
            only where there are some.
    """

    spec: RunSpec
    fingerprints: Fingerprints
    train: dict[str, list[Example]]
    evaluation: dict[str, list[Example]]
    templates: dict[str, str]
    weights: ResolvedWeights
    data_label: str
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Content hash that names the cell's record, 20 hex digits."""
        return cell_id(self.spec, self.fingerprints)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the provenance of the cell's record says of its inputs."""
        facts: dict[str, Any] = {"data": self.data_label, "weights": self.weights.label}
        return facts | ({"skipped": self.skipped} if self.skipped else {})

    def training_prompts(self) -> list[tuple[Prompt, int]]:
        """(prompt, index of the right continuation) per training row, mixed over the tasks."""
        parts = [(get_task(name), rows) for name, rows in self.train.items()]
        return [
            (self._worded(task, example), example.answer)
            for task, example in mix(parts, self.spec.seed)
        ]

    def eval_set(self, name: str) -> EvalSet:
        """The scored rows of a task with their prompts."""
        rows = self.evaluation[name]
        prompts = [self._worded(get_task(name), example) for example in rows]
        if "arc-nine-labels" in self.spec.quirks and is_arc(name):
            prompts = [dataclasses.replace(each, distractors=_ARC_LABELS) for each in prompts]
        return EvalSet(rows, prompts)

    def _worded(self, task: Task, example: Example) -> Prompt:
        scoring = cast(Scoring, self.spec.scoring)
        return render(task, example, scoring, self.templates.get(task.name))


def say_nothing(text: str) -> None:
    """Where nobody watches the progress of a job."""


@dataclass(frozen=True)
class Job:
    """Cells that are trained together, and how: one cell, or a pack of several.

    Attributes:
        cells: The cells, of which all are trained. They differ in tasks and seed alone.
        options: How they are run.
        wanted: The cells that are scored; None for all.
        checkpoint: File that the training goes on from, if it is there, and writes to; None for a
            training without.
        accumulation: Micro-batches that a training step is split into, in place of what the cells
            say; None for what they say.
        report: Called with short texts on how far the job is.
    """

    cells: tuple[Cell, ...]
    options: RunOptions
    wanted: tuple[RunSpec, ...] | None = None
    checkpoint: Path | None = None
    accumulation: int | None = None
    report: Callable[[str], None] = say_nothing

    @property
    def id(self) -> str:
        """Name of the job's lock and checkpoint."""
        return pack_id([cell.id for cell in self.cells])

    @property
    def title(self) -> str:
        """Short text for progress and messages."""
        first, *others = self.cells
        return first.spec.title + (f" and {len(others)} packed with it" if others else "")

    @property
    def spec(self) -> RunSpec:
        """The first cell, which has the settings that are common to all."""
        return self.cells[0].spec

    @property
    def train(self) -> TrainSettings | None:
        """How the cells are fine-tuned; None for the base."""
        train = self.spec.train
        if train is None or self.accumulation is None:
            return train
        return dataclasses.replace(train, accumulation=self.accumulation)


@dataclass
class InputLoader:
    """Finds what cells are run on. It reads each split once and keeps it, but no prompts.

    Args:
        source: Where rows come from.
        weights: Model name -> resolved weights.
        templates: The user's prompts, task -> scoring -> template.
        skip_bad_rows: Leave out the rows that cannot be used, say so and count them; they are
            refused otherwise. It is no part of a cell: its fingerprints cover the rows that are
            left.
    """

    source: Source
    weights: Mapping[str, ResolvedWeights]
    templates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    skip_bad_rows: bool = False
    _splits: dict[tuple[str, str], list[Example]] = field(default_factory=dict)
    _skipped: dict[tuple[str, str], int] = field(default_factory=dict)
    _selections: dict[_Selection, tuple[list[Example], str]] = field(default_factory=dict)

    def unavailable(self, spec: RunSpec) -> str | None:
        """Why the cell cannot be run for want of data, in one line; None if nothing is missing."""
        reasons = (self.source.unavailable(get_task(n), split) for n, split in _splits_of(spec))
        return next((reason for reason in reasons if reason is not None), None)

    def load(self, spec: RunSpec) -> Cell:
        """The cell with its inputs, which are shared with the cells loaded before.

        Raises:
            tasks.sources.DataError: A split is missing or broken.
        """
        train, train_prints = {}, []
        for name in spec.train_tasks:
            split = get_task(name).train_split
            key = (name, split, spec.limit_train, spec.validation, _TRAINED)
            train[name], rows_print = self._selected(key)
            train_prints.append(rows_print)
        evaluation, eval_prints = {}, []
        for name in spec.eval_tasks:
            split = _scored_split(name, spec)
            cut = spec.validation if spec.scored_on == VALIDATION else None
            key = (name, split, spec.limit_eval, cut, spec.scored_on)
            evaluation[name], rows_print = self._selected(key)
            eval_prints.append(rows_print)

        names = sorted({*train, *evaluation})
        scoring = cast(Scoring, spec.scoring)
        templates = {
            name: self.templates[name][scoring]
            for name in names
            if scoring in self.templates.get(name, {})
        }
        wordings = [prompt_fingerprint(get_task(n), scoring, templates.get(n)) for n in names]
        weights = self.weights[spec.model]
        return Cell(
            spec=spec,
            fingerprints=Fingerprints(
                train_data=_digest(train_prints) if train else "",
                eval_data=_digest(eval_prints),
                model=weights.fingerprint,
                prompts=_digest(wordings),
            ),
            train=train,
            evaluation=evaluation,
            templates=templates,
            weights=weights,
            data_label=self.source.label,
            skipped={
                f"{name} {split}": count
                for name, split in _splits_of(spec)
                if (count := self._skipped[name, split])
            },
        )

    def _selected(self, key: _Selection) -> tuple[list[Example], str]:
        """The rows that a cell takes of a split, and their hash."""
        if key not in self._selections:
            name, split, limit, cut, part = key
            rows = self._split(name, split)
            if cut is not None:
                trained, validation = split_validation(rows, *cut)
                rows = validation if part == VALIDATION else trained
            rows = select(rows, limit)
            self._selections[key] = rows, fingerprint(rows)
        return self._selections[key]

    def _split(self, name: str, split: str) -> list[Example]:
        if (name, split) not in self._splits:
            bad_rows: list[DataError] | None = [] if self.skip_bad_rows else None
            self._splits[name, split] = self.source.load(get_task(name), split, bad_rows)
            self._skipped[name, split] = len(bad_rows or ())
            if bad_rows:
                more = f", and {len(bad_rows) - 1} more" if len(bad_rows) > 1 else ""
                logger.warning("left out: %s%s", bad_rows[0], more)
        return self._splits[name, split]


def _splits_of(spec: RunSpec) -> list[tuple[str, str]]:
    """(task, split) of everything that a cell reads."""
    return [(name, get_task(name).train_split) for name in spec.train_tasks] + [
        (name, _scored_split(name, spec)) for name in spec.eval_tasks
    ]


def _scored_split(name: str, spec: RunSpec) -> str:
    """The split that a task's scored rows are from."""
    task = get_task(name)
    return task.train_split if spec.scored_on == VALIDATION else task.eval_split


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]
