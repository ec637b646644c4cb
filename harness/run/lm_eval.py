"""Scores a cell's prompts with lm-evaluation-harness, for ``--evaluator lm-eval``.

Model, tokenizer, prompts and rows are those of `tasks.scoring`; requests, scoring and metrics are
lm-eval's. The two can differ in three points. In label scoring lm-eval adds up all tokens of a
label, and ours takes the first (Llama's, Gemma's and SmolLM's labels are one token). A row over the
cutoff loses its BOS token in lm-eval. And lm-eval keeps what a tokenizer puts behind a text (EOS).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import nn
from transformers import PreTrainedTokenizerBase

from tasks.base import Scoring
from tasks.scoring import Prediction, predict

from .inputs import EvalSet

_TASK = "cell"
_BATCH_SIZE = 8


class _Model(HFLM):
    """Without lm-eval's own bars, which would break up the bar over the cells."""

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)


def score_with_lm_eval(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: EvalSet,
    scoring: Scoring,
    *,
    cutoff: int = 512,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """The model's answer to every prompt, in the prompts' order.

    Args:
        model: A causal language model of transformers, with or without an adapter.
        tokenizer: Its tokenizer.
        rows: Prompts and answers.
        scoring: Whether the prompts' continuations are labels or the options' texts.
        cutoff: Most tokens of a prompt with an option but its last, as lm-eval counts.
        progress: Called at the end with the number of prompts.

    Raises:
        FloatingPointError: A score is not finite; names the example.
        RuntimeError: lm-eval counts as right what is not the best-scored option.
    """
    with _only_errors():
        lm = _Model(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=_BATCH_SIZE,
            max_length=cutoff,
            # lm-eval's default is the model's dtype, which makes ties in half precision.
            softmax_dtype="float32",
        )
        tasks = TaskManager(include_defaults=False).load([_task(rows)])
        results: Any = evaluate(lm, tasks, bootstrap_iters=0)
    samples = sorted(results["samples"][_TASK], key=lambda sample: sample["doc_id"])
    predictions = []
    for index, sample in enumerate(samples):
        longest = max(len(lm.tok_encode("".join(pair))) for pair in sample["arguments"])
        prediction = _prediction(rows, index, sample, longest > cutoff + 1)
        if scoring == "label":
            prediction = replace(prediction, label_norm=None)
        predictions.append(prediction)
    if progress is not None:
        progress(len(predictions))
    return predictions


@contextmanager
def _only_errors() -> Iterator[None]:
    """Hide lm-eval's warnings about a model that is loaded already and a task made in code."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _task(rows: EvalSet) -> dict[str, Any]:
    """The prompts as an lm-eval task."""
    docs = [
        {
            "text": prompt.text,
            # lm-eval puts the space before them.
            "options": [text.removeprefix(" ") for text in prompt.continuations],
            "answer": example.answer,
        }
        for prompt, example in zip(rows.prompts, rows.examples, strict=True)
    ]

    def load(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(docs)}

    return {
        "task": _TASK,
        "custom_dataset": load,
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": "text",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
    }


def _prediction(rows: EvalSet, index: int, sample: dict[str, Any], truncated: bool) -> Prediction:
    prompt, answer = rows.prompts[index], rows.examples[index].answer
    scores = [score for score, _ in sample["filtered_resps"]]
    lengths = [len(text) - 1 for text in prompt.continuations]
    found = predict(prompt, scores, lengths, truncated)
    # lm-eval logs whether its choice is right, not which it is.
    right = (found.label == answer, found.label_norm == answer)
    if (sample["acc"], sample["acc_norm"]) != right:
        raise RuntimeError(f"example {prompt.id}: lm-eval chose otherwise than by {scores}")
    return found
