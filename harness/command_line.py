"""The command line: looks a table up, has it list its cells, runs those without a record, renders.

Exit status: 0; 1 if a cell failed or a result could not be written; 2 for a mistake in what was
asked; 130 and 143 if Ctrl-C or SIGTERM stopped it.

Started by ``torchrun`` or ``accelerate launch`` it is several processes that train a cell together:
the first does as above, the others follow it.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from .messages import setup_logging, short
from .options import General, add_arguments
from .run import processes
from .store.files import OutputError, check_writable
from .store.stopping import Stopped, stoppable
from .study.plan import StudyTable
from .tables import Table, get_table, table_names

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    setup_logging()
    try:
        with stoppable(), processes.joined() as follows:
            if not follows:
                return _run(arguments)
            # Imported here because it loads torch.
            from .run.cell import follow

            follow()
            return 0
    # All that is called here raises ValueError for a user's mistake only: what goes wrong inside a
    # cell stays in the outcome.
    except ValueError as error:
        _say(f"reproduce.py: {error}")
        return 2
    except (OutputError, processes.ProcessLost) as error:
        _say(f"reproduce.py: {error}; {_how_to_go_on(arguments)}")
        return 1
    except Stopped as stop:
        _say(f"stopped by {stop}; {_how_to_go_on(arguments)}")
        return 128 + stop.signal


def _say(line: str) -> None:
    # Said once by several processes, and in one line: names of files can hold anything but NUL.
    if processes.rank() == 0:
        logger.error("%s", short(line))


def _run(arguments: list[str]) -> int:
    table, given = parse(arguments)
    general, plan = General.make(given), table.plan(given)
    if general.dry_run:
        print("\n".join(plan.listing()))
        return 0
    # Checked now: what cannot be written is better known before it has been computed.
    check_writable(general.output)
    rendered = plan.stored() if general.render_only else plan.run(general.fresh)
    print(rendered.markdown, flush=True)
    paths = rendered.write(general.output)
    if general.report:
        # Imported here because nothing else needs its libraries.
        from .report import write_report

        paths.append(write_report(general.output))
    logger.info("written: %s", ", ".join(map(str, paths)))
    return 1 if rendered.failed else 0


def _how_to_go_on(arguments: list[str]) -> str:
    command = f"python reproduce.py {shlex.join(arguments)}".rstrip()
    return f"finished cells are kept, to go on with the rest: {command}"


class _Parser(argparse.ArgumentParser):
    """argparse with its usage errors in one line, as all others, and without default values."""

    def __init__(self, **settings: Any) -> None:
        # What is not in the result was not given, so that a preset or table can have its default.
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **settings)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see --help)")


def parse(arguments: list[str]) -> tuple[Table, dict[str, Any]]:
    """The table asked for, and the options given: name of an option's field -> value.

    Raises:
        ValueError: The table is unknown, has no such option, or a number is expected there.
    """
    for word in arguments:
        # argparse would drop the value and go on with an empty list.
        if word.startswith("--") and word.endswith("=--"):
            raise ValueError(f"argument {word}: '--' is no value (see --help)")
    # The table is looked up first, because it says which options there are.
    chooser = _Parser(add_help=False)
    chooser.add_argument(
        "--table",
        default="main",
        help=f"table to make: {', '.join(table_names())} (default: main)",
    )
    chooser.add_argument(
        "--study",
        type=Path,
        metavar="FILE",
        help="make the table of a study file instead, such as studies/tiny-fair.toml",
    )
    chosen, others = chooser.parse_known_args(arguments)
    study = vars(chosen).pop("study", None)
    table = get_table(chosen.table) if study is None else StudyTable(study)
    asked = f"--table {table.name}" if study is None else f"--study {study}"
    parser = _Parser(
        prog="reproduce.py",
        parents=[chooser],
        description="Reproduce the tables of the MixLoRA paper, measured beside reported.",
        epilog=f"These are the options of {asked}; every table has its own. What is "
        "finished is stored under OUTPUT and not run again unless asked to.",
    )
    add_arguments(parser, table.options())
    given, unknown = parser.parse_known_args(others)
    if unknown:
        parser.error(f"{asked} takes no {unknown[0]}")
    values = vars(given)
    values.pop("table")
    values.pop("study", None)
    return table, values
