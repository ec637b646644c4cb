"""`Profile`, a context manager that measures repeated runs of a workload, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch

from .memory import Meter, NvmlWindow, process_meter
from .report import MEMORY_SOURCES, Latency, Memory, Report


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


#: Profiles that are open now. The kernel and torch's allocator keep one peak each, which is reset
#: when a profile is opened, so the others read it before that.
_open_profiles: list[Profile] = []


class Profile:
    """Measures what runs inside it; see the package's example.

    Two profiles may be open at once and take turns, run by run: latency is each one's own, while
    memory is that of the whole time a profile was open, whoever used it. Latency on CUDA is read
    from events, with a synchronisation before the first counted run and at the end only.

    Args:
        device: Where the workload runs: "cpu", "cuda" or "cuda:N".
        tokens: Tokens that one run processes.
        warmup: How many runs at the start are not counted.
        nvml: An object with pynvml's functions; None imports pynvml. Used on CUDA only.
        interval: Seconds between two samples of NVML's memory.

    Raises:
        ValueError: The device is unknown or not there, or a number is out of range.
    """

    def __init__(
        self,
        device: str,
        tokens: int,
        warmup: int = 3,
        *,
        nvml: Any | None = None,
        interval: float = 0.01,
    ) -> None:
        if tokens < 1:
            raise ValueError(f"tokens is {tokens}; expected at least 1 token in a run")
        if warmup < 0:
            raise ValueError(f"warmup is {warmup}; expected 0 runs or more")
        if interval <= 0:
            raise ValueError(f"interval is {interval}; expected a positive number of seconds")
        self._device: Cpu | Cuda = device_of(device)
        self._tokens = tokens
        self._warmup = warmup
        self._meters: list[Meter] = [*self._device.meters(), process_meter()]
        self._nvml: NvmlWindow | None = None
        if isinstance(self._device, Cuda):
            self._nvml = NvmlWindow(self._device.uuid, nvml, interval)
        self._state = "new"
        self._runs: list[dict[str, list[tuple[Any, Any]]]] = []
        self._run: dict[str, list[tuple[Any, Any]]] | None = None

    def __enter__(self) -> Profile:
        if self._state != "new":
            raise ValueError("this profile was used before; make a new one")
        self._state = "open"
        for profile in _open_profiles:
            profile._sample()
        _open_profiles.append(self)
        if self._nvml is not None:
            self._nvml.start()
        for meter in self._meters:
            meter.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._state = "failed"
        try:
            if error is None:
                self._device.synchronize()
                self._sample()
                self._state = "done"
        finally:
            _open_profiles.remove(self)
            if self._nvml is not None:
                self._nvml.stop()

    @contextmanager
    def run(self) -> Iterator[None]:
        """One repetition of the workload. One that raises does not count.

        Raises:
            ValueError: The profile is not open, or a run is under way.
        """
        if self._state != "open":
            raise ValueError("run() belongs inside the profile's with block")
        if self._run is not None:
            raise ValueError("run() inside another run() of the same profile")
        if len(self._runs) == self._warmup:
            self._device.synchronize()
        self._run = {}
        try:
            yield
            self._runs.append(self._run)
        finally:
            self._run = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A part of a run that is timed; phases of one name within a run add up.

        Raises:
            ValueError: No run is under way.
        """
        if self._run is None:
            raise ValueError(f"phase({name!r}) belongs inside a run()")
        run = self._run
        start = self._device.mark()
        yield
        run.setdefault(name, []).append((start, self._device.mark()))

    def report(self) -> Report:
        """What was measured, once the profile's with block has ended.

        Raises:
            ValueError: The block has not ended or ended by an exception, no run was counted, or a
                phase is missing from a counted run.
        """
        if self._state != "done":
            raise ValueError(f"report() needs a profile that ended well; this one is {self._state}")
        counted = self._runs[self._warmup :]
        if not counted:
            raise ValueError(
                f"no run was counted: {len(self._runs)} made, the first {self._warmup} are warm-up"
            )
        names = dict.fromkeys(name for run in counted for name in run)
        latency = {name: self._latency(name, counted) for name in names}
        return Report(latency, self._memory())

    def _latency(self, name: str, runs: list[dict[str, list[tuple[Any, Any]]]]) -> Latency:
        found = [run[name] for run in runs if name in run]
        if len(found) != len(runs):
            raise ValueError(
                f"phase {name!r} is in {len(found)} of {len(runs)} counted runs; expected all"
            )
        seconds = tuple(sum(self._device.seconds(*pair) for pair in pairs) for pairs in found)
        return Latency(seconds, self._tokens, self._device.clock)

    def _memory(self) -> dict[str, Memory]:
        found = {meter.source: meter.result() for meter in self._meters}
        if self._nvml is not None:
            found |= {memory.source: memory for memory in self._nvml.memory()}
        return {
            source: found.get(source) or Memory.unavailable(source, "the device is the CPU")
            for source in MEMORY_SOURCES
        }

    def _sample(self) -> None:
        for meter in self._meters:
            meter.sample()
