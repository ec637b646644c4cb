"""Tables 6 and 7: latency per token and peak memory of every method, and their ratios to LoRA."""

from __future__ import annotations

import pandas as pd

from harness.options import command
from harness.rendering.compare import load_reported
from harness.rendering.rendered import DASH, Rendered, bullets, long_rows, provenance_block, table
from harness.rendering.sources import IN_BRACKETS, REPORTED_BLOCK
from harness.speed.cells import printed
from harness.speed.numbers import MEASURE_COLUMNS, Row, frame_of, latency_rows, memory_rows
from harness.speed.request import Defaults, MeasureRequest
from harness.speed.rows import LORA, ROWS, MethodRow
from harness.speed.spec import MeasureSpec
from harness.speed.table import MeasuredTable, Records, failures, provenance, status_notes

#: The paper's table of a model's shape.
PAPER_TABLES = {"llama2-7b": "6", "gemma-2b": "7"}

#: Rows per adapter when decoding.
DECODE_BATCHES = (1, 8)

#: Heading, setting and metric of a printed column.
_Column = tuple[str, str, str]

_TRAINING: list[_Column] = [
    ("train forward", "train", "forward_latency"),
    ("train backward", "train", "backward_latency"),
    ("train step", "train", "step_latency"),
    ("train memory", "train", "peak_memory"),
    ("above weights", "train", "peak_memory_above_weights"),
]
_INFERENCE: list[_Column] = [
    ("inference forward", "inference", "forward_latency"),
    ("inference memory", "inference", "peak_memory"),
    ("above weights", "inference", "peak_memory_above_weights"),
]
_DECODE: list[_Column] = [
    (f"decode, batch {b}", f"decode-b{b}", "forward_latency") for b in DECODE_BATCHES
]
_COLUMNS = [*_TRAINING, *_INFERENCE, *_DECODE]

#: (setting, metric) of the columns that the paper has.
_PAPER_COLUMNS = {
    *(("train", metric) for metric in ("forward_latency", "backward_latency", "peak_memory")),
    *(("inference", metric) for metric in ("forward_latency", "peak_memory")),
}

#: `MethodRow.compared_as` -> heading of the block.
_COMPARISONS = {
    "ratio_to_dora": "MixDoRA relative to DoRA: measured, %",
    "ratio_to_x1": "Two packed adapters relative to one: measured, %",
}

_NOTES = (
    "latency: microseconds per token; a ratio is the median over runs in which both models took "
    "turns in one process, LoRA's own value is of a process of its own",
    "train: forward with the loss over all tokens, backward into the adapters, no optimiser; "
    "step = forward + backward; inference: unmerged, logits of all positions; decode: one token "
    "per row after a prompt as long as the rows, with a KV cache",
    "a model cut to some of its layers keeps as large a part of its vocabulary, so that the head "
    "has the share of the work that it has in the whole model",
    "memory: peak of one run in a fresh process, GB of 10^9 bytes; above weights: less what was "
    "there before the run",
    "x2: two adapters on one base, each with a batch of its own, packed into one; latency per "
    "token of both batches, memory per adapter (half of all)",
    "OOM: out of memory, for a latency with the models it is compared with in the same process; "
    f"{DASH}: no number",
)


def _batches(request: MeasureRequest) -> list[tuple[str, int]]:
    """(workload, rows per adapter) of all latencies."""
    batches = [("train", request.batch), ("inference", request.batch)]
    return batches + [("decode", batch) for batch in DECODE_BATCHES]


def _latency(request: MeasureRequest, row: MethodRow, workload: str, batch: int) -> MeasureSpec:
    names = (*row.references, row.name)
    subjects = tuple(ROWS[name].subject(batch, request.length) for name in names)
    return request.latency(workload, subjects)


def _memory(request: MeasureRequest, name: str, workload: str) -> MeasureSpec:
    return request.memory(workload, ROWS[name].subject(request.batch, request.length))


def _measurements(request: MeasureRequest, rows: list[MethodRow]) -> list[MeasureSpec]:
    specs = []
    for row in rows:
        specs += [_latency(request, row, *batch) for batch in _batches(request)]
        for name in (*row.references, row.name):
            specs += [_memory(request, name, workload) for workload in ("train", "inference")]
    return specs


def _compare(request: MeasureRequest, rows: list[MethodRow], records: Records) -> pd.DataFrame:
    """All measured numbers and the paper's, in `MEASURE_COLUMNS`, measured first.

    For a shape of the paper's the reported rows are those of its table; for others, all ratios of
    both tables.
    """
    paper_table = PAPER_TABLES.get(request.shape, "")
    found: list[Row] = []
    for row in rows:
        found += _row_numbers(request, row, records)
    measured = frame_of([number | {"table": paper_table} for number in found], MEASURE_COLUMNS)
    reported = pd.concat([load_reported(table) for table in PAPER_TABLES.values()])
    if paper_table:
        reported = reported[reported["table"] == paper_table]
    else:
        reported = reported[reported["metric"].str.endswith("_ratio")]
    frames = [
        frame.reindex(columns=MEASURE_COLUMNS).astype(object) for frame in (measured, reported)
    ]
    return pd.concat(frames, ignore_index=True).astype({"value": float})


def _row_numbers(request: MeasureRequest, row: MethodRow, records: Records) -> list[Row]:
    found: list[Row] = []
    # LoRA's own ratio, 100 %, is printed as the paper prints it.
    ratios = [("ratio", LORA)]
    if row.reference is not None:
        ratios.append((row.compared_as, row.reference))
    for workload, batch in _batches(request):
        spec = _latency(request, row, workload, batch)
        names = [subject.name for subject in spec.subjects]
        if spec in records:
            references = {suffix: names.index(name) for suffix, name in ratios}
            found += latency_rows(records[spec], len(names) - 1, references)
    for workload in ("train", "inference"):
        spec = _memory(request, row.name, workload)
        if spec in records:
            others = {s: records.get(_memory(request, name, workload)) for s, name in ratios}
            found += memory_rows(records[spec], others)
    return found


def _render(request: MeasureRequest, rows: list[MethodRow], records: Records) -> Rendered:
    frame = _compare(request, rows, records)
    facts = {
        "table": "efficiency",
        "command": command("efficiency", request),
        "model": request.title,
        **provenance(records),
    }
    facts["adapters"] = {row.name: row.settings for row in rows}
    parts = [
        "# Latency and memory (Tables 6 and 7 of arXiv 2404.15159)",
        f"{request.title}; settings of the paper's Table 3.",
        *_blocks(request, rows, frame),
        bullets([*_NOTES, *status_notes(records)]),
        provenance_block(facts),
    ]
    return Rendered(
        name=f"efficiency-{request.shape}",
        markdown="\n\n".join(parts) + "\n",
        rows=long_rows(frame),
        provenance=facts,
        failed=len(failures(records)),
    )


def _blocks(request: MeasureRequest, rows: list[MethodRow], frame: pd.DataFrame) -> list[str]:
    grid = _Grid(frame, request.shape)
    paper = PAPER_TABLES.get(request.shape)
    heading = "## Relative to LoRA: measured, %"
    if paper is not None:
        heading += f" ({IN_BRACKETS} Table {paper}, of the whole model on its hardware)"
    parts = [heading, grid.ratios(rows, "ratio", beside_paper=paper is not None)]
    if paper is None:
        heading = f"### {REPORTED_BLOCK} for other models, on its hardware, %"
        parts += [heading, grid.reported()]
    heading = "## Measured: median [quartiles], us per token and GB"
    parts += [heading, grid.values(rows, _COLUMNS)]
    for suffix, title in _COMPARISONS.items():
        compared = [row for row in rows if row.compared_as == suffix]
        if compared:
            parts += [f"## {title}", grid.ratios(compared, suffix)]
    columns = grid.other_sources()
    if columns:
        parts += ["## Peak memory by other sources, GB", grid.values(rows, columns)]
    return parts


class _Grid:
    """Looks numbers up and lays them out, methods by `_Column`s.

    Args:
        frame: `_compare`'s numbers.
        shape: The measured model.
    """

    def __init__(self, frame: pd.DataFrame, shape: str) -> None:
        self._frame = frame
        self._shape = shape
        self._rows = {
            (row["source"], row["model"], row["method"], row["setting"], row["metric"]): row
            for row in long_rows(frame)
        }

    def values(self, rows: list[MethodRow], columns: list[_Column]) -> str:
        """The measured values with their spread."""
        lines = [
            [row.title, *(printed(self._measured(row, *c[1:]), spread=True) for c in columns)]
            for row in rows
        ]
        return table(["method", *(heading for heading, _, _ in columns)], lines)

    def ratios(self, rows: list[MethodRow], suffix: str, beside_paper: bool = False) -> str:
        """The measured ratios of that suffix, beside the paper's to LoRA or alone."""
        lines = []
        for row in rows:
            line = [row.title]
            for _, setting, metric in _COLUMNS:
                text = printed(self._measured(row, setting, f"{metric}_{suffix}"))
                if beside_paper and (setting, metric) in _PAPER_COLUMNS:
                    text += f" ({self._paper(self._shape, row, setting, metric)})"
                line.append(text)
            lines.append(line)
        return table(["method", *(heading for heading, _, _ in _COLUMNS)], lines)

    def reported(self) -> str:
        """All that the paper reports, relative to LoRA."""
        columns = [column for column in _COLUMNS if column[1:] in _PAPER_COLUMNS]
        lines = []
        for model in PAPER_TABLES:
            for row in ROWS.values():
                cells = [self._paper(model, row, *column[1:]) for column in columns]
                if set(cells) != {DASH}:
                    lines.append([model, row.title, *cells])
        return table(["model", "method", *(heading for heading, _, _ in columns)], lines)

    def other_sources(self) -> list[_Column]:
        """Columns of the memory sources beside the main one, those that could be read."""
        frame = self._frame
        named = frame["metric"] == "peak_memory_" + frame["meter"].fillna("")
        return [
            (f"{setting}, {source}", setting, f"peak_memory_{source}")
            for setting in ("train", "inference")
            for source in dict.fromkeys(frame["meter"][named & frame["value"].notna()])
        ]

    def _measured(self, row: MethodRow, setting: str, metric: str) -> Row | None:
        return self._rows.get(("measured", self._shape, row.name, setting, metric))

    def _paper(self, model: str, row: MethodRow, setting: str, metric: str) -> str:
        return printed(self._rows.get(("reported", model, row.name, setting, f"{metric}_ratio")))


TABLE = MeasuredTable(
    name="efficiency",
    defaults=Defaults(layers=None, batch=(8, 96)),
    kind="method",
    parts=ROWS,
    measurements=_measurements,
    render=_render,
)
