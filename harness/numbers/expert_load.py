"""Measures of how tokens spread over the experts, from counts of tokens. Torch-free.

Shape legend: L layers, E experts, N tasks. Counts are (L, E): how often each expert was selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def shares(counts: Sequence[Sequence[int]]) -> np.ndarray:
    """The share of each expert in its layer's selections, (L, E); every layer adds up to 1.

    A token selects K experts, so an expert that every token goes to has a share of 1 / K.
    """
    array = np.asarray(counts, dtype=float)
    return array / array.sum(axis=1, keepdims=True)


def load_std(counts: Sequence[Sequence[int]]) -> float:
    """The standard deviation over experts of their mean share over the layers, for one task.

    0 is perfect balance. Figure 5 of arXiv 2404.15159 gives the mean of this over the tasks.
    """
    return float(shares(counts).mean(axis=0).std())


def layer_std(counts: Sequence[Sequence[int]]) -> float:
    """The standard deviation over a layer's experts of their shares, averaged over the layers.

    Layers that favour different experts look balanced to `load_std`, but not here.
    """
    return float(shares(counts).std(axis=1).mean())


def specialisation(by_task: Mapping[str, Sequence[Sequence[int]]]) -> float:
    """How many bits the expert of a token tells about its task, averaged over the layers.

    This is the mutual information of task and expert, with equal weight for every task: 0 where all
    tasks use the experts alike, log2 N where each task has experts of its own.
    """
    joint = np.stack([shares(counts) for counts in by_task.values()], axis=1)  # (L, N, E)
    joint /= joint.shape[1]
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=2, keepdims=True)
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0)
    return float((joint * np.log2(ratio)).sum(axis=(1, 2)).mean())
