"""Trainable parameters of a cell without weights: the model is built on the meta device."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ..cells.methods import BASE
from ..cells.presets import get_preset
from ..cells.spec import RunSpec
from ..models.shapes import SHAPES, build_meta
from ..models.weights import TINY_BASE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


#: What is left of a method without its DoRA magnitudes.
_WITHOUT_MAGNITUDES = {"dora": "lora", "mixdora": "mixlora"}


def count_cell(spec: RunSpec) -> tuple[int, int]:
    """(trainable, frozen) parameters of a cell's model and method."""
    return _count(spec.model, spec.method, spec.adapter)


def count_paper(model: str, method: str, rank: int) -> tuple[int, int]:
    """(trainable, frozen) of a model of the paper's, with Table 3's settings at a rank.

    Args:
        model: Key of `SHAPES`.
        method: Name in `harness.cells.methods`.
        rank: Of the adapters; lora_alpha, which counts for nothing here, is twice that.
    """
    adapter = get_preset("paper").adapters[method] | {"r": rank, "lora_alpha": 2 * rank}
    return _count(model, method, tuple(sorted(adapter.items())))


def count_magnitudes(model: str, method: str, rank: int) -> int:
    """Of `count_paper`'s trainable parameters, those that are DoRA magnitudes."""
    plain = _WITHOUT_MAGNITUDES.get(method, method)
    return count_paper(model, method, rank)[0] - count_paper(model, plain, rank)[0]


def paper_percent(model: str, method: str, rank: int) -> float:
    """A "# Params" cell: parameters in percent of the model's nominal size, DoRA's magnitudes left
    out, which the paper does not count (and the released code does not train).

    Raises:
        ValueError: The model is not one of the paper's.
    """
    nominal = SHAPES[model].nominal_parameters
    if nominal is None:
        raise ValueError(f"model is {model}: expected one of the paper's, with a nominal size")
    trainable, _ = count_paper(model, method, rank)
    return 100 * (trainable - count_magnitudes(model, method, rank)) / nominal


@cache
def _count(
    model_name: str, method: str, adapter: tuple[tuple[str, object], ...]
) -> tuple[int, int]:
    from .cell import add_adapter, count_parameters

    model = _build(model_name)
    frozen = sum(parameter.numel() for parameter in model.parameters())
    if method == BASE:
        return 0, frozen
    # Adapters sit in the decoder layers alone, which are all alike: one of them tells, and putting
    # adapters into forty takes PEFT ten seconds.
    trainable, _ = count_parameters(add_adapter(_build(model_name, 1), method, dict(adapter)))
    return trainable * model.config.num_hidden_layers, frozen


def _build(model_name: str, num_layers: int | None = None) -> PreTrainedModel:
    if model_name in SHAPES:
        return build_meta(model_name, num_layers)

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    layers: dict[str, Any] = {} if num_layers is None else {"num_hidden_layers": num_layers}
    config = AutoConfig.from_pretrained(TINY_BASE, local_files_only=True, **layers)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
