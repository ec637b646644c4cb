"""Draws heat maps of shares, layers by experts, and their means as bars, as SVG and PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from .figures import images_of, style


@dataclass(frozen=True)
class HeatMap:
    """One panel.

    Attributes:
        title: Above it.
        shares: Layers x experts, each layer adding up to 1.
    """

    title: str
    shares: Sequence[Sequence[float]]


def draw_heat_maps(title: str, maps: Sequence[HeatMap]) -> dict[str, bytes]:
    """Heat maps side by side on one scale, under each the mean share of every expert as a bar.

    Returns:
        Format ("svg", "png") -> the file's content; the same input gives the same bytes.
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
            # Cividis is read alike with any colour vision, and in grey.
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
