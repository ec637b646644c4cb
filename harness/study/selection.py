"""How a study chooses each arm's learning rate, without ever seeing a scored row. Torch-free.

The rules are pure functions of the scores so far: to the rates tried next, or to the rate chosen. A
stopped study goes on by asking again with the records that it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pydantic import Field, model_validator

from .checked import Table


class Grid(Table):
    """The learning rates that a study may try: equal steps on a logarithmic scale.

    Attributes:
        lowest: lowest rate of the first pass.
        highest: highest rate of the first pass.
        smallest: rate below which the search is never extended.
        largest: rate above which the search is never extended.
        first_pass: number of rates per decade that every arm tries first.
        refined: number of rates per decade around each arm's best; a multiple of first_pass.
    """

    lowest: float = Field(default=1e-5, gt=0)
    highest: float = 1e-1
    smallest: float = Field(default=1e-6, gt=0)
    largest: float = 1.0
    first_pass: int = Field(default=2, ge=1)
    refined: int = 4

    @model_validator(mode="after")
    def _in_order(self) -> Grid:
        if not self.smallest <= self.lowest < self.highest <= self.largest < math.inf:
            raise ValueError(
                f"smallest {self.smallest:g}, lowest {self.lowest:g}, highest {self.highest:g}, "
                f"largest {self.largest:g}: expected each to be at least the one before, and the "
                "highest above the lowest"
            )
        if self.refined < self.first_pass or self.refined % self.first_pass:
            raise ValueError(
                f"refined is {self.refined}: expected a multiple of first_pass ({self.first_pass})"
            )
        return self

    @cached_property
    def rates(self) -> tuple[float, ...]:
        """All rates that may be tried, ascending, rounded to three significant digits."""
        below = math.floor(self.refined * math.log10(self.lowest / self.smallest) + 1e-6)
        above = math.floor(self.refined * math.log10(self.largest / self.lowest) + 1e-6)
        return tuple(
            float(f"{self.lowest * 10 ** (step / self.refined):.3g}")
            for step in range(-below, above + 1)
        )

    @cached_property
    def first_rates(self) -> tuple[float, ...]:
        """The rates of the first pass, ascending."""
        every = self.refined // self.first_pass
        start = self.rates.index(float(f"{self.lowest:.3g}"))
        highest = self.highest * 1.001  # the rates are rounded
        return tuple(rate for rate in self.rates[start::every] if rate <= highest)


@dataclass(frozen=True)
class Trial:
    """What one learning rate gave on the validation rows.

    Attributes:
        score: what is maximised, for example the accuracy averaged over tasks and seeds, a
            fraction; None where the training diverged (its loss was no longer finite).
        loss: validation loss, which decides between equal scores; None where it was not measured.
    """

    score: float | None
    loss: float | None = None

    @property
    def diverged(self) -> bool:
        """Whether the training broke down. It counts as a trial, and as the worst one."""
        return self.score is None or not math.isfinite(self.score)


#: Learning rate -> what it gave.
Trials = Mapping[float, Trial]


@dataclass(frozen=True)
class Choice:
    """The learning rate chosen for an arm.

    Attributes:
        rate: the best rate.
        neighbours: the rates next to it, lower first, without those that diverged.
        at_edge: whether the best lies at the end of all allowed rates, so that a better one may
            lie beyond.
        trials: number of rates tried.
    """

    rate: float
    neighbours: tuple[float, ...]
    at_edge: bool
    trials: int


def best_rate(trials: Trials) -> float:
    """The rate with the highest score.

    Ties: of equal scores the one with the lower loss, of equal losses the lower rate. A diverged
    trial loses to every other, so that where all diverged the lowest rate is the best.
    """

    def merit(rate: float) -> tuple[float, float, float]:
        trial = trials[rate]
        if trial.diverged or trial.score is None:
            return (-math.inf, -math.inf, -rate)
        known = trial.loss is not None and math.isfinite(trial.loss)
        return (trial.score, -trial.loss if known and trial.loss is not None else -math.inf, -rate)

    return max(trials, key=merit)


def next_rates(grid: Grid, trials: Mapping[str, Trials]) -> dict[str, list[float]]:
    """The rates that every arm tries next; all lists are empty when the selection has ended.

    First every arm tries `Grid.first_rates`. Then, round by round, an arm whose best rate has an
    untried neighbour on the refined grid tries that neighbour; this both refines around the best
    and extends the search where the best lies at the edge. An arm that needs no more rates in a
    round tries as many as the arm that needs most, the nearest to its own best. So after every
    round all arms have had the same number of trials: one that must search longer gains nothing
    over the others.

    Args:
        grid: The rates allowed.
        trials: Arm -> its trials so far.
    """
    first = {arm: [r for r in grid.first_rates if r not in trials[arm]] for arm in trials}
    if any(first.values()):
        return first
    nearest = {arm: _untried_by_distance(grid, trials[arm]) for arm in trials}
    number = max(len(trials[arm]) + _neighbours_untried(grid, trials[arm]) for arm in trials)
    return {arm: nearest[arm][: number - len(trials[arm])] for arm in trials}


def choose_rate(grid: Grid, trials: Trials) -> Choice:
    """The best rate of an arm whose selection has ended, and its neighbours.

    Raises:
        ValueError: Every rate diverged.
    """
    rate = best_rate(trials)
    if trials[rate].diverged:
        raise ValueError(f"all {len(trials)} learning rates from {min(trials):g} on diverged")
    position = grid.rates.index(rate)
    neighbours = tuple(
        grid.rates[near]
        for near in (position - 1, position + 1)
        if 0 <= near < len(grid.rates)
        and grid.rates[near] in trials
        and not trials[grid.rates[near]].diverged
    )
    at_edge = position in (0, len(grid.rates) - 1)
    return Choice(rate, neighbours, at_edge, len(trials))


def _untried_by_distance(grid: Grid, trials: Trials) -> list[float]:
    """Rates not tried yet: the nearest to the best first, of two equally near the lower."""
    best = grid.rates.index(best_rate(trials))
    untried = [position for position, rate in enumerate(grid.rates) if rate not in trials]
    ordered = sorted(untried, key=lambda position: (abs(position - best), position))
    return [grid.rates[position] for position in ordered]


def _neighbours_untried(grid: Grid, trials: Trials) -> int:
    best = grid.rates.index(best_rate(trials))
    near = [position for position in (best - 1, best + 1) if 0 <= position < len(grid.rates)]
    return sum(grid.rates[position] not in trials for position in near)
