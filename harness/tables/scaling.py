"""How latency and memory of fused MixLoRA grow: experts, top_k, rank, tokens, sequence length."""

from __future__ import annotations

from dataclasses import dataclass

from harness.options import command
from harness.show.data import DASH, Block, Cell, TableData, long_rows
from harness.show.figures import Line, Panel, draw
from harness.speed.numbers import (
    MEASURE_COLUMNS,
    Row,
    cell_of,
    frame_of,
    latency_rows,
    memory_rows,
)
from harness.speed.request import Defaults, MeasureRequest
from harness.speed.rows import LORA, ROWS
from harness.speed.spec import MeasureSpec, Subject
from harness.speed.table import MeasuredTable, Records, failures, provenance, status_notes

_FUSED = ROWS["mixlora/fused"]

#: The number of tokens in every batch of the sweep over the sequence length.
_LENGTH_TOKENS = 1024


@dataclass(frozen=True)
class Sweep:
    """One setting varied while all others stay.

    Attributes:
        name: name on the command line, and of the setting that varies.
        label: label of the axis and of the column.
        points: the values.
        default: the value that the others are compared with.
    """

    name: str
    label: str
    points: tuple[int, ...]
    default: int

    @property
    def varies_batch(self) -> bool:
        """Whether the sweep varies the batch and not a setting of the adapter."""
        return self.name in ("tokens", "length")


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

#: The heading, setting and metric of each number that is printed for a point.
_COLUMNS = [
    ("train step, us per token", "train", "step_latency"),
    ("inference forward, us per token", "inference", "forward_latency"),
    ("train memory above weights, GB", "train", "peak_memory_above_weights"),
]

_NOTES = (
    "a ratio of latencies is the median over runs in which LoRA (r = 80, the same batch) and the "
    "points of the sweep that have this batch took turns in one process",
    "train step: forward with the loss over all tokens and backward, no optimiser; memory: peak "
    "of one training step in a fresh process, less what was there before, GB of 10^9 bytes",
    "OOM: out of memory, for a latency with the models it is compared with in the same process; "
    f"{DASH}: no number",
)


@dataclass(frozen=True)
class _Points:
    """The points of a sweep that run on the same batch and take turns with LoRA in one process."""

    request: MeasureRequest
    sweep: Sweep
    values: tuple[int, ...]

    def subject(self, value: int) -> Subject:
        batch, length = _batch(self.request, self.sweep, value)
        if self.sweep.varies_batch:
            return _FUSED.subject(batch, length)
        return _FUSED.subject(batch, length, **{self.sweep.name: value})

    @property
    def lora(self) -> Subject:
        return ROWS[LORA].subject(*_batch(self.request, self.sweep, self.values[0]))

    def latency(self, workload: str) -> MeasureSpec:
        subjects = (self.lora, *(self.subject(value) for value in self.values))
        return self.request.latency(workload, subjects)

    def memory(self, subject: Subject) -> MeasureSpec:
        return self.request.memory("train", subject)

    def measurements(self) -> list[MeasureSpec]:
        latencies = [self.latency(workload) for workload in ("train", "inference")]
        subjects = (self.lora, *(self.subject(value) for value in self.values))
        return latencies + [self.memory(subject) for subject in subjects]

    def numbers(self, records: Records) -> list[Row]:
        """The numbers that are known of the points, in long form."""
        return [
            row | {"sweep": self.sweep.name, "point": value}
            for value in self.values
            for row in self._numbers(value, records)
        ]

    def _numbers(self, value: int, records: Records) -> list[Row]:
        references = {"ratio": self.lora}
        if self.sweep.default in self.values:
            references["ratio_to_default"] = self.subject(self.sweep.default)
        rows: list[Row] = []
        for workload in ("train", "inference"):
            spec = self.latency(workload)
            if spec in records:
                indices = {name: spec.subjects.index(it) for name, it in references.items()}
                index = spec.subjects.index(self.subject(value))
                rows += latency_rows(records[spec], index, indices)
        spec = self.memory(self.subject(value))
        if spec in records:
            others = {name: records.get(self.memory(it)) for name, it in references.items()}
            rows += memory_rows(records[spec], others)
        return rows


def _batch(request: MeasureRequest, sweep: Sweep, value: int) -> tuple[int, int]:
    """The (rows, tokens per row) of a point."""
    if sweep.name == "tokens":
        return 1, value
    if sweep.name == "length":
        return _LENGTH_TOKENS // value, value
    return request.batch, request.length


def _points(request: MeasureRequest, sweeps: list[Sweep]) -> list[_Points]:
    found = []
    for sweep in sweeps:
        by_batch: dict[tuple[int, int], tuple[int, ...]] = {}
        for value in sweep.points:
            batch = _batch(request, sweep, value)
            by_batch[batch] = (*by_batch.get(batch, ()), value)
        found += [_Points(request, sweep, values) for values in by_batch.values()]
    return found


def _measurements(request: MeasureRequest, sweeps: list[Sweep]) -> list[MeasureSpec]:
    return [spec for points in _points(request, sweeps) for spec in points.measurements()]


def _render(request: MeasureRequest, sweeps: list[Sweep], records: Records) -> TableData:
    numbers = [row for points in _points(request, sweeps) for row in points.numbers(records)]
    rows = long_rows(frame_of(numbers, SCALING_COLUMNS))
    found = {(row["sweep"], row["point"], row["setting"], row["metric"]): row for row in rows}
    facts = {
        "table": "scaling",
        "command": command("scaling", request),
        "model": request.title,
        **provenance(records),
    }
    facts["adapters"] = {row.name: row.settings for row in (ROWS[LORA], _FUSED)}
    name = f"scaling-{request.shape}"
    figures: dict[str, bytes] = {}
    text = f"{request.title} where the sweep is not over them; settings of the paper's Table 3."
    blocks = [Block(text=text)]
    for sweep in sweeps:
        blocks.append(_sweep_block(sweep, found))
        for kind, image in _sweep_figure(request, sweep, found).items():
            figures[f"{name}-{sweep.name}.{kind}"] = image
    blocks.append(Block(notes=[*_NOTES, *status_notes(records)]))
    return TableData(
        name=name,
        title="Fused MixLoRA: latency and memory against its settings and the batch",
        blocks=blocks,
        numbers=rows,
        provenance=facts,
        figures=figures,
        failed=len(failures(records)),
    )


_Found = dict[tuple[str, int, str, str], Row]


def _sweep_block(sweep: Sweep, found: _Found) -> Block:
    # Only points on the same batch are compared with each other.
    ratios = {"ratio": "of LoRA, %"}
    if not sweep.varies_batch:
        ratios["ratio_to_default"] = "of the default, %"
    head = [sweep.label]
    for heading, _, _ in _COLUMNS:
        head += [heading, *ratios.values()]
    lines = []
    for point in sweep.points:
        line = [Cell(str(point), point)]
        for _, setting, metric in _COLUMNS:
            key = (sweep.name, point, setting)
            line.append(cell_of(found.get((*key, metric)), spread=True))
            line += [cell_of(found.get((*key, f"{metric}_{suffix}"))) for suffix in ratios]
        lines.append(line)
    return Block(f"By {sweep.label} (default {sweep.default})", head=head, rows=lines)


def _sweep_figure(request: MeasureRequest, sweep: Sweep, found: _Found) -> dict[str, bytes]:
    """The figure of a sweep by format; nothing if there is no number."""

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
    # A panel without any number is left out.
    panels = [panel for panel in panels if any(line.x for line in panel.lines)]
    if not panels:
        return {}
    title = f"Fused MixLoRA by {sweep.label}: {request.shape}"
    return draw(title, sweep.label, panels, "shaded: quartiles over runs; dashed: LoRA r = 80")


TABLE = MeasuredTable(
    name="scaling",
    defaults=Defaults(layers=4, batch=(1, 256)),
    kind="sweep",
    parts=SWEEPS,
    measurements=_measurements,
    render=_render,
)
