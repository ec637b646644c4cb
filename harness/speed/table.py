"""A table of measurements: its options, what it measures or looks up, its rendering."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from harness.options import General, Option, options_of
from harness.run import processes
from harness.show.data import TableData, distinct
from harness.store.records import FAILED, OOM

from .records import DONE, MeasureRecord, MeasureStore
from .request import Defaults, MeasureRequest
from .spec import WARMUP, MeasureSpec

Records = Mapping[MeasureSpec, MeasureRecord]
Part = TypeVar("Part")


@dataclass(frozen=True)
class MeasuredTable(Generic[Part]):
    """One table of measurements, made of parts (rows, sweeps) of which some can be asked for.

    Attributes:
        name: As on the command line.
        defaults: Where the command line does not say.
        kind: What a part is called; ``--<kind>s`` chooses among them.
        parts: Name -> part.
        measurements: The measurements that fill some parts; one may be named twice.
        render: From what there is of them to the table.
    """

    name: str
    defaults: Defaults
    kind: str
    parts: Mapping[str, Part]
    measurements: Callable[[MeasureRequest, list[Part]], list[MeasureSpec]]
    render: Callable[[MeasureRequest, list[Part], Records], TableData]

    def options(self) -> list[Option]:
        """The options of the command line that this table has."""
        without = {"methods", "sweeps"} - {f"{self.kind}s"}
        measured = [
            dataclasses.replace(each, absent=self.defaults.words.get(each.name, each.absent))
            for each in options_of(MeasureRequest, self._known, without)
        ]
        return [*measured, *options_of(General)]

    @property
    def _known(self) -> dict[str, tuple[str, ...]]:
        return {f"{self.kind}s": tuple(self.parts)}

    def plan(self, given: Mapping[str, Any]) -> MeasuredPlan:
        """The measurements that given options ask for.

        Raises:
            ValueError: A name is unknown, a number out of range, the device not there, or this is
                one of several processes.
        """
        processes.one_only(f"table {self.name}")
        general = General.make(given)
        request = MeasureRequest.of(given, self.defaults, self._known)
        if not general.render_only:
            request = request.on_this_machine()
        names = getattr(request, f"{self.kind}s") or tuple(self.parts)
        parts = [self.parts[name] for name in names]
        specs = list(dict.fromkeys(self.measurements(request, parts)))
        return MeasuredPlan(
            specs, general.output, lambda records: self.render(request, parts, records)
        )


@dataclass(frozen=True)
class MeasuredPlan:
    """The measurements that fill a table, and how it is rendered.

    Attributes:
        specs: The measurements, each once.
        output: Where they are kept.
        render: From those that there are to the table.
    """

    specs: list[MeasureSpec]
    output: Path
    render: Callable[[Records], TableData]

    def listing(self) -> list[str]:
        """The measurements, one a line."""
        return [*(spec.title for spec in self.specs), f"{len(self.specs)} measurements"]

    def run(self, fresh: bool) -> TableData:
        """Measure what has no record, or everything if fresh, and render.

        Raises:
            ValueError: A stored record cannot be read.
        """
        # Here, because rendering stored measurements needs none of it.
        from .run import measure_missing

        return self.render(measure_missing(self.specs, MeasureStore(self.output), fresh))

    def stored(self) -> TableData:
        """Render the newest record of every measurement, whatever code made it.

        Raises:
            ValueError: A stored record cannot be read.
        """
        return self.render(MeasureStore(self.output).newest(self.specs))


def failures(records: Records) -> dict[MeasureSpec, str]:
    """The reason of each failed measurement."""
    return {spec: r.reason for spec, r in records.items() if r.status == FAILED}


def status_notes(records: Records) -> list[str]:
    """What is missing and why: out of memory, failures, memory sources that cannot be read."""
    notes = [
        f"{record.status}: {record.spec.title}: {record.reason}"
        for record in records.values()
        if record.status != DONE
    ]
    reasons = distinct(
        (source, memory["reason"])
        for record in records.values()
        if record.spec.quantity == "memory"
        for source, memory in (record.reports[0]["memory"].items() if record.reports else ())
        if memory["reason"]
    )
    return notes + [f"memory by {source}: {reason}" for source, reason in reasons]


def provenance(records: Records) -> dict[str, Any]:
    """What the measurements come from. A value is a list, because the measurements can differ."""
    found = list(records.values())
    specs = [record.spec for record in found]
    facts = [record.provenance for record in found]
    loads = [record.load_average for record in found if record.load_average is not None]
    counts = {
        status: sum(record.status == status for record in found) for status in (DONE, OOM, FAILED)
    }
    return {
        "weights": "random, seeded; inputs are random tokens without padding",
        "runs": distinct(
            f"{spec.runs} after {WARMUP} of warm-up" for spec in specs if spec.quantity == "latency"
        ),
        "commit": distinct(fact["commit"] for fact in facts),
        "python": distinct(fact["python"] for fact in facts),
        "versions": distinct(fact["versions"] for fact in facts),
        # Only of measurements that ended with a result: the others do not know the device's name.
        "hardware": distinct(r.provenance["hardware"] for r in found if r.status == DONE),
        "load average at the start": f"{min(loads):.1f} to {max(loads):.1f}" if loads else None,
        "measured": sorted({fact["finished"][:10] for fact in facts}),
        "measurements": counts,
    }
