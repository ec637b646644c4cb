"""From a study to its cells: which arm, learning rate, seed and rows each of them is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from harness.cells.methods import BASE
from harness.cells.spec import EVALUATION, VALIDATION, RunSpec, hashable
from harness.request import Request
from tasks import TASK_NAMES

from .file import Study

Regime = Literal["single-task", "multi-task"]

#: Distance between the seeds of two tasks in single-task runs, which have seeds of their own.
SEEDS_PER_TASK = 1000


@dataclass(frozen=True)
class Group:
    """What is chosen for and judged together: the runs of one model in one regime.

    Attributes:
        model: name of the model.
        regime: "single-task" (a run for each task) or "multi-task" (one run on all).
    """

    model: str
    regime: Regime

    @property
    def title(self) -> str:
        """Text for headings and messages."""
        return f"{self.model}, {self.regime}"


@dataclass(frozen=True)
class StudyCells:
    """Makes the cells of a study.

    Attributes:
        study: the study.
        request: what the command line and the preset say of cells.
    """

    study: Study
    request: Request

    @property
    def groups(self) -> list[Group]:
        """Every model in every regime."""
        return [
            Group(model, regime) for model in self.study.models for regime in self.study.regimes
        ]

    @property
    def tuned(self) -> list[str]:
        """The names of the arms that have a learning rate."""
        return [name for name, arm in self.study.arms.items() if arm.name != BASE]

    def trials(self, group: Group, arm: str, rate: float) -> list[RunSpec]:
        """The cells that say how good a learning rate is: they are scored on validation rows."""
        return [
            cell
            for seed in self.study.seeds.selection
            for cell in self._tuned(group, arm, rate, seed, VALIDATION)
        ]

    def finals(self, group: Group, arm: str, rate: float) -> list[RunSpec]:
        """The cells of a result, seed after seed: they are scored on the tasks' own rows."""
        return [
            cell
            for seed in self.study.seeds.finals
            for cell in self._tuned(group, arm, rate, seed, EVALUATION)
        ]

    def untuned(self, group: Group) -> list[RunSpec]:
        """The cells of the untuned base, if it is among the arms: one for each task."""
        if all(arm.name != BASE for arm in self.study.arms.values()):
            return []
        return [
            dataclasses.replace(
                self.request.cell(group.model, BASE, [], [task], 0),
                limit_eval=self.study.rows.scored,
            )
            for task in self.study.tasks
        ]

    def _tuned(
        self, group: Group, arm_name: str, rate: float, seed: int, scored_on: str
    ) -> list[RunSpec]:
        tasks = self.study.tasks
        if group.regime == "multi-task":
            return [self._cell(group.model, arm_name, tasks, rate, seed, scored_on)]
        return [
            self._cell(group.model, arm_name, [task], rate, task_seed(seed, task), scored_on)
            for task in tasks
        ]

    def _cell(
        self, model: str, arm_name: str, tasks: list[str], rate: float, seed: int, scored_on: str
    ) -> RunSpec:
        study, arm = self.study, self.study.arms[arm_name]
        preset = self.request.preset_settings
        settings = dict(preset.adapters.get(arm.name, {})) | arm.settings
        if arm.method is not None and "num_experts" in settings:
            settings["forward"] = self.request.forward
        return RunSpec(
            model=model,
            method=arm.name,
            train_tasks=tuple(tasks),
            eval_tasks=tuple(tasks),
            seed=seed,
            scoring=self.request.scoring,
            data=self.request.data,
            limit_train=study.rows.train,
            limit_eval=study.rows.scored if scored_on == EVALUATION else None,
            dtype=self.request.dtype,
            device=self.request.device,
            adapter=tuple(sorted((name, hashable(value)) for name, value in settings.items())),
            train=dataclasses.replace(
                preset.train,
                learning_rate=rate,
                router=arm.router,
                router_rate_factor=arm.router_rate_factor,
                lora_plus_ratio=arm.lora_plus_ratio,
                **study.training.model_dump(exclude_unset=True),
            ),
            validation=(study.rows.validation_share, study.rows.validation_least),
            scored_on=scored_on,
        )


def task_seed(seed: int, task: str) -> int:
    """The seed of a single-task run: different in every task, so that luck is not shared."""
    return seed + SEEDS_PER_TASK * (1 + TASK_NAMES.index(task))
