"""Loads the rows of the task configs, from a local directory or from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixlora.messages import one_line

_FORMATS = {".jsonl": "json", ".jsonl.gz": "json", ".parquet": "parquet"}


class DataError(ValueError):
    """The local file of a task's rows is missing or cannot be read."""


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
    """Return the split that a task scores; lm-eval calls this as its ``custom_dataset``.

    Args:
        directory: Name of the task's folder in a local data directory.
        split: Name of the split.
        hub_path: Repository of the data set on the Hugging Face hub.
        hub_name: Configuration of the data set; None where it has one only.
        hub_revision: Commit of the repository; None takes the newest.
        data_dir: Root of a local data directory, from ``--metadata data_dir=DIR``. The rows are
            read from ``DIR/<directory>/<split>.jsonl``, ``.jsonl.gz`` or ``.parquet``. None loads
            them from the hub.
        **others: Further entries of ``--metadata`` and ``--model_args``, which lm-eval passes to
            every data set; they are not used.

    Returns:
        A dict with one entry: the name of the split and its rows, a `datasets.Dataset`.

    Raises:
        DataError: The local split is missing, there are two files of it, or it cannot be read.
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
    # The reader of each format raises its own exceptions, which datasets wraps in others.
    except Exception as error:
        reason = one_line(error.__cause__ or error)[:200]
        raise DataError(f"{file}: cannot be read ({reason or type(error).__name__})") from error
