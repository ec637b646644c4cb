"""The profiler: latency against exact clocks, memory against known allocations, misuse."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.speed.profiling import Memory, Profile, Report, call_in_fresh_process, memory
from harness.speed.profiling.report import MEMORY_SOURCES

from .fake_cuda import FakeCuda

MIB = 1 << 20


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets perf_counter stand still; the fixture's value moves it on by seconds."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def assert_latency(report: Report, phase: str, seconds: list[float], tokens: int) -> None:
    """All times of a phase, and what they are divided by."""
    found = report.latency[phase]
    assert found.seconds == pytest.approx(seconds)
    assert found.tokens == tokens


def test_interleaved_profiles_time_their_own_counted_runs(wait: Callable[[float], None]) -> None:
    warmup, counted = 2, 7
    expected: dict[tuple[str, str], list[float]] = {}
    with Profile("cpu", 30, warmup) as first, Profile("cpu", 50, warmup) as second:
        for index in range(warmup + counted):
            for name, profile in {"first": first, "second": second}.items():
                with profile.run():
                    for phase in ("forward", "backward"):
                        wait(random.uniform(1, 2))
                        seconds = random.uniform(0.001, 0.01) + 100 * (index < warmup)
                        with profile.phase(phase):
                            wait(seconds)
                        if index >= warmup:
                            expected.setdefault((name, phase), []).append(seconds)
    for name, profile, tokens in [("first", first, 30), ("second", second, 50)]:
        report = profile.report()
        assert list(report.latency) == ["forward", "backward"]
        for phase in report.latency:
            assert_latency(report, phase, expected[name, phase], tokens)
            assert report.latency[phase].source == "perf_counter"


def test_phases_of_one_name_add_up_and_failed_runs_do_not_count(
    wait: Callable[[float], None],
) -> None:
    with Profile("cpu", 4, warmup=0) as profile:
        for seconds in (0.5, 0.25):
            with profile.run():
                for _ in range(3):
                    with profile.phase("step"):
                        wait(seconds)
            with pytest.raises(KeyError), profile.run(), profile.phase("step"):
                wait(99)
                raise KeyError
    assert profile.report().latency["step"].seconds == pytest.approx((1.5, 0.75))


def test_cuda_is_timed_by_events_and_waited_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    expected = []
    with Profile("cuda", 64, warmup=2, nvml=object()) as profile:
        for index in range(2 + 5):
            with profile.run():
                assert cuda.synchronised == (index >= 2)
                cuda.now_ms += 17
                milliseconds = random.uniform(1, 5)
                with profile.phase("forward"):
                    cuda.now_ms += milliseconds
                if index >= 2:
                    expected.append(milliseconds / 1e3)
    assert cuda.synchronised == 2
    report = profile.report()
    assert_latency(report, "forward", expected, 64)
    assert report.latency["forward"].source == "cuda events"


def test_allocator_peaks_survive_another_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    cuda.allocate(900)
    cuda.allocate(-800)
    with Profile("cuda:0", 1, 0, nvml=object()) as first, first.run():
        cuda.allocate(500)
        cuda.allocate(-550)
        with Profile("cuda:0", 1, 0, nvml=object()) as second, second.run():
            cuda.allocate(100)
    for profile, baseline, peak in [(first, 100, 600), (second, 50, 150)]:
        for source, factor in [("torch_allocated", 1), ("torch_reserved", 2)]:
            found = profile.report().memory[source]
            assert (found.source, found.reason) == (source, None)
            assert found.baseline_bytes == baseline * factor
            assert found.peak_bytes == peak * factor


def grow_by_64_mib(argument: None) -> dict[str, Any]:
    """Runs in a fresh process: what the profile says of 64 MiB, after a higher peak before it."""
    before = bytearray(256 * MIB)
    before[::4096] = b"x" * len(before[::4096])
    del before
    # The first operation of a kind maps pages of torch's libraries, which count as resident, too.
    torch.ones(1)
    with Profile("cpu", 1, warmup=0) as profile, profile.run():
        torch.ones(64 * MIB // 4)
    return profile.report().to_json()


def test_process_peak_is_the_windows_own() -> None:
    report = call_in_fresh_process(f"{__name__}:grow_by_64_mib", None)
    found = Memory(**report["memory"]["process"])
    if found.reason is not None and "may not be reset" in found.reason:
        pytest.skip(found.reason)
    assert found.peak_bytes is not None
    assert found.baseline_bytes is not None
    assert 63 * MIB < found.peak_bytes - found.baseline_bytes < 70 * MIB


class FakeProc:
    """Files in place of those of /proc/self; kB as the kernel writes them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.status = folder / "status"
        self.clear_refs = folder / "clear_refs"
        monkeypatch.setattr(memory, "_STATUS", self.status)
        monkeypatch.setattr(memory, "_CLEAR_REFS", self.clear_refs)

    def write(self, resident: int, peak: int) -> None:
        text = f"Name:\tpython\nVmPeak:\t 99999 kB\nVmHWM:\t{peak:8} kB\nVmRSS:\t{resident:8} kB\n"
        self.status.write_text(text)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProc:
    return FakeProc(tmp_path, monkeypatch)


def test_process_peak_is_read_and_reset(proc: FakeProc) -> None:
    proc.write(resident=500, peak=500)
    with Profile("cpu", 1, warmup=0) as profile, profile.run():
        assert proc.clear_refs.read_text() == "5"
        proc.write(resident=510, peak=800)
    found = profile.report().memory["process"]
    assert (found.baseline_bytes, found.peak_bytes) == (500 * 1024, 800 * 1024)


@pytest.mark.parametrize(("later", "expected"), [(900, None), (901, 901 * 1024)])
def test_a_peak_that_may_not_be_reset(proc: FakeProc, later: int, expected: int | None) -> None:
    proc.clear_refs.mkdir()  # writing to it fails, as where the kernel forbids it
    proc.write(resident=500, peak=900)
    with Profile("cpu", 1, warmup=0) as profile, profile.run():
        proc.write(resident=500, peak=later)
    found = profile.report().memory["process"]
    assert found.peak_bytes == expected
    if expected is None:
        assert found.reason is not None
        assert found.reason.startswith("unavailable: its peak was reached before the profile")


@pytest.mark.parametrize(
    ("platform", "text", "reason"),
    [
        ("darwin", "", "only Linux has"),
        ("linux", "Name:\tpython\n", "has no VmHWM here"),
        ("linux", None, "FileNotFoundError"),
        ("linux", "VmHWM:\tmany kB\nVmRSS:\tmany kB\n", "ValueError"),
    ],
)
def test_process_memory_that_cannot_be_read(
    proc: FakeProc, monkeypatch: pytest.MonkeyPatch, platform: str, text: str | None, reason: str
) -> None:
    monkeypatch.setattr(memory.sys, "platform", platform)
    if text is not None:
        proc.status.write_text(text)
    with Profile("cpu", 1, warmup=0) as profile, profile.run():
        pass
    found = profile.report().memory["process"]
    assert (found.peak_bytes, found.baseline_bytes) == (None, None)
    assert found.reason is not None
    assert found.reason.startswith("unavailable: ")
    assert reason in found.reason
    assert "\n" not in found.reason


def test_on_the_cpu_gpu_sources_are_unavailable_and_json_keeps_all() -> None:
    with Profile("cpu", 8, warmup=0) as profile:
        for _ in range(2):
            with profile.run(), profile.phase("step"):
                torch.ones(10)
    report = profile.report()
    assert set(report.memory) == set(MEMORY_SOURCES)
    for source in set(MEMORY_SOURCES) - {"process"}:
        found = report.memory[source]
        assert (found.peak_bytes, found.baseline_bytes) == (None, None)
        assert found.reason == "unavailable: the device is the CPU"
    (latency,) = report.latency.values()
    assert json.loads(json.dumps(report.to_json())) == {
        "latency": {"step": vars(latency) | {"seconds": list(latency.seconds)}},
        "memory": {source: vars(found) for source, found in report.memory.items()},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "device 'tpu': expected 'cpu', 'cuda' or 'cuda:N'"),
        ({"device": "mps"}, "device 'mps'"),
        ({"tokens": 0}, "tokens is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"interval": 0.0}, "interval is 0.0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Profile(**({"device": "cpu", "tokens": 1} | arguments))


@pytest.mark.parametrize(("count", "message"), [(0, "sees no CUDA"), (2, "cuda:0 to cuda:1 only")])
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, count: int, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=message):
        Profile("cuda:2", 1)


def test_wrong_order() -> None:
    profile = Profile("cpu", 1, warmup=1)
    with pytest.raises(ValueError, match="inside the profile's with block"), profile.run():
        pass
    with profile:
        with pytest.raises(ValueError, match="belongs inside a run"), profile.phase("step"):
            pass
        with pytest.raises(ValueError, match="inside another run"), profile.run(), profile.run():
            pass
        with pytest.raises(ValueError, match="this one is open"):
            profile.report()
        with profile.run():
            pass
    with pytest.raises(ValueError, match="1 made, the first 1 are warm-up"):
        profile.report()
    with pytest.raises(ValueError, match="used before"), profile:
        pass


def test_a_phase_missing_from_a_run() -> None:
    with Profile("cpu", 1, warmup=0) as profile:
        for index in range(3):
            with profile.run():
                if index != 1:
                    with profile.phase("step"):
                        pass
    with pytest.raises(ValueError, match="phase 'step' is in 2 of 3 counted runs"):
        profile.report()


def test_a_profile_that_failed_has_no_report() -> None:
    profile = Profile("cpu", 1, warmup=0)
    with pytest.raises(KeyError), profile, profile.run():
        raise KeyError
    with pytest.raises(ValueError, match="this one is failed"):
        profile.report()
