"""A base that is read from a GGUF file, dequantised one tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..families import FAMILIES
from ..messages import one_line, printable_name
from .gguf_names import GgufNames, to_neox
from .sources import Tensors
from .targets import TARGETS


class InGguf(Tensors):
    """Tensors of a GGUF file under the names of a transformers checkpoint, in float32.

    Args:
        file: The file.

    Attributes:
        config: the transformers configuration that the file's settings amount to.

    Raises:
        ValueError: It cannot be read, or is of an unknown architecture.
    """

    def __init__(self, file: Path) -> None:
        from gguf import GGUFReader
        from transformers import AutoConfig

        try:
            self._reader = GGUFReader(file)
            self.config: Any = AutoConfig.from_pretrained(
                file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
            )
        # Two libraries parse it; a damaged one gives a different exception in each place.
        except Exception as error:
            raise ValueError(f"{file} cannot be read as GGUF: {one_line(error)}") from error
        self._file = file
        kind = self.config.model_type
        if kind not in TARGETS:
            self._by_name: dict[str, Any] = {}  # it is refused for its kind
            return
        arch = self._reader.fields["general.architecture"].contents()
        names = GgufNames(arch, self.config.num_hidden_layers)
        self._permuted = arch == "llama"
        stored = {tensor.name: tensor for tensor in self._reader.tensors}
        stored.pop("rope_freqs.weight", None)  # it goes the way of the settings
        family = FAMILIES[kind]
        inner = [f"self_attn.{name}" for name in (*family.attention, "q_norm", "k_norm")]
        inner += [f"mlp.{name}" for name in family.layout.projections]
        inner += ["input_layernorm", "post_attention_layernorm"]
        modules = ["model.embed_tokens", "model.norm", "lm_head"]
        modules += [
            f"model.layers.{i}.{name}"
            for i in range(self.config.num_hidden_layers)
            for name in inner
        ]
        self._by_name = {}
        for module in modules:
            for end in ("weight", "bias"):
                theirs = names.find(f"{module}.{end}")
                if theirs in stored:
                    self._by_name[f"{module}.{end}"] = stored.pop(theirs)
        if stored:
            raise ValueError(
                f"{file} has {printable_name(min(stored))}, which {kind} has no place for"
            )
        self.config.tie_word_embeddings = "lm_head.weight" not in self._by_name
        self._last: tuple[str, Tensor] | None = None

    @property
    def reader(self) -> Any:
        """gguf's reader of the file, for its settings."""
        return self._reader

    def names(self) -> set[str]:
        return set(self._by_name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self._get(name).shape))

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def read(self, name: str) -> Tensor:
        if self._last is None or self._last[0] != name:
            from gguf.quants import dequantize

            self._last = None
            stored = self._get(name)
            values = dequantize(stored.data, stored.tensor_type).astype("float32")
            tensor = torch.from_numpy(values).reshape(self.shape(name))
            heads = heads_of(name, self.config)
            if self._permuted and heads is not None:
                tensor = to_neox(tensor, heads)
            self._last = name, tensor
        return self._last[1]

    def _get(self, name: str) -> Any:
        if name not in self._by_name:
            raise ValueError(f"{self._file} lacks {printable_name(name)}")
        return self._by_name[name]


def heads_of(name: str, config: Any) -> int | None:
    """How many heads a tensor that is rotated has; None for all others."""
    if ".self_attn.q_proj." in name:
        return config.num_attention_heads
    if ".self_attn.k_proj." in name:
        return config.num_key_value_heads
    return None
