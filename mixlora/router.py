"""The routers and their losses (arXiv 2404.15159 eqs. 7-9, and two variants of the released code).

`TopKRouter` is the paper's. `TopPRouter` and `SwitchRouter` are the routing strategies
``mixlora-dynamic`` and ``mixlora-switch`` of the authors' MoE-PEFT; as there, their weights are the
probabilities as they are, so the block scales its output down, at initialisation too.

Shape legend: T tokens, D hidden size, E experts, K selections per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Which router a `MixLoraConfig` may ask for.
ROUTINGS = ("top_k", "top_p", "switch")

#: Sums a tensor, element by element, over the processes that share a batch; without a gradient.
AddUp = Callable[[Tensor], Tensor]


class Routing(NamedTuple):
    """Where tokens go.

    Attributes:
        logits: (T, E) router scores before softmax, float32 or wider.
        weights: (T, K) mixing weights; same dtype as logits.
        selected: (T, K) int64 expert indices, distinct in a row.
        taken: (T, K) bool, False where a token does not go to the expert after all; its weight is
            0 there. None: all are taken, and each row of weights sums to 1.
    """

    logits: Tensor
    weights: Tensor
    selected: Tensor
    taken: Tensor | None = None


class Router(nn.Module):
    """Scores the experts for each token: softmax over all E experts of ``W_r x`` (no bias).

    Args:
        hidden_size: D.
        num_experts: E.
        init_std: Standard deviation of the normal initialisation.
    """

    def __init__(self, hidden_size: int, num_experts: int, init_std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, dtype=torch.float32))
        nn.init.normal_(self.weight, std=init_std)

    def forward(self, hidden_states: Tensor, row_length: int = 1) -> Routing:
        """Route tokens; see `Routing` for what comes back.

        Args:
            hidden_states: (T, D) of any float dtype.
            row_length: Tokens of a row of the batch, which stand next to each other.
        """
        # Half precision would flip close decisions, so neither autocast nor a half-precision base
        # reaches the router.
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(device_type=hidden_states.device.type, enabled=False):
            logits = F.linear(hidden_states.to(dtype), self.weight.to(dtype))
            return Routing(logits, *self.choose(logits.softmax(dim=-1), row_length))

    def choose(
        self, probabilities: Tensor, row_length: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``weights, selected, taken`` of a `Routing`, from the probabilities (T, E)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        num_experts, hidden_size = self.weight.shape
        return f"hidden_size={hidden_size}, num_experts={num_experts}"


class TopKRouter(Router):
    """Sends each token to its K most probable experts.

    Args:
        hidden_size: D.
        num_experts: E.
        top_k: K.
        init_std: Standard deviation of the normal initialisation.

    Source: arXiv 2404.15159 eq. 7: the K largest probabilities are kept and renormalised.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, init_std: float) -> None:
        super().__init__(hidden_size, num_experts, init_std)
        self.top_k = top_k

    def choose(
        self, probabilities: Tensor, row_length: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        weights, selected = probabilities.topk(self.top_k, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True), selected, None


class TopPRouter(Router):
    """Sends each token to its most probable experts until their probabilities exceed top_p.

    K is E: all experts are ranked, and the first few are taken.

    Args:
        hidden_size: D.
        num_experts: E.
        top_p: Above 0, at most 1, which takes all.
        init_std: Standard deviation of the normal initialisation.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_p: float, init_std: float) -> None:
        super().__init__(hidden_size, num_experts, init_std)
        self.top_p = top_p

    def choose(
        self, probabilities: Tensor, row_length: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ranked, selected, taken = rank_to_p(probabilities, self.top_p)
        return ranked.masked_fill(~taken, 0.0), selected, taken


class SwitchRouter(Router):
    """Sends each token to its most probable expert, as long as that has room for its row.

    Each expert takes its first ``capacity`` tokens of every row, in their order, padding counted.
    The others go nowhere: to them the FFN adds nothing (Switch Transformers, arXiv 2101.03961
    section 2.2; the released code sends them on as they are, and in evaluation all tokens).

    Args:
        hidden_size: D.
        num_experts: E.
        capacity: At least 1.
        init_std: Standard deviation of the normal initialisation.
    """

    def __init__(self, hidden_size: int, num_experts: int, capacity: int, init_std: float) -> None:
        super().__init__(hidden_size, num_experts, init_std)
        self.capacity = capacity

    def choose(
        self, probabilities: Tensor, row_length: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        weights, selected = probabilities.max(dim=-1, keepdim=True)
        rows = selected.view(-1, row_length)
        counts = F.one_hot(rows, probabilities.shape[1]).cumsum(dim=1)
        place = counts.gather(2, rows.unsqueeze(2)).view_as(selected)
        taken = place <= self.capacity
        return weights.masked_fill(~taken, 0.0), selected, taken


def rank_to_p(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Experts by falling probability: (probabilities, experts, taken), each (T, E).

    An expert is taken while those before it have no more than top_p together, so the first always.
    """
    ranked, selected = probabilities.sort(dim=-1, descending=True)
    before = F.pad(ranked.cumsum(dim=-1)[:, :-1], (1, 0))
    return ranked, selected, before <= top_p


class RouterTap:
    """Where the blocks of a model leave their router logits, while it is open.

    One for all blocks of a model: opening and closing it costs nothing, however many they are.

    Attributes:
        is_open: Whether logits are kept.
        logits: By adapter, (T, E) of every layer in the order in which they ran.
        trainable: By adapter, whether the layers' routers were being trained.
    """

    def __init__(self) -> None:
        self.is_open = False
        self.logits: dict[str, list[Tensor]] = {}
        self.trainable: dict[str, list[bool]] = {}

    def open(self) -> None:
        """Keep logits from now on, with none kept yet."""
        self.is_open, self.logits, self.trainable = True, {}, {}

    def close(self) -> None:
        """Keep nothing, and let go of what was kept."""
        self.is_open, self.logits, self.trainable = False, {}, {}

    def keep(self, adapter_name: str, logits: Tensor, trainable: bool) -> None:
        """Add a layer's logits."""
        self.logits.setdefault(adapter_name, []).append(logits)
        self.trainable.setdefault(adapter_name, []).append(trainable)


def load_balancing_loss(
    logits: Tensor,
    top_k: int,
    token_mask: Tensor | None = None,
    top_p: float | None = None,
    add_up: AddUp | None = None,
) -> Tensor:
    """``E * sum_i F_i P_i`` over all tokens given; uniform top-k routing gives K.

    P_i is the mean router probability of expert i; F_i the number of times it is among a token's
    top_k, per token.

    Args:
        logits: (N, E) router logits; the layers of a model are concatenated, as the released code
            does.
        top_k: K. All K selections are counted, Mixtral's form and the released code's; eq. 9 of the
            paper counts only the first.
        token_mask: (N,) bool, False for padding; None counts every token.
        top_p: Count what `TopPRouter` takes instead.
        add_up: Where processes share the tokens. The value is then this process's part: F_i is
            over the tokens of all, P_i the sum over its own divided by the number of all, so that
            the parts, and their gradients, add up to the loss of all tokens.

    Returns:
        Scalar in the dtype of logits.

    Source: arXiv 2404.15159 eqs. 8-9.
    """
    num_experts = logits.shape[-1]
    probabilities = logits.softmax(dim=-1)
    if top_p is None:
        selected = probabilities.topk(top_k, dim=-1).indices
        chosen = torch.zeros_like(probabilities).scatter(-1, selected, 1.0)
    else:
        _, selected, taken = rank_to_p(probabilities, top_p)
        chosen = torch.zeros_like(probabilities).scatter(-1, selected, taken.to(logits.dtype))
    if add_up is None:
        share, probability = _means(token_mask, chosen, probabilities)
    else:
        (times, sums), count = _sums(token_mask, chosen, probabilities)
        every = add_up(torch.cat([times, count.view(1)]))
        total = every[-1].clamp(min=1.0)
        share, probability = every[:-1] / total, sums / total
    return num_experts * (share * probability).sum()


def z_loss(logits: Tensor, token_mask: Tensor | None = None, add_up: AddUp | None = None) -> Tensor:
    """The mean squared log-sum-exp of the router's logits (N, E), which keeps them small.

    Args:
        logits: As for `load_balancing_loss`.
        token_mask: Likewise.
        add_up: Likewise: the value is this process's part of the mean.

    Returns:
        Scalar in the dtype of logits.

    Source: ST-MoE, arXiv 2202.08906 eq. 5.
    """
    squares = logits.logsumexp(dim=-1, keepdim=True).square()
    if add_up is None:
        return _means(token_mask, squares)[0].sum()
    (own,), count = _sums(token_mask, squares)
    return (own / add_up(count.view(1)).clamp(min=1.0)).sum()


def _means(token_mask: Tensor | None, *values: Tensor) -> list[Tensor]:
    """The mean of each over the tokens, (N, ...) -> (...)."""
    if token_mask is None:
        return [each.mean(dim=0) for each in values]
    sums, count = _sums(token_mask, *values)
    # A batch of padding alone has no balance to speak of: its loss is 0, not 0 / 0.
    return [each / count.clamp(min=1.0) for each in sums]


def _sums(token_mask: Tensor | None, *values: Tensor) -> tuple[list[Tensor], Tensor]:
    """The sum of each over the tokens, (N, ...) -> (...), and the number of tokens."""
    if token_mask is None:
        return [each.sum(dim=0) for each in values], values[0].new_tensor(len(values[0]))
    mask = token_mask.to(values[0].dtype).unsqueeze(-1)
    return [(each * mask).sum(dim=0) for each in values], mask.sum()
