"""Messages: on standard error, each once, in the order they were said, without secrets."""

from __future__ import annotations

import logging

import pytest
from tqdm import tqdm

from harness.messages import setup_logging

SECRET = "hf_" + "a1B2" * 8


def test_what_is_logged_is_shown_once_and_without_secrets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        setup_logging()
    logging.getLogger("harness.store.files").info("%d cells from %s", 3, f"http://me:{SECRET}@host")
    logging.getLogger("tasks.sources").warning("token %s", SECRET)
    logging.getLogger("harness").debug("not shown")
    logging.getLogger("some.library").info("not shown")
    logging.getLogger("some.library").warning("shown: %s", SECRET)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "3 cells from http://***@host",
        "token ***",
        "shown: ***",
    ]


def test_a_message_stands_on_a_line_of_its_own_above_a_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup_logging()
    with tqdm(total=2, disable=False, mininterval=0) as bar:
        bar.update()
        logging.getLogger("harness").warning("a cell has failed")
        bar.update()
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "a cell has failed" in [line.strip() for line in lines]
