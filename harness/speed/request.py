"""What a command asks to have measured: its options, and the measurements that they come to."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.models.shapes import SHAPES, kept_vocabulary
from harness.models.weights import DTYPES, resolve_device
from harness.options import Options, names, option

from .spec import MeasureSpec, Subject

#: In the order of the help: the paper's two of its Tables 6 and 7 first.
SHAPE_NAMES = ("llama2-7b", "gemma-2b", "llama3-8b", "llama2-13b", "smollm2-135m")


@dataclass(frozen=True)
class Defaults:
    """What a table takes where the options do not say.

    Attributes:
        layers: number of layers of smollm2-135m, None for all; the other shapes are cut to one.
        batch: (rows, tokens per row) of smollm2-135m; the other shapes have one row of 256 tokens.
    """

    layers: int | None
    batch: tuple[int, int]

    @property
    def words(self) -> dict[str, str]:
        """Field of `MeasureRequest` -> its default, in words."""
        rows, length = self.batch
        return {
            "layers": f"1, and of smollm2-135m {self.layers or 'all'}",
            "tokens": f"1x256, and for smollm2-135m {rows}x{length}",
        }


def _batch(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected tokens as 256, or rows as 8x96")
    return int(match[1] or 1), int(match[2])


@dataclass(frozen=True)
class MeasureRequest(Options):
    """What is measured, on what. Made by `of`, which fills in the table's defaults.

    Attributes:
        threads: number of CPU threads; 0 for any, when stored measurements are rendered.
    """

    GROUP: ClassVar[str] = "what is measured"

    shape: str = option(
        "smollm2-135m",
        "shape of the model, whose weights are random",
        known=SHAPE_NAMES,
        in_command="always",
    )
    layers: int = option(None, "layers kept of the shape", read=int, metavar="N")
    tokens: tuple[int, int] = option(
        None,
        "a batch of one row of N tokens, or of B rows of S",
        read=_batch,
        write=lambda batch: f"{batch[0]}x{batch[1]}",
        metavar="N|BxS",
    )
    dtype: str = option(
        DTYPES[0], "data type of the frozen weights", known=DTYPES, in_command="always"
    )
    runs: int = option(10, "counted runs", read=int, least=1, metavar="N", in_command="always")
    methods: tuple[str, ...] = option((), "comma-separated rows", read=names, absent="all")
    sweeps: tuple[str, ...] = option((), "comma-separated sweeps", read=names, absent="all")
    device: str = option(
        "auto", "cpu, cuda, cuda:N or auto: cuda where there is one", in_command="never"
    )
    threads: int = 0

    @classmethod
    def of(
        cls, given: Mapping[str, Any], defaults: Defaults, known: Mapping[str, tuple[str, ...]]
    ) -> MeasureRequest:
        """The request that given options make of a table, for any device and number of threads.

        Args:
            given: name of a field -> value.
            defaults: what the table takes where they do not say.
            known: name of a field -> the names that it may hold in this table.

        Raises:
            ValueError: A name is unknown (the message suggests near ones), or a number not allowed.
        """
        made = cls.make(given, known=known)
        small = made.shape == "smollm2-135m"
        total = SHAPES[made.shape].values["num_hidden_layers"]
        layers = made.layers
        if layers is None:
            layers = (defaults.layers or total) if small else 1
        if not 1 <= layers <= total:
            raise ValueError(f"layers is {layers}: {made.shape} has 1 to {total}")
        tokens = made.tokens or (defaults.batch if small else (1, 256))
        # All parts are the table itself, which its command does not spell out.
        all_parts: dict[str, Any] = {
            name: () for name, parts in known.items() if getattr(made, name) == parts
        }
        return dataclasses.replace(made, layers=layers, tokens=tokens, **all_parts)

    def on_this_machine(self) -> MeasureRequest:
        """The same on the device that its name stands for here, with the threads torch uses.

        Raises:
            ValueError: There is no such device, or nothing is measured on it.
        """
        device = resolve_device(self.device)
        if device == "mps":
            raise ValueError("device 'mps': speed and memory are measured on cpu and cuda only")

        import torch

        return dataclasses.replace(self, device=device, threads=torch.get_num_threads())

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.tokens[0]

    @property
    def length(self) -> int:
        """Number of tokens per row."""
        return self.tokens[1]

    @property
    def title(self) -> str:
        """Model and conditions in one line."""
        total = SHAPES[self.shape].values["num_hidden_layers"]
        tokens = kept_vocabulary(self.shape, self.layers)
        return (
            f"{self.shape}, {self.layers} of {total} layers (vocabulary {tokens:,}), "
            f"random weights in {self.dtype}, {self.batch} x {self.length} tokens"
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
