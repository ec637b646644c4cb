"""Prompts as token ids: boundaries, special tokens, truncation, targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.encoding import encode_prompt, encode_training, first_tokens
from tasks.prompts import Prompt


def make_prompt(text: str, continuations: tuple[str, ...]) -> Prompt:
    return Prompt(text, continuations, tuple(len(c) - 1 for c in continuations), "an-id")


PROMPT = make_prompt("the question\nAnswer:", (" A", " true", " the question"))


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_begin_token_is_kept_and_end_token_is_not(
    bos: bool, eos: bool, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(bos, eos)
    encoded = encode_prompt(tokenizer, PROMPT)
    assert encoded.num_leading == int(bos)
    assert (tokenizer.bos_token_id in encoded.prefix) == bos
    assert tokenizer.eos_token_id not in encoded.prefix
    assert tokenizer.decode(encoded.prefix, skip_special_tokens=True) == PROMPT.text
    assert [tokenizer.decode(ids) for ids in encoded.continuations] == list(PROMPT.continuations)
    row = encode_training(tokenizer, PROMPT, 1, 512)
    assert row.input_ids == encoded.prefix + encoded.continuations[1]
    assert not row.truncated


def test_special_tokens_written_in_a_text_stay(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(bos=True, eos=True)
    prompt = make_prompt("<s>the</s>\nAnswer:", (" A</s>", " B"))
    encoded = encode_prompt(tokenizer, prompt)
    assert encoded.num_leading == 1
    assert tokenizer.decode(encoded.prefix) == "<s><s>the</s>\nAnswer:"
    assert tokenizer.decode(encoded.continuations[0]) == " A</s>"


def test_boundary_that_the_tokenizer_merges_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    for text, continuation in (("the quest", "ion"), ("the question", "")):
        with pytest.raises(ValueError, match=r"example an-id: .* no boundary"):
            encode_prompt(tokenizer, make_prompt(text, (continuation,)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    words=st.lists(st.sampled_from(["the", "question", "x", "ö", "42"]), min_size=1, max_size=30),
    answer=st.integers(0, 2),
    cutoff=st.integers(1, 60),
    bos=st.booleans(),
)
def test_cutoff_takes_the_prompts_beginning_and_never_the_answer(
    words: list[str], answer: int, cutoff: int, bos: bool, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(bos)
    prompt = make_prompt(" ".join(words) + "\nAnswer:", PROMPT.continuations)
    whole = tokenizer(prompt.text + prompt.continuations[answer])["input_ids"]
    target = tokenizer(prompt.continuations[answer], add_special_tokens=False)["input_ids"]
    if cutoff < len(target) + bos + 1:
        with pytest.raises(ValueError, match=f"cutoff is {cutoff}: must exceed the"):
            encode_training(tokenizer, prompt, answer, cutoff)
        return
    row = encode_training(tokenizer, prompt, answer, cutoff)
    assert row.num_target == len(target)
    assert row.input_ids[-row.num_target :] == target
    assert len(row.input_ids) == min(cutoff, len(whole))
    assert row.truncated == (len(whole) > cutoff)
    assert row.input_ids[bos:] == whole[bos:][-(len(row.input_ids) - bos) :]
    assert row.input_ids[:bos] == [tokenizer.bos_token_id][:bos]


def test_labels_that_share_their_first_token_are_refused(
    make_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = make_tokenizer()
    prompt = make_prompt("the question\nAnswer:", (" A", " 1", " 2"))
    encoded = encode_prompt(tokenizer, prompt)
    space = tokenizer.convert_tokens_to_ids("Ġ")
    assert [ids[0] for ids in encoded.continuations][1:] == [space, space]
    with pytest.raises(ValueError, match=f"labels 1 and 2 begin with the same token {space}"):
        first_tokens(prompt, encoded)
    prompt = make_prompt("the question\nAnswer:", (" A", " B", " true"))
    encoded = encode_prompt(tokenizer, prompt)
    assert first_tokens(prompt, encoded) == [ids[0] for ids in encoded.continuations]
