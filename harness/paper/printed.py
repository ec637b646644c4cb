"""Every number the paper prints, with the digits it prints, and what follows from other numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from .reported import KEY_COLUMNS, REPORTED_CSV, place_of, read_reported

#: What a number is of: (table, model, method, setting, task, metric), as in reported.csv.
Key = tuple[str, str, str, str, str, str]

AGREES, ROUNDING, CONTRADICTS = "agrees", "rounding", "contradicts"


@dataclass(frozen=True)
class Printed:
    """One row of reported.csv.

    Attributes:
        line: number of its line in the file; the header is line 1.
        key: what the number is of.
        text: the value as printed; a number, except in the settings of Table 3.
        unit: "%", "pp", "GB", ...
    """

    line: int
    key: Key
    text: str
    unit: str

    @property
    def where(self) -> str:
        """The table, and what names the cell in it, as text."""
        table, *rest = self.key
        return ", ".join([place_of(table), *(part for part in rest if part)])

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def half(self) -> float:
        """Half a unit of the last printed digit: how far off the number before rounding can be.

        A whole number that ends in zeros counts as rounded there: 2380 can stand for 2376.
        """
        whole, _, decimals = self.text.partition(".")
        if decimals:
            return 0.5 * 10.0 ** -len(decimals)
        return 0.5 * 10.0 ** (len(whole) - len(whole.rstrip("0"))) if self.value else 0.5


@dataclass(frozen=True)
class Recomputed:
    """A value that follows from others, and how far their rounding can move it.

    Attributes:
        value: the value that follows from the numbers as printed.
        low: the smallest value that numbers printed like these can give.
        high: the largest such value.
        inputs: the lines of those numbers.
    """

    value: float
    low: float
    high: float
    inputs: tuple[int, ...] = ()

    @classmethod
    def of(cls, formula: Callable[..., float], inputs: Sequence[Printed]) -> Recomputed:
        """A formula that is monotone in each of its (at most ten) inputs."""
        corners = itertools.product(
            *((each.value - each.half, each.value + each.half) for each in inputs)
        )
        found = [formula(*corner) for corner in corners]
        value = formula(*(each.value for each in inputs))
        return cls(value, min(found), max(found), tuple(each.line for each in inputs))


@dataclass(frozen=True)
class Check:
    """A printed number beside its recomputed value.

    Attributes:
        kind: "average", "delta", "ratio", "reprint", "parameters", "attainable" or "size".
        printed: the number as printed.
        recomputed: the value that it should have.
        why: what it was recomputed from, as text.
    """

    kind: str
    printed: Printed
    recomputed: Recomputed
    why: str

    @property
    def verdict(self) -> str:
        """How the printed number compares with the recomputed value.

        `AGREES`: the printed digits are those of the recomputed value. `ROUNDING`: they are not,
        but other inputs that would be printed alike give them. `CONTRADICTS`: no such inputs do.
        """
        printed, half = self.printed.value, self.printed.half + 1e-9
        if abs(printed - self.recomputed.value) <= half:
            return AGREES
        if self.recomputed.low - half <= printed <= self.recomputed.high + half:
            return ROUNDING
        return CONTRADICTS


class Paper:
    """All rows of reported.csv.

    Raises:
        ValueError: See `harness.paper.reported.read_reported`.
    """

    def __init__(self) -> None:
        self.rows = [
            Printed(int(row["line"]), _key(row), row["value"], row["unit"])
            for row in read_reported(REPORTED_CSV)
        ]

    @cached_property
    def _by_key(self) -> dict[Key, Printed]:
        return {row.key: row for row in self.rows}

    def get(self, key: Key) -> Printed | None:
        """The number of a cell, None where the paper has none."""
        return self._by_key.get(key)

    def like(self, row: Printed, **changes: str) -> Printed | None:
        """The number whose key differs from a row's in these parts."""
        return self.get(_key(dict(zip(KEY_COLUMNS, row.key, strict=True)) | changes))

    def of(self, *tables: str, metric: str | None = None) -> list[Printed]:
        """The rows of some tables, of one metric or all."""
        return [r for r in self.rows if r.key[0] in tables and metric in (None, r.key[5])]


def _key(row: dict[str, str]) -> Key:
    table, model, method, setting, task, metric = (row[column] for column in KEY_COLUMNS)
    return table, model, method, setting, task, metric


def attainable(row: Printed, examples: int) -> Recomputed:
    """The fraction of examples, in percent, that is nearest to a printed accuracy."""
    nearest = 100 * round(row.value / 100 * examples) / examples
    return Recomputed(nearest, nearest, nearest)


def mean(*values: float) -> float:
    """The mean of at least one value."""
    return math.fsum(values) / len(values)
