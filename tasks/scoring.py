"""Has a causal language model answer prompts. The only module of `tasks/` that imports torch.

Shapes: N prompts of a batch, R of their options in a second pass, P longest prefix, L
longest rest of an option, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tasks.base import SCORINGS, Scoring
from tasks.encoding import encode_prompt, first_tokens, fit_prefix
from tasks.names import choose
from tasks.prompts import Prompt

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one prompt.

    Attributes:
        label: Index of the continuation with the highest score.
        scores: Log-probability (natural logarithm) of each continuation: of its first token in
            label scoring, of all its tokens in choice scoring.
        label_norm: Index of the option with the highest score per character; None in label scoring.
        truncated: Whether the prompt was cut to fit the cutoff.
    """

    label: int
    scores: tuple[float, ...]
    label_norm: int | None
    truncated: bool


@dataclass(frozen=True)
class _Request:
    position: int
    prompt: Prompt
    prefix: list[int]
    continuations: list[list[int]]
    truncated: bool

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + max(len(ids) - 1 for ids in self.continuations)


def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    scoring: Scoring,
    *,
    batch_tokens: int = 4096,
    cutoff: int = 512,
    progress: Callable[[int], None] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    live: Sequence[nn.Module] = (),
) -> list[Prediction]:
    """Returns the model's answer to every prompt, in the prompts' order.

    Args:
        model: A causal language model of transformers, with or without adapters.
        tokenizer: Its tokenizer.
        prompts: The worded examples.
        scoring: `label` compares the continuations' first tokens; `choice` their total
            log-likelihood, with each prompt's prefix computed once for all its options.
        batch_tokens: Bound on the tokens, padding included, that a batch keeps in memory; in choice
            scoring every option counts with its prefix. A longer single prompt is still scored.
        cutoff: Most tokens of a prompt with its longest continuation; a longer prompt is cut from
            its left.
        progress: Called after each batch with the number of prompts it held.
        on_batch: Called before each with the number of rows it computes, and their longest's
            tokens.
        live: Modules of the model that are run as in training.

    Raises:
        FloatingPointError: A score is not finite; names the example.
        ValueError: See `encoding.encode_prompt`, `fit_prefix` and `first_tokens`, or an unknown
            `scoring`.
    """
    choose("scoring", scoring, SCORINGS)
    requests = []
    for position, prompt in enumerate(prompts):
        encoded = encode_prompt(tokenizer, prompt)
        prefix = fit_prefix(encoded, max(map(len, encoded.continuations)), cutoff)
        continuations = encoded.continuations
        if scoring == "label":
            continuations = [[token] for token in first_tokens(prompt, encoded)]
        truncated = len(prefix) < len(encoded.prefix)
        requests.append(_Request(position, prompt, prefix, continuations, truncated))

    predictions: dict[int, Prediction] = {}
    with _evaluating(model, live), torch.inference_mode():
        for batch in _batches(requests, batch_tokens, scoring):
            if on_batch is not None:
                on_batch(sum(_num_rows(request, scoring) for request in batch), batch[0].num_tokens)
            all_scores = _score_batch(model, batch)
            for request, scores in zip(batch, all_scores, strict=True):
                prompt = request.prompt
                lengths = prompt.option_lengths if scoring == "choice" else None
                predictions[request.position] = predict(
                    prompt, scores.tolist(), lengths, request.truncated
                )
            if progress is not None:
                progress(len(batch))
    return [predictions[position] for position in range(len(requests))]


@contextmanager
def _evaluating(model: nn.Module, live: Sequence[nn.Module]) -> Iterator[None]:
    # Remembered per module, because a model can hold modules in evaluation mode while it trains.
    training = [module for module in model.modules() if module.training]
    model.eval()
    for module in live:
        module.training = True
    try:
        yield
    finally:
        model.eval()
        for module in training:
            module.training = True


def _batches(
    requests: Sequence[_Request], batch_tokens: int, scoring: Scoring
) -> Iterator[list[_Request]]:
    # Like lengths go together, the longest first: too large a batch fails at once, not at the end.
    batch: list[_Request] = []
    num_rows = 0
    for request in sorted(requests, key=lambda request: request.num_tokens, reverse=True):
        new_rows = _num_rows(request, scoring)
        if batch and (num_rows + new_rows) * batch[0].num_tokens > batch_tokens:
            yield batch
            batch, num_rows = [], 0
        batch.append(request)
        num_rows += new_rows
    if batch:
        yield batch


def _num_rows(request: _Request, scoring: Scoring) -> int:
    return 1 if scoring == "label" else len(request.continuations)


def _score_batch(model: nn.Module, batch: Sequence[_Request]) -> list[Tensor]:
    """Returns, per request, the log-likelihood of its continuations, each (num_continuations,)."""
    device = next(model.parameters()).device
    options = [(n, ids) for n, request in enumerate(batch) for ids in request.continuations]
    rows = torch.tensor([n for n, _ in options], device=device)
    first = torch.tensor([ids[0] for _, ids in options], device=device)
    # Options whose lengths share their leading power of two go together: padding all of a batch to
    # its longest option would triple the work on real rows.
    groups: dict[int, list[int]] = {}
    for index, (_, ids) in enumerate(options):
        if len(ids) > 1:
            groups.setdefault((len(ids) - 1).bit_length(), []).append(index)

    prefixes, prefix_mask = _pad([request.prefix for request in batch], "left", device)
    outputs = model(
        input_ids=prefixes,
        attention_mask=prefix_mask,
        position_ids=(prefix_mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=bool(groups),
        logits_to_keep=1,
    )
    scores = _log_probs(outputs.logits[rows, -1], first)  # one per option
    for group in groups.values():
        # What is left of an option after its first token, which the prefix has predicted.
        inputs, mask = _pad([options[index][1][:-1] for index in group], "right", device)
        targets, _ = _pad([options[index][1][1:] for index in group], "right", device)
        indices = torch.tensor(group, device=device)
        group_prefix_mask = prefix_mask[rows[indices]]
        start = group_prefix_mask.sum(dim=1, keepdim=True)
        logits = model(
            input_ids=inputs,
            attention_mask=torch.cat([group_prefix_mask, mask], dim=1),
            position_ids=start + torch.arange(inputs.shape[1], device=device),
            past_key_values=_select_rows(outputs.past_key_values, rows[indices]),
            use_cache=True,
        ).logits
        rest = _log_probs(logits, targets).masked_fill(mask == 0, 0.0)  # (R, L)
        scores = scores.index_add(0, indices, rest.sum(dim=1))
    return list(scores.cpu().split([len(request.continuations) for request in batch]))


def _select_rows(cache: Cache, rows: Tensor) -> Cache:
    """Returns a cache of the given rows (R,) and leaves `cache` as it is."""
    selected = copy.copy(cache)
    # The selection replaces a layer's tensors and does not write into them, so that shallow copies
    # of the layers keep the original whole.
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected


def _log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns log p(target), shape (...,), of logits (..., V) and target ids (...,).

    In float32 at least: a half-precision logarithm of a sum over V has three digits.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(-1, targets[..., None]).squeeze(-1)
    return chosen - logits.logsumexp(dim=-1)


def _pad(sequences: Sequence[list[int]], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ids and mask (1 real, 0 padding), both (num_sequences, longest), int64."""
    longest = max(map(len, sequences))
    ids, mask = [], []
    for sequence in sequences:
        # Any id will do for padding, which is masked; 0 is in every vocabulary.
        padding = [0] * (longest - len(sequence))
        ones = [1] * len(sequence)
        ids.append(padding + sequence if side == "left" else sequence + padding)
        mask.append(padding + ones if side == "left" else ones + padding)
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def predict(
    prompt: Prompt, scores: Sequence[float], lengths: Sequence[int] | None, truncated: bool
) -> Prediction:
    """The answer that scores give.

    Args:
        prompt: That was answered.
        scores: Log-probability of each continuation.
        lengths: Characters of each, for the score per character; None for no such answer.
        truncated: Whether the prompt was cut.

    Raises:
        FloatingPointError: A score is not finite; names the example.
    """
    if not all(map(math.isfinite, scores)):
        raise FloatingPointError(
            f"example {prompt.id}: the model gives scores that are not finite: {list(scores)}"
        )
    label_norm = None
    if lengths is not None:
        per_character = [value / length for value, length in zip(scores, lengths, strict=True)]
        label_norm = per_character.index(max(per_character))
    return Prediction(scores.index(max(scores)), tuple(scores), label_norm, truncated)
