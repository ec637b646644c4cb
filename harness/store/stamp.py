"""Adds checksums to records from before there were any: ``python -m harness.store.stamp DIR``.

A record without one is taken as it is, so this is for files that nobody has touched; those that
have one are left alone, right or wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .files import save_record


def stamp(directory: Path) -> int:
    """Add the checksum to every record of a directory that has none; returns how many.

    Raises:
        ValueError: The directory has no records, or a file is not one; it is named.
    """
    paths = sorted(directory.glob("*.json"))
    if not paths:
        raise ValueError(f"{directory}: no records; expected a folder of <id>.json")
    stamped = 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("id") != path.stem:
            raise ValueError(f"{path}: not a record named by its id")
        if "checksum" not in content:
            # Laid out as it was: one line, or one line a value.
            save_record(path, content, indent=None if text.count("\n") <= 1 else 1)
            stamped += 1
    return stamped


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m harness.store.stamp DIR", file=sys.stderr)
        return 2
    try:
        print(f"{stamp(Path(arguments[0]))} records stamped")
    except (ValueError, OSError) as error:
        print(f"stamp: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
