"""Tables 6 and 7: latency per token and peak memory of every method, and their ratios to LoRA."""

from __future__ import annotations

import dataclasses

import pandas as pd

from harness.numbers.comparison import load_reported
from harness.options import command
from harness.show.data import DASH, MEASURED, REPORTED, Block, Cell, TableData, long_rows
from harness.speed.numbers import (
    MEASURE_COLUMNS,
    Row,
    cell_of,
    frame_of,
    latency_rows,
    memory_rows,
)
from harness.speed.request import Defaults, MeasureRequest
from harness.speed.rows import LORA, ROWS, MethodRow
from harness.speed.spec import MeasureSpec
from harness.speed.table import MeasuredTable, Records, failures, provenance, status_notes

#: The paper's table of a model's shape.
PAPER_TABLES = {"llama2-7b": "6", "gemma-2b": "7"}

#: Rows per adapter when decoding.
DECODE_BATCHES = (1, 8)

#: The heading, setting and metric of a printed column.
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

#: The (setting, metric) of the columns that the paper has too.
_PAPER_COLUMNS = {
    *(("train", metric) for metric in ("forward_latency", "backward_latency", "peak_memory")),
    *(("inference", metric) for metric in ("forward_latency", "peak_memory")),
}

#: The heading of each block that compares with another method than LoRA, by
#: `MethodRow.compared_as`.
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
    """The (workload, rows per adapter) of all latencies."""
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
    """All measured numbers and the paper's, in `MEASURE_COLUMNS`, measured ones first.

    For a model of the paper the reported rows are those of its table; for any other model they are
    all ratios of both tables.
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
    # LoRA's own ratio is 100 %; it is printed, because the paper prints it.
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


def _render(request: MeasureRequest, rows: list[MethodRow], records: Records) -> TableData:
    frame = _compare(request, rows, records)
    facts = {
        "table": "efficiency",
        "command": command("efficiency", request),
        "model": request.title,
        **provenance(records),
    }
    facts["adapters"] = {row.name: row.settings for row in rows}
    return TableData(
        name=f"efficiency-{request.shape}",
        title="Latency and memory (Tables 6 and 7 of arXiv 2404.15159)",
        blocks=[
            Block(text=f"{request.title}; settings of the paper's Table 3."),
            *_blocks(request, rows, frame),
            Block(notes=[*_NOTES, *status_notes(records)]),
        ],
        numbers=long_rows(frame),
        provenance=facts,
        failed=len(failures(records)),
    )


def _blocks(request: MeasureRequest, rows: list[MethodRow], frame: pd.DataFrame) -> list[Block]:
    grid = _Grid(frame, request.shape)
    paper = PAPER_TABLES.get(request.shape)
    heading = "Relative to LoRA: measured, %"
    if paper is not None:
        heading += f" (in brackets the paper's Table {paper}, of the whole model on its hardware)"
    blocks = [grid.ratios(heading, rows, "ratio", beside_paper=paper is not None)]
    if paper is None:
        blocks.append(grid.reported())
    blocks.append(grid.values("Measured: median [quartiles], us per token and GB", rows, _COLUMNS))
    for suffix, heading in _COMPARISONS.items():
        compared = [row for row in rows if row.compared_as == suffix]
        if compared:
            blocks.append(grid.ratios(heading, compared, suffix))
    columns = grid.other_sources()
    if columns:
        blocks.append(grid.values("Peak memory by other sources, GB", rows, columns))
    return blocks


class _Grid:
    """Looks the numbers up and lays them out: one row for each method, one column for each number.

    Args:
        frame: the numbers, from `_compare`.
        shape: the measured model.
    """

    def __init__(self, frame: pd.DataFrame, shape: str) -> None:
        self._frame = frame
        self._shape = shape
        self._rows = {
            (row["source"], row["model"], row["method"], row["setting"], row["metric"]): row
            for row in long_rows(frame)
        }

    def values(self, heading: str, rows: list[MethodRow], columns: list[_Column]) -> Block:
        """The measured values with their quartiles."""
        return Block(
            heading,
            head=["method", *(title for title, _, _ in columns)],
            rows=[
                [
                    Cell(row.title),
                    *(cell_of(self._measured(row, *column[1:]), spread=True) for column in columns),
                ]
                for row in rows
            ],
        )

    def ratios(
        self, heading: str, rows: list[MethodRow], suffix: str, beside_paper: bool = False
    ) -> Block:
        """The measured ratios of one suffix, alone or beside the ratios to LoRA of the paper."""
        lines = []
        for row in rows:
            line = [Cell(row.title)]
            for _, setting, metric in _COLUMNS:
                cell = cell_of(self._measured(row, setting, f"{metric}_{suffix}"))
                if beside_paper and (setting, metric) in _PAPER_COLUMNS:
                    paper = self._paper(self._shape, row, setting, metric)
                    cell = dataclasses.replace(cell, beside=paper)
                line.append(cell)
            lines.append(line)
        return Block(heading, head=["method", *(title for title, _, _ in _COLUMNS)], rows=lines)

    def reported(self) -> Block:
        """All that the paper reports, relative to LoRA."""
        columns = [column for column in _COLUMNS if column[1:] in _PAPER_COLUMNS]
        lines = []
        for model in PAPER_TABLES:
            for row in ROWS.values():
                cells = [self._paper(model, row, *column[1:]) for column in columns]
                if not all(cell.missing for cell in cells):
                    lines.append([Cell(model), Cell(row.title), *cells])
        heading = "Reported by the paper for other models, on its hardware, %"
        head = ["model", "method", *(title for title, _, _ in columns)]
        return Block(heading, level=3, head=head, rows=lines)

    def other_sources(self) -> list[_Column]:
        """The columns of the memory sources beside the main one that could be read."""
        frame = self._frame
        named = frame["metric"] == "peak_memory_" + frame["meter"].fillna("")
        return [
            (f"{setting}, {source}", setting, f"peak_memory_{source}")
            for setting in ("train", "inference")
            for source in dict.fromkeys(frame["meter"][named & frame["value"].notna()])
        ]

    def _measured(self, row: MethodRow, setting: str, metric: str) -> Row | None:
        return self._rows.get((MEASURED, self._shape, row.name, setting, metric))

    def _paper(self, model: str, row: MethodRow, setting: str, metric: str) -> Cell:
        key = (REPORTED, model, row.name, setting, f"{metric}_ratio")
        return cell_of(self._rows.get(key), REPORTED)


TABLE = MeasuredTable(
    name="efficiency",
    defaults=Defaults(layers=None, batch=(8, 96)),
    kind="method",
    parts=ROWS,
    measurements=_measurements,
    render=_render,
)
