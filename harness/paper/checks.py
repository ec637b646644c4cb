"""The checks: each walks over its rows and yields a printed value beside a recomputed one."""

from __future__ import annotations

from collections.abc import Iterator

from tasks import TASK_NAMES

from .printed import Check, Paper, Printed, Recomputed, attainable, mean

#: Rows of the evaluation split that the paper names, and of the training split (data sets' own).
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

#: Settings of the ablations that are the paper's main setting, so that their cells are Table 1's.
_MAIN_SETTING = {"8": "r=16", "9": "router_aux_loss_coef=1e-3"}


def all_checks(paper: Paper) -> list[Check]:
    """Every check of every row that one applies to, in the order of the tables."""
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
        paper: The rows.
        percent: (model, method, rank) -> percent of the nominal size.
    """
    checks = []
    for row in paper.of("1", "2", "5", "8", metric="params"):
        value = percent[row.key[1], row.key[2], rank_of(row)]
        exact = Recomputed(value, value, value)
        checks.append(Check("parameters", row, exact, "the architecture, without magnitudes"))
    return checks


def rank_of(row: Printed) -> int:
    """The rank that a row's parameters are of: Table 8 names it, elsewhere it is Table 3's."""
    if row.key[3].startswith("r="):
        return int(row.key[3].removeprefix("r="))
    return 16 if row.key[2].startswith("mix") else 80
