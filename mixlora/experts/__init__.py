"""The ways to compute a MixLoRA block, all with one signature and equal results.

- `naive`: the readable reference, a loop over tokens and their experts straight from eqs. 6-7.
- `vanilla`: the paper's plain forward, every expert's whole FFN on the tokens sent to it.
- `shared`: the paper's optimisation I, W1 x and W3 x once for all experts.
- `masked`, `grouped`: ours, in which W2 runs once per token as well; `auto` chooses between them.

Importing this package fills `plan.IMPLEMENTATIONS`.
"""

from __future__ import annotations

from . import fused, naive, shared

__all__ = ["fused", "naive", "shared"]
