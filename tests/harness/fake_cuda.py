"""A CUDA device without CUDA: stands in for the functions of `torch.cuda` that the profiler calls.

The stream has a clock of its own, `now_ms`, and as on a GPU nothing can be read from an event
before the device was synchronised after it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

UUID = "00000000-5b1e-4c3d-8a2f-0123456789ab"


class FakeCuda:
    """State of the device, moved by the test; `install` puts it in place of torch's."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.synchronised = 0
        self.allocated = 0
        self.peak = 0

    def allocate(self, difference: int) -> None:
        """Take (or, negative, give back) bytes; twice as many are reserved."""
        self.allocated += difference
        self.peak = max(self.peak, self.allocated)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.timed = enable_timing

            def record(self, stream: Any) -> None:
                assert stream == "stream of 0"
                self.at_ms, self.synchronised_before = cuda.now_ms, cuda.synchronised

            def elapsed_time(self, end: Event) -> float:
                if not (self.timed and end.timed):
                    raise ValueError("event without timing")
                if end.synchronised_before == cuda.synchronised:
                    raise RuntimeError("event is not finished")
                return end.at_ms - self.at_ms

        def synchronize(device: int) -> None:
            self.synchronised += 1

        def reset(device: int) -> None:
            self.peak = self.allocated

        functions: dict[str, Any] = {
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "current_stream": lambda device: f"stream of {device}",
            "get_device_properties": lambda device: SimpleNamespace(uuid=UUID),
            "synchronize": synchronize,
            "Event": Event,
            "memory_allocated": lambda device: self.allocated,
            "max_memory_allocated": lambda device: self.peak,
            "memory_reserved": lambda device: 2 * self.allocated,
            "max_memory_reserved": lambda device: 2 * self.peak,
            "reset_peak_memory_stats": reset,
        }
        for name, function in functions.items():
            monkeypatch.setattr(torch.cuda, name, function)
