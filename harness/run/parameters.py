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


#: Method with DoRA -> the same method without DoRA's magnitudes.
_WITHOUT_MAGNITUDES = {"dora": "lora", "mixdora": "mixlora"}


def count_cell(spec: RunSpec) -> tuple[int, int]:
    """(trainable, frozen) parameters of a cell's model and method."""
    return _count(spec.model, spec.method, spec.adapter)


def count_paper(model: str, method: str, rank: int) -> tuple[int, int]:
    """(trainable, frozen) parameters of one of the paper's models, with Table 3's settings.

    Args:
        model: Key of `SHAPES`.
        method: Name in `harness.cells.methods`.
        rank: Rank of the adapters. lora_alpha, on which no count depends, is twice that.
    """
    adapter = get_preset("paper").adapters[method] | {"r": rank, "lora_alpha": 2 * rank}
    return _count(model, method, tuple(sorted(adapter.items())))


def count_magnitudes(model: str, method: str, rank: int) -> int:
    """How many of `count_paper`'s trainable parameters are DoRA magnitudes."""
    plain = _WITHOUT_MAGNITUDES.get(method, method)
    return count_paper(model, method, rank)[0] - count_paper(model, plain, rank)[0]


def paper_percent(model: str, method: str, rank: int) -> float:
    """A "# Params" cell: parameters in percent of the model's nominal size.

    DoRA's magnitudes are left out: the paper does not count them (and the released code does not
    train them).

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
    # Adapters are in the decoder layers alone, which are all alike, so one layer is enough. PEFT
    # would take ten seconds for forty.
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
