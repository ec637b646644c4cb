"""Table 9: MixLoRA and MixDoRA against the weight of the load-balancing loss."""

from __future__ import annotations

from harness.accuracy import AccuracyTable
from harness.request import Setting, single_task
from harness.show.ablation import pictured

TABLE = AccuracyTable(
    name="router-loss",
    title="Accuracy by weight of the router's loss",
    paper_tables=("9",),
    settings=tuple(
        Setting(
            f"router_aux_loss_coef={text}",
            f"a = {text}",
            single_task({"router_aux_loss_coef": float(text)}),
        )
        for text in ("0", "1e-3", "1e-2", "1e-1")
    ),
    main="router_aux_loss_coef=1e-3",
    methods=("mixlora", "mixdora"),
    tasks=("arc-e", "arc-c", "boolq", "obqa"),
    finish=pictured("Accuracy by weight of the router's loss", "weight of the load-balancing loss"),
)
