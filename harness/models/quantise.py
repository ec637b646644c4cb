"""Quantised frozen weights, by bitsandbytes. torch is loaded with the model, not before."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

#: LLM.int8 (arXiv 2208.07339), and QLoRA's NF4 with double quantisation (arXiv 2305.14314).
QUANTIZATIONS = ("4bit", "8bit")


def check_quantize(quantize: str | None) -> None:
    """Refuse a quantisation that cannot be had; None, for none, can always be had.

    Raises:
        ValueError: The name is unknown, or bitsandbytes is not installed.
    """
    if quantize is None:
        return
    if quantize not in QUANTIZATIONS:
        raise ValueError(f"unknown quantize {quantize!r}; known: {', '.join(QUANTIZATIONS)}")
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantize is {quantize}: bitsandbytes is not installed; pip install -e '.[quant]'"
        )


def quantize_options(quantize: str | None, dtype: str, device: str) -> dict[str, Any]:
    """Returns arguments of ``from_pretrained`` that quantise a model as it is loaded.

    All linear layers but the head are quantised, on the device where they are to stay. They compute
    in `dtype`.

    Raises:
        ValueError: See `check_quantize`.
    """
    check_quantize(quantize)
    if quantize is None:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    # Otherwise bitsandbytes warns at every 8-bit layer that its inputs are quantised.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    config = BitsAndBytesConfig(load_in_8bit=True)
    if quantize == "4bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    return {"quantization_config": config, "device_map": {"": device}}
