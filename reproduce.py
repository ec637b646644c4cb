"""Reproduces the tables of the MixLoRA paper (arXiv 2404.15159): measured beside reported.

    python reproduce.py --table main                      # bundled model and data, minutes on a CPU
    python reproduce.py --table main --preset small --data-dir DIR
    python reproduce.py --table main --preset paper --dry-run
    python reproduce.py --table efficiency --shape llama2-7b
    python reproduce.py --table scaling --help            # every table has options of its own

Looks the table up, has it list its cells, run those that have no record, and render. Exit status:
0, 1 if a cell failed or a result could not be written, 2 for a mistake in what was asked, 130 and
143 if Ctrl-C or SIGTERM stopped it.

Started by ``torchrun`` or ``accelerate launch`` it is several processes that train a cell together:
the first does as above, the others follow it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from harness.messages import redacted, setup_logging, short
from harness.models.weights import DTYPES
from harness.run import processes
from harness.store.files import OutputError, check_writable
from harness.store.stopping import Stopped, stoppable
from harness.tables import Table, get_table, table_names


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    setup_logging()
    try:
        with stoppable(), processes.joined() as follows:
            if not follows:
                return _run(arguments)
            # Here, because it loads torch.
            from harness.run.cell import follow

            follow()
            return 0
    # Everything within raises ValueError for a user's mistake only: what goes wrong inside a cell
    # stays in the outcome.
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
    # By one for all processes; in one line, though names of files can hold anything but NUL.
    if processes.rank() == 0:
        print(short(redacted(line)), file=sys.stderr)


def _run(arguments: list[str] | None) -> int:
    table, options = parse_arguments(arguments)
    plan = table.plan(options)
    if options.dry_run:
        print("\n".join(plan.listing()))
        return 0
    # Now, because what cannot be written is better known before it has been computed.
    check_writable(options.output)
    rendered = plan.stored() if options.render_only else plan.run(options.fresh)
    print(rendered.markdown, flush=True)
    paths = rendered.write(options.output)
    if options.report:
        # Here, because nothing else needs its libraries.
        from harness.report import write_report

        paths.append(write_report(options.output))
    print("written: " + ", ".join(map(str, paths)), file=sys.stderr)
    return 1 if rendered.failed else 0


def _how_to_go_on(arguments: list[str] | None) -> str:
    command = shlex.join(sys.argv[1:] if arguments is None else arguments)
    return (
        f"finished cells are kept, to go on with the rest: python reproduce.py {command}".rstrip()
    )


class _Parser(argparse.ArgumentParser):
    """argparse with its usage errors in one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see --help)")


def parse_arguments(arguments: list[str] | None = None) -> tuple[Table, argparse.Namespace]:
    """The table asked for, and the options, names not yet looked up.

    Raises:
        ValueError: The table is unknown, has no such option, or a number is expected there.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for word in arguments:
        # argparse would drop the value and go on with an empty list.
        if word.startswith("--") and word.endswith("=--"):
            raise ValueError(f"argument {word}: '--' is no value (see --help)")
    # The table first, because it says which options there are.
    chooser = _Parser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--table", default="main")
    table = get_table(chooser.parse_known_args(arguments)[0].table)

    parser = _Parser(
        prog="reproduce.py",
        description="Reproduce the tables of the MixLoRA paper, measured beside reported.",
        epilog=f"These are the options of --table {table.name}; every table has its own. What is "
        "finished is stored under OUTPUT and not run again unless asked to.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--table",
        default="main",
        help=f"table to make: {', '.join(table_names())} (default main)",
    )
    table.add_options(parser)
    add(
        "--device",
        default="auto",
        help="cpu, cuda, mps or auto: cuda where there is one (default auto)",
    )
    add(
        "--dtype",
        help=f"of the frozen weights: {', '.join(DTYPES)} (default: the preset's, or float32)",
    )
    add(
        "--output",
        type=Path,
        default=Path("output"),
        metavar="DIR",
        help="records and tables (default output)",
    )
    add("--dry-run", action="store_true", help="list the cells, run nothing")
    add("--render-only", action="store_true", help="render what is stored, run nothing")
    add(
        "--report",
        action="store_true",
        help="also write OUTPUT/report.html, one page of all tables and figures under OUTPUT",
    )
    add("--fresh", action="store_true", help="run cells again that have a record")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"--table {table.name} takes no {unknown[0]}")
    return table, options


if __name__ == "__main__":
    sys.exit(main())
