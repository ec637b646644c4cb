"""From a cell to the exact rows, prompts and weights it is run on, and their fingerprints."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from tasks import Example, get_task
from tasks.base import Scoring
from tasks.data import fingerprint, mix, select
from tasks.prompts import Prompt, prompt_fingerprint, render
from tasks.sources import DataError, Source

from ..cells.quirks import is_arc
from ..cells.spec import Fingerprints, RunSpec
from ..models.weights import ResolvedWeights

# What the released code scores ARC over, see `quirks`.
_ARC_LABELS = tuple(f" {label}" for label in "1234ABCDE")


@dataclass(frozen=True)
class EvalSet:
    """The scored rows of one task, worded."""

    examples: list[Example]
    prompts: list[Prompt]


@dataclass(frozen=True)
class CellInputs:
    """Everything a cell is run on.

    Attributes:
        train: (prompt, index of the right continuation) per training row, mixed over tasks.
        evaluation: Task name -> scored rows.
        weights: Where the model comes from.
        fingerprints: Hashes of all of it.
        data_label: Where the rows come from, for tables.
        skipped: "<task> <split>" -> how many rows of it were left out because they cannot be used;
            only where there are some.
    """

    train: list[tuple[Prompt, int]]
    evaluation: dict[str, EvalSet]
    weights: ResolvedWeights
    fingerprints: Fingerprints
    data_label: str
    skipped: dict[str, int] = field(default_factory=dict)


def made_from(inputs: CellInputs) -> dict[str, Any]:
    """What a record's provenance says of a cell's inputs."""
    facts: dict[str, Any] = {"data": inputs.data_label, "weights": inputs.weights.label}
    return facts | ({"skipped": inputs.skipped} if inputs.skipped else {})


@dataclass
class InputLoader:
    """Loads the inputs of cells, each split once.

    Args:
        source: Where rows come from.
        weights: Model name -> resolved weights.
        templates: The user's prompts, task -> scoring -> template.
        skip_bad_rows: Leave out the rows that cannot be used, say so and count them; they are
            refused otherwise. No part of a cell: its fingerprints are of the rows that are left.
        skipped: (task, split) -> rows left out, of the splits loaded so far.
    """

    source: Source
    weights: Mapping[str, ResolvedWeights]
    templates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    skip_bad_rows: bool = False
    skipped: dict[tuple[str, str], int] = field(default_factory=dict)
    _splits: dict[tuple[str, str], list[Example]] = field(default_factory=dict)

    def unavailable(self, spec: RunSpec) -> str | None:
        """Why the cell cannot be run for want of data, in one line; None if nothing is missing."""
        reasons = (self.source.unavailable(get_task(n), split) for n, split in _splits_of(spec))
        return next((reason for reason in reasons if reason is not None), None)

    def load(self, spec: RunSpec) -> CellInputs:
        """The inputs of one cell.

        Raises:
            tasks.sources.DataError: A split is missing or broken.
        """
        scoring = cast(Scoring, spec.scoring)
        parts = []
        for name in spec.train_tasks:
            examples = self._split(name, get_task(name).train_split)
            parts.append((get_task(name), select(examples, spec.limit_train)))
        rows = mix(parts, spec.seed)
        train = [
            (render(task, e, scoring, self._template(task.name, scoring)), e.answer)
            for task, e in rows
        ]

        evaluation = {}
        for name in spec.eval_tasks:
            task = get_task(name)
            chosen = select(self._split(name, task.eval_split), spec.limit_eval)
            template = self._template(name, scoring)
            prompts = [render(task, e, scoring, template) for e in chosen]
            if "arc-nine-labels" in spec.quirks and is_arc(name):
                prompts = [dataclasses.replace(each, distractors=_ARC_LABELS) for each in prompts]
            evaluation[name] = EvalSet(chosen, prompts)

        weights = self.weights[spec.model]
        names = sorted({*spec.train_tasks, *spec.eval_tasks})
        wordings = [
            prompt_fingerprint(get_task(n), scoring, self._template(n, scoring)) for n in names
        ]
        fingerprints = Fingerprints(
            train_data=_digest([fingerprint(examples) for _, examples in parts]) if parts else "",
            eval_data=_digest([fingerprint(e.examples) for e in evaluation.values()]),
            model=weights.fingerprint,
            prompts=_digest(wordings),
        )
        skipped = {
            f"{name} {split}": count
            for name, split in _splits_of(spec)
            if (count := self.skipped[name, split])
        }
        return CellInputs(train, evaluation, weights, fingerprints, self.source.label, skipped)

    def _split(self, name: str, split: str) -> list[Example]:
        if (name, split) not in self._splits:
            bad_rows: list[DataError] | None = [] if self.skip_bad_rows else None
            self._splits[name, split] = self.source.load(get_task(name), split, bad_rows)
            self.skipped[name, split] = len(bad_rows or ())
            if bad_rows:
                more = f", and {len(bad_rows) - 1} more" if len(bad_rows) > 1 else ""
                print(f"left out: {bad_rows[0]}{more}", file=sys.stderr)
        return self._splits[name, split]

    def _template(self, name: str, scoring: str) -> str | None:
        return self.templates.get(name, {}).get(scoring)


def _splits_of(spec: RunSpec) -> list[tuple[str, str]]:
    """(task, split) of everything that a cell reads."""
    return [(name, get_task(name).train_split) for name in spec.train_tasks] + [
        (name, get_task(name).eval_split) for name in spec.eval_tasks
    ]


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]
