"""Measures a torch workload: latency and peak memory. Knows nothing of MixLoRA.

    with Profile(device="cuda", tokens=2048, warmup=3) as profile:
        for _ in range(3 + 10):
            with profile.run():
                with profile.phase("forward"):
                    loss = model(**batch).loss
                with profile.phase("backward"):
                    loss.backward()
    report = profile.report()
    report.latency["forward"].seconds  # of every counted run
    report.memory["nvml_device"].peak_bytes  # or None, and then .reason says why

`call_in_fresh_process` gives a measurement a process, and so a memory peak, of its own.
"""

from __future__ import annotations

from .fresh_process import OutOfMemory, call_in_fresh_process, is_out_of_memory
from .profile import Profile
from .report import Latency, Memory, Report

__all__ = [
    "Latency",
    "Memory",
    "OutOfMemory",
    "Profile",
    "Report",
    "call_in_fresh_process",
    "is_out_of_memory",
]
