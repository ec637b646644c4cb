"""The rows of the efficiency table: which methods, and what each is compared with beside LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.cells.methods import FORWARDS, METHOD_TITLES
from harness.cells.presets import get_preset

from .spec import Subject

LORA = "lora"


@dataclass(frozen=True)
class MethodRow:
    """One row, named as in reported.csv.

    Attributes:
        name: "lora", "mixlora/fused", "mixlora-x2/fused", ...
        title: As printed.
        method: Name in `harness.cells.methods`.
        forward: How MixLoRA is computed; None for the baselines.
        adapters: Adapters packed on one base.
        reference: The row it is compared with beside LoRA; None without.
        compared_as: Suffix of the metrics of that comparison, "ratio_to_dora".
    """

    name: str
    title: str
    method: str
    forward: str | None = None
    adapters: int = 1
    reference: str | None = None
    compared_as: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The paper's settings of the method (Table 3), and the forward."""
        forward = {} if self.forward is None else {"forward": self.forward}
        return get_preset("paper").adapters[self.method] | forward

    def subject(self, batch: int, length: int, **changes: int) -> Subject:
        """The row's model on a batch, with these changes of its settings."""
        return Subject(
            name=self.name,
            method=self.method,
            settings=tuple(sorted((self.settings | changes).items())),
            adapters=self.adapters,
            batch=batch,
            length=length,
        )

    @property
    def references(self) -> tuple[str, ...]:
        """Rows it is measured beside, LoRA first; none for LoRA itself."""
        extra = () if self.reference is None else (self.reference,)
        return () if self.name == LORA else (LORA, *extra)


def _mixture(method: str, forward: str) -> MethodRow:
    name, title = f"{method}/{forward}", f"{METHOD_TITLES[method]} {forward}"
    if method == "mixdora":
        return MethodRow(name, title, method, forward, 1, "dora", "ratio_to_dora")
    return MethodRow(name, title, method, forward)


def _packed(forward: str) -> MethodRow:
    name, title = f"mixlora-x2/{forward}", f"{METHOD_TITLES['mixlora']} x2 {forward}"
    return MethodRow(name, title, "mixlora", forward, 2, f"mixlora/{forward}", "ratio_to_x1")


ROWS: dict[str, MethodRow] = {
    row.name: row
    for row in (
        *(MethodRow(name, METHOD_TITLES[name], name) for name in (LORA, "dora")),
        *(_mixture(method, f) for method in ("mixlora", "mixdora") for f in FORWARDS),
        *(_packed(f) for f in FORWARDS),
    )
}
