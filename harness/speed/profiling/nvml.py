"""What NVML says of one GPU while a workload runs: memory sampled in a thread, and energy.

Everything that can be missing (the Python module, the library, a matching driver, a process list
that knows this process, an energy counter) becomes a reason, never a zero and never an exception.
"""

from __future__ import annotations

import os
import threading
import warnings
from typing import Any

from .memory import Meter, NotFound, one_line
from .report import Memory


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
        self._energy_failure: str | None = None
        self._first_millijoules: int | None = None
        self._last_millijoules: int | None = None
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

    def begin_energy(self) -> None:
        """Count energy from here on."""
        if self._handle is not None:
            self._first_millijoules = self._millijoules()

    def stop(self) -> None:
        """Take the last values, end the thread and disconnect; safe after a failed `start`."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            for meter in self._meters:
                meter.sample()
        if self._first_millijoules is not None:
            self._last_millijoules = self._millijoules()
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

    def joules(self) -> float:
        """Energy of the device between `begin_energy` and `stop`.

        Raises:
            NotFound: It could not be read, or the counter stood still; the message says why.
        """
        failure = self._failure or self._energy_failure
        if failure is not None:
            raise NotFound(failure)
        if self._first_millijoules is None or self._last_millijoules is None:
            raise NotFound("the energy counter was not read")
        millijoules = self._last_millijoules - self._first_millijoules
        if millijoules <= 0:
            raise NotFound("the energy counter did not advance: the counted runs are too short")
        return millijoules / 1e3

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

    def _millijoules(self) -> int | None:
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except Exception as error:
            self._energy_failure = one_line(error)
        return None
