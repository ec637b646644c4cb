"""How latency and memory of fused MixLoRA grow: experts, top_k, rank, tokens, sequence length."""

from __future__ import annotations

from dataclasses import dataclass

from results.figures import Line, Panel, draw
from results.measure.cells import printed
from results.measure.numbers import MEASURE_COLUMNS, Row, frame_of, latency_rows, memory_rows
from results.measure.request import Defaults, MeasureRequest
from results.measure.rows import LORA, ROWS
from results.measure.spec import MeasureSpec, Subject
from results.measure.table import MeasuredTable, Records, failures, provenance, status_notes
from results.rendered import DASH, Rendered, bullets, long_rows, provenance_block, table

_FUSED = ROWS["mixlora/fused"]

#: Tokens of every batch of the sweep over the sequence length.
_LENGTH_TOKENS = 1024


@dataclass(frozen=True)
class Sweep:
    """One setting varied while all others stay.

    Attributes:
        name: As on the command line.
        label: Of the axis and column.
        points: The values.
        default: The one that the others are compared with.
    """

    name: str
    label: str
    points: tuple[int, ...]
    default: int


SWEEPS: dict[str, Sweep] = {
    sweep.name: sweep
    for sweep in (
        Sweep("num_experts", "experts", (2, 4, 8, 16, 32, 64), 8),
        Sweep("top_k", "experts per token", (1, 2, 4, 8), 2),
        Sweep("r", "rank", (2, 4, 8, 16, 32, 64), 16),
        Sweep("tokens", "tokens in one row", (1, 4, 16, 64, 256, 1024, 4096), 256),
        Sweep(
            "length",
            f"tokens per row of {_LENGTH_TOKENS} in all",
            (64, 128, 256, 512, 1024),
            _LENGTH_TOKENS,
        ),
    )
}

SCALING_COLUMNS = [*MEASURE_COLUMNS, "sweep", "point"]

#: Heading, setting and metric of what is printed of a point.
_COLUMNS = [
    ("train step, us per token", "train", "step_latency"),
    ("inference forward, us per token", "inference", "forward_latency"),
    ("train memory above weights, GB", "train", "peak_memory_above_weights"),
]

_NOTES = (
    "a ratio of latencies is the median over runs in which LoRA (r = 80, the same batch), the "
    "sweep's default point and this point took turns in one process",
    "train step: forward with the loss over all tokens and backward, no optimiser; memory: peak "
    "of one training step in a fresh process, less what was there before, GB of 10^9 bytes",
    "OOM: out of memory, for a latency with the models it is compared with in the same process; "
    f"{DASH}: no number",
)


@dataclass(frozen=True)
class _Point:
    """One point of a sweep and what it is compared with."""

    request: MeasureRequest
    sweep: Sweep
    value: int

    @property
    def subjects(self) -> dict[str, Subject]:
        """Suffix of the ratio's metric -> reference, and "" -> the point itself, last."""
        point, default = self._fused(self.value), self._fused(self.sweep.default)
        lora = ROWS[LORA].subject(point.batch, point.length)
        return {"ratio": lora, "ratio_to_default": default, "": point}

    def latency(self, workload: str) -> MeasureSpec:
        # The default point itself stands there once.
        subjects = tuple(dict.fromkeys(self.subjects.values()))
        return self.request.latency(workload, subjects)

    def memory(self, suffix: str) -> MeasureSpec:
        return self.request.memory("train", self.subjects[suffix])

    def measurements(self) -> list[MeasureSpec]:
        latencies = [self.latency(workload) for workload in ("train", "inference")]
        return latencies + [self.memory(suffix) for suffix in self.subjects]

    def numbers(self, records: Records) -> list[Row]:
        """What is known of the point, in long form."""
        rows: list[Row] = []
        for workload in ("train", "inference"):
            spec = self.latency(workload)
            if spec in records:
                indices = {s: spec.subjects.index(it) for s, it in self.subjects.items() if s}
                rows += latency_rows(records[spec], indices)
        spec = self.memory("")
        if spec in records:
            references = {s: records.get(self.memory(s)) for s in self.subjects if s}
            rows += memory_rows(records[spec], references)
        return [row | {"sweep": self.sweep.name, "point": self.value} for row in rows]

    def _fused(self, value: int) -> Subject:
        batch, length = self.request.batch, self.request.length
        if self.sweep.name == "tokens":
            return _FUSED.subject(1, value)
        if self.sweep.name == "length":
            return _FUSED.subject(_LENGTH_TOKENS // value, value)
        return _FUSED.subject(batch, length, **{self.sweep.name: value})


def _points(request: MeasureRequest, sweeps: list[Sweep]) -> list[_Point]:
    return [_Point(request, sweep, value) for sweep in sweeps for value in sweep.points]


def _measurements(request: MeasureRequest, sweeps: list[Sweep]) -> list[MeasureSpec]:
    return [spec for point in _points(request, sweeps) for spec in point.measurements()]


def _render(request: MeasureRequest, sweeps: list[Sweep], records: Records) -> Rendered:
    numbers = [row for point in _points(request, sweeps) for row in point.numbers(records)]
    rows = long_rows(frame_of(numbers, SCALING_COLUMNS))
    found = {(row["sweep"], row["point"], row["setting"], row["metric"]): row for row in rows}
    facts = {"table": "scaling", "model": request.title} | provenance(records)
    facts["adapters"] = {row.name: row.settings for row in (ROWS[LORA], _FUSED)}
    name = f"scaling-{request.shape}"
    figures: dict[str, bytes] = {}
    parts = [
        "# Fused MixLoRA: latency and memory against its settings and the batch",
        f"{request.title} where the sweep is not over them; settings of the paper's Table 3.",
    ]
    for sweep in sweeps:
        parts += [f"## By {sweep.label} (default {sweep.default})", _sweep_table(sweep, found)]
        for kind, image in _sweep_figure(request, sweep, found).items():
            figures[f"{name}-{sweep.name}.{kind}"] = image
    parts += [bullets([*_NOTES, *status_notes(records)]), provenance_block(facts)]
    markdown = "\n\n".join(parts) + "\n"
    return Rendered(name, markdown, rows, facts, figures, len(failures(records)))


_Found = dict[tuple[str, int, str, str], Row]


def _sweep_table(sweep: Sweep, found: _Found) -> str:
    head = [sweep.label]
    for heading, _, _ in _COLUMNS:
        head += [heading, "of LoRA, %", "of the default, %"]
    lines = []
    for point in sweep.points:
        line = [str(point)]
        for _, setting, metric in _COLUMNS:
            key = (sweep.name, point, setting)
            line.append(printed(found.get((*key, metric)), spread=True))
            line.append(printed(found.get((*key, f"{metric}_ratio"))))
            line.append(printed(found.get((*key, f"{metric}_ratio_to_default"))))
        lines.append(line)
    return table(head, lines)


def _sweep_figure(request: MeasureRequest, sweep: Sweep, found: _Found) -> dict[str, bytes]:
    """Images of a sweep; none without a number."""

    def line(label: str, setting: str, metric: str) -> Line:
        rows = [found.get((sweep.name, point, setting, metric)) for point in sweep.points]
        known = [row for row in rows if row is not None and row["value"] is not None]
        y = [row["value"] for row in known]
        low = [row["value"] if row["q25"] is None else row["q25"] for row in known]
        high = [row["value"] if row["q75"] is None else row["q75"] for row in known]
        return Line(label, [row["point"] for row in known], y, low, high)

    def latencies(suffix: str) -> list[Line]:
        return [
            line("train step", "train", f"step_latency{suffix}"),
            line("inference forward", "inference", f"forward_latency{suffix}"),
        ]

    memory = line("train step", "train", "peak_memory_above_weights")
    panels = [
        Panel("latency, us per token", latencies(""), log_y=sweep.name == "tokens"),
        Panel("relative to LoRA r = 80, %", latencies("_ratio"), reference=100),
        Panel("memory above weights, GB", [memory]),
    ]
    if not any(line.x for panel in panels for line in panel.lines):
        return {}
    return draw(f"Fused MixLoRA by {sweep.label}: {request.shape}", sweep.label, panels)


TABLE = MeasuredTable(
    name="scaling",
    defaults=Defaults(layers=4, batch=(1, 256)),
    kind="sweep",
    parts=SWEEPS,
    measurements=_measurements,
    render=_render,
)
