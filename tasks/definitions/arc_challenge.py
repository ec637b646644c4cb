"""ARC-Challenge: ARC's questions that simple baselines get wrong (arXiv 1803.05457)."""

from __future__ import annotations

from tasks.base import HubDataset, Task
from tasks.definitions.arc_easy import COLUMNS, parse

TASK = Task(
    name="arc-c",
    title="ARC-c",
    hub=HubDataset("allenai/ai2_arc", "ARC-Challenge", "210d026faf9955653af8916fad021475a3f00453"),
    directory="arc_challenge",
    train_split="train",
    eval_split="test",
    columns=COLUMNS,
    instruction="Answer this science question.",
    parse=parse,
    lm_eval_task="arc_challenge",
)
