"""What a profile found, as plain data: latency per phase, memory per source."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

#: Source -> what it counts. Every report has all of these, so that a table has the same columns
#: whether or not a source could be read.
MEMORY_SOURCES = {
    "torch_allocated": "GPU memory in tensors, by torch's allocator",
    "torch_reserved": "GPU memory that torch's allocator holds, in use or cached",
    "nvml_device": "GPU memory in use on the whole device, by NVML, sampled",
    "nvml_process": "GPU memory of this process, by NVML's process list, sampled",
    "process": "host memory resident in this process, by the kernel",
}


@dataclass(frozen=True)
class Latency:
    """How long one phase took.

    Attributes:
        seconds: Time of the phase in each counted run, in order.
        tokens: Number of tokens processed in one run.
        source: The clock: "perf_counter" or "cuda events".
    """

    seconds: tuple[float, ...]
    tokens: int
    source: str


@dataclass(frozen=True)
class Memory:
    """Peak memory by one source, between entering and leaving the profile.

    Attributes:
        source: Key of `MEMORY_SOURCES`.
        description: What the source counts.
        peak_bytes: Highest value seen, what was there at entry included; None where unavailable.
        baseline_bytes: Value at entry; None where there was none to read.
        reason: Why `peak_bytes` is None, "unavailable: ..."; else None.
    """

    source: str
    description: str
    peak_bytes: int | None
    baseline_bytes: int | None
    reason: str | None

    @classmethod
    def unavailable(cls, source: str, why: str) -> Memory:
        """A source that could not be read; why is one line."""
        return cls(source, MEMORY_SOURCES[source], None, None, f"unavailable: {why}")


@dataclass(frozen=True)
class Report:
    """All that a profile found.

    Attributes:
        latency: Phase name -> its latency, in the order they first ended.
        memory: Source name -> peak memory; has every key of `MEMORY_SOURCES`.
    """

    latency: dict[str, Latency]
    memory: dict[str, Memory]

    def to_json(self) -> dict[str, Any]:
        """The report as a value that `json.dumps` takes."""
        return dataclasses.asdict(self)
