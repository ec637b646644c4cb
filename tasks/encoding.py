"""Prompts as token ids, for scoring and for training.

A prompt's text and a continuation are tokenised together and split where the tokens of the text
alone end, as lm-evaluation-harness does. Special tokens that the tokenizer puts in front (BOS) are
kept. Those that it appends (EOS) are dropped, because a continuation follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from tasks.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's token ids.

    Attributes:
        prefix: ids of the prompt's text, after the special tokens that the tokenizer puts in front.
        num_leading: number of those special tokens.
        continuations: ids of each continuation.
        distractors: ids of each distractor.
    """

    prefix: list[int]
    num_leading: int
    continuations: list[list[int]]
    distractors: list[list[int]]


@dataclass(frozen=True)
class TrainingRow:
    """The token ids of a prompt with its right continuation.

    Attributes:
        input_ids: ids of the prompt and the continuation.
        num_target: number of ids at the end of `input_ids` that the loss covers.
        truncated: whether ids were left out to fit the cutoff.
    """

    input_ids: list[int]
    num_target: int
    truncated: bool


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> EncodedPrompt:
    """Returns the token ids of a prompt and of each of its continuations.

    Raises:
        ValueError: A continuation has no tokens of its own, or the tokenizer merges it with the
            prompt's end, so that no token boundary lies between them.
    """
    endings = (*prompt.continuations, *prompt.distractors)
    texts = [prompt.text, *(prompt.text + ending for ending in endings)]
    encoded = tokenizer(texts, return_special_tokens_mask=True, verbose=False)
    rows = []
    for ids, mask in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        num_trailing = sum(1 for _ in takewhile(bool, reversed(mask)))
        rows.append(ids[: len(ids) - num_trailing])
    prefix = rows[0]
    encoded_endings = []
    for continuation, row in zip(endings, rows[1:], strict=True):
        if row[: len(prefix)] != prefix or len(row) == len(prefix):
            raise ValueError(
                f"example {prompt.id}: the tokenizer has no boundary between the end of the prompt "
                f"{prompt.text[-12:]!r} and the continuation {continuation!r}"
            )
        encoded_endings.append(row[len(prefix) :])
    num_leading = sum(1 for _ in takewhile(bool, encoded["special_tokens_mask"][0]))
    own = len(prompt.continuations)
    return EncodedPrompt(prefix, num_leading, encoded_endings[:own], encoded_endings[own:])


def fit_prefix(encoded: EncodedPrompt, num_reserved: int, cutoff: int) -> list[int]:
    """Returns the prefix, shortened so that `num_reserved` further ids fit within `cutoff`.

    The beginning of the prompt's text is left out; special tokens in front are kept.

    Raises:
        ValueError: The reserved ids leave no room for a single id of the text.
    """
    room = cutoff - num_reserved - encoded.num_leading
    if room < 1:
        raise ValueError(
            f"cutoff is {cutoff}: must exceed the {encoded.num_leading + num_reserved} tokens of "
            "the answer and of what the tokenizer puts in front"
        )
    return encoded.prefix[: encoded.num_leading] + encoded.prefix[encoded.num_leading :][-room:]


def encode_training(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    answer: int,
    cutoff: int,
    *,
    loss_on_prompt: bool = False,
    truncate_answer: bool = False,
) -> TrainingRow:
    """Returns the prompt with its right continuation, at most `cutoff` ids.

    A row that is too long loses the beginning of its prompt and keeps its answer.

    Args:
        tokenizer: the model's tokenizer.
        prompt: the worded example.
        answer: index of the right continuation.
        cutoff: largest number of ids.
        loss_on_prompt: whether the loss covers the prompt as well, all but its first id, which
            no id before it predicts.
        truncate_answer: whether a row that is too long loses its end instead of its beginning.

    Raises:
        ValueError: The answer leaves no room for the prompt, or `encode_prompt` refuses it.
    """
    encoded = encode_prompt(tokenizer, prompt)
    target = encoded.continuations[answer]
    prefix = encoded.prefix if truncate_answer else fit_prefix(encoded, len(target), cutoff)
    ids = (prefix + target)[:cutoff]
    num_target = len(ids) - 1 if loss_on_prompt else max(0, len(ids) - len(prefix))
    return TrainingRow(ids, num_target, len(ids) < len(encoded.prefix) + len(target))


def first_tokens(prompt: Prompt, encoded: EncodedPrompt) -> list[int]:
    """Returns the ids that compete in label scoring.

    They are the first id of every continuation, then the first ids of the distractors where they
    differ from all before them.

    Raises:
        ValueError: Two continuations begin with the same id.
    """
    owners: dict[int, str] = {}
    for continuation, ids in zip(prompt.continuations, encoded.continuations, strict=True):
        label = continuation.strip()
        if ids[0] in owners:
            raise ValueError(
                f"example {prompt.id}: the labels {owners[ids[0]]} and {label} begin with the same "
                f"token {ids[0]} in this vocabulary, label scoring cannot tell them apart"
            )
        owners[ids[0]] = label
    return list(dict.fromkeys([*owners, *(ids[0] for ids in encoded.distractors)]))
