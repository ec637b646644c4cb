"""`Profile`, the context manager that measures repeated runs of a workload, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .devices import Cpu, Cuda, device_of
from .memory import Meter, NotFound, process_meter
from .nvml import NvmlWindow
from .report import MEMORY_SOURCES, Energy, Latency, Memory, Report

# Profiles that are open now. The kernel and torch's allocator keep one peak each: opening a profile
# resets it, so those already open read it first.
_open_profiles: list[Profile] = []


class Profile:
    """Measures what runs inside it; see the package's example.

    Two profiles may be open at once and take turns, run by run: latency is each one's own, while
    memory and energy are those of the whole time a profile was open, whoever used them. Energy
    counts from the first counted run to the end. Latency on CUDA is read from events, with a
    synchronisation before the first counted run and at the end only.

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
        if self._nvml is not None and len(self._runs) == self._warmup:
            self._device.synchronize()
            self._nvml.begin_energy()
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
        return Report(latency, self._memory(), self._energy(len(counted)))

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

    def _energy(self, runs: int) -> Energy:
        if self._nvml is None:
            return Energy(None, None, "unavailable: the device is the CPU")
        try:
            joules = self._nvml.joules()
        except NotFound as error:
            return Energy(None, None, f"unavailable: {error}")
        return Energy(joules, joules / (runs * self._tokens) * 1e6, None)

    def _sample(self) -> None:
        for meter in self._meters:
            meter.sample()
