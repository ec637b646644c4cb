"""What a command asks of a table of accuracies: its options, and the cells that they come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tasks import TASK_NAMES
from tasks.base import SCORINGS

from .cells.methods import BASE, FORWARDS, METHOD_TITLES
from .cells.presets import PRESETS, Preset, get_preset
from .cells.quirks import PROTOCOLS, QUIRKS, chosen_quirks, concerning
from .cells.spec import EVALUATORS, OWN, RunSpec
from .models.quantise import QUANTIZATIONS
from .models.weights import DTYPES
from .options import NO_NAMES, Options, names, option

#: What NumPy takes as a seed, and so transformers' `set_seed`.
SEEDS = range(2**32)


def whole_numbers(text: str) -> tuple[int, ...]:
    """The numbers in a comma-separated list."""
    return tuple(int(number) for number in text.split(","))


@dataclass(frozen=True)
class Request(Options):
    """Which cells a table is filled with, and where their inputs come from.

    The fields have the preset's values where nothing else was asked for; every name is known and
    every number in range. Made by `of`.
    """

    GROUP: ClassVar[str] = "which cells"

    preset: str = option("tiny", "models, data and settings", known=PRESETS, in_command="always")
    models: tuple[str, ...] = option(
        None, "comma-separated models of the preset", read=names, of_preset=True, absent="all"
    )
    methods: tuple[str, ...] = option(
        None, "comma-separated methods", read=names, known=METHOD_TITLES, of_preset=True
    )
    tasks: tuple[str, ...] = option(None, "comma-separated tasks", read=names, known=TASK_NAMES)
    settings: tuple[str, ...] = option(
        None, "comma-separated settings of the table, beside its main one", read=names
    )
    seeds: tuple[int, ...] = option(
        (0,), "comma-separated seeds of the tuned cells", read=whole_numbers, in_command="always"
    )
    limit_train: int | None = option(
        None, "training rows per task", read=int, least=1, metavar="N", absent="all"
    )
    limit_eval: int | None = option(
        None, "scored rows per task", read=int, least=1, metavar="N", absent="all"
    )
    data_dir: Path | None = option(
        None,
        "local data: DIR/<task>/<split>.jsonl, .jsonl.gz or .parquet",
        read=Path,
        metavar="DIR",
    )
    skip_bad_rows: bool = option(
        False,
        "leave out rows that cannot be used, and count them in the table; they are refused "
        "otherwise",
    )
    model_path: Path | None = option(
        None,
        "local weights of the one model asked for",
        read=Path,
        metavar="DIR",
        in_command="never",
    )
    prompts: Path | None = option(
        None,
        "JSON file {task: {scoring: template}} replacing our prompts",
        read=Path,
        metavar="FILE",
        in_command="never",
    )
    protocol: str = option(
        "clean",
        "with no quirk of the released code, or with all of them",
        known=PROTOCOLS,
        in_command="never",
    )
    quirks: tuple[str, ...] = option(
        (),
        "one quirk of the released code, may be given again",
        read=names,
        repeated=True,
        known=QUIRKS,
        metavar="NAME",
        flag="--quirk",
    )
    scoring: str = option(None, "how answers are scored", known=SCORINGS, of_preset=True)
    dtype: str = option(None, "data type of the frozen weights", known=DTYPES, of_preset=True)
    quantize: str | None = option(
        None,
        "what the frozen weights are quantised to, by bitsandbytes",
        known=QUANTIZATIONS,
        metavar="BITS",
        absent="nothing",
    )
    evaluator: str = option(
        OWN, "what scores the cells; lm-eval's numbers have columns of their own", known=EVALUATORS
    )
    forward: str = option("fused", "how MixLoRA is computed", known=FORWARDS, in_command="always")
    device: str = option(
        "auto", "cpu, cuda, mps or auto: cuda where there is one", in_command="never"
    )
    verify: int | None = option(
        None,
        "run N of the stored cells again, drawn at random, and compare; stores no record",
        read=int,
        metavar="N",
        in_command="never",
    )

    def __post_init__(self) -> None:
        seeds = self.seeds
        if not seeds or not all(seed in SEEDS for seed in seeds) or len(set(seeds)) < len(seeds):
            raise ValueError(
                f"seeds are {list(seeds)}: expected distinct whole numbers from 0 to {SEEDS[-1]}"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any], known: Mapping[str, Sequence[str]] = NO_NAMES) -> Request:
        """The request with the given values, and those of its preset for all others.

        Args:
            given: name of a field -> value, as `Options.make` takes it.
            known: name of a field -> the names that it may hold in the table asked for.

        Raises:
            ValueError: A name is unknown (the message suggests near ones), or a number not allowed.
        """
        preset = get_preset(given.get("preset") or cls.preset)
        made = cls.make(given, preset, {"models": preset.models, **known})
        return dataclasses.replace(made, quirks=chosen_quirks(made.protocol, made.quirks))

    @property
    def preset_settings(self) -> Preset:
        """The preset, for the settings that no option changes."""
        return get_preset(self.preset)

    @property
    def data(self) -> str:
        """Where rows come from: "directory", "bundled" or "hub"."""
        if self.data_dir is not None:
            return "directory"
        return "bundled" if self.preset_settings.bundled_data else "hub"

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
        """One cell with this request's settings. For the base, `train` and `seed` do not count.

        Args:
            model: name of the model.
            method: name of the method.
            train: names of the tasks trained on.
            evaluate: names of the tasks scored.
            seed: seed of the cell.
            changes: settings of the method that differ from the preset's.
            quirks: names of quirks beside the request's own. The cell has those of all these that
                can make a difference to it.
        """
        untuned = method == BASE
        adapter = (
            {} if untuned else dict(self.preset_settings.adapters[method]) | dict(changes or {})
        )
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
            train=None if untuned else self.preset_settings.train,
            evaluator=self.evaluator,
            quantize=self.quantize,
        )
        return dataclasses.replace(spec, quirks=concerning(spec, {*self.quirks, *quirks}))


@dataclass(frozen=True)
class Setting:
    """What a table varies beside model, method and task.

    Attributes:
        name: name in reported.csv: "st" (one task at a time), "mt", "r=16", ...
        title: title printed beside the method; "" in a table of one setting.
        cells: makes the cells of the setting for a request.
    """

    name: str
    title: str
    cells: Callable[[Request], list[RunSpec]]


def single_task(
    changes: Mapping[str, Any] | None = None, quirks: Sequence[str] = ()
) -> Callable[[Request], list[RunSpec]]:
    """One cell per model, task, method and seed, tuned and scored on that task.

    Args:
        changes: settings of the method that differ from the preset's.
        quirks: names of quirks of the released code, beside the request's.
    """

    def cells(request: Request) -> list[RunSpec]:
        return [
            request.cell(model, method, [task], [task], seed, changes, quirks)
            for model in request.models
            for task in request.tasks
            for method in request.methods
            # The untuned base knows no seeds.
            for seed in (request.seeds if method != BASE else request.seeds[:1])
        ]

    return cells


def all_tasks(
    changes: Mapping[str, Any] | None = None,
) -> Callable[[Request], list[RunSpec]]:
    """One cell per model, method and seed, tuned on all tasks mixed; none of the untuned base.

    In the cells of MixLoRA and MixDoRA the tokens that each expert gets are counted as well. They
    are not where lm-eval scores, because it runs a prompt once for each option.

    Args:
        changes: settings of the method that differ from the preset's.
    """

    def cells(request: Request) -> list[RunSpec]:
        mixed = [
            request.cell(model, method, request.tasks, request.tasks, seed, changes)
            for model in request.models
            for method in request.methods
            for seed in request.seeds
            if method != BASE
        ]
        return [
            dataclasses.replace(cell, expert_load=cell.is_mixture and cell.evaluator == OWN)
            for cell in mixed
        ]

    return cells


@dataclass(frozen=True)
class TableLayout:
    """One table of the paper's accuracies: its rows and columns.

    Attributes:
        name: name on the command line, and of the table's files.
        title: heading of the table.
        paper_tables: numbers of the paper's tables that it reproduces.
        settings: what its rows are, beside methods.
        main: name of the setting that the others are compared with.
        methods: names of the methods that the paper's tables have, and of the untuned base.
        tasks: names of the tasks that the paper's tables have.
    """

    name: str
    title: str
    paper_tables: tuple[str, ...]
    settings: tuple[Setting, ...]
    main: str
    methods: tuple[str, ...] = tuple(METHOD_TITLES)
    tasks: tuple[str, ...] = TASK_NAMES

    @property
    def known(self) -> dict[str, tuple[str, ...]]:
        """Field of `Request` -> the names that it may hold in this table."""
        settings = tuple(setting.name for setting in self.settings)
        return {
            "methods": self.methods,
            "tasks": self.tasks,
            "settings": settings if len(settings) > 1 else (),
        }

    def request(self, given: Mapping[str, Any]) -> Request:
        """The request that given options make of this table.

        Args:
            given: name of a field of `Request` -> value. The main setting is always among those
                asked for.

        Raises:
            ValueError: A name is unknown, or a number not allowed.
        """
        if given.get("settings") is not None:
            given = {**given, "settings": [*given["settings"], self.main]}
        return Request.of(given, self.known)

    def cells(self, request: Request) -> dict[str, list[RunSpec]]:
        """The cells of a request, by the name of their setting."""
        wanted = request.settings or (self.main,)
        return {s.name: s.cells(request) for s in self.settings if s.name in wanted}
