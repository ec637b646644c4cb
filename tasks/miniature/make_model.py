"""Trains the tiny base model and its tokenizer: `python -m tasks.miniature.make_model`.

A Llama of about one million parameters reads some ten million tokens of the text that `corpus.py`
writes. This takes about twenty minutes on two CPU cores. The same seed, number of threads and
version of torch give the same weights; `model/` holds those that all records refer to.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.miniature.corpus import document

SEED = 42
VOCAB_SIZE = 1280
BATCH_SIZE = 64
STEPS = 2000
LR = 3e-3
BOUNDARY, PAD = "<s>", "<pad>"

# The tokenizer is also trained on the words that instructions are made of, so that each of them is
# one token and prompts stay short.
GENERAL_ENGLISH = (
    "Answer this question. Reply with the letter of the best option. Read this sentence.",
    "Choose what the blank _ stands for or complete it. How would a person feel now or next?",
    " Pick the most likely continuation of this text. Select the way that reaches the goal.",
    " Which of these is about a science situation? Who would do what, where, how, when and why?",
    "\nAnswer: true\nAnswer: false",
    " A B C D E",
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer for which most words of the corpus are one token."""
    rng = random.Random(SEED)
    texts = [document(rng) for _ in range(20_000)] + [*GENERAL_ENGLISH] * 500
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r"\n?\([A-E]\)|[ \n]?\p{L}+|[ \n]?\p{N}+|[ \n]?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[BOUNDARY, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOUNDARY} $A", special_tokens=[(BOUNDARY, tokenizer.token_to_id(BOUNDARY))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOUNDARY, eos_token=BOUNDARY, pad_token=PAD
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Returns the untrained model, in float32."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.06,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batches(tokenizer: PreTrainedTokenizerFast, steps: int) -> Iterator[torch.Tensor]:
    """Yields `steps` batches of token ids, (BATCH_SIZE, length) int64.

    Each row is one document, padded on the right.
    """
    rng = random.Random(SEED + 1)
    chunks: list[list[list[int]]] = []
    for _ in range(steps):
        if not chunks:
            # Documents of like length share a batch, which needs little padding.
            rows = tokenizer([document(rng) for _ in range(100 * BATCH_SIZE)])["input_ids"]
            rows.sort(key=len)
            chunks = [rows[i : i + BATCH_SIZE] for i in range(0, len(rows), BATCH_SIZE)]
            rng.shuffle(chunks)
        yield tokenizer.pad({"input_ids": chunks.pop()}, return_tensors="pt")["input_ids"]


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Trains `model` in place."""
    optimizer = torch.optim.AdamW(model.parameters(), LR, (0.9, 0.98), weight_decay=0.01)
    started = time.monotonic()
    for step, ids in enumerate(batches(tokenizer, steps)):
        # The learning rate rises over the first 100 steps and falls linearly to zero.
        optimizer.param_groups[0]["lr"] = LR * min((step + 1) / 100, (steps - step) / steps)
        logits = model(input_ids=ids, use_cache=False).logits
        targets = ids[:, 1:].flatten()
        loss = cross_entropy(
            logits[:, :-1].flatten(0, 1), targets, ignore_index=tokenizer.pad_token_id
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step} loss {loss:.3f} {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, tokenizer, arguments.steps)
    tokenizer.save_pretrained(arguments.output)
    model.half().save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
