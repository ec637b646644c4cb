"""The paper audited: every derived figure recomputed from the paper's own cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.cells.methods import METHOD_TITLES
from harness.computed import ComputedTable
from harness.options import command
from harness.paper.checks import all_checks, parameter_checks, rank_of
from harness.paper.claims import LEVELS, Claim, Gain, claims, gains, unlearned
from harness.paper.printed import AGREES, CONTRADICTS, ROUNDING, Check, Paper, Printed
from harness.rendering.rendered import DASH, Rendered, bullets, provenance_block, table
from harness.rendering.sources import PRINTED
from harness.run import provenance

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


def _render() -> Rendered:
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
    parts = [
        "# The paper against itself (arXiv 2404.15159v3)",
        _coverage(paper, checks, stated),
        _summary(checks),
        "## Contradictions",
        _listing(checks, CONTRADICTS),
        "## Differences that rounding of the inputs explains",
        _listing(checks, ROUNDING),
        "## The abstract's figures",
        _claims(stated),
        "## Cells no better than always giving one answer",
        _flat(flat),
        "## Headline gains, points of accuracy over Table 1's tasks",
        _gains(headline),
        bullets(_NOTES),
        provenance_block(facts),
    ]
    return Rendered("audit", "\n\n".join(parts) + "\n", [_row(check) for check in checks], facts)


def _percentages(paper: Paper) -> dict[tuple[str, str, int], float]:
    """Of every (model, method, rank) that has a "# Params" cell."""
    # Here, because it builds models (on the meta device) and loads torch.
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


def _summary(checks: list[Check]) -> str:
    counts = Counter((check.kind, check.verdict) for check in checks)
    verdicts = (AGREES, ROUNDING, CONTRADICTS)
    lines = [[text, *(str(counts[kind, v]) for v in verdicts)] for kind, text in _KINDS.items()]
    total = [str(sum(counts[kind, v] for kind in _KINDS)) for v in verdicts]
    return table(["checks", *verdicts], [*lines, ["all", *total]])


def _listing(checks: list[Check], verdict: str) -> str:
    lines = [
        [c.printed.where, c.kind, c.printed.text, _recomputed(c), c.why]
        for c in checks
        if c.verdict == verdict
    ]
    head = ["where", "check", PRINTED, "recomputed", "from"]
    return table(head, lines) if lines else "None."


def _recomputed(check: Check) -> str:
    digits = 3 if check.kind == "parameters" else 2
    found = check.recomputed
    text = f"{found.value:.{digits}f}"
    if found.low < found.high:
        text += f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return text


def _claims(stated: list[Claim]) -> str:
    lines = [
        [
            claim.printed.key[5],
            f"{claim.printed.text} {claim.printed.unit}",
            "; ".join(f"{name} {cell.value:.1f}" for name, cell in claim.cells.items()),
            f"{claim.supporting} of {len(claim.cells)}",
        ]
        for claim in stated
    ]
    return table(["claim", PRINTED, "recomputed", "cells that reach it"], lines)


def _flat(rows: list[Printed]) -> str:
    lines = [[row.where, row.text, f"{LEVELS[row.key[4]]:.1f}"] for row in rows]
    return table(["where", f"{PRINTED}, %", "one answer gets, %"], lines)


def _gains(headline: Sequence[Gain]) -> str:
    lines = [
        [
            gain.model,
            f"{METHOD_TITLES[gain.method]} over {METHOD_TITLES[gain.baseline]}",
            f"{gain.points:+.1f}",
            f"{gain.points_without:+.1f}" if gain.left_out else DASH,
            ", ".join(gain.left_out) or DASH,
        ]
        for gain in headline
    ]
    return table(["model", "gain", "all tasks", "without tasks not learned", "these"], lines)


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
