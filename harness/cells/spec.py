"""A cell of a table as data: what is run (`RunSpec`), on which exact inputs (`Fingerprints`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

#: Raised when a change of the code can change a number: records of older versions are run again.
RESULTS_VERSION = 3

#: What scores a cell: `tasks.scoring`, or lm-evaluation-harness (`harness.run.lm_eval`).
OWN, LM_EVAL = "own", "lm-eval"
EVALUATORS = (OWN, LM_EVAL)

#: Where cells are run: in this process, one after the other, or as tasks of a Ray cluster.
LOCAL, RAY = "local", "ray"
EXECUTORS = (LOCAL, RAY)


@dataclass(frozen=True)
class TrainSettings:
    """How a cell is fine-tuned.

    Attributes:
        epochs: Passes over the training rows.
        learning_rate: Constant, without warm-up.
        batch_size: Rows per optimiser step.
        accumulation: Micro-batches a step is split into; the result is the same but for rounding,
            dropout, whose masks are drawn per micro-batch, and the auxiliary loss, which is
            balanced per micro-batch.
        cutoff: Longest row in tokens; a longer prompt loses its beginning.
        weight_decay: Of AdamW, on all adapter parameters.
        group_by_length: Batches of like length, shuffled among themselves, to save padding.
    """

    epochs: int = 2
    learning_rate: float = 2e-4
    batch_size: int = 16
    accumulation: int = 1
    cutoff: int = 512
    weight_decay: float = 0.01
    group_by_length: bool = True

    @property
    def micro_batch_size(self) -> int:
        """Rows per forward pass."""
        return self.batch_size // self.accumulation


@dataclass(frozen=True)
class RunSpec:
    """One cell: a model tuned by one method on some tasks and scored on them.

    Attributes:
        model: Name of the model, as in reported.csv for the paper's.
        method: Name of the method; "base" is not tuned.
        train_tasks: Tasks trained on, empty for the base.
        eval_tasks: Tasks scored.
        seed: Of initialisation, dropout and data order; 0 for the base, which uses none.
        scoring: "label" or "choice".
        data: Where rows come from: "bundled", "hub", or "directory".
        limit_train: Training rows taken per task, None for all.
        limit_eval: Scored rows taken per task, None for all.
        dtype: Of the frozen weights: "float32", "bfloat16" or "float16".
        device: Kind of device: "cpu", "cuda" or "mps".
        adapter: The method's own settings, sorted (name, value) pairs.
        train: How it is tuned; None for the base.
        expert_load: Whether the experts that tokens go to are counted as well.
        evaluator: What scores it, "own" (`tasks.scoring`) or "lm-eval".
        quantize: Bits that the frozen weights are quantised to, "4bit" or "8bit"; None for none.
        quirks: Those of `quirks.QUIRKS` that are on and concern the cell.
        packed_with: Titles of the cells it is trained together with, on which rounding and dropout
            masks depend.
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
        method = " ".join(filter(None, (self.method, self.varied, self.quantize, *self.quirks)))
        by = "" if self.evaluator == OWN else f" by {self.evaluator}"
        return f"{self.model} {method} {'+'.join(self.eval_tasks)} seed {self.seed}{by}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; without what came later where it is the default, so that ids stay."""
        data = json.loads(json.dumps(dataclasses.asdict(self)))
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == field.default:
                del data[field.name]
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
        values["adapter"] = tuple((name, value) for name, value in data["adapter"])
        for name in ("quirks", "packed_with"):
            values[name] = tuple(data.get(name, ()))
        values["train"] = None if data["train"] is None else TrainSettings(**data["train"])
        return cls(**values)


@dataclass(frozen=True)
class RunOptions:
    """How cells are run; no part of what they are.

    Attributes:
        gradient_checkpointing: Train in less memory and more time, to the same numbers.
        packed: Most cells trained together; those that are say so in `RunSpec.packed_with`.
        checkpoint_steps: Steps after which a training's state is written; 0 for never.
        auto_batch: Where a training runs out of memory, begin it again with micro-batches of half
            the rows and twice as many of them, down to one row. See `TrainSettings.accumulation`.
        shard: (i, n) to run every n-th pack from the i-th on, counted from 1.
        executor: "local" or "ray".
        cpus_per_cell: CPUs, and torch's threads, of a pack that Ray runs; None for as many threads
            as torch has in this process. Rounding depends on it.
    """

    gradient_checkpointing: bool = False
    packed: int = 1
    checkpoint_steps: int = 0
    auto_batch: bool = False
    shard: tuple[int, int] = (1, 1)
    executor: str = LOCAL
    cpus_per_cell: int | None = None


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of everything outside a `RunSpec` that can change its result.

    Attributes:
        train_data: Of the training rows taken, "" for the base.
        eval_data: Of the scored rows taken.
        model: Of the weights: SHA-256 of the files, or the hub's commit.
        prompts: Of the prompts' wording.
        results_version: `RESULTS_VERSION` of the code.
    """

    train_data: str
    eval_data: str
    model: str
    prompts: str
    results_version: int = RESULTS_VERSION

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Fingerprints:
        """Those of a stored file, which has them all.

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
