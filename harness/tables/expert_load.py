"""Figure 5: how tokens spread over the experts by task and layer, with and without aux loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from harness.accuracy import AccuracyTable
from harness.cells.methods import METHOD_TITLES
from harness.rendering.compare import load_reported
from harness.rendering.expert_load import layer_std, load_std, shares, specialisation
from harness.rendering.heat_map import HeatMap, draw_heat_maps
from harness.rendering.rendered import DASH, Rendered, bullets, table
from harness.rendering.sources import NOT_MEASURED
from harness.request import Setting, all_tasks
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


def _with_load(rendered: Rendered, records: Mapping[str, Sequence[RunRecord]]) -> Rendered:
    """The accuracies, with the loads before them."""
    found = [(name, r) for name, group in records.items() for r in _counted(group)]
    parts = ["# Load of the experts (Figure 5 of arXiv 2404.15159)"]
    parts += [_summary(found), *(_by_task(setting, record) for setting, record in found)]
    parts += [_in_training(found), bullets(_NOTES)]
    figures: dict[str, bytes] = {}
    for setting, record in found:
        stem = f"expert-load-{record.spec.model}-{record.spec.method}-{_coefficient(setting)}"
        title = f"Load of the experts, measured: {_title(setting, record)}"
        images = draw_heat_maps(title, _maps(record))
        figures |= {f"{stem}.{kind}": data for kind, data in images.items()}
    markdown = "\n\n".join(part for part in parts if part)
    rows = [row for setting, record in found for row in _rows(setting, record, rendered.rows)]
    return dataclasses.replace(
        rendered,
        markdown=f"{markdown}\n\n{rendered.markdown}",
        rows=[*rows, *rendered.rows],
        figures=figures,
    )


def _counted(group: Sequence[RunRecord]) -> list[RunRecord]:
    """Of each model and method, the record of the first seed."""
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
    """Metric -> value."""
    loads = _loads(record)
    return {
        "expert_load_std": sum(map(load_std, loads.values())) / len(loads),
        "expert_load_layer_std": sum(map(layer_std, loads.values())) / len(loads),
        "specialisation": specialisation(loads),
    }


def _summary(found: Sequence[tuple[str, RunRecord]]) -> str:
    lines = []
    for setting, record in found:
        values = _figures(record)
        lines.append(
            [
                _title(setting, record),
                f"{values['expert_load_std']:.4f}",
                f"{values['expert_load_layer_std']:.4f}",
                f"{values['specialisation']:.4f}",
            ]
        )
    reported = load_reported("fig5")
    for row in reported.itertuples(index=False):
        name = f"{row.model}, {METHOD_TITLES[row.method]}: {NOT_MEASURED}"
        lines.append([name, f"{row.value:.4f}", DASH, DASH])
    return table(["", "std", "std within layers", "specialisation, bits"], lines)


def _by_task(setting: str, record: RunRecord) -> str:
    loads = _loads(record)
    means = {name: shares(counts).mean(axis=0) for name, counts in loads.items()}
    experts = len(next(iter(means.values())))
    lines = [
        [get_task(name).title, *(f"{100 * share:.1f}" for share in mean), f"{mean.std():.4f}"]
        for name, mean in means.items()
    ]
    head = ["task", *(f"expert {number}" for number in range(1, experts + 1)), "std"]
    return f"## {_title(setting, record)}: mean share over layers, %\n\n{table(head, lines)}"


def _in_training(found: Sequence[tuple[str, RunRecord]]) -> str:
    """The spread over the training, at the steps where it was taken."""
    steps: dict[int, None] = {}
    values: dict[str, dict[int, float]] = {}
    for setting, record in found:
        own = {e["step"]: load_std(e["counts"]) for e in record.training.get("expert_load", [])}
        values[_title(setting, record)] = own
        steps |= dict.fromkeys(own)
    if not steps:
        return ""
    ordered = sorted(steps)
    lines = [
        [title, *(f"{own[step]:.4f}" if step in own else DASH for step in ordered)]
        for title, own in values.items()
    ]
    head = ["", *(f"to step {step}" for step in ordered)]
    return f"## Std of the load while training\n\n{table(head, lines)}"


def _maps(record: RunRecord) -> list[HeatMap]:
    return [
        HeatMap(get_task(name).title, shares(counts).tolist())
        for name, counts in _loads(record).items()
    ]


def _rows(
    setting: str, record: RunRecord, like: Sequence[Mapping[str, object]]
) -> list[dict[str, object]]:
    """Long form of the summary, and of every task, in the columns of the accuracies."""
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
