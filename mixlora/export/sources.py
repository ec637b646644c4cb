"""Where the tensors to be exported are read from, one at a time."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..messages import one_line, printable_name

#: What makes a model beside its weights: carried over as it is.
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_BESIDE = ("generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")


class Tensors(ABC):
    """Tensors by name, read when they are asked for."""

    @abstractmethod
    def names(self) -> set[str]:
        """All names."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it.

        Raises:
            ValueError: There is none of that name.
        """

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """A tensor's data type as it is stored."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """A tensor. What was read last is kept, so that it costs nothing to ask again."""


class InMemory(Tensors):
    """Tensors of a model in memory.

    Args:
        tensors: The tensors, or what makes them, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor | Callable[[], Tensor]]) -> None:
        self._tensors = tensors
        self._last: tuple[str, Tensor] | None = None

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.read(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.read(name).dtype

    def read(self, name: str) -> Tensor:
        if self._last is None or self._last[0] != name:
            if name not in self._tensors:
                raise ValueError(f"the model lacks {name}")
            entry = self._tensors[name]
            self._last = name, (entry if isinstance(entry, Tensor) else entry()).detach()
        tensor = self._last[1]
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device (offloaded): export the files instead")
        return tensor


class InFiles(Tensors):
    """Tensors of a directory with safetensors files, one or several.

    Args:
        folder: The directory.
        stem: The file is ``<stem>.safetensors``; ``<stem>.safetensors.index.json`` names several.

    Raises:
        ValueError: There are none, or they cannot be read.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder = folder
        index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        self._places: dict[str, Path] = {}
        if single.is_file():
            files = {single}
        elif index.is_file():
            files = _shards(index)
        else:
            raise ValueError(f"{folder} has no {single.name}: expected weights in safetensors")
        self._about: dict[str, tuple[tuple[int, ...], str]] = {}
        for file in sorted(files):
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
                        part = opened.get_slice(name)
                        self._places[name] = file
                        self._about[name] = tuple(part.get_shape()), part.get_dtype()
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{file} cannot be read: {one_line(error)}") from error
        self._last: tuple[str, Tensor] | None = None

    def names(self) -> set[str]:
        return set(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._get(name)[0]

    def dtype(self, name: str) -> torch.dtype:
        kind = self._get(name)[1]
        if kind not in DTYPES:
            raise ValueError(f"{self._folder} has {name} of {kind}: expected {', '.join(DTYPES)}")
        return DTYPES[kind]

    def read(self, name: str) -> Tensor:
        if self._last is None or self._last[0] != name:
            self._last = None
            self.dtype(name)
            # The file is opened anew each time: what is mapped of it counts as memory until then.
            with safe_open(self._places[name], framework="pt") as opened:
                self._last = name, opened.get_tensor(name)
        return self._last[1]

    def _get(self, name: str) -> tuple[tuple[int, ...], str]:
        if name not in self._about:
            raise ValueError(f"{self._folder} lacks {printable_name(name)}")
        return self._about[name]


#: What safetensors files call the types that an export reads and writes.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


def live_tensors(model: nn.Module) -> dict[str, Tensor | Callable[[], Tensor]]:
    """A model's frozen parameters under the names that they have without adapters."""
    found: dict[str, Tensor | Callable[[], Tensor]] = {}
    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{own}"
            if "lora_" in name:
                continue
            value: Any = parameter
            if type(parameter).__name__ in ("Params4bit", "Int8Params"):
                value = _dequantised(module)
            found[name.replace(".base_layer.", ".")] = value
    return found


def _dequantised(module: nn.Module) -> Callable[[], Tensor]:
    return lambda: dequantize_module_weight(module)


def find_folder(role: str, where: str, revision: str | None) -> Path:
    """A directory on this machine: the one named, or a snapshot of that hub repository.

    Args:
        role: What it is, for messages.
        where: A directory or a hub id.
        revision: commit, tag or branch of the hub repository.

    Raises:
        ValueError: There is none, or the hub does not give it.
    """
    if Path(where).is_dir():
        return Path(where)
    if Path(where).exists() or where.count("/") != 1 or where.startswith((".", "/", "~")):
        raise ValueError(f"{role} {printable_name(where)}: expected a directory or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    patterns = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", *_BESIDE]
    try:
        return Path(snapshot_download(where, revision=revision, allow_patterns=patterns))
    except (OSError, HTTPError, HFValidationError) as error:
        reason = one_line(error)
        raise ValueError(
            f"{role} {printable_name(where)}: the hub does not give it: {reason}"
        ) from error


def tokenizer_files(base: Path, adapter: Path) -> list[Path]:
    """The files to carry over beside the weights.

    An adapter's directory with a tokenizer has the one that it was trained with, so that is taken;
    what is no part of the tokenizer comes from the base.
    """
    folder = adapter if (adapter / "tokenizer_config.json").is_file() else base
    found = [file for pattern in _TOKENIZER for file in sorted(folder.glob(pattern))]
    return found + [file for pattern in _BESIDE for file in sorted(base.glob(pattern))]


def _shards(index: Path) -> set[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is no index with a weight_map: {one_line(error)}") from error
    for name in names:
        # An index is not ours: it names files beside it, and no others.
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index}: {name!r} is no file's name; expected one beside it")
    return {index.parent / name for name in names}
