"""The "# Params" columns of Tables 1, 2, 5 and 8, counted exactly on models without weights."""

from __future__ import annotations

from harness.cells.methods import METHOD_TITLES
from harness.computed import ComputedTable
from harness.models.shapes import SHAPES
from harness.options import command
from harness.paper.audit import parameter_checks, rank_of
from harness.paper.printed import AGREES, Check, Paper
from harness.run import provenance
from harness.show.data import COMPUTED, REPORTED, Block, Cell, TableData, number

_NOTES = (
    "trainable: adapters in q, k, v, o, gate, up and down of every layer; of MixLoRA and MixDoRA "
    "the routers too, of DoRA and MixDoRA the magnitudes",
    "printed cells are compared with the percentage without magnitudes: the paper prints the same "
    "for DoRA as for LoRA and for MixDoRA as for MixLoRA, and its code does not train magnitudes",
    "nominal size: what the paper divides by (7.0e9, 8.0e9, 13.0e9; of Gemma 2B 3.03e9, its tied "
    "embedding counted twice); true size: the frozen parameters that there are, each once",
    "computed, not trained: the models have shapes but no weights",
)

#: (model, method, rank).
_Case = tuple[str, str, int]


def _cases(paper: Paper) -> list[_Case]:
    """Every (model, method, rank) that has a "# Params" cell, in the paper's order."""
    rows = paper.of("1", "2", "5", "8", metric="params")
    return list(dict.fromkeys((row.key[1], row.key[2], rank_of(row)) for row in rows))


def _render() -> TableData:
    # Imported here, because it builds models and loads torch.
    from harness.run.parameters import count_magnitudes, count_paper, paper_percent

    paper = Paper()
    cases = _cases(paper)
    percent = {case: paper_percent(*case) for case in cases}
    checks = parameter_checks(paper, percent)
    lines, rows = [], []
    for case in cases:
        model, method, rank = case
        trainable, frozen = count_paper(*case)
        own = [c for c in checks if (*c.printed.key[1:3], rank_of(c.printed)) == case]
        exact = 100 * trainable / frozen
        printed = ", ".join(f"{c.printed.text} (Table {c.printed.key[0]})" for c in own)
        agree = all(c.verdict == AGREES for c in own)
        nominal_size = SHAPES[model].nominal_parameters or frozen
        lines.append(
            [
                Cell(f"{model}, {METHOD_TITLES[method]} r={rank}"),
                number(trainable, ",d", COMPUTED),
                number(count_magnitudes(*case), ",d", COMPUTED),
                number(100 * trainable / nominal_size, ".3f", COMPUTED),
                number(percent[case], ".3f", COMPUTED),
                Cell(printed, own[0].printed.value, source=REPORTED),
                Cell("yes" if agree else "no", source=COMPUTED),
                number(frozen, ",d", COMPUTED),
                number(exact, ".3f", COMPUTED),
            ]
        )
        rows += [_row(case, trainable, frozen, check) for check in own]
    head = ["model and method", "trainable", "magnitudes of these", "% of nominal"]
    head += ["without magnitudes", "printed, %", "agrees"]
    head += ["true size", "% of true"]
    nominal = {name: shape.nominal_parameters for name, shape in SHAPES.items()}
    facts = {
        "table": "params",
        "command": command("params"),
        "nominal sizes": {name: size for name, size in nominal.items() if size is not None},
        "commit": provenance.commit(),
    }
    agreeing = sum(check.verdict == AGREES for check in checks)
    return TableData(
        name="params",
        title="Trainable parameters (Tables 1, 2, 5 and 8 of arXiv 2404.15159)",
        blocks=[
            Block(
                text=f"{agreeing} of {len(checks)} printed cells follow to the printed digit.",
                head=head,
                rows=lines,
            ),
            Block(notes=list(_NOTES)),
        ],
        numbers=rows,
        provenance=facts,
    )


def _row(case: _Case, trainable: int, frozen: int, check: Check) -> dict[str, object]:
    model, method, rank = case
    return {
        "table": check.printed.key[0],
        "model": model,
        "method": method,
        "rank": rank,
        "printed": check.printed.value,
        "percent_without_magnitudes": check.recomputed.value,
        "agrees": check.verdict == AGREES,
        "trainable_parameters": trainable,
        "nominal_parameters": SHAPES[model].nominal_parameters,
        "true_parameters": frozen,
        "percent_of_true": 100 * trainable / frozen,
    }


def _listing() -> list[str]:
    return [f"{model} {method} r={rank}" for model, method, rank in _cases(Paper())]


TABLE = ComputedTable(name="params", lines=_listing, render=_render)
