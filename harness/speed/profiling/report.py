"""What a profile found, as plain data: latency per phase, memory per source, energy."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import Any

# Every report has all of these, so that a source is a column whether or not it could be read.
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
        tokens: Tokens processed in one run.
        source: The clock: "perf_counter" or "cuda events".
    """

    seconds: tuple[float, ...]
    tokens: int
    source: str

    @property
    def per_token(self) -> tuple[float, ...]:
        """Microseconds per token of each counted run, in order."""
        return tuple(seconds / self.tokens * 1e6 for seconds in self.seconds)

    @property
    def median(self) -> float:
        """Median, in microseconds per token."""
        return statistics.median(self.per_token)

    @property
    def mean(self) -> float:
        """Mean, in microseconds per token."""
        return statistics.fmean(self.per_token)

    @property
    def std(self) -> float:
        """Sample standard deviation, in microseconds per token; NaN for a single run."""
        return statistics.stdev(self.per_token) if len(self.seconds) > 1 else math.nan

    @property
    def minimum(self) -> float:
        """Shortest, in microseconds per token."""
        return min(self.per_token)

    @property
    def q25(self) -> float:
        """First quartile, in microseconds per token, interpolated between runs."""
        return self._quartile(0)

    @property
    def q75(self) -> float:
        """Third quartile, in microseconds per token, interpolated between runs."""
        return self._quartile(2)

    def _quartile(self, index: int) -> float:
        if len(self.seconds) == 1:
            return self.per_token[0]
        return statistics.quantiles(self.per_token, n=4, method="inclusive")[index]


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
class Energy:
    """Energy of the whole GPU over the counted runs, by NVML's counter.

    Attributes:
        joules: All counted runs together; None where unavailable.
        microjoules_per_token: The same by token; None where unavailable.
        reason: Why both are None, "unavailable: ..."; else None.
    """

    joules: float | None
    microjoules_per_token: float | None
    reason: str | None


@dataclass(frozen=True)
class Report:
    """All that a profile found.

    Attributes:
        latency: Phase name -> its latency, in the order they first ended.
        memory: Source name -> peak memory; has every key of `MEMORY_SOURCES`.
        energy: Energy over the counted runs.
    """

    latency: dict[str, Latency]
    memory: dict[str, Memory]
    energy: Energy

    def to_json(self) -> dict[str, Any]:
        """The report as a value that `json.dumps` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """The inverse of `to_json`, before or after a way through JSON text."""
        latency = {
            name: Latency(tuple(value["seconds"]), value["tokens"], value["source"])
            for name, value in data["latency"].items()
        }
        memory = {name: Memory(**value) for name, value in data["memory"].items()}
        return cls(latency, memory, Energy(**data["energy"]))
