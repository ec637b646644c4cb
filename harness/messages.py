"""Messages for the person at the terminal: logged to standard error, without tokens and passwords.

Every module logs to ``logging.getLogger(__name__)``; the command line calls `setup_logging` once.
What is the result of a command, a table for example, is printed to standard output instead.
"""

from __future__ import annotations

import logging
import os
import re
import sys

from tqdm import tqdm

#: The parts of this project, whose messages are shown from level INFO on; of others, warnings are.
_PARTS = ("reproduce", "harness", "baselines", "tasks", "mixlora")

#: Environment variables in which a user may keep the hub's token.
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")

#: Fewest characters of a secret. No token is shorter, and a shorter text may be a common word.
_SHORTEST = 8

#: Most characters of a message: more than a person would read.
_LONGEST = 2_000

#: What a secret looks like, and what takes its place: the hub's tokens wherever they stand, the
#: value of an authorization header, user and password in an address (of a proxy or an endpoint),
#: and tokens in the query of an address.
_PATTERNS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "***"),
    (re.compile(r"\b(Bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE), r"\1***"),
    (re.compile(r"(authorization\W{1,4}(?:basic|token)\s+)[^\s'\",}]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/@'\"]+@", re.IGNORECASE), r"\1***@"),
    (re.compile(r"([?&](?:token|access_token)=)[^\s&#\"']+", re.IGNORECASE), r"\1***"),
)


def redacted(text: str) -> str:
    """The text with "***" in place of every secret."""
    for name in _VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, "***")
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def first_line(error: Exception) -> str:
    """What an exception says, cut to one line and without secrets; "" if it says nothing."""
    return redacted(str(error)).strip().partition("\n")[0]


def short(text: str) -> str:
    """The text on one line, its middle left out if what it quotes is as long as a file."""
    text = " ".join(text.splitlines())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-200:]}"


class _WithoutSecrets(logging.Filter):
    """Takes the secrets out of every message before it is shown."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), ()
        return True


class _BesideTheBar(logging.Handler):
    """Writes to standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
        sys.stderr.flush()


def setup_logging() -> None:
    """Have messages of this project, and warnings of all libraries, written to standard error.

    To be called by a command line; again, it changes nothing.
    """
    root = logging.getLogger()
    if not any(isinstance(handler, _BesideTheBar) for handler in root.handlers):
        handler = _BesideTheBar()
        handler.addFilter(_WithoutSecrets())
        root.addHandler(handler)
    for name in _PARTS:
        logging.getLogger(name).setLevel(logging.INFO)
