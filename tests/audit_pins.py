"""Asks pip-audit for known vulnerabilities of the pinned versions: `python -m tests.audit_pins`.

The exit status is 1 if there is one. If pip-audit cannot reach its service, or the service does not
know the pins, one line says that nothing was audited, and the exit status is 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"
PIP_AUDIT = (sys.executable, "-m", "pip_audit")


def audit(pip_audit: tuple[str, ...] = PIP_AUDIT) -> tuple[int, str]:
    """Returns the exit status and the line to print.

    Args:
        pip_audit: command that starts pip-audit.
    """
    # The file lists every package, so nothing needs to be resolved.
    options = ["-r", str(PINS), "--no-deps", "--disable-pip", "--format", "json"]
    result = subprocess.run([*pip_audit, *options], capture_output=True, text=True, check=False)
    try:
        pins = json.loads(result.stdout)["dependencies"]
    except ValueError:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        return 0, f"pins not audited: pip-audit did not get to its service ({lines[-1]})"
    unknown = [pin["name"] for pin in pins if "skip_reason" in pin]
    found = [
        f"{pin['name']} {pin['version']}: {flaw['id']}, fixed in {fixed_in(flaw['fix_versions'])}"
        for pin in pins
        for flaw in pin.get("vulns", ())
    ]
    if found:
        return 1, "\n".join(found)
    if len(unknown) == len(pins):
        return 0, f"pins not audited: pip-audit's service here knows none of the {len(pins)}"
    end = f"; unknown to the service: {', '.join(unknown)}" if unknown else ""
    return 0, f"{len(pins) - len(unknown)} pins audited, no known vulnerability{end}"


def fixed_in(versions: list[str]) -> str:
    return " or ".join(versions) or "no version yet"


if __name__ == "__main__":
    status, said = audit()
    print(said)
    sys.exit(status)
