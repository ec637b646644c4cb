"""Which files a model's weights lie in, and the hash that names them. Torch-free."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

#: Files beside the weights that make the model what it is: with another activation function or
#: tokenizer it gives other numbers.
_COMPANIONS: tuple[str, ...] = ("config.json", "tokenizer.json", "tokenizer_config.json")
_COMPANIONS += (
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


class WeightsError(ValueError):
    """The weights of a model are missing or cannot be used; one line that says what to do."""


def weight_files(path: Path) -> tuple[Path, list[Path]]:
    """The path transformers loads from, and the files there that hold the weights.

    Args:
        path: A directory in the Hugging Face layout with safetensors weights, a directory with one
            GGUF file, or a GGUF file.

    Raises:
        WeightsError: There are none, or they are not in a format that is read.
    """
    if path.is_file() and path.suffix == ".gguf":
        return path, [path]
    if not path.is_dir():
        raise WeightsError(f"{path}: neither a directory nor a .gguf file")
    path = path.resolve()
    if (path / "adapter_config.json").exists():
        raise WeightsError(f"{path} holds a PEFT adapter; the weights of a base model are expected")
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    gguf_files = sorted(path.glob("*.gguf"))
    if single.exists():
        files = [single]
    elif index.exists():
        files = _shards(index)
    elif len(gguf_files) == 1:
        return gguf_files[0], gguf_files
    elif gguf_files:
        raise WeightsError(f"{path} holds {len(gguf_files)} .gguf files; name one of them")
    else:
        pickled = sorted(path.glob("*.bin")) + sorted(path.glob("*.pt*"))
        found = f"{pickled[0].name}, a pickle, is not read; " if pickled else ""
        raise WeightsError(f"{path}: {found}model.safetensors or a .gguf file is expected")
    if not (path / "config.json").exists():
        raise WeightsError(f"{path}: config.json is missing next to {files[0].name}")
    return path, files


def digest(path: Path, files: list[Path]) -> str:
    """SHA-256 of the weights and, in a directory, of what is beside them.

    Args:
        path: The path that `weight_files` gives. A GGUF file has everything within it.
        files: The files of the weights.

    Raises:
        WeightsError: A file cannot be read.
    """
    return _sha256([*files, *(file for name in _COMPANIONS if (file := path / name).is_file())])


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index}: not an index with a weight_map: {error!r}") from error
    for name in names:
        # An index comes from somebody else. It may name files beside it, and no others.
        if not isinstance(name, str) or Path(name).name != name:
            raise WeightsError(f"{index}: {name!r} is no file's name; one beside it is expected")
        if not (index.parent / name).is_file():
            raise WeightsError(f"{index.parent}: {name} is missing, which {index.name} names")
    return [index.parent / name for name in names]


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    try:
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise WeightsError(f"cannot read {error.filename}: {error.strerror}") from error
    return digest.hexdigest()
