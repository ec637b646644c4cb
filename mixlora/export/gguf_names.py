"""What GGUF calls tensors, and the order in which llama.cpp's rotary embedding wants rows."""

from __future__ import annotations

from torch import Tensor


class GgufNames:
    """Names in a GGUF file of the tensors of a transformers checkpoint.

    Args:
        arch: GGUF's name of the architecture.
        num_layers: Number of decoder layers.

    Raises:
        ValueError: gguf does not know the architecture.
    """

    def __init__(self, arch: str, num_layers: int) -> None:
        import gguf

        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        if arch not in kinds:
            raise ValueError(f"general.architecture={arch!r}: gguf does not know it")
        self._map = gguf.get_tensor_name_map(kinds[arch], num_layers)

    def find(self, name: str) -> str:
        """GGUF's name; empty if there is none."""
        return self._map.get_name(name, try_suffixes=(".weight", ".bias")) or ""


def to_interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection, (heads * 2 * n, ...), as llama.cpp's llama rotates them.

    transformers rotates row i of a head with row i + n, llama.cpp rows 2i and 2i + 1.
    """
    half = tensor.shape[0] // heads // 2
    return tensor.unflatten(0, (heads, 2, half)).transpose(1, 2).reshape(tensor.shape)


def to_neox(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `to_interleaved`."""
    half = tensor.shape[0] // heads // 2
    return tensor.unflatten(0, (heads, half, 2)).transpose(1, 2).reshape(tensor.shape)
