"""What the user asked to have measured, checked: a shape, a batch, how often and on what."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from harness.models.shapes import SHAPES, kept_vocabulary
from harness.models.weights import DTYPES, resolve_device
from harness.request.command_line import command
from tasks.names import choose

from .spec import MeasureSpec, Subject

#: In the order of the help: the paper's two of its Tables 6 and 7 first.
SHAPE_NAMES = ("llama2-7b", "gemma-2b", "llama3-8b", "llama2-13b", "smollm2-135m")


@dataclass(frozen=True)
class Defaults:
    """What a table takes where the command line does not say.

    Attributes:
        layers: Of smollm2-135m, None for all; the others are cut to one layer.
        batch: (rows, tokens per row) of smollm2-135m.
    """

    layers: int | None
    batch: tuple[int, int]


@dataclass(frozen=True)
class MeasureRequest:
    """What to measure; every name is known and every number in range.

    Attributes:
        shape: Key of `harness.models.shapes.SHAPES`.
        layers: Layers kept of it.
        batch: Rows.
        length: Tokens per row.
        dtype: Of the frozen weights.
        device: "cpu", "cuda" or "cuda:N"; "auto" for any when stored measurements are rendered.
        threads: CPU threads; 0 for any when stored measurements are rendered.
        runs: Counted runs.
        output: Where measurements are kept.
    """

    shape: str
    layers: int
    batch: int
    length: int
    dtype: str
    device: str
    threads: int
    runs: int
    output: Path

    @classmethod
    def make(cls, options: argparse.Namespace, defaults: Defaults) -> MeasureRequest:
        """The request of a command line.

        Raises:
            ValueError: A name is unknown (the message suggests near ones), or a number not allowed.
        """
        shape = choose("shape", options.shape, SHAPE_NAMES)
        small = shape == "smollm2-135m"
        total = SHAPES[shape].values["num_hidden_layers"]
        layers = options.layers
        if layers is None:
            layers = (defaults.layers or total) if small else 1
        if not 1 <= layers <= total:
            raise ValueError(f"layers is {layers}: {shape} has 1 to {total}")
        if options.runs < 1:
            raise ValueError(f"runs is {options.runs}: expected at least 1")
        batch, length = options.tokens or (defaults.batch if small else (1, 256))
        device, threads = options.device, 0
        if not options.render_only:
            device, threads = _machine(options.device)
        return cls(
            shape=shape,
            layers=layers,
            batch=batch,
            length=length,
            dtype=choose("dtype", options.dtype or DTYPES[0], DTYPES),
            device=device,
            threads=threads,
            runs=options.runs,
            output=options.output,
        )

    @property
    def title(self) -> str:
        """Model and conditions in one line."""
        total = SHAPES[self.shape].values["num_hidden_layers"]
        tokens = kept_vocabulary(self.shape, self.layers)
        return (
            f"{self.shape}, {self.layers} of {total} layers (vocabulary {tokens:,}), "
            f"random weights in {self.dtype}, {self.batch} x {self.length} tokens"
        )

    def command(self, table: str, **parts: list[str] | None) -> str:
        """The command line that makes a table of this; parts are those asked for, None for all."""
        return command(
            table,
            shape=self.shape,
            layers=self.layers,
            tokens=f"{self.batch}x{self.length}",
            dtype=self.dtype,
            runs=self.runs,
            **parts,
        )

    def latency(self, workload: str, subjects: tuple[Subject, ...]) -> MeasureSpec:
        """The latency of the last subject beside that of the others."""
        return self._spec("latency", workload, self.runs, subjects)

    def memory(self, workload: str, subject: Subject) -> MeasureSpec:
        """The peak memory of a subject."""
        return self._spec("memory", workload, 1, (subject,))

    def _spec(
        self, quantity: str, workload: str, runs: int, subjects: tuple[Subject, ...]
    ) -> MeasureSpec:
        return MeasureSpec(
            quantity=quantity,
            workload=workload,
            shape=self.shape,
            layers=self.layers,
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            runs=runs,
            subjects=subjects,
        )


def add_options(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """The options of every table that measures."""
    add = parser.add_argument
    rows, length = defaults.batch
    add(
        "--shape",
        default="smollm2-135m",
        help=f"random weights of this shape: {', '.join(SHAPE_NAMES)} (default smollm2-135m)",
    )
    add(
        "--layers",
        type=int,
        metavar="N",
        help=f"layers kept (default: 1, and of smollm2-135m {defaults.layers or 'all'})",
    )
    add(
        "--tokens",
        type=_batch,
        metavar="N|BxS",
        help="a batch of one row of N tokens, or of B rows of S (default: 1x256, and for "
        f"smollm2-135m {rows}x{length})",
    )
    add("--runs", type=int, default=10, metavar="N", help="counted runs (default 10)")


def _batch(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected tokens as 256, or rows as 8x96")
    return int(match[1] or 1), int(match[2])


def _machine(name: str) -> tuple[str, int]:
    """The device a user's choice stands for, and the CPU threads that torch uses."""
    device = resolve_device(name)
    if device == "mps":
        raise ValueError("device 'mps': speed and memory are measured on cpu and cuda only")

    import torch

    return device, torch.get_num_threads()
