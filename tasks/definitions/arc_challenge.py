"""ARC-Challenge: the questions of ARC that simple baselines get wrong (arXiv 1803.05457)."""

from __future__ import annotations

from dataclasses import replace

from tasks.definitions import arc_easy

TASK = replace(
    arc_easy.TASK,
    name="arc-c",
    title="ARC-c",
    hub=replace(arc_easy.TASK.hub, config="ARC-Challenge"),
    directory="arc_challenge",
    lm_eval=replace(arc_easy.TASK.lm_eval, name="arc_challenge"),
)
