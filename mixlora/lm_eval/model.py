"""`AdapterLM`: lm-eval's Hugging Face model with a PEFT adapter that is known to be applied."""

from __future__ import annotations

import warnings
from typing import Any

from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from transformers import PreTrainedModel

from mixlora.checks import require_effect

# What the effect of an adapter is looked for on; any text does.
_PROBE = "Which of these answers is the best one, and why is it better than the others?"


class AdapterError(ValueError):
    """An adapter cannot be scored as it is."""


class AdapterLM(HFLM):
    """``--model mixlora``: lm-eval's ``hf`` and an adapter, MixLoRA's or any other of PEFT's.

    Args:
        pretrained: Directory or hub name of the base model.
        adapter: Directory or hub name of the adapter.
        peft: The same, by the name it has in lm-eval's ``hf``.
        softmax_dtype: In which logits become log-probabilities; of ``hf`` the model's, whose three
            digits in half precision make ties.
        **others: As of ``hf``.

    Raises:
        AdapterError: There is no adapter, weights of it are missing, or the tokenizer has ids that
            the base model has no embedding of (embeddings are never resized).
        NoEffectError: The adapter leaves the logits of a probe unchanged.
    """

    _model: Any

    def __init__(
        self,
        pretrained: str,
        adapter: str | None = None,
        peft: str | None = None,
        softmax_dtype: str = "float32",
        **others: Any,
    ) -> None:
        if (adapter is None) == (peft is None):
            raise AdapterError(
                f"model_args have adapter={adapter}, peft={peft}: expected adapter=DIR; "
                "the base model alone is --model hf without peft"
            )
        super().__init__(pretrained, peft=adapter or peft, softmax_dtype=softmax_dtype, **others)

    def _create_model(self, *args: Any, peft: str, **kwargs: Any) -> None:
        super()._create_model(*args, **kwargs)
        rows, ids = self._model.get_input_embeddings().num_embeddings, len(self.tokenizer)
        if ids > rows:
            raise AdapterError(
                f"the tokenizer has {ids} tokens, the base model embeds {rows}: not resized, give "
                "the base model and the tokenizer that the adapter was trained on"
            )
        self._model = load_adapter(self._model, peft)
        batch = self.tokenizer(_PROBE, return_tensors="pt").to(self._model.device)
        require_effect(self._model, batch["input_ids"], batch["attention_mask"])


def load_adapter(model: PreTrainedModel, adapter: str) -> PeftModel:
    """A model with an adapter from a directory or the hub, every weight of it found.

    Raises:
        AdapterError: It cannot be read, or weights that it needs are missing.
    """
    with warnings.catch_warnings():
        # PEFT says so and goes on with random weights in their place.
        warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
        try:
            return PeftModel.from_pretrained(model, adapter)
        # JSON, pickle, safetensors and PEFT each have exceptions of their own for a broken file.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")[:200]
            kind = "" if isinstance(error, (UserWarning, ValueError)) else type(error).__name__
            raise AdapterError(
                f"adapter {adapter}: {': '.join(filter(None, (kind, reason)))}"
            ) from error


def register() -> None:
    """Make ``--model mixlora`` known to lm-eval in this process."""
    model_registry.register("mixlora", target=AdapterLM)
