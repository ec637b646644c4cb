"""A table of accuracies: its options, its cells run or looked up, its rendering."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tasks.names import choose
from tasks.prompts import load_templates
from tasks.sources import open_source

from .cells.layout import TableLayout
from .cells.presets import get_preset
from .cells.spec import EXECUTORS, LOCAL, RunOptions, RunSpec
from .models.quantise import check_quantize
from .models.weights import MODELS, resolve, resolve_device
from .request.command_line import chosen, name_list
from .request.options import add_cell_options
from .request.request import Request
from .run import processes
from .run.inputs import InputLoader
from .schedule.executor import execute, stored
from .schedule.verify import verify
from .store.outcome import Outcome
from .store.records import RecordStore, RunRecord
from .tables.numbers.comparison import compare
from .tables.show.accuracy import NOT_RUN, render
from .tables.show.data import TableData
from .tables.show.verified import render_verified

Found = TypeVar("Found")


@dataclass(frozen=True)
class AccuracyTable(TableLayout):
    """One table of the paper's accuracies, measured beside reported.

    Attributes:
        finish: What is to be shown beside the accuracies, from the records by setting.
    """

    finish: Callable[[TableData, Mapping[str, Sequence[RunRecord]]], TableData] | None = None

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Which cells, and how they are run."""
        add = parser.add_argument
        add(
            "--methods",
            type=name_list,
            help=f"comma-separated subset of {', '.join(self.methods)}",
        )
        add("--tasks", type=name_list, help=f"comma-separated subset of {', '.join(self.tasks)}")
        parser.set_defaults(settings=None)
        if len(self.settings) > 1:
            names = ", ".join(setting.name for setting in self.settings)
            add(
                "--settings",
                type=name_list,
                metavar="NAME,...",
                help=f"comma-separated subset of {names}; {self.main} is always there (default "
                "all)",
            )
        add(
            "--verify",
            type=int,
            metavar="N",
            help="run N of the stored cells again, drawn at random, and compare; stores no record",
        )
        add_cell_options(parser)

    def plan(self, options: argparse.Namespace) -> AccuracyPlan:
        """The cells of a command line.

        Raises:
            ValueError: A name is unknown, a number out of range, or the device not there.
        """
        if options.packed < 1:
            raise ValueError(f"packed is {options.packed}: expected at least 1")
        if options.checkpoint_steps is not None and options.checkpoint_steps < 0:
            raise ValueError(f"checkpoint-steps is {options.checkpoint_steps}: expected 0 or more")
        count = options.verify
        if count is not None and (count < 1 or options.render_only):
            raise ValueError(f"verify is {count}: expected at least 1, and no --render-only")
        _check_placement(options)
        request = _request(self, options)
        processes.check_training(request.preset.train, request.device)
        known = [setting.name for setting in self.settings]
        wanted = {*chosen("setting", options.settings, known), self.main}
        settings = tuple(setting for setting in self.settings if setting.name in wanted)
        by_setting = {setting.name: setting.cells(request) for setting in settings}
        table = dataclasses.replace(self, settings=settings)
        return AccuracyPlan(table, request, by_setting, options)


@dataclass(frozen=True)
class AccuracyPlan:
    """The cells that one command asks for.

    Attributes:
        table: Of which table.
        request: What was asked for.
        by_setting: Name of a setting -> its cells.
        options: The command line: where inputs come from and records go.
    """

    table: AccuracyTable
    request: Request
    by_setting: dict[str, list[RunSpec]]
    options: argparse.Namespace

    @property
    def cells(self) -> list[RunSpec]:
        """All cells, each once."""
        return list(dict.fromkeys(cell for cells in self.by_setting.values() for cell in cells))

    def listing(self) -> list[str]:
        """The cells and their parameters."""
        from .run.parameters import count_cell

        lines = [
            f"{'model':<14}{'method':<9}{'tasks':<12}{'seed':>4}{'trainable':>14}{'frozen':>16}"
            "  settings"
        ]
        for spec in self.cells:
            trainable, frozen = count_cell(spec)
            tasks = "+".join(spec.eval_tasks)
            lines.append(
                f"{spec.model:<14}{spec.method:<9}{tasks:<12} {spec.seed:>3}{trainable:>14,}"
                f"{frozen:>16,}  {spec.varied}".rstrip()
            )
        return [*lines, f"{len(self.cells)} cells"]

    def run(self, fresh: bool) -> TableData:
        """Run the cells that have no record, or all if fresh, and render; or verify.

        Raises:
            ValueError: Weights, data, prompts or a stored record cannot be used.
            OutputError: A result cannot be written.
        """
        store, loader = RecordStore(self.options.output), self._loader()
        count = self.options.verify
        if count is not None:
            results = verify(self.cells, loader, store, count, self._run_options())
            return render_verified(self.table.name, results)
        return self._render(execute(self.cells, loader, store, fresh, self._run_options()))

    def stored(self) -> TableData:
        """Render the newest record of every cell.

        Raises:
            ValueError: A stored record cannot be read.
        """
        return self._render(stored(self.cells, RecordStore(self.options.output)))

    def _run_options(self) -> RunOptions:
        options, preset = self.options, self.request.preset
        recompute, steps = options.gradient_checkpointing, options.checkpoint_steps
        return RunOptions(
            gradient_checkpointing=preset.checkpointing if recompute is None else recompute,
            packed=options.packed,
            checkpoint_steps=preset.checkpoint_steps if steps is None else steps,
            auto_batch=options.auto_batch,
            shard=options.shard,
            executor=options.executor,
            cpus_per_cell=options.cpus_per_cell,
        )

    def _loader(self) -> InputLoader:
        models, path = self.request.models, self.options.model_path
        if path is not None and len(models) > 1:
            raise ValueError(
                f"--model-path is for one model, but {len(models)} are asked for; "
                f"choose one of {', '.join(models)} with --models"
            )
        check_quantize(self.request.quantize)
        source = open_source(self.options.data_dir, bundled=self.request.data == "bundled")
        weights = {name: resolve(MODELS[name], path) for name in models}
        templates = load_templates(self.options.prompts) if self.options.prompts else {}
        return InputLoader(source, weights, templates, self.request.skip_bad_rows)

    def _render(self, outcome: Outcome) -> TableData:
        outcome = dataclasses.replace(
            outcome,
            records=self._by_cell(outcome.records),
            failed=self._by_cell(outcome.failed),
        )
        by_setting = {
            name: [outcome.records[cell] for cell in cells if cell in outcome.records]
            for name, cells in self.by_setting.items()
        }
        without_record = {cell: failure.status for cell, failure in outcome.failed.items()}
        without_record |= self._by_cell(dict.fromkeys(outcome.not_run, NOT_RUN))
        statuses: dict[tuple[str, ...], str] = {
            (cell.model, cell.method, name, task): without_record[cell]
            for name, cells in self.by_setting.items()
            for cell in cells
            if cell in without_record
            for task in cell.eval_tasks
        }
        table, tasks = self.table, self.request.tasks
        frame = compare(by_setting, table.main, table.paper_tables, tasks, table.tasks)
        lines = {(cell.method, name) for name, cells in self.by_setting.items() for cell in cells}
        rendered = render(table, self.request, lines, outcome, frame, statuses)
        return rendered if table.finish is None else table.finish(rendered, by_setting)

    def _by_cell(self, found: Mapping[RunSpec, Found]) -> dict[RunSpec, Found]:
        """In the order of the cells, so that the table is the same whatever was done when."""
        # A cell is the same one whatever others it was trained together with.
        alone = {dataclasses.replace(spec, packed_with=()): what for spec, what in found.items()}
        return {cell: alone[cell] for cell in self.cells if cell in alone}


def _check_placement(options: argparse.Namespace) -> None:
    """See that where cells are to be run is a place, and one only."""
    choose("executor", options.executor, EXECUTORS)
    cpus, alone = options.cpus_per_cell, options.executor == LOCAL and options.shard[1] == 1
    if cpus is not None and (cpus < 1 or options.executor == LOCAL):
        raise ValueError(f"cpus-per-cell is {cpus}: expected at least 1, and --executor ray")
    if options.verify is not None and not alone:
        raise ValueError("--verify draws from all stored cells: no --shard and no --executor ray")
    if options.executor != LOCAL:
        processes.one_only(f"--executor {options.executor}")
    if options.packed > 1:
        processes.one_only(f"--packed {options.packed}")


def _request(table: AccuracyTable, options: argparse.Namespace) -> Request:
    preset = get_preset(options.preset)
    default = [name for name in preset.methods if name in table.methods]
    # Rendering stored records loads no torch, and takes records of any device.
    device = options.device if options.render_only else resolve_device(options.device)
    if ":" in device:
        # The Trainer takes the first GPU; and which one it was is no part of a result.
        raise ValueError(
            f"device {device!r}: cells are trained on the first GPU that torch sees; choose it "
            f"with CUDA_VISIBLE_DEVICES={device.partition(':')[2]} and --device cuda"
        )
    data = "directory" if options.data_dir else "bundled" if preset.bundled_data else "hub"
    return Request.make(
        preset,
        models=options.models,
        methods=chosen("method", options.methods, table.methods, default),
        tasks=chosen("task", options.tasks, table.tasks),
        seeds=options.seeds,
        scoring=options.scoring,
        data=data,
        limit_train=options.limit_train,
        limit_eval=options.limit_eval,
        dtype=options.dtype,
        device=device,
        forward=options.forward,
        protocol=options.protocol,
        quirks=options.quirk,
        evaluator=options.evaluator,
        quantize=options.quantize,
        skip_bad_rows=options.skip_bad_rows,
    )
