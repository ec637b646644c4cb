"""The picture of a table whose settings are the values of one number (Figure 4's kind)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from .compare import AVERAGE
from .figures import Line, Panel, draw
from .methods import METHOD_TITLES
from .records import RunRecord
from .rendered import Rendered

_Finish = Callable[[Rendered, Mapping[str, Sequence[RunRecord]]], Rendered]


def pictured(title: str, x_label: str) -> _Finish:
    """What adds a picture to such a table: accuracy over all tasks by setting, a line a method.

    A panel for each measured model and metric, and one for each of the paper's models. The settings
    are named "name=value" and stand in their order, at equal distances. Bands are the standard
    error over examples, of measured accuracies; the paper gives none.

    Args:
        title: Of the picture.
        x_label: What the settings are values of.
    """

    def finish(rendered: Rendered, records: Mapping[str, Sequence[RunRecord]]) -> Rendered:
        positions = {setting: number for number, setting in enumerate(records)}
        ticks = {number: name.rpartition("=")[2] for name, number in positions.items()}
        found: dict[str, dict[str, list[dict]]] = {}
        for row in rendered.rows:
            # Means only over all the tasks that were asked for, of accuracies alone.
            is_mean = row["task"].startswith(AVERAGE) and row["unit"] == "%"
            if is_mean and row["setting"] in positions:
                panel = f"{row['model']}, {row['source']}: {row['metric']} ({row['task']}), %"
                found.setdefault(panel, {}).setdefault(row["method"], []).append(row)
        panels = [
            Panel(name, [_line(method, rows, positions) for method, rows in by_method.items()])
            for name, by_method in found.items()
        ]
        if not panels:
            return rendered
        images = draw(title, x_label, panels, ticks)
        figures = {f"{rendered.name}.{kind}": data for kind, data in images.items()}
        return dataclasses.replace(rendered, figures=figures)

    return finish


def _line(method: str, rows: list[dict], positions: Mapping[str, int]) -> Line:
    ordered = sorted(rows, key=lambda row: positions[row["setting"]])
    errors = [row["stderr"] or 0.0 for row in ordered]
    values = [row["value"] for row in ordered]
    return Line(
        METHOD_TITLES[method],
        [positions[row["setting"]] for row in ordered],
        values,
        [value - error for value, error in zip(values, errors, strict=True)],
        [value + error for value, error in zip(values, errors, strict=True)],
    )
