"""How well a mixture uses its experts, from counts and router probabilities. Torch-free.

Shape legend: L layers, T tokens, E experts, N tasks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.numbers.expert_load import specialisation


def maximal_violation(counts: ArrayLike) -> NDArray[np.float64]:
    """MaxVio: by how much the busiest expert's load exceeds the mean load, over the mean load.

    0 is perfect balance; where one expert gets everything it is E - 1 for K = 1, E / K - 1 in
    general. Source: Wang et al., arXiv 2408.15664.

    Args:
        counts: (..., E) tokens that went to each expert.

    Raises:
        ValueError: A layer has no tokens.
    """
    loads = _loads(counts)
    mean = loads.mean(axis=-1)
    return np.asarray(loads.max(axis=-1) / mean - 1)


def busiest_share(counts: ArrayLike) -> NDArray[np.float64]:
    """Share of all selections that the busiest expert has: 1 / E is balance, 1 / K its largest.

    Args:
        counts: (..., E) tokens that went to each expert, each token counting for all its K experts.

    Raises:
        ValueError: A layer has no tokens.
    """
    loads = _loads(counts)
    return np.asarray(loads.max(axis=-1) / loads.sum(axis=-1))


def effective_experts(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Effective number of experts: 1 / sum of a token's squared probabilities, mean over tokens.

    Between 1, where the router is sure of one expert, and E, where it has no preference. Of the
    weights of the K selected ones it is between 1 and K. Source: ReMix, arXiv 2603.10160, which
    calls it effective support size.

    Args:
        probabilities: (..., T, E) the router's probabilities, or the weights of the selected ones
            with 0 for the others; a token's sum to 1.

    Raises:
        ValueError: There is no token, or the probabilities of one do not sum to 1.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if values.ndim < 2 or not values.size:
        raise ValueError(f"probabilities are {values.shape}: expected (..., tokens, experts)")
    if (values < 0).any() or not np.allclose(values.sum(axis=-1), 1, atol=1e-2):
        raise ValueError("the probabilities of every token must be at least 0 and sum to 1")
    return np.asarray((1 / (values**2).sum(axis=-1)).mean(axis=-1))


def task_information(by_task: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    """Mutual information of expert and task in each layer, (L,), in bits.

    0 where the tokens of all tasks go the same ways, log2 N where each task has experts of its own;
    every task weighs the same, however many tokens it has.

    Args:
        by_task: Task -> (L, E) tokens that went to each expert.

    Raises:
        ValueError: A layer of a task has no tokens.
    """
    counts = {task: _loads(values) for task, values in by_task.items()}
    layers = len(next(iter(counts.values())))
    return np.array(
        [
            specialisation({task: loads[layer, None].tolist() for task, loads in counts.items()})
            for layer in range(layers)
        ]
    )


def _loads(counts: ArrayLike) -> NDArray[np.float64]:
    loads = np.asarray(counts, dtype=np.float64)
    if not loads.size or (loads < 0).any() or (loads.sum(axis=-1) == 0).any():
        raise ValueError("counts of tokens: expected at least one in every layer, none below 0")
    return loads
