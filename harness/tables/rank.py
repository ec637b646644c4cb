"""Table 8: MixLoRA and MixDoRA against the rank of their experts."""

from __future__ import annotations

from harness.accuracy import AccuracyTable
from harness.request import Setting, single_task
from harness.show.ablation import pictured

TABLE = AccuracyTable(
    name="rank",
    title="Accuracy by rank of the experts",
    paper_tables=("8",),
    settings=tuple(
        Setting(f"r={rank}", f"r = {rank}", single_task({"r": rank, "lora_alpha": 2 * rank}))
        for rank in (2, 4, 8, 16, 32)
    ),
    main="r=16",
    methods=("mixlora", "mixdora"),
    tasks=("arc-e", "arc-c", "boolq", "obqa"),
    finish=pictured(
        "Accuracy by rank of the experts", "rank", "Accuracy by trainable parameters, rank by rank"
    ),
)
