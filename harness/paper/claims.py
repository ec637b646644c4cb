"""What the abstract claims, and which of the paper's cells show that nothing was learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tasks import TASK_NAMES

from .checks import EVALUATION_ROWS
from .printed import Paper, Printed, Recomputed, mean

#: Percent that one answer always gets: of BoolQ's validation split its majority class, of the
#: others one over the number of options.
LEVELS = {
    "arc-e": 25.0,
    "arc-c": 25.0,
    "boolq": 62.17,
    "obqa": 25.0,
    "piqa": 50.0,
    "siqa": 100 / 3,
    "hellaswag": 25.0,
    "winogrande": 50.0,
}

#: Standard errors above the level from which a cell is better than it: one-sided, at 5 %.
_ONE_SIDED = 1.645


@dataclass(frozen=True)
class Claim:
    """A figure of the abstract beside every cell that it could be about.

    Attributes:
        printed: The figure.
        cells: What it is of -> recomputed.
    """

    printed: Printed
    cells: dict[str, Recomputed]

    @property
    def supporting(self) -> int:
        """Cells that reach the figure, rounding in its favour."""
        least = self.printed.value - self.printed.half - 1e-9
        return sum(cell.high >= least for cell in self.cells.values())


def claims(paper: Paper) -> list[Claim]:
    """The abstract's figures."""
    recompute: dict[str, Callable[[Paper], dict[str, Recomputed]]] = {
        "single-task gain over LoRA": lambda p: _gain(p, "1", "st", "lora"),
        "single-task gain over DoRA": lambda p: _gain(p, "1", "st", "dora"),
        "multi-task gain over LoRA": lambda p: _gain(p, "2", "mt", "lora"),
        "multi-task gain over DoRA": lambda p: _gain(p, "2", "mt", "dora"),
        "token latency reduction of shared over vanilla": _latency_reduction,
        "memory reduction per model, x2 over x1": _memory_reduction,
        # Three projections for each of K experts, against two once and one for each.
        "FFN FLOP reduction of shared over vanilla (K=2)": lambda p: _exact(
            "FLOPs", 100 * (1 - 4 / 6)
        ),
    }
    return [Claim(row, recompute[row.key[5]](paper)) for row in paper.of("abstract")]


def _gain(paper: Paper, table: str, setting: str, baseline: str) -> dict[str, Recomputed]:
    pair = [
        paper.get((table, "llama2-7b", method, setting, "avg", "accuracy"))
        for method in ("mixlora", baseline)
    ]
    found = [row for row in pair if row is not None]
    return {f"Table {table}": Recomputed.of(lambda a, b: a - b, found)}


def _latency_reduction(paper: Paper) -> dict[str, Recomputed]:
    columns = [("train", "forward"), ("train", "backward"), ("inference", "forward")]
    return {
        f"Table {table} {setting} {phase}": _reduction(
            paper, (table, model, setting, f"{phase}_latency"), "mixlora/shared", "mixlora/vanilla"
        )
        for table, model in (("6", "llama2-7b"), ("7", "gemma-2b"))
        for setting, phase in columns
    }


def _memory_reduction(paper: Paper) -> dict[str, Recomputed]:
    return {
        f"Table {table} {setting}": _reduction(
            paper, (table, model, setting, "peak_memory"), "mixlora-x2/shared", "mixlora/shared"
        )
        for table, model in (("6", "llama2-7b"), ("7", "gemma-2b"))
        for setting in ("train", "inference")
    }


def _reduction(paper: Paper, cell: tuple[str, str, str, str], less: str, more: str) -> Recomputed:
    table, model, setting, metric = cell
    pair = [paper.get((table, model, method, setting, "", metric)) for method in (less, more)]
    found = [row for row in pair if row is not None]
    return Recomputed.of(lambda a, b: 100 * (1 - a / b), found)


def _exact(name: str, value: float) -> dict[str, Recomputed]:
    return {name: Recomputed(value, value, value)}


def not_above_level(row: Printed) -> bool:
    """Whether an accuracy is no better, at 5 % one-sided, than always giving one answer."""
    task = row.key[4]
    level = LEVELS[task] / 100
    error = (level * (1 - level) / EVALUATION_ROWS[task]) ** 0.5
    return row.value / 100 <= level + _ONE_SIDED * error


def unlearned(paper: Paper) -> list[Printed]:
    """The accuracies of Tables 1, 2, 5, 8 and 9 that are `not_above_level`, reprints left out."""
    found: dict[tuple[str, ...], Printed] = {}
    for row in paper.of("1", "2", "5", "8", "9", metric="accuracy"):
        if row.key[4] in LEVELS and row.key[3] != "delta" and not_above_level(row):
            found.setdefault(row.key[1:], row)
    return list(found.values())


@dataclass(frozen=True)
class Gain:
    """A mean difference between two methods over Table 1's tasks.

    Attributes:
        model: Of Table 1.
        method: MixLoRA or MixDoRA.
        baseline: LoRA or DoRA.
        points: Over all tasks.
        left_out: Tasks in which one of the two is `not_above_level`.
        points_without: Over the others.
    """

    model: str
    method: str
    baseline: str
    points: float
    left_out: tuple[str, ...]
    points_without: float


def gains(paper: Paper) -> list[Gain]:
    """The headline comparison, with and without the tasks that one side has not learned."""
    models = dict.fromkeys(row.key[1] for row in paper.of("1"))
    return [
        _gain_of(paper, model, method, baseline)
        for model in models
        for method in ("mixlora", "mixdora")
        for baseline in ("lora", "dora")
    ]


def _gain_of(paper: Paper, model: str, method: str, baseline: str) -> Gain:
    differences, left_out = {}, []
    for task in TASK_NAMES:
        ours = paper.get(("1", model, method, "st", task, "accuracy"))
        theirs = paper.get(("1", model, baseline, "st", task, "accuracy"))
        if ours is None or theirs is None:
            continue
        differences[task] = ours.value - theirs.value
        if not_above_level(ours) or not_above_level(theirs):
            left_out.append(task)
    kept = [points for task, points in differences.items() if task not in left_out]
    return Gain(model, method, baseline, mean(*differences.values()), tuple(left_out), mean(*kept))
