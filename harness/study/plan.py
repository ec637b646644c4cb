"""A study on the command line: ``python reproduce.py --study FILE``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.accuracy import checked_device, input_loader
from harness.cells.spec import RunOptions, RunSpec
from harness.options import General, Option, options_of
from harness.request import Request
from harness.run.inputs import InputLoader
from harness.schedule.executor import execute, stored
from harness.show.data import TableData
from harness.store.outcome import Outcome
from harness.store.records import FailureStore, RecordStore

from .arms import check_arm
from .cells import StudyCells
from .file import StudyFile, read_study
from .run import Results, run_study
from .table import render

#: The options of `Request` that say where things are and how they are computed. Everything else
#: that a cell is stands in the study file.
_OPTIONS = ("data_dir", "skip_bad_rows", "model_path", "prompts", "forward", "device")


@dataclass(frozen=True)
class StudyTable:
    """The table of a study: an entry of the command line like the paper's tables.

    Attributes:
        path: the study file.
    """

    path: Path

    @property
    def name(self) -> str:
        """Name of the table's files."""
        return self.path.stem

    def options(self) -> list[Option]:
        """The options of the command line that a study has."""
        chosen = [each for each in options_of(Request) if each.name in _OPTIONS]
        return [*chosen, *options_of(RunOptions, without=["packed"]), *options_of(General)]

    def plan(self, given: Mapping[str, Any]) -> StudyPlan:
        """The study with the given options.

        Raises:
            ValueError: The file has mistakes, or an option is not allowed.
        """
        general = General.make(given)
        file = read_study(self.path)
        request = Request.of({**given, "preset": file.study.preset})
        options = RunOptions.make(given, request.preset_settings)
        for name, arm in file.study.arms.items():
            try:
                check_arm(arm, request.preset_settings.adapters.get(arm.name, {}))
            except ValueError as error:
                raise ValueError(f"{self.path}: [arms.{name}] {error}") from error
        device = checked_device(request.device, general.render_only)
        cells = StudyCells(file.study, dataclasses.replace(request, device=device))
        return StudyPlan(file, cells, options, general.output)


@dataclass(frozen=True)
class StudyPlan:
    """A study that one command asks for.

    Attributes:
        file: the study and its file's hash.
        cells: makes its cells.
        options: how they are run.
        output: folder of records and tables.
    """

    file: StudyFile
    cells: StudyCells
    options: RunOptions
    output: Path

    def listing(self) -> list[str]:
        """The trials of the first pass, and how many cells follow at least."""
        study = self.file.study
        rates = study.grid.first_rates
        lines = []
        first = finals = 0
        for group in self.cells.groups:
            for arm in self.cells.tuned:
                specs = [spec for rate in rates for spec in self.cells.trials(group, arm, rate)]
                first += len(specs)
                finals += 3 * len(self.cells.finals(group, arm, rates[0]))
                lines.append(f"{group.title}: {arm}: {len(specs)} cells, {len(rates)} rates")
        total = f"{first} cells to begin the selection with; then more around each arm's best"
        return [*lines, f"{total}, and at most {finals} cells of results"]

    def run(self, fresh: bool) -> TableData:
        """Run the cells that have no record, or all if fresh, and render.

        Raises:
            ValueError: Weights, data, prompts or a stored record cannot be used.
            OutputError: A result cannot be written.
        """
        loader = input_loader(self.cells.request, self.file.study.models)
        store = RecordStore(self.output)

        def settle(cells: Sequence[RunSpec]) -> Outcome:
            # What diverged would do so again.
            diverged = {} if fresh else self._diverged(cells, loader)
            left = [spec for spec in cells if spec not in diverged]
            outcome = execute(left, loader, store, fresh, self.options)
            outcome.failed |= diverged
            return outcome

        return self._render(run_study(self.cells, settle))

    def stored(self) -> TableData:
        """Render the newest record of every cell.

        Raises:
            ValueError: A stored record cannot be read.
        """
        store = RecordStore(self.output)
        return self._render(run_study(self.cells, lambda cells: stored(cells, store)))

    def _diverged(self, cells: Sequence[RunSpec], loader: InputLoader) -> dict[RunSpec, Any]:
        """The cells that are known to diverge, with their failure."""
        failures = FailureStore(self.output)
        found = {
            spec: failures.load(loader.load(spec).id)
            for spec in cells
            if loader.unavailable(spec) is None
        }
        return {spec: each for spec, each in found.items() if each is not None and each.diverged}

    def _render(self, results: Results) -> TableData:
        asked = set(results.outcome.records)
        others = sum(
            dataclasses.replace(record.spec, packed_with=()) not in asked
            for record in RecordStore(self.output).all()
        )
        return render(self.file, self.cells, results, others)
