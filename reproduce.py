"""Reproduces the tables of the MixLoRA paper (arXiv 2404.15159): measured beside reported.

    python reproduce.py --table main                      # bundled model and data, minutes on a CPU
    python reproduce.py --table main --preset small --data-dir DIR
    python reproduce.py --table main --preset paper --dry-run

Turns names into objects, lists a table's cells, runs those that have no record, renders. Exit
status: 0, 1 if a cell failed, 2 for a mistake in what was asked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from results.compare import compare
from results.executor import Outcome, execute, stored
from results.inputs import InputLoader
from results.methods import METHOD_TITLES
from results.presets import PRESETS, get_preset
from results.records import RecordStore
from results.render import render
from results.request import FORWARDS, Request
from results.spec import RunSpec
from results.tables import Table, get_table, table_names
from results.weights import DTYPES, MODELS, resolve, resolve_device
from tasks import TASK_NAMES
from tasks.base import SCORINGS
from tasks.prompts import load_templates
from tasks.sources import open_source


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        options = parse_arguments(arguments)
        table = get_table(options.table)
        request = build_request(options)
        cells = table.cells(request)
        if options.dry_run:
            _print_cells(cells)
            return 0
        store = RecordStore(options.output)
        if options.render_only:
            outcome = stored(cells, store)
        else:
            loader = _loader(options, request)
            checkpointing = options.gradient_checkpointing or request.preset.checkpointing
            outcome = execute(cells, loader, store, options.fresh, checkpointing)
        _print_table(table, request, outcome, options.output)
    # Everything above raises ValueError for a user's mistake only: what goes wrong inside a cell
    # stays in the outcome.
    except ValueError as error:
        print(f"reproduce.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "stopped; finished cells are kept, the same command goes on with the rest",
            file=sys.stderr,
        )
        return 130
    return 1 if outcome.failed else 0


class _Parser(argparse.ArgumentParser):
    """argparse with its usage errors in one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see --help)")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options, names not yet looked up.

    Raises:
        ValueError: An option is unknown or not a number where one is expected.
    """
    parser = _Parser(
        prog="reproduce.py",
        description="Reproduce the tables of the MixLoRA paper, measured beside reported.",
        epilog="Finished cells are stored under OUTPUT/records and not run again unless asked to.",
        allow_abbrev=False,
    )
    known = {"tables": table_names(), "methods": METHOD_TITLES, "tasks": TASK_NAMES}
    add = parser.add_argument
    add(
        "--table",
        default="main",
        help=f"table to make: {', '.join(known['tables'])} (default main)",
    )
    add(
        "--preset",
        default="tiny",
        help=f"models, data and settings: {', '.join(PRESETS)} (default tiny)",
    )
    add("--models", type=_names, help="comma-separated subset of the preset's models")
    add("--methods", type=_names, help=f"comma-separated subset of {', '.join(known['methods'])}")
    add("--tasks", type=_names, help=f"comma-separated subset of {', '.join(known['tasks'])}")
    add(
        "--seeds",
        type=_numbers,
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
    add("--model-path", type=Path, metavar="DIR", help="local weights of the one model asked for")
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="JSON file {task: {scoring: template}} replacing our prompts",
    )
    add(
        "--output",
        type=Path,
        default=Path("output"),
        metavar="DIR",
        help="records and tables (default output)",
    )
    add("--scoring", help=f"{' or '.join(SCORINGS)} (default: the preset's)")
    add(
        "--device",
        default="auto",
        help="cpu, cuda, mps or auto: cuda where there is one (default auto)",
    )
    add("--dtype", help=f"of the frozen weights: {', '.join(DTYPES)} (default: the preset's)")
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
    add("--dry-run", action="store_true", help="list the cells and their parameters, run nothing")
    add("--render-only", action="store_true", help="render what is stored, run nothing")
    add("--fresh", action="store_true", help="run cells again that have a record")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def build_request(options: argparse.Namespace) -> Request:
    """What is asked for, checked.

    Raises:
        ValueError: A name is unknown, a number out of range, or the device not there.
    """
    preset = get_preset(options.preset)
    data = "directory" if options.data_dir else "bundled" if preset.bundled_data else "hub"
    return Request.make(
        preset,
        models=options.models,
        methods=options.methods,
        tasks=options.tasks,
        seeds=options.seeds,
        scoring=options.scoring,
        data=data,
        limit_train=options.limit_train,
        limit_eval=options.limit_eval,
        dtype=options.dtype,
        # Rendering stored records loads no torch, and takes records of any device.
        device=options.device if options.render_only else resolve_device(options.device),
        forward=options.forward,
    )


def _loader(options: argparse.Namespace, request: Request) -> InputLoader:
    if options.model_path is not None and len(request.models) > 1:
        raise ValueError(
            f"--model-path is for one model, but {len(request.models)} are asked for; "
            f"choose one of {', '.join(request.models)} with --models"
        )
    source = open_source(options.data_dir, bundled=request.data == "bundled")
    weights = {name: resolve(MODELS[name], options.model_path) for name in request.models}
    templates = load_templates(options.prompts) if options.prompts else {}
    return InputLoader(source, weights, templates)


def _print_cells(cells: list[RunSpec]) -> None:
    from results.parameters import count_cell

    print(f"{'model':<14}{'method':<9}{'tasks':<12}{'seed':>4}{'trainable':>14}{'frozen':>16}")
    for spec in cells:
        trainable, frozen = count_cell(spec)
        tasks = "+".join(spec.eval_tasks)
        print(
            f"{spec.model:<14}{spec.method:<9}{tasks:<12}{spec.seed:>4}{trainable:>14,}{frozen:>16,}"
        )
    print(f"{len(cells)} cells")


def _print_table(table: Table, request: Request, outcome: Outcome, output: Path) -> None:
    frame = compare(
        list(outcome.records.values()), table.paper_table, table.setting, request.tasks, TASK_NAMES
    )
    rendered = render(table, request, outcome, frame)
    paths = rendered.write(output / "tables", table.name)
    print(rendered.markdown)
    print("written: " + ", ".join(map(str, paths)), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
