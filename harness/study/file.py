"""What a study is: a TOML file that says, before anything runs, what runs and how it is judged.

The file holds the models, tasks, arms, learning rates, seeds and hypotheses of a comparison, and
the rules of its verdicts. The SHA-256 of its bytes stands in every table made from it. Torch-free:
whether an arm's settings fit its method is checked by `arms.check_arm`, which loads PEFT.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pydantic import Field, create_model, field_validator, model_validator

from harness.cells.methods import BASE, METHOD_TITLES
from harness.cells.presets import get_preset
from harness.cells.spec import TrainSettings, hashable
from tasks import TASK_NAMES
from tasks.names import choose

from .checked import Table, read_toml
from .selection import Grid

#: The methods that have a router.
ROUTED = ("mixlora", "mixdora")

if TYPE_CHECKING:
    Training = Table
else:
    #: Training settings that differ from the preset's. The grid gives the learning rate.
    Training = create_model(
        "Training",
        __base__=Table,
        **{
            name: (kind | None, None)
            for name, kind in get_type_hints(TrainSettings).items()
            if name not in ("learning_rate", "router", "router_rate_factor", "lora_plus_ratio")
        },
    )


class Arm(Table):
    """One way of fine-tuning: a method of this project with settings changed, or any of PEFT's.

    Attributes:
        title: what tables print.
        method: name of a method of this project; exactly one of method and peft_type is given.
        peft_type: name of a method of PEFT, for example "VERA".
        settings: fields of the method's config. For a method of this project they change the
            preset's settings; for one of PEFT they are all that differs from PEFT's defaults.
            Every arm is given the same target modules unless they name others.
        router: of MixLoRA and MixDoRA, "trained"; "frozen" as it was drawn at random; or "uniform":
            it still selects the experts, whose outputs are then averaged with weights 1 / K.
        router_rate_factor: factor on the learning rate of the router.
        lora_plus_ratio: learning rate of B over that of A (LoRA+, arXiv 2402.12354); None for
            equal ones.
    """

    title: str = Field(min_length=1)
    method: str | None = None
    peft_type: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    router: Literal["trained", "frozen", "uniform"] = "trained"
    router_rate_factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    lora_plus_ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @property
    def name(self) -> str:
        """The name of its method, of this project or in capitals of PEFT."""
        return self.method or self.peft_type or ""

    @field_validator("settings")
    @classmethod
    def _no_tables(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for name, value in settings.items():
            try:
                hashable(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return settings

    @field_validator("peft_type")
    @classmethod
    def _in_capitals(cls, name: str | None) -> str | None:
        if name is not None and not name.isupper():
            raise ValueError(f"{name!r}: expected PEFT's name in capitals, {name.upper()!r}")
        return name

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str | None) -> str | None:
        return name if name is None else choose("method", name, METHOD_TITLES)

    @model_validator(mode="after")
    def _consistent(self) -> Arm:
        if (self.method is None) == (self.peft_type is None):
            raise ValueError("expected either method or peft_type")
        if self.method not in ROUTED:
            for key in ("router", "router_rate_factor"):
                if key in self.model_fields_set:
                    raise ValueError(
                        f"{key}: {self.method or self.peft_type} has no router; expected with "
                        f"method {' or '.join(ROUTED)} only"
                    )
        if self.router == "frozen" and "router_rate_factor" in self.model_fields_set:
            raise ValueError("router_rate_factor: a frozen router has no learning rate")
        return self


class Rows(Table):
    """Which rows are used.

    Attributes:
        train: number of training rows per task, drawn from those left after the validation rows
            were cut; None for all.
        scored: number of scored rows per task; None for all.
        validation_share: part of the training split that is cut as validation rows, a fraction.
        validation_least: number of validation rows per task that are cut at least.
    """

    train: int | None = Field(default=None, ge=1)
    scored: int | None = Field(default=None, ge=2)
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    validation_least: int = Field(default=64, ge=1)


class Seeds(Table):
    """Seeds of initialisation, dropout and order of the rows.

    Attributes:
        selection: seeds with which learning rates are tried.
        finals: seeds of the results. No seed is both, so that a seed lucky in the selection is not
            counted as a result.
    """

    selection: list[int] = Field(min_length=1)
    finals: list[int] = Field(min_length=1)

    @field_validator("selection", "finals")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
            raise ValueError(f"{seeds}: expected distinct whole numbers from 0 to {2**32 - 1}")
        return seeds

    @model_validator(mode="after")
    def _disjoint(self) -> Seeds:
        both = sorted(set(self.selection) & set(self.finals))
        if both:
            raise ValueError(f"finals: {both[0]} is a seed of the selection too; expected others")
        return self


class Judgement(Table):
    """How verdicts are made.

    Attributes:
        metric: what is compared, and what learning rates are chosen by on the validation rows:
            "acc" (the likeliest option) or "acc_norm" (the likeliest per character).
        margin_points: difference in percentage points below which two arms count as equivalent.
        level: probability of a false verdict in a whole family.
        power: probability with which the smallest detectable difference would be found.
    """

    metric: Literal["acc", "acc_norm"] = "acc"
    margin_points: float = Field(gt=0, lt=100)
    level: float = Field(default=0.05, gt=0, lt=0.5)
    power: float = Field(default=0.8, gt=0.5, lt=1)


class Family(Table):
    """Arms that are compared with one reference; their tests are corrected together.

    Attributes:
        question: what the comparison is to answer.
        reference: the arm that the others are compared with.
        arms: the others.
    """

    question: str = Field(min_length=1)
    reference: str
    arms: list[str] = Field(min_length=1)

    @field_validator("arms")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        return _once(names)


class Hypothesis(Table):
    """A verdict that is expected before anything is run.

    Attributes:
        family: name of the family.
        arm: one of its arms.
        expect: the verdict expected.
        meaning: what follows if it comes true.
    """

    family: str
    arm: str
    expect: Literal["better", "worse", "equivalent"]
    meaning: str = Field(min_length=1)


class Study(Table):
    """A comparison of arms, each tuned alike.

    Attributes:
        title: heading of its tables.
        preset: where everything comes from that the file does not say.
        models: names of models: the project's, hub ids, or "local" with --model-path.
        tasks: names of tasks.
        regimes: "single-task" (a run per task), "multi-task" (one run on all tasks), or both.
        rows: which rows are used.
        training: training settings that differ from the preset's.
        grid: learning rates that are tried.
        seeds: seeds of selection and finals.
        judgement: how verdicts are made.
        arms: name -> what is compared.
        families: name -> which arms are compared with which.
        hypotheses: verdicts that are expected.
    """

    title: str = Field(min_length=1)
    preset: str
    models: list[str] = Field(min_length=1)
    tasks: list[str] = Field(min_length=1)
    regimes: list[Literal["single-task", "multi-task"]] = Field(min_length=1)
    rows: Rows = Rows()
    training: Training = Training()
    grid: Grid = Grid()
    seeds: Seeds
    judgement: Judgement
    arms: dict[str, Arm] = Field(min_length=1)
    families: dict[str, Family] = Field(min_length=1)
    hypotheses: list[Hypothesis] = Field(default_factory=list)

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str) -> str:
        return get_preset(name).name

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, names: list[str]) -> list[str]:
        return [choose("task", name, TASK_NAMES) for name in names]

    @field_validator("models", "tasks", "regimes")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        return _once(names)

    @model_validator(mode="after")
    def _names_fit(self) -> Study:
        if "multi-task" in self.regimes and len(self.tasks) < 2:
            raise ValueError(f"regimes: 'multi-task' needs several tasks, not {self.tasks}")
        # The untuned base has no learning rate and no seeds.
        tuned = [name for name, arm in self.arms.items() if arm.method != BASE]
        for name, family in self.families.items():
            where = f"[families.{name}]"
            _chosen(f"{where} reference", "arm", family.reference, tuned)
            others = [arm for arm in tuned if arm != family.reference]
            for arm in family.arms:
                _chosen(f"{where} arms", "arm", arm, others)
        for number, each in enumerate(self.hypotheses, start=1):
            where = f"[hypotheses {number}]"
            _chosen(f"{where} family", "family", each.family, self.families)
            _chosen(f"{where} arm", "arm", each.arm, self.families[each.family].arms)
        return self


@dataclass(frozen=True)
class StudyFile:
    """A study and the file it was read from.

    Attributes:
        name: name of the file without its ending.
        sha256: SHA-256 of the file's bytes, hex: the study's identity.
        study: its content.
    """

    name: str
    sha256: str
    study: Study


def read_study(path: Path) -> StudyFile:
    """Reads and checks a study file.

    Raises:
        FileError: One line for each mistake, with file, table and key.
    """
    study, sha256 = read_toml(path, Study)
    return StudyFile(path.stem, sha256, study)


def _once(names: list[str]) -> list[str]:
    """The names, if each is there once.

    Raises:
        ValueError: One is there again.
    """
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ValueError(f"{name!r} is there twice")
    return names


def _chosen(where: str, kind: str, name: str, known: Iterable[str]) -> None:
    """Checks a name that stands in another table.

    Raises:
        ValueError: It is unknown; the message begins with the place.
    """
    try:
        choose(kind, name, known)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
