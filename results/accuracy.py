"""A table of accuracies: its options, its cells run or looked up, its rendering."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import TASK_NAMES
from tasks.base import SCORINGS
from tasks.prompts import load_templates
from tasks.sources import open_source

from .compare import compare
from .executor import Outcome, execute, stored
from .inputs import InputLoader
from .methods import BASE, METHOD_TITLES
from .presets import PRESETS, get_preset
from .quantise import QUANTIZATIONS, check_quantize
from .quirks import PROTOCOLS, QUIRKS
from .records import RecordStore, RunRecord
from .render import render
from .rendered import Rendered
from .request import FORWARDS, Request, chosen, name_list, number_list
from .spec import EVALUATORS, OWN, RunSpec
from .weights import MODELS, resolve, resolve_device


@dataclass(frozen=True)
class Setting:
    """What a table varies beside model, method and task.

    Attributes:
        name: As in reported.csv: "st" (one task at a time), "mt", "r=16", ...
        title: Printed beside the method; "" in a table of one setting.
        cells: The cells that fill it.
    """

    name: str
    title: str
    cells: Callable[[Request], list[RunSpec]]


def single_task(
    changes: Mapping[str, Any] | None = None, quirks: Sequence[str] = ()
) -> Callable[[Request], list[RunSpec]]:
    """One cell per model, task, method and seed, tuned and scored on that task.

    Args:
        changes: What differs from the preset's settings of the method.
        quirks: Of the released code, beside the request's.
    """

    def cells(request: Request) -> list[RunSpec]:
        return [
            request.cell(model, method, [task], [task], seed, changes, quirks)
            for model in request.models
            for task in request.tasks
            for method in request.methods
            # The untuned base knows no seeds.
            for seed in (request.seeds if method != BASE else request.seeds[:1])
        ]

    return cells


def all_tasks(
    changes: Mapping[str, Any] | None = None,
) -> Callable[[Request], list[RunSpec]]:
    """One cell per model, method and seed, tuned on all tasks mixed; none of the untuned base.

    Of mixtures, the load of the experts is counted as well, but where lm-eval scores: it runs a
    prompt once for each option.

    Args:
        changes: What differs from the preset's settings of the method.
    """

    def cells(request: Request) -> list[RunSpec]:
        mixed = [
            request.cell(model, method, request.tasks, request.tasks, seed, changes)
            for model in request.models
            for method in request.methods
            for seed in request.seeds
            if method != BASE
        ]
        return [
            dataclasses.replace(cell, expert_load=cell.is_mixture and cell.evaluator == OWN)
            for cell in mixed
        ]

    return cells


@dataclass(frozen=True)
class AccuracyTable:
    """One table of the paper's accuracies, measured beside reported.

    Attributes:
        name: As on the command line; also the name of its output files.
        title: Its heading.
        paper_tables: Numbers of the paper's tables it reproduces.
        settings: What its rows are, beside methods.
        main: Name of the setting that the others are compared with.
        methods: Those that the paper's tables have, and the untuned base.
        tasks: Those that the paper's tables have.
        finish: What is to be shown beside the accuracies, from the records by setting.
    """

    name: str
    title: str
    paper_tables: tuple[str, ...]
    settings: tuple[Setting, ...]
    main: str
    methods: tuple[str, ...] = tuple(METHOD_TITLES)
    tasks: tuple[str, ...] = TASK_NAMES
    finish: Callable[[Rendered, Mapping[str, Sequence[RunRecord]]], Rendered] | None = None

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Which cells, and how they are run."""
        add = parser.add_argument
        add(
            "--methods",
            type=name_list,
            help=f"comma-separated subset of {', '.join(self.methods)}",
        )
        add("--tasks", type=name_list, help=f"comma-separated subset of {', '.join(self.tasks)}")
        if len(self.settings) > 1:
            names = ", ".join(setting.name for setting in self.settings)
            add(
                "--settings",
                type=name_list,
                metavar="NAME,...",
                help=f"comma-separated subset of {names}; {self.main} is always there (default "
                "all)",
            )
        add_cell_options(parser)

    def plan(self, options: argparse.Namespace) -> AccuracyPlan:
        """The cells of a command line.

        Raises:
            ValueError: A name is unknown, a number out of range, or the device not there.
        """
        if options.packed < 1:
            raise ValueError(f"packed is {options.packed}: expected at least 1")
        request = _request(self, options)
        known = [setting.name for setting in self.settings]
        wanted = {*chosen("setting", getattr(options, "settings", None), known), self.main}
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
        from .parameters import count_cell

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

    def run(self, fresh: bool) -> Rendered:
        """Run the cells that have no record, or all if fresh, and render.

        Raises:
            ValueError: Weights, data, prompts or a stored record cannot be used.
        """
        checkpointing = self.options.gradient_checkpointing or self.request.preset.checkpointing
        store, packed = RecordStore(self.options.output), self.options.packed
        loader = self._loader()
        return self._render(execute(self.cells, loader, store, fresh, checkpointing, packed))

    def stored(self) -> Rendered:
        """Render the newest record of every cell.

        Raises:
            ValueError: A stored record cannot be read.
        """
        return self._render(stored(self.cells, RecordStore(self.options.output)))

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
        return InputLoader(source, weights, templates)

    def _render(self, outcome: Outcome) -> Rendered:
        # A cell is the same one whatever others it was trained together with.
        found = {
            dataclasses.replace(spec, packed_with=()): record
            for spec, record in outcome.records.items()
        }
        records = {
            name: [found[cell] for cell in cells if cell in found]
            for name, cells in self.by_setting.items()
        }
        table, tasks = self.table, self.request.tasks
        frame = compare(records, table.main, table.paper_tables, tasks, table.tasks)
        lines = {(cell.method, name) for name, cells in self.by_setting.items() for cell in cells}
        rendered = render(table, self.request, lines, outcome, frame)
        return rendered if table.finish is None else table.finish(rendered, records)


def add_cell_options(parser: argparse.ArgumentParser) -> None:
    """The options of every table of accuracies: models, data and how cells are run."""
    add = parser.add_argument
    add(
        "--preset",
        default="tiny",
        help=f"models, data and settings: {', '.join(PRESETS)} (default tiny)",
    )
    add("--models", type=name_list, help="comma-separated subset of the preset's models")
    add(
        "--seeds",
        type=number_list,
        default=[0],
        help="comma-separated seeds of the tuned cells (default 0)",
    )
    add("--limit-train", type=int, metavar="N", help="training rows per task (default all)")
    add("--limit-eval", type=int, metavar="N", help="scored rows per task (default all)")
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="local data: DIR/<task>/<split>.jsonl, .jsonl.gz or .parquet",
    )
    add(
        "--model-path",
        type=Path,
        metavar="DIR",
        help="local weights of the one model asked for",
    )
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="JSON file {task: {scoring: template}} replacing our prompts",
    )
    add(
        "--protocol",
        default="clean",
        help=f"{' or '.join(PROTOCOLS)}: with the quirks of the released code (default clean)",
    )
    add(
        "--quirk",
        type=name_list,
        action="extend",
        default=[],
        metavar="NAME",
        help=f"one quirk of the released code, may be given again: {', '.join(QUIRKS)}",
    )
    add("--scoring", help=f"{' or '.join(SCORINGS)} (default: the preset's)")
    add(
        "--quantize",
        metavar="BITS",
        help=f"of the frozen weights: {' or '.join(QUANTIZATIONS)} (needs bitsandbytes)",
    )
    add(
        "--evaluator",
        default=OWN,
        help=f"what scores the cells: {' or '.join(EVALUATORS)}, whose numbers have columns of "
        "their own (default own)",
    )
    add(
        "--forward",
        default="fused",
        help=f"how MixLoRA is computed: {', '.join(FORWARDS)} (default fused)",
    )
    add(
        "--gradient-checkpointing",
        action="store_true",
        help="train in less memory and more time, to the same numbers (preset small always does)",
    )
    add(
        "--packed",
        type=int,
        default=1,
        metavar="N",
        help="train up to N cells together, MixLoRA's or MixDoRA's of the same model and "
        "settings (default 1: each alone)",
    )


def _request(table: AccuracyTable, options: argparse.Namespace) -> Request:
    preset = get_preset(options.preset)
    default = [name for name in preset.methods if name in table.methods]
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
        # Rendering stored records loads no torch, and takes records of any device.
        device=options.device if options.render_only else resolve_device(options.device),
        forward=options.forward,
        protocol=options.protocol,
        quirks=options.quirk,
        evaluator=options.evaluator,
        quantize=options.quantize,
    )
