"""Runs a study: the trials of all arms round by round, then the results. Loads no torch itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import mean

import numpy as np

from harness.cells.spec import RunSpec
from harness.store.outcome import Outcome
from harness.store.records import RunRecord

from .cells import Group, StudyCells
from .selection import Choice, Trial, choose_rate, next_rates

#: From cells to what became of them: by running those without a record, or by looking them up.
Settle = Callable[[Sequence[RunSpec]], Outcome]

#: Task -> for each seed, whether each row was answered right.
Correct = dict[str, np.ndarray]


@dataclass
class GroupResults:
    """What is known of one model in one regime.

    Attributes:
        trials: arm -> learning rate -> what it gave on the validation rows.
        validation: arm -> learning rate -> the answers to the validation rows.
        choices: arm -> the learning rate chosen for it; missing for an arm without one.
        finals: arm -> learning rate -> its answers to the scored rows.
        base: the untuned model's answers; None where it is no arm or has no record.
        parameters: arm -> number of trained parameters.
        unfinished: one line for every reason why something is missing.
    """

    trials: dict[str, dict[float, Trial]] = field(default_factory=dict)
    validation: dict[str, dict[float, Correct]] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    finals: dict[str, dict[float, Correct]] = field(default_factory=dict)
    base: Correct | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)


@dataclass
class Results:
    """What is known of a study.

    Attributes:
        groups: every model in every regime.
        outcome: what became of all its cells.
    """

    groups: dict[Group, GroupResults]
    outcome: Outcome = field(default_factory=Outcome)


def run_study(cells: StudyCells, settle: Settle) -> Results:
    """Select the learning rates of all arms, then get the results at them.

    What is chosen depends on trials alone, and these on training and validation rows alone: no cell
    that is scored on a task's own rows is asked for before every choice of its group is made.

    Args:
        cells: The study's cells.
        settle: Runs cells, or looks their records up.
    """
    results = Results({group: GroupResults() for group in cells.groups})
    run = _Run(cells, settle, results)
    run.select()
    run.finish()
    return results


class _Run:
    def __init__(self, cells: StudyCells, settle: Settle, results: Results) -> None:
        self.cells = cells
        self.settle = settle
        self.results = results

    def select(self) -> None:
        """Try rates until every group has its choices, or cannot go on."""
        study = self.cells.study
        going: dict[Group, dict[str, dict[float, Trial]]] = {
            group: {arm: {} for arm in self.cells.tuned} for group in self.cells.groups
        }
        for group, trials in going.items():
            self.results.groups[group].trials = trials
        while going:
            wanted = {group: next_rates(study.grid, trials) for group, trials in going.items()}
            going = {group: going[group] for group in going if any(wanted[group].values())}
            asked = [
                (group, arm, rate, self.cells.trials(group, arm, rate))
                for group in going
                for arm, rates in wanted[group].items()
                for rate in rates
            ]
            self._settle(spec for *_, specs in asked for spec in specs)
            for group, arm, rate, specs in asked:
                trial = self._trial(group, specs)
                if trial is not None:
                    self.results.groups[group].trials[arm][rate] = trial
                    seeds = len(study.seeds.selection)
                    answers = self._answers(group, specs, seeds)
                    if answers is not None:
                        of_arm = self.results.groups[group].validation.setdefault(arm, {})
                        of_arm[rate] = answers
                else:
                    # Without one of its trials an arm cannot be chosen for like the others.
                    going.pop(group, None)

    def finish(self) -> None:
        """Get the results of the groups whose selection has ended."""
        grid = self.cells.study.grid
        asked: list[tuple[Group, str, float, list[RunSpec]]] = []
        for group, found in self.results.groups.items():
            if any(next_rates(grid, found.trials).values()):
                continue
            for arm, trials in found.trials.items():
                try:
                    choice = choose_rate(grid, trials)
                except ValueError as error:
                    found.unfinished.append(f"{arm}: {error}")
                    continue
                found.choices[arm] = choice
                for rate in (choice.rate, *choice.neighbours):
                    asked.append((group, arm, rate, self.cells.finals(group, arm, rate)))
        base = {group: self.cells.untuned(group) for group in self.results.groups}
        self._settle(spec for *_, specs in asked for spec in specs)
        self._settle(spec for specs in base.values() for spec in specs)
        for group, specs in base.items():
            self.results.groups[group].base = self._answers(group, specs, 1)
        for group, arm, rate, specs in asked:
            found = self.results.groups[group]
            answers = self._answers(group, specs, len(self.cells.study.seeds.finals))
            if answers is not None:
                found.finals.setdefault(arm, {})[rate] = answers
                record = self._record(specs[0])
                if record is not None:
                    found.parameters[arm] = record.trainable_parameters

    def _settle(self, specs: Iterable[RunSpec]) -> None:
        outcome, all_of = self.settle(list(dict.fromkeys(specs))), self.results.outcome
        all_of.records |= {_alone(spec): record for spec, record in outcome.records.items()}
        all_of.failed |= {_alone(spec): failure for spec, failure in outcome.failed.items()}
        all_of.unavailable |= outcome.unavailable
        all_of.not_run += outcome.not_run
        all_of.computed += outcome.computed
        all_of.skipped |= outcome.skipped

    def _record(self, spec: RunSpec) -> RunRecord | None:
        return self.results.outcome.records.get(spec)

    def _missing(self, group: Group, spec: RunSpec) -> None:
        """Note why a cell has neither a record nor diverged."""
        outcome = self.results.outcome
        reason = outcome.unavailable.get(spec)
        if spec in outcome.failed:
            reason = str(outcome.failed[spec])
        line = f"{spec.title}: not run" if reason is None else reason
        if line not in self.results.groups[group].unfinished:
            self.results.groups[group].unfinished.append(line)

    def _trial(self, group: Group, specs: list[RunSpec]) -> Trial | None:
        """What the cells of a trial gave together; None if one of them is missing."""
        scores, losses, diverged = [], [], False
        for spec in specs:
            record = self._record(spec)
            if record is not None:
                for task in record.tasks.values():
                    scores.append(mean(task.correct(self.cells.study.judgement.metric)))
                    losses.append(task.loss)
            elif self._diverged(spec):
                diverged = True
            else:
                self._missing(group, spec)
                return None
        if diverged:
            return Trial(None)
        known = [loss for loss in losses if loss is not None]
        return Trial(mean(scores), mean(known) if known else None)

    def _diverged(self, spec: RunSpec) -> bool:
        failure = self.results.outcome.failed.get(spec)
        return failure is not None and failure.diverged

    def _answers(self, group: Group, specs: list[RunSpec], seeds: int) -> Correct | None:
        """The answers that cells gave, (seeds, rows) for each task; None if one is missing.

        A run that diverged has answered no row right.
        """
        found: dict[str, list[list[bool] | None]] = {}
        for spec in specs:
            record = self._record(spec)
            if record is None and not self._diverged(spec):
                self._missing(group, spec)
                return None
            for task in spec.eval_tasks:
                metric = self.cells.study.judgement.metric
                right = None if record is None else record.tasks[task].correct(metric)
                found.setdefault(task, []).append(right)
        answers = {}
        for task, of_seeds in found.items():
            length = next((len(right) for right in of_seeds if right is not None), None)
            if length is None or len(of_seeds) != seeds:
                return None
            answers[task] = np.array([right or [False] * length for right in of_seeds])
        return answers or None


def _alone(spec: RunSpec) -> RunSpec:
    """The cell, whatever others it was trained together with."""
    return dataclasses.replace(spec, packed_with=())
