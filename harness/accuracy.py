"""A table of accuracies: from options to its cells, their records and the table made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tasks.prompts import load_templates
from tasks.sources import open_source

from .cells.spec import LOCAL, RunOptions, RunSpec
from .models.quantise import check_quantize
from .models.weights import find_model, resolve, resolve_device
from .numbers.comparison import compare
from .options import General, Option, options_of
from .request import Request, TableLayout
from .run import processes
from .run.inputs import InputLoader
from .schedule.executor import execute, stored
from .schedule.verify import verify
from .show.accuracy import NOT_RUN, render
from .show.data import TableData
from .show.verified import render_verified
from .store.outcome import Outcome
from .store.records import RecordStore, RunRecord

Found = TypeVar("Found")


@dataclass(frozen=True)
class AccuracyTable(TableLayout):
    """One table of the paper's accuracies, measured beside reported.

    Attributes:
        finish: adds what is to be shown beside the accuracies, from the records by setting.
    """

    finish: Callable[[TableData, Mapping[str, Sequence[RunRecord]]], TableData] | None = None

    def options(self) -> list[Option]:
        """The options of the command line that this table has."""
        without = () if self.known["settings"] else ("settings",)
        return [
            *options_of(Request, self.known, without),
            *options_of(RunOptions),
            *options_of(General),
        ]

    def plan(self, given: Mapping[str, Any]) -> AccuracyPlan:
        """The cells that given options ask for.

        Raises:
            ValueError: A name is unknown, a number out of range, or the device not there.
        """
        general = General.make(given)
        request = self.request(given)
        options = RunOptions.make(given, request.preset_settings)
        count = request.verify
        if count is not None and (count < 1 or general.render_only):
            raise ValueError(f"verify is {count}: expected at least 1, and no --render-only")
        if count is not None and (options.executor != LOCAL or options.shard[1] > 1):
            raise ValueError(
                "--verify draws from all stored cells: no --shard and no --executor ray"
            )
        device = checked_device(request.device, general.render_only)
        request = dataclasses.replace(request, device=device)
        _check_processes(request, options)
        by_setting = self.cells(request)
        settings = tuple(setting for setting in self.settings if setting.name in by_setting)
        table = dataclasses.replace(self, settings=settings)
        return AccuracyPlan(table, request, options, by_setting, general.output)


def checked_device(name: str, any_device: bool) -> str:
    """The device that cells are run on; as it is named where stored records of any are rendered."""
    # Rendering stored records loads no torch.
    device = name if any_device else resolve_device(name)
    if ":" in device:
        # The Trainer takes the first GPU; and which one it was is no part of a result.
        raise ValueError(
            f"device {device!r}: cells are trained on the first GPU that torch sees; choose it "
            f"with CUDA_VISIBLE_DEVICES={device.partition(':')[2]} and --device cuda"
        )
    return device


def input_loader(request: Request, models: Sequence[str]) -> InputLoader:
    """What finds the inputs of cells.

    Args:
        request: where rows, prompts and weights come from.
        models: names of the models of the cells.

    Raises:
        ValueError: Weights, data or prompts cannot be used.
    """
    if request.model_path is not None and len(models) > 1:
        raise ValueError(
            f"--model-path is for one model, but {len(models)} are asked for; "
            f"choose one of {', '.join(models)} with --models"
        )
    check_quantize(request.quantize)
    source = open_source(request.data_dir, bundled=request.data == "bundled")
    weights = {name: resolve(find_model(name), request.model_path) for name in models}
    templates = load_templates(request.prompts) if request.prompts else {}
    return InputLoader(source, weights, templates, request.skip_bad_rows)


def _check_processes(request: Request, options: RunOptions) -> None:
    """Refuse what several processes cannot do together, if there are several."""
    if options.executor != LOCAL:
        processes.one_only(f"--executor {options.executor}")
    if options.packed > 1:
        processes.one_only(f"--packed {options.packed}")
    processes.check_training(request.preset_settings.train, request.device)


@dataclass(frozen=True)
class AccuracyPlan:
    """The cells that one command asks for.

    Attributes:
        table: the table that they fill, with the settings asked for.
        request: what was asked for.
        options: how the cells are run.
        by_setting: name of a setting -> its cells.
        output: folder of records and tables.
    """

    table: AccuracyTable
    request: Request
    options: RunOptions
    by_setting: dict[str, list[RunSpec]]
    output: Path

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
        store, loader = RecordStore(self.output), input_loader(self.request, self.request.models)
        count = self.request.verify
        if count is not None:
            results = verify(self.cells, loader, store, count, self.options)
            return render_verified(self.table.name, results)
        return self._render(execute(self.cells, loader, store, fresh, self.options))

    def stored(self) -> TableData:
        """Render the newest record of every cell.

        Raises:
            ValueError: A stored record cannot be read.
        """
        return self._render(stored(self.cells, RecordStore(self.output)))

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
        """What was found in the order of the cells, so that nothing depends on what ran first."""
        # A cell is the same one whatever others it was trained together with.
        alone = {dataclasses.replace(spec, packed_with=()): what for spec, what in found.items()}
        return {cell: alone[cell] for cell in self.cells if cell in alone}
