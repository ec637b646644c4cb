"""The options of every table of accuracies: models, data and how cells are run."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tasks.base import SCORINGS

from ..cells.presets import PRESETS
from ..cells.quirks import PROTOCOLS, QUIRKS
from ..cells.spec import EVALUATORS, EXECUTORS, LOCAL, OWN
from ..models.quantise import QUANTIZATIONS
from .command_line import name_list, number_list
from .request import FORWARDS


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
        "--skip-bad-rows",
        action="store_true",
        help="leave out rows that cannot be used, and count them in the table; they are refused "
        "otherwise",
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
        action=argparse.BooleanOptionalAction,
        help="train in less memory and more time, to the same numbers (default: the preset's; "
        "small does)",
    )
    add(
        "--checkpoint-steps",
        type=int,
        metavar="N",
        help="write the state of a training every N steps and at its end, so that a killed run "
        "goes on from there; 0 never (default: tiny 0, small 25, paper 100)",
    )
    add(
        "--auto-batch",
        action="store_true",
        help="where a training runs out of memory, begin it again with half the micro-batch and "
        "twice the accumulation: the same result but for dropout and the auxiliary loss",
    )
    add(
        "--packed",
        type=int,
        default=1,
        metavar="N",
        help="train up to N cells together, MixLoRA's or MixDoRA's of the same model and "
        "settings (default 1: each alone)",
    )
    add(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="I/N",
        help="run every N-th cell (pack) from the I-th on, as one of N jobs of an array",
    )
    add(
        "--executor",
        default=LOCAL,
        help=f"{' or '.join(EXECUTORS)}: cells as tasks of the Ray cluster of RAY_ADDRESS, or of "
        "one started here; each with a GPU where the device is cuda (default local)",
    )
    add(
        "--cpus-per-cell",
        type=int,
        metavar="N",
        help="CPUs and threads of a cell that Ray runs (default: as many threads as here)",
    )


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I from 1 to N, as 1/4")
    return int(match[1]), int(match[2])
