"""Presets: which models, methods, data and settings a table is filled with.

`tiny` runs anywhere in minutes, `small` is a real model on a CPU, and `paper` is the paper's
protocol (Table 3). No setting was chosen by looking at MixLoRA's results: `tiny` and `small` differ
from Table 3 to be fast enough on a CPU, and `tiny`'s learning rate and batch were chosen on LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.names import choose

from .methods import BASE, METHOD_TITLES
from .spec import TrainSettings

_ALL_METHODS = tuple(METHOD_TITLES)


def _adapters(rank: int, expert_rank: int, dropout: float) -> dict[str, dict[str, Any]]:
    """Settings of every method; lora_alpha is twice the rank throughout (Table 3)."""
    lora = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": dropout}
    mixture = {
        "r": expert_rank,
        "lora_alpha": 2 * expert_rank,
        "lora_dropout": dropout,
        "num_experts": 8,
        "top_k": 2,
        "router_aux_loss_coef": 1e-3,
    }
    return {"lora": lora, "dora": lora, "mixlora": mixture, "mixdora": mixture}


@dataclass(frozen=True)
class Preset:
    """What a table is filled with unless the command line says otherwise.

    Attributes:
        name: name on the command line.
        models: names of models, of those in `harness.models.weights.MODELS`.
        methods: names of the methods that are run by default.
        scoring: how answers are scored, "label" or "choice".
        dtype: data type of the frozen weights, for example "bfloat16".
        bundled_data: whether rows come from the bundled miniature; otherwise they come from the hub
            or --data-dir.
        train: how cells are tuned.
        adapters: name of a method -> its settings.
        gradient_checkpointing: whether training recomputes activations to save memory, which
            changes no number.
        checkpoint_steps: number of steps after which a training's state is written; 0 for never.
        efficiency: options of the efficiency tables that ``--table all`` makes, one mapping of
            field name to value a table.
    """

    name: str
    models: tuple[str, ...]
    scoring: str
    dtype: str
    bundled_data: bool
    methods: tuple[str, ...] = _ALL_METHODS
    train: TrainSettings = field(default_factory=TrainSettings)
    adapters: dict[str, dict[str, Any]] = field(default_factory=lambda: _adapters(80, 16, 0.05))
    gradient_checkpointing: bool = False
    checkpoint_steps: int = 0
    efficiency: tuple[Mapping[str, Any], ...] = ()


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny",
            models=("tiny",),
            # Models of these sizes answer by letter at chance, tuned or not.
            scoring="choice",
            dtype="float32",
            bundled_data=True,
            # The ranks have the paper's ratio of 5 to 1 at a quarter of its size. There is one
            # epoch and no dropout, whose masks would take a fifth of the time: the table is to take
            # three minutes.
            train=TrainSettings(epochs=1, learning_rate=2e-3, batch_size=8),
            adapters=_adapters(20, 4, 0.0),
            # Measuring all rows of the whole model would take most of an hour.
            efficiency=(
                {
                    "shape": "smollm2-135m",
                    "layers": 1,
                    "tokens": (1, 64),
                    "methods": (
                        *("lora", "dora"),
                        *("mixlora/vanilla", "mixlora/shared", "mixlora/fused"),
                    ),
                },
            ),
        ),
        Preset(
            name="small",
            models=("smollm2-135m",),
            scoring="choice",
            dtype="float32",
            bundled_data=False,
            # One epoch in place of Table 3's two: on a CPU an epoch of 128 rows takes a minute.
            train=TrainSettings(epochs=1),
            # Without it a batch of 16 long rows of PIQA took 24 GB under DoRA.
            gradient_checkpointing=True,
            # A few minutes of work are lost at most; the file has a third of a gigabyte.
            checkpoint_steps=25,
            efficiency=({"shape": "smollm2-135m"},),
        ),
        Preset(
            name="paper",
            models=("gemma-2b", "llama2-7b", "llama3-8b", "llama2-13b"),
            # The paper has no untuned rows; `--methods base,lora,...` adds them.
            methods=tuple(name for name in _ALL_METHODS if name != BASE),
            scoring="label",
            dtype="bfloat16",
            bundled_data=False,
            # Table 3's batch of 16, in 8 accumulated micro-batches.
            train=TrainSettings(batch_size=16, accumulation=8),
            # The state of LLaMA-2 7B has 2.4 GB: 203 M parameters and their two moments in float32.
            checkpoint_steps=100,
            efficiency=(
                {"shape": "llama2-7b", "layers": 32},
                {"shape": "gemma-2b", "layers": 18},
            ),
        ),
    )
}


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: There is none; the message suggests near names.
    """
    return PRESETS[choose("preset", name, PRESETS)]
