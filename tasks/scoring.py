"""Has a causal language model answer prompts.

A batch is scored in two passes. The first computes every prompt once, which gives the probability
of each option's first token. The second continues from the cached keys and values with what is left
of the options that have more tokens.

Shapes: N prompts in a batch, R options in a group of the second pass, L tokens in the longest rest
of an option, V entries in the vocabulary.
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
        label: index of the continuation with the highest score.
        scores: natural logarithm of each continuation's probability; in label scoring that of its
            first token, in choice scoring that of all its tokens.
        label_norm: index of the option with the highest score per character; None in label scoring.
        truncated: whether the prompt was cut to fit the cutoff.
    """

    label: int
    scores: tuple[float, ...]
    label_norm: int | None
    truncated: bool


@dataclass(frozen=True)
class _Request:
    """A tokenised prompt; `position` is its place in the caller's list."""

    position: int
    prompt: Prompt
    prefix: list[int]
    continuations: list[list[int]]
    truncated: bool

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the longest row that the prompt needs; a last token is not fed."""
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

    The model is in evaluation mode meanwhile, and each of its modules returns to its own mode.

    Args:
        model: causal language model of transformers, with or without adapters.
        tokenizer: the model's tokenizer.
        prompts: the worded examples.
        scoring: `label` compares the first tokens of the continuations; `choice` compares the
            log-likelihood of all their tokens, and computes each prompt once for all its options.
        batch_tokens: largest number of tokens that a batch keeps in memory, padding included; in
            choice scoring each option counts together with its prompt. A single prompt that is
            longer makes a batch of its own.
        cutoff: largest number of tokens of a prompt with its longest continuation; a longer prompt
            loses its beginning.
        progress: function that is called after each batch with its number of prompts.
        on_batch: function that is called before each batch with its number of rows and the number
            of tokens of the longest.
        live: modules of the model that stay in training mode.

    Raises:
        FloatingPointError: A score is not finite; the message names the example.
        ValueError: `scoring` is unknown, or a prompt is refused by `encoding.encode_prompt`,
            `fit_prefix` or `first_tokens`.
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
    # The mode is kept per module, because a model that trains can hold modules that do not.
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
    # Prompts of like length share a batch, which needs little padding. The longest come first, so
    # that a batch too large for memory fails at once and not at the end.
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
    """Returns the log-likelihoods of each request's continuations, (num_continuations,) each."""
    device = next(model.parameters()).device
    options = [(n, ids) for n, request in enumerate(batch) for ids in request.continuations]
    rows = torch.tensor([n for n, _ in options], device=device)
    first = torch.tensor([ids[0] for _, ids in options], device=device)
    # Options are grouped by the power of two below their length. Padding all options of a batch to
    # the longest would triple the work on the rows of the real tasks.
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
        # The first pass has given the probability of the first token; the rest is fed here.
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
    """Returns a cache of the given rows, (R,) int64, and leaves `cache` as it is."""
    selected = copy.copy(cache)
    # The selection gives each layer new tensors and does not write into the old ones, so shallow
    # copies of the layers are enough.
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected


def _log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns log p(target), (...,), for logits (..., V) and target ids (...,) int64.

    It is computed in float32 at least, because a logarithm in half precision has three digits.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(-1, targets[..., None]).squeeze(-1)
    return chosen - logits.logsumexp(dim=-1)


def _pad(sequences: Sequence[list[int]], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ids and mask (1 for a token, 0 for padding), both (num_sequences, longest) int64."""
    longest = max(map(len, sequences))
    ids, mask = [], []
    for sequence in sequences:
        # Padding is masked, so that any id will do; every vocabulary has 0.
        padding = [0] * (longest - len(sequence))
        ones = [1] * len(sequence)
        ids.append(padding + sequence if side == "left" else sequence + padding)
        mask.append(padding + ones if side == "left" else ones + padding)
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def predict(
    prompt: Prompt, scores: Sequence[float], lengths: Sequence[int] | None, truncated: bool
) -> Prediction:
    """Returns the answer that scores give.

    Args:
        prompt: the prompt that was scored.
        scores: natural logarithm of each continuation's probability.
        lengths: number of characters of each option, for `label_norm`; None leaves that out.
        truncated: whether the prompt was cut.

    Raises:
        FloatingPointError: A score is not finite; the message names the example.
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
