"""A measurement as data: which models run on which batches, and what of them is measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from harness.cells.spec import RESULTS_VERSION

#: What is done with a model: a training step without the optimiser, a forward over whole rows, or
#: a forward of one new token per row after a prompt.
WORKLOADS = ("train", "inference", "decode")

#: Runs before the first one that counts.
WARMUP = 2


@dataclass(frozen=True)
class Subject:
    """A base model with one adapter or several, and the batch it runs on.

    Attributes:
        name: Its row's name, such as "mixlora/fused".
        method: Name in `harness.cells.methods`.
        settings: The method's settings, sorted (name, value) pairs.
        adapters: Number of adapters on the base model. Each has a batch of its own, and all batches
            are packed into one.
        batch: Number of rows per adapter.
        length: Number of tokens per row; when decoding, of the prompt.
    """

    name: str
    method: str
    settings: tuple[tuple[str, Any], ...]
    adapters: int
    batch: int
    length: int

    @property
    def rows(self) -> int:
        """Rows of the packed batch."""
        return self.adapters * self.batch

    def tokens(self, workload: str) -> int:
        """Tokens that one run of a workload processes."""
        return self.rows * (1 if workload == "decode" else self.length)


@dataclass(frozen=True)
class MeasureSpec:
    """One measurement, made in a process of its own.

    Attributes:
        quantity: "latency": the subjects take turns, run by run; "memory": one subject's peak in a
            single run.
        workload: One of `WORKLOADS`.
        shape: Key of `harness.models.shapes.SHAPES`; weights are random.
        layers: Number of layers kept of that shape.
        dtype: Data type of the frozen weights, for example "bfloat16".
        device: "cpu", "cuda" or "cuda:N"; "auto" matches any device when a measurement is looked
            for.
        threads: Number of CPU threads that torch computes with; 0 matches any number then.
        runs: Number of counted runs of every subject, after `WARMUP` others; 1 for memory.
        subjects: What runs, LoRA first where others are compared with it. They take turns.
    """

    quantity: str
    workload: str
    shape: str
    layers: int
    dtype: str
    device: str
    threads: int
    runs: int
    subjects: tuple[Subject, ...]

    @property
    def measured(self) -> Subject:
        """The subject that the measurement is named after, the last."""
        return self.subjects[-1]

    @property
    def title(self) -> str:
        """Short text for progress and messages."""
        subject = self.measured
        settings = dict(subject.settings)
        sizes = [
            f"{sign} {settings[name]}"
            for sign, name in (("E", "num_experts"), ("K", "top_k"), ("r", "r"))
            if name in settings
        ]
        batch = f"{subject.rows}x{subject.length}"
        others = f" beside {len(self.subjects) - 1} others" if len(self.subjects) > 2 else ""
        return (
            f"{self.shape} {self.workload} {self.quantity} {subject.name} "
            f"({', '.join(sizes)}, {batch} tokens){others}"
        )

    def matches(self, wanted: MeasureSpec) -> bool:
        """Whether this is what is wanted; "auto" matches any device and 0 any number of threads."""
        device = self.device if wanted.device == "auto" else wanted.device
        threads = wanted.threads or self.threads
        return self == dataclasses.replace(wanted, device=device, threads=threads)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MeasureSpec:
        """The inverse of `to_json`.

        Raises:
            TypeError: Fields are missing or unknown.
        """
        subjects = []
        for subject in data["subjects"]:
            settings = tuple((name, value) for name, value in subject["settings"])
            subjects.append(Subject(**{**subject, "settings": settings}))
        return cls(**{**data, "subjects": tuple(subjects)})


def measurement_id(spec: MeasureSpec, commit: str, results_version: int = RESULTS_VERSION) -> str:
    """Content hash that names a measurement's record, 20 hex digits."""
    content = [spec.to_json(), commit, WARMUP, results_version]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]
