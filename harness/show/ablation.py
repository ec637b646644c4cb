"""Figures of a table whose settings are the values of one number, such as the rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from harness.cells.methods import METHOD_TITLES
from harness.numbers.comparison import AVERAGE
from harness.store.records import RunRecord

from .data import TableData
from .figures import Line, Panel, draw

_Finish = Callable[[TableData, Mapping[str, Sequence[RunRecord]]], TableData]

_LEGEND = "shaded: standard error over examples, of measured accuracies; axes do not start at 0"


def pictured(title: str, x_label: str, parameters: str = "") -> _Finish:
    """A function that adds figures to such a table: mean accuracy by setting, a line a method.

    There is one panel for each measured model and metric, and one for each of the paper's models.
    The settings are named "name=value" and stand in their order at equal distances. The bands are
    the standard error over examples of measured accuracies; the paper gives none.

    Args:
        title: title of the figure.
        x_label: name of the number that the settings are values of.
        parameters: title of a second figure, over the trainable parameters; "" for none.
    """

    def finish(table: TableData, records: Mapping[str, Sequence[RunRecord]]) -> TableData:
        positions: dict[str, float] = {setting: i for i, setting in enumerate(records)}
        ticks = {i: setting.rpartition("=")[2] for i, setting in enumerate(records)}
        # Only means over all the tasks that were asked for, and only of accuracies.
        means = [
            row
            for row in table.numbers
            if row["task"].startswith(AVERAGE) and row["unit"] == "%" and row["setting"] in records
        ]
        if not means:
            return table
        places = [positions[row["setting"]] for row in means]
        pictures = {table.name: draw(title, x_label, _panels(means, places), _LEGEND, ticks)}
        if parameters:
            percent = {_who(r): r["value"] for r in table.numbers if r["metric"] == "params"}
            panels = _panels(means, [percent[_who(row)] for row in means])
            images = draw(parameters, "trainable parameters, % of the model", panels, _LEGEND)
            pictures[f"{table.name}-parameters"] = images
        figures = {
            f"{name}.{kind}": data
            for name, images in pictures.items()
            for kind, data in images.items()
        }
        return dataclasses.replace(table, figures=figures)

    return finish


def _who(row: Mapping[str, str]) -> tuple[str, ...]:
    """What a number of parameters belongs to."""
    return tuple(row[name] for name in ("source", "model", "method", "setting"))


def _panels(rows: Sequence[dict], places: Sequence[float]) -> list[Panel]:
    """The rows as panels by model and metric, each row at its place on the x axis."""
    found: dict[tuple[str, str], dict[str, list[tuple[float, dict]]]] = {}
    for row, place in zip(rows, places, strict=True):
        panel = (f"{row['model']}, {row['source']}", f"{row['metric']} ({row['task']}), %")
        found.setdefault(panel, {}).setdefault(row["method"], []).append((place, row))
    return [
        Panel(label, [_line(*e) for e in by_method.items()], from_zero=False, title=title)
        for (title, label), by_method in found.items()
    ]


def _line(method: str, points: list[tuple[float, dict]]) -> Line:
    ordered = sorted(points, key=lambda point: point[0])
    values = [row["value"] for _, row in ordered]
    errors = [row["stderr"] or 0.0 for _, row in ordered]
    return Line(
        METHOD_TITLES[method],
        [place for place, _ in ordered],
        values,
        [value - error for value, error in zip(values, errors, strict=True)],
        [value + error for value, error in zip(values, errors, strict=True)],
    )
