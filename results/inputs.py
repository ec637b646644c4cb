"""From a cell to the exact rows, prompts and weights it is run on, and their fingerprints."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from tasks import Example, get_task
from tasks.base import Scoring
from tasks.data import fingerprint, select
from tasks.mixture import mix
from tasks.prompts import Prompt, prompt_fingerprint, render
from tasks.sources import Source

from .quirks import is_arc
from .spec import Fingerprints, RunSpec
from .weights import ResolvedWeights

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
    """

    train: list[tuple[Prompt, int]]
    evaluation: dict[str, EvalSet]
    weights: ResolvedWeights
    fingerprints: Fingerprints
    data_label: str


@dataclass
class InputLoader:
    """Loads the inputs of cells, each split once.

    Args:
        source: Where rows come from.
        weights: Model name -> resolved weights.
        templates: The user's prompts, task -> scoring -> template.
    """

    source: Source
    weights: Mapping[str, ResolvedWeights]
    templates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    _splits: dict[tuple[str, str], list[Example]] = field(default_factory=dict)

    def unavailable(self, spec: RunSpec) -> str | None:
        """Why the cell cannot be run for want of data, in one line; None if nothing is missing."""
        splits = [(get_task(name), get_task(name).train_split) for name in spec.train_tasks]
        splits += [(get_task(name), get_task(name).eval_split) for name in spec.eval_tasks]
        reasons = (self.source.unavailable(task, split) for task, split in splits)
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
        return CellInputs(train, evaluation, weights, fingerprints, self.source.label)

    def _split(self, name: str, split: str) -> list[Example]:
        if (name, split) not in self._splits:
            self._splits[name, split] = self.source.load(get_task(name), split)
        return self._splits[name, split]

    def _template(self, name: str, scoring: str) -> str | None:
        return self.templates.get(name, {}).get(scoring)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]
