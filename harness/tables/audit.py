"""The paper audited: every figure that follows from others, recomputed from the paper's cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.cells.methods import METHOD_TITLES
from harness.computed import ComputedTable
from harness.options import command
from harness.paper.audit import (
    LEVELS,
    Claim,
    Gain,
    all_checks,
    claims,
    gains,
    parameter_checks,
    rank_of,
    unlearned,
)
from harness.paper.printed import AGREES, CONTRADICTS, ROUNDING, Check, Paper, Printed
from harness.run import provenance
from harness.show.data import (
    COMPUTED,
    DASH,
    REPORTED,
    Block,
    Cell,
    TableData,
    number,
)

_KINDS = {
    "average": "averages over tasks, from their cells",
    "delta": "multi-task less single-task",
    "ratio": "latency and memory relative to LoRA",
    "reprint": "cells that Table 1 has too",
    "attainable": "accuracies as k of n examples",
    "parameters": "# Params, from the architectures",
    "size": "numbers of examples",
}

_NOTES = (
    "printed and recomputed are in the paper's units; recomputed is from the cells as printed, in "
    "brackets what cells that are printed like that can give",
    "contradicts: no numbers that would be printed like the inputs give a number that would be "
    "printed like this one; rounding: some do, though the printed inputs do not",
    "attainable: an accuracy on n examples is k / n; a mean over several runs need not be",
    "no better than one answer: at 5 %, one-sided, by the binomial standard error of the split's "
    f"size; the level is BoolQ's majority class ({LEVELS['boolq']} %) or one over the options",
)


def _render() -> TableData:
    paper = Paper()
    checks = sorted(
        [*all_checks(paper), *parameter_checks(paper, _percentages(paper))],
        key=lambda check: check.printed.line,
    )
    stated, flat, headline = claims(paper), unlearned(paper), gains(paper)
    facts = {
        "table": "audit",
        "command": command("audit"),
        "numbers": f"{len(paper.rows)} rows of results/paper/reported.csv",
        "commit": provenance.commit(),
    }
    return TableData(
        name="audit",
        title="The paper against itself (arXiv 2404.15159v3)",
        blocks=[
            _summary(checks, _coverage(paper, checks, stated)),
            _listing("Contradictions", checks, CONTRADICTS),
            _listing("Differences that rounding of the inputs explains", checks, ROUNDING),
            _claims(stated),
            _flat(flat),
            _gains(headline),
            Block(notes=list(_NOTES)),
        ],
        numbers=[_row(check) for check in checks],
        provenance=facts,
    )


def _percentages(paper: Paper) -> dict[tuple[str, str, int], float]:
    """The percentage of every (model, method, rank) that has a "# Params" cell."""
    # Imported here, because it builds models (on the meta device) and loads torch.
    from harness.run.parameters import paper_percent

    wanted = {
        (r.key[1], r.key[2], rank_of(r)) for r in paper.of("1", "2", "5", "8", metric="params")
    }
    return {key: paper_percent(*key) for key in sorted(wanted)}


def _coverage(paper: Paper, checks: list[Check], stated: list[Claim]) -> str:
    checked = {check.printed.line for check in checks} | {claim.printed.line for claim in stated}
    used = {line for check in checks for line in check.recomputed.inputs}
    used |= {line for c in stated for cell in c.cells.values() for line in cell.inputs}
    rest = [row for row in paper.rows if row.line not in checked | used]
    places = Counter(row.where.partition(",")[0] for row in rest)
    return (
        f"{len(paper.rows)} printed numbers: {len(checked)} checked, {len(used - checked)} more "
        f"used to check others, {len(rest)} that nothing follows from "
        f"({', '.join(f'{place}: {count}' for place, count in places.items())})."
    )


def _summary(checks: list[Check], coverage: str) -> Block:
    counts = Counter((check.kind, check.verdict) for check in checks)
    verdicts = (AGREES, ROUNDING, CONTRADICTS)
    rows = {text: [counts[kind, verdict] for verdict in verdicts] for kind, text in _KINDS.items()}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    return Block(
        text=coverage,
        head=["checks", *verdicts],
        rows=[
            [Cell(text), *(number(count, "d", COMPUTED) for count in row)]
            for text, row in rows.items()
        ],
    )


def _listing(heading: str, checks: list[Check], verdict: str) -> Block:
    rows = [
        [
            Cell(check.printed.where),
            Cell(check.kind),
            Cell(check.printed.text, check.printed.value, source=REPORTED),
            _recomputed(check),
            Cell(check.why),
        ]
        for check in checks
        if check.verdict == verdict
    ]
    if not rows:
        return Block(heading, text="None.")
    return Block(heading, head=["where", "check", "printed", "recomputed", "from"], rows=rows)


def _recomputed(check: Check) -> Cell:
    digits = 3 if check.kind == "parameters" else 2
    found, error = check.recomputed, {}
    text = f"{found.value:.{digits}f}"
    if found.low < found.high:
        text += f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
        error = {"low": found.low, "high": found.high}
    return Cell(text, found.value, error, source=COMPUTED)


def _claims(stated: list[Claim]) -> Block:
    rows = []
    for claim in stated:
        printed, recomputed = claim.printed, claim.cells.items()
        reached = f"{claim.supporting} of {len(claim.cells)}"
        texts = [f"{name} {cell.value:.1f}" for name, cell in recomputed]
        rows.append(
            [
                Cell(printed.key[5]),
                Cell(f"{printed.text} {printed.unit}", printed.value, source=REPORTED),
                Cell("; ".join(texts), source=COMPUTED),
                Cell(reached, claim.supporting, source=COMPUTED),
            ]
        )
    head = ["claim", "printed", "recomputed", "cells that reach it"]
    return Block("The abstract's figures", head=head, rows=rows)


def _flat(cells: list[Printed]) -> Block:
    rows = [
        [
            Cell(cell.where),
            Cell(cell.text, cell.value, source=REPORTED),
            number(LEVELS[cell.key[4]], ".1f", COMPUTED),
        ]
        for cell in cells
    ]
    heading = "Cells no better than always giving one answer"
    return Block(heading, head=["where", "printed, %", "one answer gets, %"], rows=rows)


def _gains(headline: Sequence[Gain]) -> Block:
    rows = [
        [
            Cell(gain.model),
            Cell(f"{METHOD_TITLES[gain.method]} over {METHOD_TITLES[gain.baseline]}"),
            number(gain.points, "+.1f", COMPUTED),
            number(gain.points_without if gain.left_out else None, "+.1f", COMPUTED),
            Cell(", ".join(gain.left_out) or DASH),
        ]
        for gain in headline
    ]
    heading = "Headline gains, points of accuracy over Table 1's tasks"
    head = ["model", "gain", "all tasks", "without tasks not learned", "these"]
    return Block(heading, head=head, rows=rows)


def _row(check: Check) -> dict[str, object]:
    names = ("table", "model", "method", "setting", "task", "metric")
    return dict(zip(names, check.printed.key, strict=True)) | {
        "line": check.printed.line,
        "check": check.kind,
        "printed": check.printed.text,
        "unit": check.printed.unit,
        "recomputed": check.recomputed.value,
        "low": check.recomputed.low,
        "high": check.recomputed.high,
        "verdict": check.verdict,
        "from": check.why,
    }


def _lines() -> list[str]:
    paper = Paper()
    counts = Counter(check.kind for check in all_checks(paper))
    counts["parameters"] = len(paper.of("1", "2", "5", "8", metric="params"))
    return [f"{text}: {counts[kind]} checks" for kind, text in _KINDS.items()]


TABLE = ComputedTable(name="audit", lines=_lines, render=_render)
