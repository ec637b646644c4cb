"""Makes valid input bad: values of wrong types and sizes, broken JSON, bytes and files."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

#: JSON that `json.dumps` does not write, or only from values that a test cannot hold.
RAW = (
    "NaN",
    "-Infinity",
    "1e999",
    "1" + 5_000 * "0",
    "1" + 400 * "0",
    '{"a": 1, "a": 2}',
    900 * "[" + 900 * "]",
    20_000 * "[" + 20_000 * "]",
    20_000 * '{"a":' + "1" + 20_000 * "}",
    "01",
    "tru",
    "",
)
_MARK = "raw JSON number "

_RAW = st.integers(0, len(RAW) - 1).map(lambda number: f"{_MARK}{number}")
#: A value that is usually wrong where it stands.
ODD = st.one_of(
    _RAW,
    _RAW,
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63, -(2**63), 0.5, -0.0, 1e308, "0", "1", " 2 ", "A", "true"]),
    st.sampled_from(["", " ", "\x00", "\ud800", "a\nb", "\u2028", "\ufeff", "_", "...", "x" * 300]),
    st.just("é" * 500_000),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(0, 3), st.text(max_size=3), st.none()), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=3),
)


def dumps(value: Any, ascii_only: bool = True) -> bytes:
    """JSON on one line, with the `RAW` that `ODD` stands for; lone surrogates as broken UTF-8."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    for number in reversed(range(len(RAW))):
        text = text.replace(json.dumps(f"{_MARK}{number}"), RAW[number])
    return text.encode("utf-8", "surrogatepass")


def mutate(draw: Callable[[Any], Any], value: dict[str, Any]) -> str:
    """Change one thing in an object; returns the name, on the highest level, of what it is in."""
    name = draw(st.sampled_from([*value, "extra"]))
    place: Any = value
    key: Any = name
    # Into what holds other values, half of the time.
    while isinstance(place.get(key) if isinstance(place, dict) else place[key], (dict, list)):
        inner = place[key]
        if not inner or draw(st.booleans()):
            break
        place = inner
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        key = draw(st.sampled_from(list(keys)))
    action = draw(st.sampled_from(["replace", "replace", "remove", "repeat"]))
    if action == "repeat" and isinstance(place, list):
        place.append(place[key])
    elif action == "remove" and (isinstance(place, list) or key in place):
        del place[key]
    else:
        place[key] = draw(ODD)
    return name


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes with a piece cut out, overwritten or put in, or with other line ends or a BOM."""
    start = draw(st.integers(0, len(content)))
    end = min(len(content), start + draw(st.sampled_from([0, 1, 1, 4, 10**9])))
    new = draw(st.sampled_from([b"", b"\x00", b"\xff", b"\xed\xa0\x80", b"\n", b"{", b'"', b"\\"]))
    how = draw(st.sampled_from(["splice", "splice", "splice", "crlf", "bom", "zeros", "empty"]))
    if how == "crlf":
        return content.replace(b"\n", b"\r\n")
    if how == "bom":
        return b"\xef\xbb\xbf" + content
    if how == "zeros":
        return content[:start] + bytes(end - start) + content[end:]
    return b"" if how == "empty" else content[:start] + new + content[end:]


@st.composite
def damaged_gzip(draw: Any, content: bytes) -> bytes:
    """The content packed, and then cut, followed by garbage, or with one byte changed."""
    packed = gzip.compress(content, mtime=0)
    how = draw(st.sampled_from(["whole", "two parts", "cut", "garbage", "byte"]))
    if how == "two parts":
        return packed + gzip.compress(b"", mtime=0)
    if how == "cut":
        return packed[: draw(st.integers(1, len(packed) - 1))]
    if how == "garbage":
        return packed + draw(st.binary(min_size=1, max_size=40).filter(lambda b: b[0] != 0))
    if how == "byte":
        # After the header, whose flags and date change nothing of the content.
        place = draw(st.integers(10, len(packed) - 1))
        changed = (packed[place] + draw(st.integers(1, 255))) % 256
        return packed[:place] + bytes([changed]) + packed[place + 1 :]
    return packed


def unpacked(packed: bytes) -> bytes | None:
    """What gzip's format says that packed bytes hold, by zlib itself; None if they are broken."""
    content = b""
    while packed:
        unpacker = zlib.decompressobj(31)
        try:
            content += unpacker.decompress(packed)
        except zlib.error:
            return None
        if not unpacker.eof:
            return None
        packed = unpacker.unused_data
    return content


def put_in_place(draw: Callable[[Any], Any], file: Path, content: bytes) -> bool:
    """Write a file, or something else in its place; returns whether its content can be read."""
    how = draw(st.sampled_from(8 * ["file"] + ["link", "directory", "loop", "nothing", "dangling"]))
    if how == "file":
        file.write_bytes(content)
    elif how == "link":
        # As the hub's cache has it: what a link leads to may lie anywhere.
        target = file.parent.parent / "elsewhere"
        target.write_bytes(content)
        file.symlink_to(target)
    elif how == "directory":
        file.mkdir()
    elif how == "loop":
        file.symlink_to(file)
    elif how == "dangling":
        file.symlink_to(file.parent / "not there")
    return how in ("file", "link")
