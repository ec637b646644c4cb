"""The clock and the allocator of the device a workload runs on: CPU or CUDA."""

from __future__ import annotations

import time
from typing import Any

import torch

from .memory import Meter


class Cpu:
    """Wall time of the calling thread's work."""

    clock = "perf_counter"

    def mark(self) -> float:
        """A point in time."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Seconds between two marks."""
        return end - start

    def synchronize(self) -> None:
        """Nothing: work on the CPU is done when its call returns."""

    def meters(self) -> list[Meter]:
        """None: torch keeps no count of host memory."""
        return []


class Cuda:
    """Events on the device's current stream: nothing waits between two marks.

    Args:
        device: A CUDA device; without an index, the current one.

    Raises:
        ValueError: torch sees no such device.
    """

    clock = "cuda events"

    def __init__(self, device: torch.device) -> None:
        count = torch.cuda.device_count()
        if count == 0:
            raise ValueError(f"device {str(device)!r}: torch sees no CUDA device; use 'cpu'")
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= count:
            raise ValueError(f"device {str(device)!r}: torch sees cuda:0 to cuda:{count - 1} only")
        self.index = index

    @property
    def uuid(self) -> str:
        """The device's name in NVML, whose indices CUDA_VISIBLE_DEVICES does not shift."""
        return f"GPU-{torch.cuda.get_device_properties(self.index).uuid}"

    def mark(self) -> Any:
        """A point in the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.index))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks; only after `synchronize`."""
        return start.elapsed_time(end) / 1e3

    def synchronize(self) -> None:
        """Wait until the device has done all its work."""
        torch.cuda.synchronize(self.index)

    def meters(self) -> list[Meter]:
        """Torch's allocator, by what tensors take and by what it holds."""
        cuda, index = torch.cuda, self.index

        def reset() -> None:
            cuda.reset_peak_memory_stats(index)

        return [
            Meter(
                "torch_allocated",
                lambda: cuda.memory_allocated(index),
                lambda: cuda.max_memory_allocated(index),
                reset,
            ),
            Meter(
                "torch_reserved",
                lambda: cuda.memory_reserved(index),
                lambda: cuda.max_memory_reserved(index),
                reset,
            ),
        ]


def device_of(name: str) -> Cpu | Cuda:
    """The device called name: "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: It is none of these, or torch does not see it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r}: expected 'cpu', 'cuda' or 'cuda:N'")
    return Cpu() if device.type == "cpu" else Cuda(device)
