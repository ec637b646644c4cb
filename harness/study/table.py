"""A study's table as data: verdicts, accuracies, how learning rates were chosen. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.cells.methods import BASE
from harness.show.data import DASH, MEASURED, Block, Cell, TableData, distinct, number
from harness.show.figures import Line, Panel, draw
from tasks import get_task

from .cells import Group, StudyCells
from .file import Family, Hypothesis, StudyFile
from .run import Correct, GroupResults, Results
from .statistics import Verdict, estimate, expected_best, judge, plateau

#: What is printed of a verdict that was not made.
NOT_JUDGED = "not judged"

#: Arm -> its verdict, of one family in one group.
Verdicts = Mapping[str, Verdict]

_NOTES = (
    "verdict: better, worse, equivalent (surely differing by less than the margin), undecided; by "
    "t-tests on an analysis of variance over seeds and questions, with Holm's correction for the "
    "family",
    "detectable: the smallest true difference that the study would find with that power",
    "rows that would decide: questions of all tasks together, with as many seeds; 'more seeds' "
    "where no number of questions would",
    "bootstrap: percentiles of the paired hierarchical bootstrap over seeds and questions, for "
    "comparison; no verdict rests on them",
    "accuracies: at the chosen learning rate, mean over seeds; half width of the 95 % interval "
    "over seeds and questions; the seeds are others than those of the selection",
    "plateau: the tried rates around the best that lose at most a point on the validation rows",
    "expected best: on the validation rows, of somebody who tries that many of the rates at random "
    "(arXiv 1909.03004)",
)


def render(file: StudyFile, cells: StudyCells, results: Results, others: int) -> TableData:
    """The table of a study.

    Args:
        file: the study.
        cells: its cells.
        results: what is known of them.
        others: number of records in the output folder that the study does not ask for.
    """
    study = file.study
    made = _Table(file, cells, results)
    blocks = [Block(text=f"Study file {file.name}.toml, SHA-256 {file.sha256}.")]
    for group, found in results.groups.items():
        blocks += made.verdict_blocks(group, found)
    if study.hypotheses:
        blocks.append(made.hypotheses())
    for group, found in results.groups.items():
        blocks += [made.accuracies(group, found), made.choices(group, found)]
    missing = [f"{g.title}: {line}" for g, r in results.groups.items() for line in r.unfinished]
    outside = f"records in the output folder that the study file does not ask for: {others}"
    blocks.append(Block(notes=[*_NOTES, *missing, outside]))
    return TableData(
        name=file.name,
        title=study.title,
        blocks=[block for block in blocks if block.head or block.text or block.notes],
        numbers=made.numbers,
        provenance=made.provenance(),
        figures=made.figures(),
        failed=sum(not failure.diverged for failure in results.outcome.failed.values()),
    )


class _Table:
    def __init__(self, file: StudyFile, cells: StudyCells, results: Results) -> None:
        self.file = file
        self.study = file.study
        self.cells = cells
        self.results = results
        self.numbers: list[dict[str, Any]] = []
        self.verdicts: dict[tuple[Group, str], Verdicts] = {}

    def title(self, arm: str) -> str:
        return self.study.arms[arm].title

    def verdict_blocks(self, group: Group, found: GroupResults) -> Iterator[Block]:
        """The verdicts of every family."""
        for name, family in self.study.families.items():
            verdicts = self._judged(group, found, family)
            self.verdicts[group, name] = verdicts
            rule = self.study.judgement
            yield Block(
                heading=f"{group.title}: {family.question}",
                text=f"{rule.metric}, against {self.title(family.reference)}; margin "
                f"{rule.margin_points:g} points, level {100 * rule.level:g} %, power "
                f"{100 * rule.power:g} %",
                head=[
                    *("arm", "verdict", "difference, points", "95 % interval", "p (Holm)"),
                    *("p of equivalence (Holm)", "detectable, points", "rows that would decide"),
                    "bootstrap",
                ],
                rows=[
                    self._verdict_row(group, name, arm, verdicts.get(arm)) for arm in family.arms
                ],
            )

    def _judged(self, group: Group, found: GroupResults, family: Family) -> Verdicts:
        """The verdicts of a family; none while one of its arms has no results."""
        correct: dict[str, Correct] = {}
        for arm in (family.reference, *family.arms):
            if arm not in found.choices:
                return {}
            answers = found.finals.get(arm, {}).get(found.choices[arm].rate)
            if answers is None:
                return {}
            correct[arm] = answers
        rule = self.study.judgement
        return judge(
            correct,
            family.reference,
            rule.margin_points / 100,
            shared_seeds=group.regime == "multi-task",
            level=rule.level,
            power=rule.power,
        )

    def _verdict_row(
        self, group: Group, family: str, arm: str, verdict: Verdict | None
    ) -> list[Cell]:
        if verdict is None:
            return [Cell(self.title(arm)), Cell(NOT_JUDGED), *[Cell(DASH)] * 7]
        low, high = verdict.interval
        rows = verdict.rows_to_decide
        decide = DASH
        if verdict.verdict == "undecided":
            decide = "more seeds" if rows is None else f"{rows:,}"
        self.numbers.append(
            self._number(group, arm, "difference", verdict.difference)
            | {
                "family": family,
                "reference": self.study.families[family].reference,
                "low": low,
                "high": high,
                "verdict": verdict.verdict,
                "p": verdict.p,
                "p_holm": verdict.p_adjusted,
                "p_equivalent": verdict.p_equivalent,
                "p_equivalent_holm": verdict.p_equivalent_adjusted,
                "detectable": verdict.detectable,
                "rows_to_decide": rows,
                "bootstrap_low": verdict.bootstrap_interval[0],
                "bootstrap_high": verdict.bootstrap_interval[1],
                "standard_error": verdict.estimate.standard_error,
                "degrees": verdict.estimate.degrees,
            }
        )
        name: str = verdict.verdict
        if name == "equivalent":
            name = f"equivalent within {self.study.judgement.margin_points:g}"
        return [
            Cell(self.title(arm)),
            Cell(name, mark="significant" if verdict.verdict != "undecided" else ""),
            number(
                100 * verdict.difference,
                "+.1f",
                MEASURED,
                low=100 * low,
                high=100 * high,
                p=verdict.p,
                p_holm=verdict.p_adjusted,
            ),
            Cell(_interval(verdict.interval), source=MEASURED),
            Cell(_p(verdict.p_adjusted), verdict.p_adjusted, source=MEASURED),
            Cell(_p(verdict.p_equivalent_adjusted), verdict.p_equivalent_adjusted, source=MEASURED),
            number(100 * verdict.detectable, ".1f", MEASURED),
            Cell(decide, rows, source=MEASURED),
            Cell(_interval(verdict.bootstrap_interval), source=MEASURED),
        ]

    def hypotheses(self) -> Block:
        """What was expected, and what came."""
        rows = []
        for each in self.study.hypotheses:
            family = self.study.families[each.family]
            found = [self._came_true(group, each) for group in self.results.groups]
            word = "to" if each.expect == "equivalent" else "than"
            other = self.title(family.reference)
            claim = f"{self.title(each.arm)} is {each.expect} {word} {other}"
            rows.append([Cell(claim), *map(Cell, found), Cell(each.meaning)])
        head = ["expected", *(group.title for group in self.results.groups), "what follows"]
        return Block("Hypotheses", text="Said in the study file.", head=head, rows=rows)

    def _came_true(self, group: Group, hypothesis: Hypothesis) -> str:
        verdict = self.verdicts[group, hypothesis.family].get(hypothesis.arm)
        if verdict is None:
            return NOT_JUDGED
        if verdict.verdict == "undecided":
            return "undecided"
        return "holds" if verdict.verdict == hypothesis.expect else f"no: {verdict.verdict}"

    def accuracies(self, group: Group, found: GroupResults) -> Block:
        """Accuracy of every arm at its chosen rate, by task."""
        tasks = self.study.tasks
        rows = []
        for arm in self.study.arms:
            untuned = self.study.arms[arm].name == BASE
            choice = found.choices.get(arm)
            answers = found.base if untuned else None
            if choice is not None:
                answers = found.finals.get(arm, {}).get(choice.rate)
            rate = choice.rate if choice is not None else None
            rows.append(
                [
                    Cell(self.title(arm)),
                    number(0 if untuned else found.parameters.get(arm), ",d", MEASURED),
                    number(rate, "g", MEASURED),
                    *(self._accuracy(group, arm, answers, [task], rate) for task in tasks),
                    self._accuracy(group, arm, answers, tasks, rate),
                ]
            )
        titles = [get_task(task).title for task in tasks]
        head = ["arm", "parameters", "learning rate", *titles, f"AVG of {len(tasks)}"]
        metric = self.study.judgement.metric
        seeds = len(self.study.seeds.finals)
        text = f"{metric} (%), {seeds} seeds, at the learning rate chosen on validation rows"
        return Block(f"{group.title}: accuracy", text=text, head=head, rows=rows)

    def _accuracy(
        self, group: Group, arm: str, answers: Correct | None, tasks: list[str], rate: float | None
    ) -> Cell:
        if answers is None:
            return Cell(DASH, source=MEASURED)
        shared = group.regime == "multi-task"
        found = estimate({task: answers[task] for task in tasks}, shared_seeds=shared)
        low, high = found.interval()
        task = tasks[0] if len(tasks) == 1 else "average"
        self.numbers.append(
            self._number(group, arm, self.study.judgement.metric, found.mean)
            | {"task": task, "rate": rate, "low": low, "high": high}
        )
        text = f"{100 * found.mean:.1f} ± {50 * (high - low):.1f}"
        return Cell(text, 100 * found.mean, {"low": 100 * low, "high": 100 * high}, source=MEASURED)

    def choices(self, group: Group, found: GroupResults) -> Block:
        """How the learning rates were chosen."""
        rows = []
        for arm, trials in found.trials.items():
            scores = {rate: trial.score for rate, trial in sorted(trials.items())}
            for rate, trial in sorted(trials.items()):
                row = self._number(group, arm, "validation_score", trial.score) | {"rate": rate}
                row |= {"low": None, "high": None, "validation_loss": trial.loss}
                self.numbers.append(row)
            choice = found.choices.get(arm)
            if choice is None:
                rows.append([Cell(self.title(arm)), Cell(str(len(trials))), *[Cell(DASH)] * 6])
                continue
            best = expected_best(list(scores.values()))
            some = (best[0], best[min(3, len(best) - 1)], best[-1])
            low, high = plateau(scores)
            beside = [
                f"{100 * self._average(group, found, arm, rate):.1f} at {rate:g}"
                for rate in choice.neighbours
                if rate in found.finals.get(arm, {})
            ]
            rows.append(
                [
                    Cell(self.title(arm)),
                    Cell(str(choice.trials), choice.trials),
                    Cell(f"{choice.rate:g}{' (at the edge)' if choice.at_edge else ''}"),
                    number(100 * (scores[choice.rate] or 0), ".1f", MEASURED),
                    Cell(f"{low:g} to {high:g}"),
                    Cell(" / ".join(f"{100 * score:.1f}" for score in some)),
                    Cell(str(sum(trial.diverged for trial in trials.values()))),
                    Cell("; ".join(beside) or DASH),
                ]
            )
        head = ["arm", "trials", "chosen rate", "validation, %", "plateau"]
        head += ["expected best of 1 / 4 / all", "diverged", "results at the neighbours, %"]
        return Block(f"{group.title}: how learning rates were chosen", head=head, rows=rows)

    def _average(self, group: Group, found: GroupResults, arm: str, rate: float) -> float:
        shared = group.regime == "multi-task"
        return estimate(found.finals[arm][rate], shared_seeds=shared).mean

    def figures(self) -> dict[str, bytes]:
        """Accuracy on the validation rows over the learning rate, each arm with its reference."""
        figures: dict[str, bytes] = {}
        for name, family in self.study.families.items():
            for arm in family.arms:
                panels = [
                    Panel(
                        "accuracy on validation rows, %",
                        [line for each in (family.reference, arm) if (line := self._line(g, each))],
                        from_zero=False,
                        title=g.title,
                    )
                    for g in self.results.groups
                ]
                if all(panel.lines for panel in panels):
                    images = draw(
                        f"{self.title(arm)} and {self.title(family.reference)}",
                        "learning rate",
                        panels,
                        "shaded: 95 % interval over questions; axes do not start at 0",
                    )
                    stem = f"{self.file.name}-{name}-{arm}"
                    figures |= {f"{stem}.{kind}": data for kind, data in images.items()}
        return figures

    def _line(self, group: Group, arm: str) -> Line | None:
        answers = self.results.groups[group].validation.get(arm, {})
        if not answers:
            return None
        shared = group.regime == "multi-task"
        rates = sorted(answers)
        found = [estimate(answers[rate], shared_seeds=shared) for rate in rates]
        ends = [each.interval() for each in found]
        return Line(
            self.title(arm),
            rates,
            [100 * each.mean for each in found],
            [100 * low for low, _ in ends],
            [100 * high for _, high in ends],
        )

    def provenance(self) -> dict[str, Any]:
        """What the numbers come from."""
        records = list(self.results.outcome.records.values())
        outcome = self.results.outcome
        diverged = sum(failure.diverged for failure in outcome.failed.values())
        return {
            "study": f"{self.file.name}.toml",
            "sha256": self.file.sha256,
            "command": f"python reproduce.py --study studies/{self.file.name}.toml",
            "weights": distinct(record.provenance["weights"] for record in records),
            "data": distinct(record.provenance["data"] for record in records),
            "commit": distinct(record.provenance["commit"] for record in records),
            "python": distinct(record.provenance["python"] for record in records),
            "versions": distinct(record.provenance["versions"] for record in records),
            "hardware": distinct(record.provenance["hardware"] for record in records),
            "seconds": round(sum(sum(record.seconds.values()) for record in records), 1),
            "cells": f"{len(records)} done, {diverged} diverged, "
            f"{len(outcome.failed) - diverged} failed, {len(outcome.unavailable)} unavailable",
        }

    def _number(self, group: Group, arm: str, metric: str, value: float | None) -> dict[str, Any]:
        """A row of the long form, with the keys that all rows have."""
        empty = dict.fromkeys(
            (
                *("task", "rate", "low", "high", "family", "reference", "verdict", "p", "p_holm"),
                *("p_equivalent", "p_equivalent_holm", "detectable", "rows_to_decide"),
                *("bootstrap_low", "bootstrap_high", "standard_error", "degrees"),
                "validation_loss",
            )
        )
        about = {"model": group.model, "regime": group.regime, "arm": arm}
        return {**about, "metric": metric, "value": value, **empty}


def _interval(ends: tuple[float, float]) -> str:
    return f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
