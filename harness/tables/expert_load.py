"""Figure 5: how tokens spread over the experts, by task and layer, with and without aux loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from harness.accuracy import AccuracyTable
from harness.cells.methods import METHOD_TITLES
from harness.numbers.comparison import load_reported
from harness.numbers.expert_load import layer_std, load_std, shares, specialisation
from harness.request import Setting, all_tasks
from harness.show.data import MEASURED, REPORTED, Block, Cell, TableData, number
from harness.show.figures import HeatMap, draw_heat_maps
from harness.store.records import RunRecord
from tasks import get_task

_COEFFICIENTS = ("1e-3", "0")

_NOTES = (
    "load: of the tokens of a task's scored rows, padding left out, the share that goes to each "
    "expert, each token counting for all its K experts; 1 / E is balance",
    "std: over the experts, of their mean share over layers, averaged over tasks (Figure 5's "
    "0.0223 and 0.0328); within layers: over each layer's experts, then averaged",
    "specialisation: bits that the expert tells about the task, 0 to log2 of the number of tasks",
    "counted with the adapter of the first seed, tuned on all tasks at once",
)


def _with_load(table: TableData, records: Mapping[str, Sequence[RunRecord]]) -> TableData:
    """The table of accuracies, with the loads before it."""
    found = [(name, r) for name, group in records.items() for r in _counted(group)]
    blocks = [_summary(found), *(_by_task(setting, record) for setting, record in found)]
    blocks += [*_in_training(found), Block(notes=list(_NOTES)), Block(table.title, level=1)]
    figures: dict[str, bytes] = {}
    for setting, record in found:
        stem = f"expert-load-{record.spec.model}-{record.spec.method}-{_coefficient(setting)}"
        title = f"Load of the experts, measured: {_title(setting, record)}"
        images = draw_heat_maps(title, _maps(record))
        figures |= {f"{stem}.{kind}": data for kind, data in images.items()}
    rows = [row for setting, record in found for row in _rows(setting, record, table.numbers)]
    return dataclasses.replace(
        table,
        title="Load of the experts (Figure 5 of arXiv 2404.15159)",
        blocks=[*blocks, *table.blocks],
        numbers=[*rows, *table.numbers],
        figures=figures,
    )


def _counted(group: Sequence[RunRecord]) -> list[RunRecord]:
    """The records whose load was counted: for each model and method that of the first seed."""
    first: dict[tuple[str, str], RunRecord] = {}
    for record in sorted(group, key=lambda record: record.spec.seed):
        if all(task.expert_load is not None for task in record.tasks.values()):
            first.setdefault((record.spec.model, record.spec.method), record)
    return list(first.values())


def _loads(record: RunRecord) -> dict[str, list[list[int]]]:
    return {name: task.expert_load or [] for name, task in record.tasks.items()}


def _coefficient(setting: str) -> str:
    return setting.rpartition("=")[2]


def _title(setting: str, record: RunRecord) -> str:
    return f"{record.spec.model}, {METHOD_TITLES[record.spec.method]}, a = {_coefficient(setting)}"


def _figures(record: RunRecord) -> dict[str, float]:
    """The figures of a record, by metric."""
    loads = _loads(record)
    return {
        "expert_load_std": sum(map(load_std, loads.values())) / len(loads),
        "expert_load_layer_std": sum(map(layer_std, loads.values())) / len(loads),
        "specialisation": specialisation(loads),
    }


def _summary(found: Sequence[tuple[str, RunRecord]]) -> Block:
    rows = [
        [
            Cell(_title(setting, record)),
            *(number(value, ".4f", MEASURED) for value in _figures(record).values()),
        ]
        for setting, record in found
    ]
    for row in load_reported("fig5").itertuples(index=False):
        name = f"{row.model}, {METHOD_TITLES[row.method]}: reported, not measured here"
        values = (row.value, None, None)
        rows.append([Cell(name), *(number(value, ".4f", REPORTED) for value in values)])
    return Block(head=["", "std", "std within layers", "specialisation, bits"], rows=rows)


def _by_task(setting: str, record: RunRecord) -> Block:
    means = {name: shares(counts).mean(axis=0) for name, counts in _loads(record).items()}
    experts = len(next(iter(means.values())))
    return Block(
        f"{_title(setting, record)}: mean share over layers, %",
        head=["task", *(f"expert {number}" for number in range(1, experts + 1)), "std"],
        rows=[
            [
                Cell(get_task(name).title),
                *(number(100 * share, ".1f", MEASURED) for share in mean.tolist()),
                number(float(mean.std()), ".4f", MEASURED),
            ]
            for name, mean in means.items()
        ],
    )


def _in_training(found: Sequence[tuple[str, RunRecord]]) -> list[Block]:
    """The spread during the training, at the steps where it was taken; nothing without any."""
    values = {
        _title(setting, record): {
            entry["step"]: load_std(entry["counts"])
            for entry in record.training.get("expert_load", [])
        }
        for setting, record in found
    }
    steps = sorted({step for own in values.values() for step in own})
    if not steps:
        return []
    rows = [
        [Cell(title), *(number(own.get(step), ".4f", MEASURED) for step in steps)]
        for title, own in values.items()
    ]
    head = ["", *(f"to step {step}" for step in steps)]
    return [Block("Std of the load while training", head=head, rows=rows)]


def _maps(record: RunRecord) -> list[HeatMap]:
    return [
        HeatMap(get_task(name).title, shares(counts).tolist())
        for name, counts in _loads(record).items()
    ]


def _rows(
    setting: str, record: RunRecord, like: Sequence[Mapping[str, object]]
) -> list[dict[str, object]]:
    """The loads in long form: the summary and the shares, in the columns of the accuracies."""
    columns = dict.fromkeys(like[0]) if like else {}
    common = columns | {
        "table": "fig5",
        "model": record.spec.model,
        "method": record.spec.method,
        "setting": setting,
        "task": "",
        "unit": "",
        "source": "measured",
        "seed": str(record.spec.seed),
    }
    rows = [common | {"metric": name, "value": value} for name, value in _figures(record).items()]
    for task, counts in _loads(record).items():
        for layer, layer_shares in enumerate(shares(counts).tolist()):
            for expert, share in enumerate(layer_shares):
                metric = f"share_layer_{layer}_expert_{expert}"
                rows.append(common | {"task": task, "metric": metric, "value": share})
    return rows


TABLE = AccuracyTable(
    name="expert-load",
    title="Accuracy of the same cells",
    paper_tables=("fig5",),
    settings=tuple(
        Setting(
            f"router_aux_loss_coef={text}",
            f"a = {text}",
            all_tasks({"router_aux_loss_coef": float(text)}),
        )
        for text in _COEFFICIENTS
    ),
    main=f"router_aux_loss_coef={_COEFFICIENTS[0]}",
    methods=("mixlora", "mixdora"),
    tasks=("arc-e", "arc-c", "boolq", "obqa", "piqa"),
    finish=_with_load,
)
