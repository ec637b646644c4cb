"""Memory of a process and of a GPU: the value at entry, the peak until exit, or why there is none.

Everything that can be missing (NVML's Python module, its library, a matching driver, a process list
that has this process) becomes a reason, never a zero and never an exception.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .report import MEMORY_SOURCES, Memory

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK_RSS = "5"


class NotFound(Exception):
    """A source has no value now, but may have one later; the message is one line."""


def one_line(error: BaseException) -> str:
    """Type and message of an exception on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


class Meter:
    """Follows one source from `start` to the last `sample`.

    A source that fails becomes "unavailable" with the failure as reason: measuring must not end
    what is measured.

    Args:
        source: Key of `MEMORY_SOURCES`.
        read_now: Bytes in use now. It may raise `NotFound` and is then asked again next time.
        read_peak: Bytes at the highest since `reset`. A source that keeps no peak is given
            ``read_now`` and sampled often.
        reset: Makes the source forget its peak; None where it keeps none. It may raise OSError
            where that is forbidden.
    """

    def __init__(
        self,
        source: str,
        read_now: Callable[[], int],
        read_peak: Callable[[], int],
        reset: Callable[[], None] | None = None,
    ) -> None:
        self.source = source
        self._read_now = read_now
        self._read_peak = read_peak
        self._reset = reset
        self._baseline: int | None = None
        self._peak: int | None = None
        self._stale_peak: int | None = None
        self._not_found = "never read"
        self._failure: str | None = None

    def start(self) -> None:
        """Take the value at entry and forget earlier peaks."""
        self._baseline = self._try(self._read_now)
        if self._reset is not None and self._failure is None:
            try:
                self._reset()
            except OSError as error:
                self._stale_peak = self._try(self._read_peak)
                self._not_found = (
                    "its peak was reached before the profile and may not be reset "
                    f"({one_line(error)})"
                )
            except Exception as error:
                self._failure = one_line(error)
        self.sample()

    def sample(self) -> None:
        """Raise the peak to what the source says now."""
        value = self._try(self._read_peak) if self._failure is None else None
        # A peak from before the window says nothing about the window until it is exceeded.
        if value is not None and (self._stale_peak is None or value > self._stale_peak):
            self._peak = value if self._peak is None else max(self._peak, value)

    def result(self) -> Memory:
        """The memory that was found until now."""
        if self._failure is not None or self._peak is None:
            return Memory.unavailable(self.source, self._failure or self._not_found)
        description = MEMORY_SOURCES[self.source]
        return Memory(self.source, description, self._peak, self._baseline, None)

    def _try(self, read: Callable[[], int]) -> int | None:
        try:
            return read()
        except NotFound as error:
            self._not_found = str(error)
        except Exception as error:
            self._failure = one_line(error)
        return None


def process_meter() -> Meter:
    """Resident host memory of this process (Linux).

    Memory that was freed before the window, and that the C library has kept, counts as baseline and
    can be used again without a rise. So a figure to publish is taken in a fresh process.

    Source: proc_pid_status(5), VmRSS and VmHWM; proc_pid_clear_refs(5), value 5.
    """
    return Meter(
        "process",
        lambda: _status_bytes("VmRSS"),
        lambda: _status_bytes("VmHWM"),
        lambda: _write(_CLEAR_REFS, _RESET_PEAK_RSS),
    )


def _status_bytes(field: str) -> int:
    if sys.platform != "linux":
        raise NotFound(f"the peak of a process is read from {_STATUS}, which only Linux has")
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.removesuffix("kB")) * 1024
    raise NotFound(f"{_STATUS} has no {field} here")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")


class NvmlWindow:
    """One GPU between `start` and `stop`.

    Args:
        uuid: The GPU, "GPU-...".
        nvml: An object with pynvml's functions; None imports pynvml (package nvidia-ml-py).
        interval: Seconds between two samples of memory.
    """

    def __init__(self, uuid: str, nvml: Any | None, interval: float) -> None:
        self._uuid = uuid
        self._nvml: Any = nvml
        self._interval = interval
        self._initialised = False
        self._handle: Any = None
        self._failure: str | None = None
        self._meters = [
            Meter("nvml_device", self._device_bytes, self._device_bytes),
            Meter("nvml_process", self._process_bytes, self._process_bytes),
        ]
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Connect, take the values at entry and begin to sample."""
        try:
            self._connect()
        except Exception as error:
            self._failure = one_line(error)
            return
        for meter in self._meters:
            meter.start()
        self._thread = threading.Thread(target=self._sample, name="nvml-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the last values, end the thread and disconnect; safe after a failed `start`."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            for meter in self._meters:
                meter.sample()
        if self._initialised:
            try:
                self._nvml.nvmlShutdown()
            except Exception as error:
                warnings.warn(f"NVML did not shut down: {one_line(error)}", stacklevel=2)

    def memory(self) -> list[Memory]:
        """Peak of the whole device and of this process."""
        if self._failure is not None:
            return [Memory.unavailable(meter.source, self._failure) for meter in self._meters]
        return [meter.result() for meter in self._meters]

    def _connect(self) -> None:
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        self._nvml.nvmlInit()
        self._initialised = True
        self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self._uuid)

    def _sample(self) -> None:
        while not self._stopping.wait(self._interval):
            for meter in self._meters:
                meter.sample()

    def _device_bytes(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def _process_bytes(self) -> int:
        pid = os.getpid()
        listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        for process in listed or ():
            if process.pid == pid:
                if not process.usedGpuMemory:
                    raise NotFound("NVML lists this process without its memory")
                return int(process.usedGpuMemory)
        # Inside a container NVML has the host's numbers, or no list at all.
        raise NotFound(f"NVML's list of {len(listed or ())} processes has none with pid {pid}")
