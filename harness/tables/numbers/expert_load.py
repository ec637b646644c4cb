"""What counts of tokens per expert say: shares, their spread, and whether experts specialise.

Torch-free. Shape legend: L layers, E experts, N tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def shares(counts: Sequence[Sequence[int]]) -> np.ndarray:
    """(L, E): of each layer's selections, K a token, the share of each expert; a layer sums to 1.

    An expert that every token goes to has 1 / K.
    """
    array = np.asarray(counts, dtype=float)
    return array / array.sum(axis=1, keepdims=True)


def load_std(counts: Sequence[Sequence[int]]) -> float:
    """Standard deviation over experts of their mean share over the layers; 0 is perfect balance.

    Of one task; the mean over tasks stands beside Figure 5's figures (arXiv 2404.15159).
    """
    return float(shares(counts).mean(axis=0).std())


def layer_std(counts: Sequence[Sequence[int]]) -> float:
    """Standard deviation over a layer's experts of their shares, averaged over the layers.

    Layers whose favourites differ look balanced to `load_std`, and do not here.
    """
    return float(shares(counts).std(axis=1).mean())


def specialisation(by_task: Mapping[str, Sequence[Sequence[int]]]) -> float:
    """Bits that the expert of a token tells about its task, averaged over the layers.

    The mutual information of task and expert, every task weighing the same: 0 where all tasks go
    the same ways, log2 N where each has experts of its own.
    """
    joint = np.stack([shares(counts) for counts in by_task.values()], axis=1)  # (L, N, E)
    joint /= joint.shape[1]
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=2, keepdims=True)
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0)
    return float((joint * np.log2(ratio)).sum(axis=(1, 2)).mean())
