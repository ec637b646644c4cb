"""What all tests of the harness have: messages on standard error, as the command line has them."""

from __future__ import annotations

from harness.messages import setup_logging

setup_logging()
