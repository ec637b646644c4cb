"""Rows and tokenizers that several tests of `tasks/` share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

ROWS: dict[str, list[dict[str, Any]]] = {
    "arc-e": [
        {
            "id": "q-1",
            "question": "What melts?\u2028Choose.",
            "choices": {"text": ["ice", "stone", "sand"], "label": ["A", "B", "C"]},
            "answerKey": "A",
        },
        {
            "id": "q-2",
            "question": "What burns?",
            "choices": {"text": ["a", "wood", "c", "d"], "label": ["1", "2", "3", "4"]},
            "answerKey": "2",
        },
    ],
    "arc-c": [
        {
            "id": "q-3",
            "question": "Which is a mammal?",
            "choices": {"text": ["bat", "ant", "cod", "oak"], "label": ["A", "B", "C", "D"]},
            "answerKey": "A",
        }
    ],
    "boolq": [
        {"question": "is snow cold", "answer": True, "passage": ""},
        {"question": "do fish fly?", "answer": False, "passage": "Fish swim."},
    ],
    "obqa": [
        {
            "id": "7-1",
            "question_stem": "The sun is",
            "choices": {"text": ["hot", "wet"], "label": ["A", "B"]},
            "answerKey": "B",
        }
    ],
    "piqa": [{"goal": "Dry a cup.", "sol1": " Wipe it. ", "sol2": "Fill it.", "label": 0}],
    "siqa": [
        {
            "context": "Kim lost a shoe.",
            "question": "How does Kim feel?",
            "answerA": "glad",
            "answerB": "proud",
            "answerC": "cross",
            "label": "3",
        }
    ],
    "hellaswag": [{"ctx": "He jumps. he", "endings": ["a", "b", "c", "d"], "label": "1"}],
    "winogrande": [
        {"sentence": "Jo met Al as _ ran.", "option1": "Jo", "option2": "Al", "answer": "2"}
    ],
}


@pytest.fixture
def rows() -> dict[str, list[dict[str, Any]]]:
    """Task name -> rows in the data set's columns; a fresh copy that a test may change."""
    return json.loads(json.dumps(ROWS))


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """A factory of small byte-level BPE tokenizers that add BOS, EOS, both or nothing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def make(bos: bool = True, eos: bool = False) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        text = "Answer: A Answer: B Answer: C Answer: D Answer: true Answer: false the the question"
        backend.train_from_iterator([text] * 4, trainer)
        template = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
        backend.post_processor = processors.TemplateProcessing(
            single=template,
            special_tokens=[(t, backend.token_to_id(t)) for t in ("<s>", "</s>")],
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
        )

    return make
