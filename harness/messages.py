"""What others' exceptions say, as it may be stored and printed: without tokens and passwords."""

from __future__ import annotations

import os
import re

#: Where a user has the hub's token, beside its file.
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")

#: Shorter than any token, and perhaps a word of the text.
_SHORTEST = 8

# More is no message for a person.
_LONGEST = 2_000

#: The hub's tokens wherever they come from, authorization headers, user and password of an address
#: (a proxy's, an endpoint's), and tokens within its query.
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
