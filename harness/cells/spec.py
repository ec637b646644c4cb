"""A cell of a table as data: what is run (`RunSpec`), on which exact inputs (`Fingerprints`)."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from ..options import Options, option

#: Raised by one when a change of the code can change a number: cells with a record of an older
#: version are then run again.
RESULTS_VERSION = 3

#: What scores a cell: `tasks.scoring`, or lm-evaluation-harness (`harness.run.lm_eval`).
OWN, LM_EVAL = "own", "lm-eval"
EVALUATORS = (OWN, LM_EVAL)

#: Where cells are run: in this process, one after the other, or as tasks of a Ray cluster.
LOCAL, RAY = "local", "ray"
EXECUTORS = (LOCAL, RAY)


#: What becomes of a mixture's router in training.
TRAINED, FROZEN, UNIFORM = "trained", "frozen", "uniform"

#: The rows that a cell is scored on: its tasks' own, or those cut from the training split.
EVALUATION, VALIDATION = "evaluation", "validation"


@dataclass(frozen=True)
class TrainSettings:
    """How a cell is fine-tuned.

    Attributes:
        epochs: number of passes over the training rows.
        learning_rate: AdamW's learning rate, constant and without warm-up.
        batch_size: number of rows per optimiser step.
        accumulation: number of micro-batches that a step is split into. The result is the same but
            for rounding, for dropout, whose masks are drawn per micro-batch, and for the auxiliary
            loss, which is balanced per micro-batch.
        cutoff: greatest length of a row in tokens; a longer prompt loses its beginning.
        weight_decay: AdamW's weight decay, applied to all adapter parameters.
        group_by_length: whether batches are made of rows of like length, to save padding, and then
            shuffled.
        router: what becomes of a mixture's router: it is "trained"; "frozen" as it was drawn at
            random; or "uniform": it selects the experts, and each selected one has the weight 1/K.
        router_rate_factor: factor on the learning rate of a mixture's router.
        lora_plus_ratio: learning rate of B divided by that of A (LoRA+, arXiv 2402.12354); None for
            the same rate.
    """

    epochs: int = 2
    learning_rate: float = 2e-4
    batch_size: int = 16
    accumulation: int = 1
    cutoff: int = 512
    weight_decay: float = 0.01
    group_by_length: bool = True
    router: str = TRAINED
    router_rate_factor: float = 1.0
    lora_plus_ratio: float | None = None

    @property
    def micro_batch_size(self) -> int:
        """Rows per forward pass."""
        return self.batch_size // self.accumulation


#: The fields of `TrainSettings` that were added later.
_LATER_SETTINGS = ("router", "router_rate_factor", "lora_plus_ratio")


def hashable(value: Any) -> Any:
    """A setting's value with tuples in place of lists.

    Raises:
        ValueError: It holds a table, which no setting of a cell can be.
    """
    if isinstance(value, list | tuple):
        return tuple(hashable(each) for each in value)
    if isinstance(value, dict):
        raise ValueError(f"{value!r}: expected text, a number, true or false, or a list of them")
    return value


@dataclass(frozen=True)
class RunSpec:
    """One cell: a model tuned by one method on some tasks and scored on them.

    Attributes:
        model: name of the model, which for the paper's models is that in reported.csv.
        method: name of the method; "base" is not tuned.
        train_tasks: names of the tasks trained on, none for the base.
        eval_tasks: names of the tasks scored.
        seed: seed of initialisation, dropout and data order; 0 for the base, which uses none.
        scoring: how answers are scored, "label" or "choice".
        data: where rows come from: "bundled", "hub" or "directory".
        limit_train: number of training rows taken per task; None for all.
        limit_eval: number of scored rows taken per task; None for all.
        dtype: data type of the frozen weights: "float32", "bfloat16" or "float16".
        device: kind of device: "cpu", "cuda" or "mps".
        adapter: settings of the method as (name, value) pairs, sorted by name.
        train: how the cell is tuned; None for the base.
        expert_load: whether the tokens that each expert gets are counted as well.
        evaluator: what scores the cell, "own" (`tasks.scoring`) or "lm-eval".
        quantize: what the frozen weights are quantised to, "4bit" or "8bit"; None for nothing.
        quirks: names of the `quirks.QUIRKS` that are on and make a difference to the cell.
        packed_with: titles of the cells that it is trained together with, on which rounding and
            dropout masks depend.
        validation: which rows of each training split are cut as validation rows and not trained on:
            their share, and the least number of them (see `tasks.data.split_validation`); None for
            none.
        scored_on: the rows that are scored, "evaluation" or "validation".
    """

    model: str
    method: str
    train_tasks: tuple[str, ...]
    eval_tasks: tuple[str, ...]
    seed: int
    scoring: str
    data: str
    limit_train: int | None
    limit_eval: int | None
    dtype: str
    device: str
    adapter: tuple[tuple[str, Any], ...]
    train: TrainSettings | None
    expert_load: bool = False
    evaluator: str = OWN
    quantize: str | None = None
    quirks: tuple[str, ...] = ()
    packed_with: tuple[str, ...] = ()
    validation: tuple[float, int] | None = None
    scored_on: str = EVALUATION

    @property
    def is_mixture(self) -> bool:
        """Whether the method has experts."""
        return "num_experts" in dict(self.adapter)

    @property
    def varied(self) -> str:
        """The settings of a mixture that tables vary, "r 16 a 0.001"; "" for other methods."""
        if not self.is_mixture:
            return ""
        settings = dict(self.adapter)
        return f"r {settings['r']} a {settings['router_aux_loss_coef']:g}"

    @property
    def title(self) -> str:
        """Short text for progress and messages."""
        how = ""
        if self.train is not None and self.validation is not None:
            router = "" if self.train.router == TRAINED else f"{self.train.router} router "
            how = f"{router}lr {self.train.learning_rate:g}"
        parts = (self.method, self.varied, how, self.quantize, *self.quirks)
        method = " ".join(filter(None, parts))
        by = "" if self.evaluator == OWN else f" by {self.evaluator}"
        return f"{self.model} {method} {'+'.join(self.eval_tasks)} seed {self.seed}{by}"

    def to_json(self) -> dict[str, Any]:
        """The fields in plain JSON types.

        Fields with a default were added later, and of the training settings `_LATER_SETTINGS`. They
        are left out where they have it, so that the ids of cells stored before stay as they are.
        """
        data = json.loads(json.dumps(dataclasses.asdict(self)))
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == field.default:
                del data[field.name]
        if self.train is not None:
            for name in _LATER_SETTINGS:
                if getattr(self.train, name) == getattr(TrainSettings, name):
                    del data["train"][name]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunSpec:
        """The inverse of `to_json`.

        Raises:
            TypeError: Fields are missing or unknown.
        """
        values = dict(data)
        values["train_tasks"] = tuple(data["train_tasks"])
        values["eval_tasks"] = tuple(data["eval_tasks"])
        values["adapter"] = tuple((name, hashable(value)) for name, value in data["adapter"])
        if "validation" in data:
            values["validation"] = tuple(data["validation"])
        for name in ("quirks", "packed_with"):
            values[name] = tuple(data.get(name, ()))
        values["train"] = None if data["train"] is None else TrainSettings(**data["train"])
        return cls(**values)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I from 1 to N, as 1/4")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class RunOptions(Options):
    """How cells are run, which is no part of what they are.

    Their results are the same but for rounding, and for what the help of an option names.
    """

    GROUP: ClassVar[str] = "how cells are run"

    gradient_checkpointing: bool = option(
        False,
        "train in less memory and more time, to the same numbers",
        of_preset=True,
        absent="the preset's; small does",
    )
    packed: int = option(
        1,
        "train up to N cells together, MixLoRA's or MixDoRA's of the same model and settings",
        read=int,
        least=1,
        metavar="N",
        absent="1: each alone",
    )
    checkpoint_steps: int = option(
        0,
        "write the state of a training every N steps and at its end, so that a killed run goes on "
        "from there; 0 never",
        read=int,
        least=0,
        metavar="N",
        of_preset=True,
        absent="tiny 0, small 25, paper 100",
    )
    auto_batch: bool = option(
        False,
        "where a training runs out of memory, begin it again with half the micro-batch and twice "
        "the accumulation: the same result but for dropout and the auxiliary loss",
    )
    shard: tuple[int, int] = option(
        (1, 1),
        "run every N-th cell (pack) from the I-th on, as one of N jobs of an array",
        read=_shard,
        metavar="I/N",
        absent="all cells",
    )
    executor: str = option(
        LOCAL,
        "where cells are run: in this process, or as tasks of the Ray cluster of RAY_ADDRESS (of "
        "one started here without it), each with a GPU where the device is cuda",
        known=EXECUTORS,
    )
    cpus_per_cell: int | None = option(
        None,
        "CPUs and threads of a cell that Ray runs; rounding depends on them",
        read=int,
        metavar="N",
        absent="as many threads as here",
    )

    def __post_init__(self) -> None:
        cpus = self.cpus_per_cell
        if cpus is not None and (cpus < 1 or self.executor == LOCAL):
            raise ValueError(f"cpus-per-cell is {cpus}: expected at least 1, and --executor {RAY}")


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of everything outside a `RunSpec` that can change its result.

    Attributes:
        train_data: hash of the training rows taken; "" for the base.
        eval_data: hash of the scored rows taken.
        model: hash of the weights: SHA-256 of the files, or the hub's commit.
        prompts: hash of the prompts' wording.
        results_version: `RESULTS_VERSION` of the code.
    """

    train_data: str
    eval_data: str
    model: str
    prompts: str
    results_version: int = RESULTS_VERSION

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Fingerprints:
        """The fingerprints in a stored file, which must have each of them.

        Raises:
            ValueError: One is missing, or there are more.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if sorted(data) != sorted(names):
            raise ValueError(f"fingerprints: expected {', '.join(names)}")
        return cls(**data)


def cell_id(spec: RunSpec, fingerprints: Fingerprints) -> str:
    """Content hash that names a cell's record, 20 hex digits."""
    content = [spec.to_json(), dataclasses.asdict(fingerprints)]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]
