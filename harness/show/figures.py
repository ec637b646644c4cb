"""Draws the figures, as SVG and PNG in one style: lines with a spread, and heat maps of shares."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, told apart with any colour vision, and a marker for each colour.
_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        label: its name in the legend.
        x: the positions of the points, above 0 on a logarithmic axis.
        y: the values at these positions.
        low, high: the bounds of the shaded spread at these positions; equal to y without a spread.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        y_label: label of the y axis, with the unit.
        lines: at most three lines; a label has the same style in every panel.
        log_y: whether the y axis is logarithmic.
        from_zero: whether a y axis that is not logarithmic starts at 0.
        reference: the height of a dashed horizontal line; None for no line.
        title: text above the panel; "" for none.
    """

    y_label: str
    lines: Sequence[Line]
    log_y: bool = False
    from_zero: bool = True
    reference: float | None = None
    title: str = ""


def draw(
    title: str,
    x_label: str,
    panels: Sequence[Panel],
    legend: str,
    tick_labels: Mapping[int, str] | None = None,
) -> dict[str, bytes]:
    """The panels side by side over the same x.

    Args:
        title: text above all panels.
        x_label: label of the x axis of every panel.
        panels: the panels from left to right.
        legend: what the shaded bands and dashed lines stand for.
        tick_labels: the names of the positions, which then have equal distances; None for a
            logarithmic axis of numbers.

    Returns:
        The content of the file by format, "svg" and "png"; the same input gives the same bytes.
    """
    # Imported here, because a table without figures does not need it.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    styles = dict(zip(labels, _STYLES, strict=False))
    handles: dict[str, Any] = {}
    with style():
        figure = Figure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
        figure.suptitle(textwrap.fill(title, 40 * len(panels)))
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(all_axes, panels, strict=True):
            for line in panel.lines:
                colour, marker = styles[line.label]
                (handles[line.label],) = axes.plot(line.x, line.y, color=colour, marker=marker)
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.25, lw=0)
            axes.set(xlabel=x_label, ylabel=panel.y_label)
            axes.set_title(panel.title, fontsize=9)
            if tick_labels is None:
                axes.set_xscale("log")
                ticks = _apart({x for line in panel.lines for x in line.x})
                axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            else:
                axes.set_xticks(list(tick_labels), list(tick_labels.values()))
            axes.xaxis.set_minor_locator(NullLocator())
            if panel.reference is not None:
                axes.axhline(panel.reference, color="0.4", linestyle="--", linewidth=0.8)
            if panel.log_y:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_formatter(NullFormatter())
            elif panel.from_zero:
                axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            axes.grid(alpha=0.25)
        figure.legend(
            handles.values(),
            labels,
            loc="outside lower center",
            ncols=len(labels),
            title=textwrap.fill(legend, 48 * len(panels)),
        )
        return images_of(figure)


def _apart(values: set[float]) -> list[float]:
    """The values in ascending order, without those too close to the one before for a label."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or value >= 1.3 * kept[-1]:
            kept.append(value)
    return kept


def style() -> AbstractContextManager[None]:
    """A context in which figures are drawn in the project's style."""
    import matplotlib

    # A fixed salt gives the same ids in every run; text stays text, so that it can be searched.
    settings: dict[Any, Any] = {"svg.hashsalt": "mixlora", "svg.fonttype": "none", "font.size": 9}
    return matplotlib.rc_context(settings)


def images_of(figure: Figure) -> dict[str, bytes]:
    """The content of the file by format, with a title and no date; to be called inside `style`."""
    images = {}
    metadata: dict[str, str | None]
    for kind in ("svg", "png"):
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        metadata["Title"] = " ".join(figure.get_suptitle().split())
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        images[kind] = buffer.getvalue()
    return images


@dataclass(frozen=True)
class HeatMap:
    """One panel.

    Attributes:
        title: text above the panel.
        shares: the share of each expert, (layers, experts); every layer adds up to 1.
    """

    title: str
    shares: Sequence[Sequence[float]]


def draw_heat_maps(title: str, maps: Sequence[HeatMap]) -> dict[str, bytes]:
    """Heat maps side by side on one scale, each above bars of the mean share of every expert.

    Returns:
        The content of the file by format, "svg" and "png"; the same input gives the same bytes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    experts = len(maps[0].shares[0])
    largest = max(share for each in maps for row in each.shares for share in row)
    with style():
        figure = Figure(figsize=(1.2 + 2.1 * len(maps), 4.2), layout="constrained")
        figure.suptitle(textwrap.fill(title, 15 + 25 * len(maps)))
        axes = figure.subplots(2, len(maps), squeeze=False, sharex=True, height_ratios=(3, 1))
        for column, each in enumerate(maps):
            upper, lower = axes[0][column], axes[1][column]
            # Cividis looks alike with any colour vision, and in grey.
            image = upper.imshow(
                each.shares,
                cmap="cividis",
                vmin=0,
                vmax=largest,
                aspect="auto",
                extent=(-0.5, experts - 0.5, len(each.shares) + 0.5, 0.5),  # layers from 1
            )
            upper.set_title(each.title, fontsize=9)
            upper.yaxis.set_major_locator(MaxNLocator(integer=True))
            means = [sum(row[e] for row in each.shares) / len(each.shares) for e in range(experts)]
            lower.bar(range(experts), means, color="#0072B2")
            lower.axhline(1 / experts, color="0.3", linestyle="--", linewidth=0.8)
            lower.set_ylim(0, 1.15 * max(largest, 1 / experts))
            lower.set_xticks(range(experts), [str(e + 1) for e in range(experts)], fontsize=7)
            lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            lower.set_xlabel("expert")
            if column:
                lower.set_yticklabels([])
                upper.set_yticklabels([])
        axes[0][0].set_ylabel("layer")
        axes[1][0].set_ylabel("mean share\n(dashed: balance)")
        bar = figure.colorbar(image, ax=list(axes[0]), format=PercentFormatter(1, decimals=0))
        bar.set_label("share of a layer's selections")
        return images_of(figure)
