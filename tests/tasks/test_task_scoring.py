"""Scores equal those of a plain forward per prompt and option, however they are batched."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
)

from tasks.prompts import Prompt
from tasks.scoring import Prediction, score

SIZES: dict[str, Any] = dict(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=1,
    initializer_range=0.4,
)

CONFIGS = {
    "llama": LlamaConfig(num_key_value_heads=2, **SIZES),
    # Attention windows shorter than the prompts; in Gemma only some layers have one.
    "mistral": MistralConfig(num_key_value_heads=2, sliding_window=7, **SIZES),
    "gemma2": Gemma2Config(num_key_value_heads=2, head_dim=6, sliding_window=7, **SIZES),
    "gemma3": Gemma3TextConfig(
        num_key_value_heads=2,
        head_dim=6,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention"],
        **SIZES,
    ),
    "phi": PhiConfig(**SIZES),
}

WORDS = ["the", "question", "Answer", "x", "42", "ö", "true", "\n", "(A)"]


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    # Gemma 2's attention takes its softmax in float32 whatever the model's dtype.
    return model if request.param == "gemma2" else model.double()


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    torch.manual_seed(4)
    return AutoModelForCausalLM.from_config(CONFIGS["llama"]).double()


def make_prompts(count: int, seed: int, scoring: str) -> list[Prompt]:
    rng = random.Random(seed)
    prompts = []
    for n in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 12))) + "\nAnswer:"
        options = [f"{rng.choice('ABCD')} " * rng.randint(1, 4) + str(n) for _ in range(3)]
        if n % 3 == 0:
            options = ["A", "true", "the question the"]  # two options of one token each
        if scoring == "label":
            options = ["A", "B", "C", "D"][: rng.randint(2, 4)]
        continuations = tuple(f" {option}" for option in options)
        prompts.append(Prompt(text, continuations, tuple(map(len, options)), f"id-{n}"))
    return prompts


def slow_scores(model: nn.Module, tokenizer: Any, prompt: Prompt, scoring: str) -> list[float]:
    """Returns the scores of one forward per option, without cache, padding or batch mates."""
    scores = []
    start = len(tokenizer(prompt.text)["input_ids"])
    for continuation in prompt.continuations:
        ids = tokenizer(prompt.text + continuation)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        logs = torch.log_softmax(logits, dim=-1)
        end = start + 1 if scoring == "label" else len(ids)
        scores.append(sum(logs[at - 1, ids[at]].item() for at in range(start, end)))
    return scores


@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
@pytest.mark.parametrize("scoring", ["label", "choice"])
def test_scores_equal_plain_forwards(
    scoring: Any, batch_tokens: int, model: Any, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer()
    tolerance = 1e-9 if model.dtype == torch.float64 else 1e-4
    prompts = make_prompts(11, seed=5, scoring=scoring)
    predictions = score(model, tokenizer, prompts, scoring, batch_tokens=batch_tokens)
    for prompt, prediction in zip(prompts, predictions, strict=True):
        expected = slow_scores(model, tokenizer, prompt, scoring)
        assert prediction.scores == pytest.approx(expected, rel=tolerance)
        assert prediction.label == max(range(len(expected)), key=expected.__getitem__)
        assert not prediction.truncated
        if scoring == "label":
            assert prediction.label_norm is None
        else:
            normed = [s / len(c[1:]) for s, c in zip(expected, prompt.continuations, strict=True)]
            assert prediction.label_norm == max(range(len(normed)), key=normed.__getitem__)


@pytest.mark.parametrize("scoring", ["label", "choice"])
def test_order_and_batch_mates_change_nothing(
    scoring: Any, llama: nn.Module, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer()
    prompts = make_prompts(9, seed=6, scoring=scoring)
    together = score(llama, tokenizer, prompts, scoring)
    order = random.Random(0).sample(range(9), 9)
    for position, prediction in zip(
        order, score(llama, tokenizer, [prompts[n] for n in order], scoring), strict=True
    ):
        assert prediction.scores == pytest.approx(together[position].scores, rel=1e-9)
    alone = score(llama, tokenizer, prompts[4:5], scoring)[0]
    assert alone.scores == pytest.approx(together[4].scores, rel=1e-9)
    assert score(llama, tokenizer, [], scoring) == []


def count_forwarded(model: Any, run: Callable[[], Any]) -> tuple[list[int], list[int]]:
    """Returns the tokens of each forward, padding included, and the positions scored in each."""
    tokens: list[int] = []
    scored: list[int] = []
    inner = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: tokens.append(inputs[0].numel())
    )
    head = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: scored.append(inputs[0].shape[:-1].numel())
    )
    try:
        run()
    finally:
        inner.remove()
        head.remove()
    return tokens, scored


def test_prefix_is_forwarded_once_for_all_options(
    llama: nn.Module, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer()
    text = "the question the question the question\nAnswer:"
    prompt = Prompt(text, (" A A", " B B B", " C", " D D D"), (3, 5, 1, 5), "id")
    prefix = len(tokenizer(text)["input_ids"])
    tokens, scored = count_forwarded(llama, lambda: score(llama, tokenizer, [prompt], "choice"))
    # One option has one more token after the first, two have two.
    assert tokens == [prefix, 1, 2 * 2]
    assert scored == [1, 1, 2 * 2]
    short = Prompt(text, (" A", " B"), (1, 1), "id")
    tokens, scored = count_forwarded(llama, lambda: score(llama, tokenizer, [short] * 3, "choice"))
    assert (tokens, scored) == ([3 * prefix], [3])
    tokens, scored = count_forwarded(llama, lambda: score(llama, tokenizer, [short] * 3, "label"))
    assert (tokens, scored) == ([3 * prefix], [3])


@pytest.mark.parametrize("scoring", ["label", "choice"])
def test_batches_keep_to_their_budget_without_waste(
    scoring: Any, llama: nn.Module, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer()
    prompts = make_prompts(200, seed=7, scoring=scoring)
    done: list[int] = []
    sizes, _ = count_forwarded(
        llama,
        lambda: score(llama, tokenizer, prompts, scoring, batch_tokens=200, progress=done.append),
    )
    assert sum(done) == 200
    assert max(sizes) <= 200
    real = sum(len(tokenizer(prompt.text)["input_ids"]) for prompt in prompts)
    if scoring == "choice":
        real += sum(
            len(tokenizer(text, add_special_tokens=False)["input_ids"]) - 1
            for prompt in prompts
            for text in prompt.continuations
        )
    assert real <= sum(sizes) < 1.25 * real


def test_long_prompts_lose_their_beginning_and_keep_the_begin_token(
    llama: nn.Module, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer()
    tail = "the question\nAnswer:"
    prompt = Prompt(f"{'the ' * 30}{tail}", (" A B", " D"), (3, 1), "id")
    ids = tokenizer(prompt.text)["input_ids"]
    cutoff = 20
    (prediction,) = score(llama, tokenizer, [prompt], "choice", cutoff=cutoff)
    assert prediction.truncated
    longest = max(len(tokenizer(c, add_special_tokens=False)["input_ids"]) for c in (" A B", " D"))
    kept = [ids[0], *ids[-(cutoff - longest - 1) :]]
    for value, continuation in zip(prediction.scores, prompt.continuations, strict=True):
        rest = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = llama(input_ids=torch.tensor([kept + rest]), use_cache=False).logits[0]
        logs = torch.log_softmax(logits, dim=-1)
        expected = sum(logs[len(kept) - 1 + n, token].item() for n, token in enumerate(rest))
        assert value == pytest.approx(expected, rel=1e-9)


def test_model_is_in_evaluation_mode_and_returns_to_its_own(
    make_tokenizer: Callable[..., Any],
) -> None:
    config = LlamaConfig(**SIZES, attention_dropout=0.5)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().train()
    model.model.norm.eval()
    before = {name: module.training for name, module in model.named_modules()}
    prompts = make_prompts(4, seed=8, scoring="label")
    first = score(model, make_tokenizer(), prompts, "label")
    assert first == score(model, make_tokenizer(), prompts, "label")
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_logits_are_normalised_in_float32(
    make_tokenizer: Callable[..., Any],
) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).to(torch.bfloat16)
    tokenizer = make_tokenizer()
    prompt = make_prompts(2, seed=9, scoring="label")[1]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokenizer(prompt.text)["input_ids"]])).logits[0, -1]
    logs = torch.log_softmax(logits.double(), dim=-1)
    expected = [
        logs[tokenizer(c, add_special_tokens=False)["input_ids"][0]].item()
        for c in prompt.continuations
    ]
    (prediction,) = score(model, tokenizer, [prompt], "label")
    assert prediction.scores == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("scoring", ["label", "choice"])
def test_scores_that_are_not_finite_name_the_example(
    scoring: Any, bad: float, make_tokenizer: Callable[..., Any]
) -> None:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    tokenizer = make_tokenizer()
    prompts = [
        Prompt("the question\nAnswer:", (" A", " B"), (1, 1), "good"),
        Prompt("the ö\nAnswer:", (" A", " B"), (1, 1), "broken"),
    ]
    token = tokenizer("ö", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = bad
    with pytest.raises(FloatingPointError, match="example broken"):
        score(model, tokenizer, prompts, scoring)
    assert isinstance(score(model, tokenizer, prompts[:1], scoring)[0], Prediction)


def test_unusable_requests_are_refused(
    llama: nn.Module, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer()
    digits = Prompt("the\nAnswer:", (" 1", " 2"), (1, 1), "id")
    with pytest.raises(ValueError, match="labels 1 and 2 begin with the same token"):
        score(llama, tokenizer, [digits], "label")
    with pytest.raises(ValueError, match="unknown scoring 'letter'"):
        score(llama, tokenizer, [digits], "letter")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cutoff is 3"):
        score(llama, tokenizer, [digits], "choice", cutoff=3)
