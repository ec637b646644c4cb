"""Prints what the cases came to, as they counted themselves."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    # Here, because this file is read before `--hypothesis-profile` is looked at.
    from .cases import TORTURE, summary

    if TORTURE and (lines := summary()):
        terminalreporter.section("bad input")
        for line in lines:
            terminalreporter.write_line(line)
