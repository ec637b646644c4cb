"""How a measured number is printed: value, spread, and what stands where there is none."""

from __future__ import annotations

from typing import Any

from harness.tables.show.data import DASH


def printed(row: dict[str, Any] | None, spread: bool = False) -> str:
    """A number as printed: the dash without one, "OOM", "failed" or "unavailable" by its status.

    Args:
        row: Of the long form.
        spread: Add the quartiles over the runs, where there are runs.
    """
    if row is None:
        return DASH
    if row["status"]:
        return row["status"].partition(":")[0]
    if row["value"] is None:
        return DASH
    text = _digits(row["value"], row["unit"])
    if spread and row["q25"] is not None:
        text += f" [{_digits(row['q25'], row['unit'])}-{_digits(row['q75'], row['unit'])}]"
    return text


def _digits(value: float, unit: str) -> str:
    if unit == "GB":
        return f"{value:.3f}"
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
