"""Prints what the cases came to, as they counted themselves."""

from __future__ import annotations

from typing import Any

from .cases import TORTURE, summary


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TORTURE and (lines := summary()):
        terminalreporter.section("bad input")
        for line in lines:
            terminalreporter.write_line(line)
