"""Rows for the task configs: a local directory, or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixlora.messages import one_line

_FORMATS = {".jsonl": "json", ".jsonl.gz": "json", ".parquet": "parquet"}


class DataError(ValueError):
    """The local rows of a task are not where they are expected."""


def load(
    *,
    directory: str,
    split: str,
    hub_path: str,
    hub_name: str | None = None,
    hub_revision: str | None = None,
    data_dir: str | None = None,
    **others: Any,
) -> dict[str, Any]:
    """The split that a task scores, as lm-eval's ``custom_dataset``.

    Args:
        directory: Name of the task's folder in a local data directory.
        split: Name of the split.
        hub_path, hub_name, hub_revision: Where the hub has it.
        data_dir: Root of local data, of ``--metadata data_dir=DIR``:
            ``DIR/<directory>/<split>.jsonl``, ``.jsonl.gz`` or ``.parquet``; None takes the hub.
        **others: lm-eval passes all of ``--metadata`` and ``--model_args``.

    Returns:
        {split: its rows, a `datasets.Dataset`}.

    Raises:
        DataError: The local split is not there, there more than once, or cannot be read.
    """
    import datasets

    if data_dir is None:
        rows = datasets.load_dataset(hub_path, hub_name, revision=hub_revision, split=split)
        return {split: rows}
    stem = Path(str(data_dir), directory, split)
    files = {Path(f"{stem}{end}"): kind for end, kind in _FORMATS.items()}
    found = {file: kind for file, kind in files.items() if file.exists()}
    if len(found) != 1:
        names = " and ".join(file.name for file in found) or "none"
        raise DataError(f"expected one of {stem}.jsonl, .jsonl.gz and .parquet, found {names}")
    ((file, kind),) = found.items()
    try:
        return {split: datasets.load_dataset(kind, data_files=str(file), split="train")}
    # The reader of each format has exceptions of its own, wrapped once more in others.
    except Exception as error:
        reason = one_line(error.__cause__ or error)[:200]
        raise DataError(f"{file}: cannot be read ({reason or type(error).__name__})") from error
