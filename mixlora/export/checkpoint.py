"""The transformers format: safetensors files, config.json and what belongs beside them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from .folder import Result, card, carry_over, new_folder
from .plan import Planned, plan
from .sources import DTYPES
from .targets import TARGETS, Target

if TYPE_CHECKING:
    from . import Source

#: Names that a caller may give.
NAMES = ("float32", "bfloat16", "float16")
_CODES = {dtype: code for code, dtype in DTYPES.items()}

_USAGE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this directory")
tokenizer = AutoTokenizer.from_pretrained("this directory")
```
"""


def write(source: Source, to: Path, dtype: str | None, largest_file: int) -> Result:
    """Write a transformers checkpoint; see `mixlora.export.export` for the arguments.

    Raises:
        ValueError: It cannot be exported, or dtype is unknown.
        OSError: It cannot be written; nothing is left.
    """
    if dtype is not None and dtype not in NAMES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(NAMES)}")
    target = TARGETS[source.base_config.model_type]
    planned = plan(source, target.biases, target.architecture)
    kind = source.base.dtype(planned[0].name) if dtype is None else getattr(torch, dtype)
    if kind not in _CODES:
        raise ValueError(f"the base is of {kind}: give dtype, one of {', '.join(NAMES)}")
    planned = list(_with_silent_experts(planned, target, kind))
    config: Any = target.config(source.base_config, source.adapter_config)
    config.vocab_size = planned[0].shape[0]
    config.dtype = kind
    num_parameters = sum(_count(each) for each in planned)
    if config.tie_word_embeddings:
        # transformers and vLLM would tie it; SGLang would leave the head as it was initialised.
        embedding = planned[0]
        planned.append(Planned("lm_head.weight", embedding.shape, embedding.make))
    shards = _split(planned, kind, largest_file)
    num_bytes = sum(_count(each) for each in planned) * kind.itemsize
    with new_folder(to, num_bytes) as folder:
        names = _file_names(len(shards))
        progress = tqdm(total=num_bytes, unit="B", unit_scale=True, disable=None, desc="export")
        with progress:
            for name, shard in zip(names, shards, strict=True):
                _write_file(folder / name, shard, target, kind, progress)
        if len(names) > 1:
            weights = {
                target.rename(each.name): name
                for name, shard in zip(names, shards, strict=True)
                for each in shard
            }
            index = {"metadata": {"total_size": num_bytes}, "weight_map": weights}
            _write_json(folder / "model.safetensors.index.json", index)
        carry_over(source.files, folder)
        text = card(source, target.architecture, str(kind)[6:], num_parameters, _USAGE)
        (folder / "README.md").write_text(text, encoding="utf-8")
        # Nothing takes a directory for a model without it, so it comes last.
        _write_json(folder / "config.json", _settings(config))
    return Result(to, [to / name for name in names], num_bytes, num_parameters)


def _settings(config: Any) -> dict[str, Any]:
    """config.json, with the names that transformers 4 and servers of its time know as well."""
    settings = config.to_diff_dict() | {"model_type": config.model_type}
    if "num_local_experts" in settings and config.model_type != "mixtral":
        settings["num_experts"] = settings["num_local_experts"]
    rope = dict(config.rope_parameters)
    settings |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": settings["dtype"]}
    if rope["rope_type"] != "default":
        settings["rope_scaling"] = rope
    return settings


def _with_silent_experts(
    planned: list[Planned], target: Target, dtype: torch.dtype
) -> Iterator[Planned]:
    for each in planned:
        yield each
        if each.name.endswith(".mlp.gate.weight"):
            block = each.name.removesuffix("gate.weight")
            for name, shape in target.silent_expert(each.shape[1]):
                yield Planned(block + name, shape, partial(torch.zeros, shape, dtype=dtype))


def _count(each: Planned) -> int:
    return torch.Size(each.shape).numel()


def _split(planned: list[Planned], dtype: torch.dtype, largest_file: int) -> list[list[Planned]]:
    """Tensors in files of at most so many bytes, each file with one at least."""
    shards: list[list[Planned]] = [[]]
    filled = 0
    for each in planned:
        size = _count(each) * dtype.itemsize
        if shards[-1] and filled + size > largest_file:
            shards.append([])
            filled = 0
        shards[-1].append(each)
        filled += size
    return shards


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _write_file(
    file: Path, shard: list[Planned], target: Target, dtype: torch.dtype, progress: Any
) -> None:
    """A safetensors file, one tensor after the other: the library's own writer takes all at once.

    Format: github.com/huggingface/safetensors, README, "Format".
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for each in shard:
        stop = start + _count(each) * dtype.itemsize
        header[target.rename(each.name)] = {
            "dtype": _CODES[dtype],
            "shape": each.shape,
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for each in shard:
            data = _bytes(each, dtype)
            stream.write(data)
            progress.update(len(data))


def _bytes(each: Planned, dtype: torch.dtype) -> Any:
    """A tensor's data, computed and rounded.

    Raises:
        ValueError: It has values that the data type cannot hold.
    """
    tensor: Tensor = each.make()
    rounded = tensor.to("cpu", dtype).contiguous()
    if tuple(rounded.shape) != each.shape:
        raise ValueError(f"{each.name} has shape {tuple(rounded.shape)}: expected {each.shape}")
    check_finite(each.name, tensor, rounded)
    return rounded.view(torch.uint8).numpy().reshape(-1).data


def check_finite(name: str, tensor: Tensor, rounded: Tensor) -> None:
    """Refuse values that became infinite by rounding.

    Raises:
        ValueError: There are some.
    """
    if rounded.dtype == torch.float16 and not rounded.isfinite().all() and tensor.isfinite().all():
        raise ValueError(
            f"{name} has {float(tensor.abs().max()):g}, which float16 cannot hold: choose another "
            "dtype"
        )


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
