"""Where a number comes from: commit, versions, hardware, time. Torch-free."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from . import processes

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "lm-eval",
    "numpy",
)
_ROOT = Path(__file__).resolve().parents[2]


def collect(device: str, device_name: str, num_threads: int) -> dict[str, Any]:
    """Provenance of a number computed now on the given device.

    Args:
        device: Kind of device ("cpu", "cuda").
        device_name: What the driver calls it, or the processor's name.
        num_threads: CPU threads torch computes with, on which rounding depends.
    """
    return {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "hardware": {
            "device": device,
            "device_name": device_name,
            "cpu_count": os.cpu_count(),
            "num_threads": num_threads,
            "platform": f"{platform.system()} {platform.machine()}",
            # Rounding and the dropout masks depend on it.
            **({"processes": processes.count()} if processes.count() > 1 else {}),
        },
    }


def commit() -> str:
    """Commit of the code, with "-dirty" where files differ from it, or "unknown" outside git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """The CPU's model name, or its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.machine()


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    # Every argument is a constant of this module.
    result = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return result.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
