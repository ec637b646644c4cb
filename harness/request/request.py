"""What the user asked for, checked: a preset with the command line's changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks import TASK_NAMES
from tasks.base import SCORINGS
from tasks.names import choose

from ..cells.methods import BASE, METHOD_TITLES
from ..cells.presets import Preset
from ..cells.quirks import chosen_quirks, concerning
from ..cells.spec import EVALUATORS, OWN, RunSpec
from ..models.quantise import QUANTIZATIONS
from ..models.weights import DTYPES
from .command_line import chosen, command

#: The forwards of `mixlora.config.FORWARDS`, named here too because that module loads torch.
FORWARDS = ("vanilla", "shared", "fused")

#: What NumPy takes as a seed, and so transformers' `set_seed`.
SEEDS = range(2**32)


@dataclass(frozen=True)
class Request:
    """What to fill a table with; every name is known and every number in range.

    Attributes:
        preset: Where models, settings and defaults come from.
        models, methods, tasks: Names, in the tables' order.
        seeds: Of the tuned cells.
        scoring: "label" or "choice".
        data: "bundled", "hub" or "directory".
        limit_train, limit_eval: Rows taken per task, None for all.
        dtype: Of the frozen weights.
        device: "cpu", "cuda" or "mps".
        forward: How MixLoRA is computed.
        quirks: Of the released code, that cells are run with.
        evaluator: "own" or "lm-eval".
        quantize: "4bit", "8bit" or None, of the frozen weights.
        skip_bad_rows: Leave out rows that cannot be used; no part of a cell.
    """

    preset: Preset
    models: tuple[str, ...]
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    scoring: str
    data: str
    limit_train: int | None
    limit_eval: int | None
    dtype: str
    device: str
    forward: str
    quirks: tuple[str, ...]
    evaluator: str
    quantize: str | None
    skip_bad_rows: bool

    @classmethod
    def make(
        cls,
        preset: Preset,
        *,
        models: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        seeds: Sequence[int] = (0,),
        scoring: str | None = None,
        data: str = "hub",
        limit_train: int | None = None,
        limit_eval: int | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        forward: str = "fused",
        protocol: str = "clean",
        quirks: Sequence[str] = (),
        evaluator: str = OWN,
        quantize: str | None = None,
        skip_bad_rows: bool = False,
    ) -> Request:
        """A request; None takes the preset's value.

        Raises:
            ValueError: A name is unknown (the message suggests near ones), or a number not allowed.
        """
        for name, limit in (("limit-train", limit_train), ("limit-eval", limit_eval)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}: expected at least 1")
        if not seeds or not all(seed in SEEDS for seed in seeds) or len(set(seeds)) < len(seeds):
            raise ValueError(
                f"seeds are {list(seeds)}: expected distinct whole numbers from 0 to {SEEDS[-1]}"
            )
        return cls(
            preset=preset,
            models=chosen("model", models, preset.models),
            methods=chosen("method", methods, tuple(METHOD_TITLES), preset.methods),
            tasks=chosen("task", tasks, TASK_NAMES),
            seeds=tuple(seeds),
            scoring=choose("scoring", scoring or preset.scoring, SCORINGS),
            data=data,
            limit_train=limit_train,
            limit_eval=limit_eval,
            dtype=choose("dtype", dtype or preset.dtype, DTYPES),
            device=device,
            forward=choose("forward", forward, FORWARDS),
            quirks=chosen_quirks(protocol, quirks),
            evaluator=choose("evaluator", evaluator, EVALUATORS),
            quantize=None if quantize is None else choose("quantize", quantize, QUANTIZATIONS),
            skip_bad_rows=skip_bad_rows,
        )

    def command(self, table: str, settings: Sequence[str]) -> str:
        """The command line that makes a table of this.

        Args:
            table: Its name.
            settings: Those asked for, of a table that has several.
        """
        return command(
            table,
            preset=self.preset.name,
            models=self.models,
            methods=self.methods,
            tasks=self.tasks,
            settings=settings or None,
            seeds=self.seeds,
            limit_train=self.limit_train,
            limit_eval=self.limit_eval,
            data_dir="DIR" if self.data == "directory" else None,
            skip_bad_rows=self.skip_bad_rows,
            quirk=self.quirks or None,
            scoring=self.scoring,
            dtype=self.dtype,
            quantize=self.quantize,
            evaluator=None if self.evaluator == OWN else self.evaluator,
            forward=self.forward,
        )

    def cell(
        self,
        model: str,
        method: str,
        train: Sequence[str],
        evaluate: Sequence[str],
        seed: int,
        changes: Mapping[str, Any] | None = None,
        quirks: Sequence[str] = (),
    ) -> RunSpec:
        """One cell with this request's settings; for the base, train and seed do not count.

        Args:
            model: Its name.
            method: Its name.
            train: Tasks trained on.
            evaluate: Tasks scored.
            seed: Of the cell.
            changes: What differs from the preset's settings of the method.
            quirks: Beside the request's own; of all, the cell has those that concern it.
        """
        untuned = method == BASE
        adapter = {} if untuned else dict(self.preset.adapters[method]) | dict(changes or {})
        if method in ("mixlora", "mixdora"):
            adapter["forward"] = self.forward
        spec = RunSpec(
            model=model,
            method=method,
            train_tasks=() if untuned else tuple(train),
            eval_tasks=tuple(evaluate),
            seed=0 if untuned else seed,
            scoring=self.scoring,
            data=self.data,
            limit_train=None if untuned else self.limit_train,
            limit_eval=self.limit_eval,
            dtype=self.dtype,
            device=self.device,
            adapter=tuple(sorted(adapter.items())),
            train=None if untuned else self.preset.train,
            evaluator=self.evaluator,
            quantize=self.quantize,
        )
        return dataclasses.replace(spec, quirks=concerning(spec, {*self.quirks, *quirks}))
