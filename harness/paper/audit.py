"""The paper against itself: what its numbers say of each other.

Every figure that follows from other figures of the paper is recomputed (`all_checks`,
`parameter_checks`), the abstract's claims are set beside the cells that they could be about
(`claims`), and cells that show no learning are found (`unlearned`, `gains`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tasks import TASK_NAMES

from .printed import Check, Paper, Printed, Recomputed, attainable, mean

#: The numbers of rows in each data set's evaluation split (the one that the paper names) and in its
#: training split.
EVALUATION_ROWS = {
    "arc-e": 2376,
    "arc-c": 1172,
    "boolq": 3270,
    "obqa": 500,
    "piqa": 1838,
    "siqa": 1954,
    "hellaswag": 10042,
    "winogrande": 1267,
}
TRAINING_ROWS = {
    "arc-e": 2251,
    "arc-c": 1119,
    "boolq": 9427,
    "obqa": 4957,
    "piqa": 16113,
    "siqa": 33410,
    "hellaswag": 39905,
    "winogrande": 9248,
}

#: The accuracy in percent of always giving one answer: for BoolQ the share of its majority class in
#: the validation split, for the others one over the number of options.
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

#: How many standard errors above that level an accuracy has to be to count as better than it, at
#: 5 % one-sided.
_ONE_SIDED = 1.645

#: The setting of each ablation that is the paper's main setting: its cells are Table 1's.
_MAIN_SETTING = {"8": "r=16", "9": "router_aux_loss_coef=1e-3"}


def all_checks(paper: Paper) -> list[Check]:
    """All checks, in the order of the printed numbers that they are about."""
    parts = (averages, deltas, ratios, reprints, accuracies, sizes)
    return sorted((c for part in parts for c in part(paper)), key=lambda check: check.printed.line)


def averages(paper: Paper) -> Iterator[Check]:
    """Averages over tasks, from the tasks' own cells."""
    for row in paper.of("1", "2", "5", "8", "9", metric="accuracy"):
        if row.key[4] == "avg" and row.key[3] != "delta":
            cells = [cell for task in TASK_NAMES if (cell := paper.like(row, task=task))]
            recomputed = Recomputed.of(mean, cells)
            yield Check("average", row, recomputed, f"mean of {len(cells)} cells")


def deltas(paper: Paper) -> Iterator[Check]:
    """Multi-task less single-task, from the two cells of the same table."""
    for row in paper.of("2", "5", metric="accuracy"):
        single, multi = paper.like(row, setting="st"), paper.like(row, setting="mt")
        if row.key[3] == "delta" and single and multi:
            recomputed = Recomputed.of(lambda a, b: a - b, [multi, single])
            yield Check("delta", row, recomputed, f"{multi.text} - {single.text}")


def ratios(paper: Paper) -> Iterator[Check]:
    """Latency and memory relative to LoRA, from the two cells."""
    for row in paper.of("6", "7"):
        metric = row.key[5].removesuffix("_ratio")
        if metric == row.key[5]:
            continue
        own, lora = paper.like(row, metric=metric), paper.like(row, metric=metric, method="lora")
        if own and lora:
            recomputed = Recomputed.of(lambda a, b: 100 * a / b, [own, lora])
            yield Check("ratio", row, recomputed, f"{own.text} / {lora.text}")


def reprints(paper: Paper) -> Iterator[Check]:
    """Cells that Table 1 has as well, in Tables 2 and 5 and in the ablations' main setting."""
    for row in paper.of("2", "5", "8", "9"):
        table, _, _, setting, task, metric = row.key
        if metric == "params" and table == "9":
            continue
        if setting != _MAIN_SETTING.get(table, "st") or task == "avg":
            continue
        first = paper.like(row, table="1", setting="st")
        if first is not None:
            value = first.value
            exact = Recomputed(value, value, value, (first.line,))
            # A reprint with more digits than the first may be anything that rounds to it.
            finer = row.half < first.half
            recomputed = Recomputed.of(lambda x: x, [first]) if finer else exact
            yield Check("reprint", row, recomputed, f"Table 1 has {first.text}")


def accuracies(paper: Paper) -> Iterator[Check]:
    """Accuracies as k of n examples: 80.9 % of 500 examples is no whole number of them."""
    for row in paper.of("1", "2", "5", "8", "9", metric="accuracy"):
        examples = EVALUATION_ROWS.get(row.key[4])
        if examples and row.key[3] != "delta":
            yield Check("attainable", row, attainable(row, examples), f"nearest k / {examples}")


def sizes(paper: Paper) -> Iterator[Check]:
    """Numbers of examples, from the data sets."""
    for row in paper.of("4"):
        known = EVALUATION_ROWS if row.key[5] == "test_examples" else TRAINING_ROWS
        true = known[row.key[4]]
        yield Check("size", row, Recomputed(true, true, true), "the data set's split")


def parameter_checks(paper: Paper, percent: dict[tuple[str, str, int], float]) -> list[Check]:
    """The "# Params" columns, from percentages that the architectures give.

    Args:
        paper: the rows.
        percent: the trainable parameters in percent of the nominal size, by (model, method, rank).
    """
    checks = []
    for row in paper.of("1", "2", "5", "8", metric="params"):
        value = percent[row.key[1], row.key[2], rank_of(row)]
        exact = Recomputed(value, value, value)
        checks.append(Check("parameters", row, exact, "the architecture, without magnitudes"))
    return checks


def rank_of(row: Printed) -> int:
    """The rank behind a row's parameters: Table 8 names it, elsewhere it is that of Table 3."""
    if row.key[3].startswith("r="):
        return int(row.key[3].removeprefix("r="))
    return 16 if row.key[2].startswith("mix") else 80


@dataclass(frozen=True)
class Claim:
    """A figure of the abstract beside every cell that it could be about.

    Attributes:
        printed: the figure as printed.
        cells: the recomputed figure of each such cell, by the name of the cell.
    """

    printed: Printed
    cells: dict[str, Recomputed]

    @property
    def supporting(self) -> int:
        """How many cells reach the figure, rounding in its favour."""
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
        model: name of the model in Table 1.
        method: "mixlora" or "mixdora".
        baseline: "lora" or "dora".
        points: mean difference over all tasks, in points of accuracy.
        left_out: the tasks in which one of the two is `not_above_level`.
        points_without: mean difference over the other tasks.
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
