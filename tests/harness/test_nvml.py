"""NVML: injected fakes for what can be missing, and pynvml itself on a stub of the library."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.speed.profiling import Memory, Profile, Report, call_in_fresh_process

from .fake_cuda import UUID, FakeCuda

GIB = 1 << 30
STUB_MODES = ("healthy", "container", "hidden", "mismatch")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


class FakeNvml:
    """pynvml's functions for one GPU whose values the test sets."""

    def __init__(self) -> None:
        self.used: Callable[[], int] = lambda: 1000
        self.processes: Callable[[], Any] = lambda: None
        self.opened = 0

    def nvmlInit(self) -> None:
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != f"GPU-{UUID}":
            raise KeyError(uuid)
        return "handle"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        assert handle == "handle"
        return SimpleNamespace(used=self.used())

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> Any:
        return self.processes()


def measure(nvml: Any, body: Callable[[], object] = lambda: None, runs: int = 3) -> Report:
    """The report of a few runs on the fake GPU, 10 tokens each, after one for warm-up."""
    with Profile("cuda", 10, warmup=1, nvml=nvml, interval=0.001) as profile:
        for _ in range(1 + runs):
            with profile.run():
                body()
    return profile.report()


def assert_unavailable(memory: Memory, *words: str) -> None:
    assert (memory.peak_bytes, memory.baseline_bytes) == (None, None)
    assert memory.reason is not None
    assert memory.reason.startswith("unavailable: ")
    assert "\n" not in memory.reason
    for word in words:
        assert word in memory.reason


def samplers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "nvml-sampler"]


def in_sampler() -> bool:
    return threading.current_thread().name == "nvml-sampler"


def process(pid: int, used: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def test_a_peak_between_entry_and_exit_is_seen(cuda: FakeCuda) -> None:
    nvml, seen = FakeNvml(), threading.Event()

    def used() -> int:
        if not in_sampler():
            return 1000
        seen.set()
        return 5000

    nvml.used = used
    report = measure(nvml, lambda: seen.wait(10))
    found = report.memory["nvml_device"]
    assert (found.baseline_bytes, found.peak_bytes, found.reason) == (1000, 5000, None)
    assert samplers() == []
    assert nvml.opened == 0


def test_this_process_is_found_in_the_list(cuda: FakeCuda) -> None:
    nvml, values = FakeNvml(), iter([300, 700])
    nvml.processes = lambda: [process(1, 9999), process(os.getpid(), next(values, 400))]
    found = measure(nvml).memory["nvml_process"]
    assert (found.baseline_bytes, found.peak_bytes, found.reason) == (300, 700, None)


def test_a_process_listed_later_has_a_peak_without_a_baseline(cuda: FakeCuda) -> None:
    nvml, lists = FakeNvml(), iter([None, []])
    nvml.processes = lambda: next(lists, [process(os.getpid(), 400)])
    found = measure(nvml).memory["nvml_process"]
    assert (found.baseline_bytes, found.peak_bytes, found.reason) == (None, 400, None)


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (None, "0 processes"),
        ([], "0 processes"),
        ([process(-1, 4000)], "1 processes"),
        ([process(os.getpid(), None)], "without its memory"),
        ([process(os.getpid(), 0)], "without its memory"),
    ],
    ids=["none", "empty", "container", "hidden", "zero"],
)
def test_a_process_list_that_says_nothing(cuda: FakeCuda, listed: Any, words: str) -> None:
    nvml = FakeNvml()
    nvml.processes = lambda: listed
    report = measure(nvml)
    assert_unavailable(report.memory["nvml_process"], words)
    assert report.memory["nvml_device"].peak_bytes == 1000


def test_a_failure_in_the_thread_is_the_reason(cuda: FakeCuda) -> None:
    nvml, failed = FakeNvml(), threading.Event()

    def used() -> int:
        if in_sampler():
            failed.set()
            raise OSError("the driver\nwent away")
        return 1000

    nvml.used = used
    nvml.processes = lambda: [process(os.getpid(), 600)]
    report = measure(nvml, lambda: failed.wait(10))
    assert_unavailable(report.memory["nvml_device"], "OSError: the driver went away")
    assert report.memory["nvml_process"].peak_bytes == 600
    assert samplers() == []


def test_the_thread_ends_when_the_workload_raises(cuda: FakeCuda) -> None:
    nvml = FakeNvml()
    profile = Profile("cuda", 1, nvml=nvml)
    with pytest.raises(KeyError, match="workload"), profile, profile.run():
        assert len(samplers()) == 1
        assert nvml.opened == 1
        raise KeyError("workload")
    assert samplers() == []
    assert nvml.opened == 0


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_nvml_that_does_not_start(cuda: FakeCuda, function: str) -> None:
    def fail(*_: object) -> None:
        raise OSError("Driver Not Loaded")

    nvml = FakeNvml()
    setattr(nvml, function, fail)
    report = measure(nvml)
    for source in ("nvml_device", "nvml_process"):
        assert_unavailable(report.memory[source], "Driver Not Loaded")
    assert report.memory["torch_allocated"].reason is None
    assert nvml.opened == 0


def test_without_pynvml(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert_unavailable(measure(None).memory["nvml_device"], "pynvml")


def test_nvml_that_does_not_shut_down_is_told(cuda: FakeCuda) -> None:
    def fail() -> None:
        raise OSError("GPU is lost")

    nvml = FakeNvml()
    nvml.nvmlShutdown = fail  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="did not shut down: OSError: GPU is lost"):
        report = measure(nvml)
    assert report.memory["nvml_device"].peak_bytes == 1000


def measure_with_stub(library: str) -> dict[str, Any]:
    """Runs in a fresh process: pynvml's own functions on the stub, in each of its modes."""
    import ctypes

    FakeCuda().install(pytest.MonkeyPatch())
    reports: dict[str, Any] = {}
    for mode in STUB_MODES:
        os.environ["STUB_NVML"] = mode
        reports[mode] = measure(None).to_json()
    return {"reports": reports, "open": ctypes.CDLL(library).stub_open_count()}


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_pynvml_on_a_stub_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pynvml")
    source, library = Path(__file__).with_name("nvml_stub.c"), tmp_path / "libnvidia-ml.so.1"
    flags = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", str(library), str(source)], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    outcome = call_in_fresh_process(f"{__name__}:measure_with_stub", str(library))
    assert outcome["open"] == 0
    reports = {
        mode: Report(
            latency={},
            memory={source: Memory(**found) for source, found in data["memory"].items()},
        )
        for mode, data in outcome["reports"].items()
    }

    healthy = reports["healthy"]
    device, own = healthy.memory["nvml_device"], healthy.memory["nvml_process"]
    assert (device.baseline_bytes, device.peak_bytes) == (1 * GIB, 3 * GIB)
    assert (own.baseline_bytes, own.peak_bytes) == (GIB // 2, 2 * GIB)

    for mode in ("container", "hidden"):
        assert_unavailable(reports[mode].memory["nvml_process"])
        assert reports[mode].memory["nvml_device"].peak_bytes == 3 * GIB
    for source_name in ("nvml_device", "nvml_process"):
        assert_unavailable(reports["mismatch"].memory[source_name], "version mismatch")


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    a = torch.randn(4096, 4096, device="cuda")
    with Profile("cuda", 4096, warmup=2) as profile:
        for _ in range(2 + 20):
            with profile.run(), profile.phase("matmul"):
                for _ in range(20):
                    a @ a
            grown = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
            del grown
    report = profile.report()
    latency = report.latency["matmul"]
    assert latency.source == "cuda events"
    # Outside 1 TFLOP/s to 10 PFLOP/s a unit is wrong.
    flops = 20 * 2 * 4096**3
    assert 1e12 < flops / statistics.median(latency.seconds) < 1e16
    allocated = report.memory["torch_allocated"]
    assert allocated.peak_bytes is not None
    assert allocated.baseline_bytes is not None
    assert allocated.peak_bytes - allocated.baseline_bytes >= 256 << 20
    for memory in report.memory.values():
        assert (memory.peak_bytes is None) == (memory.reason is not None)
    device = report.memory["nvml_device"]
    assert device.peak_bytes is None or device.peak_bytes >= allocated.peak_bytes
