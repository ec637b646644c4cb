"""`AdapterLM`: lm-eval's Hugging Face model with a PEFT adapter, checked to have an effect."""

from __future__ import annotations

import warnings
from typing import Any

from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from transformers import PreTrainedModel

from mixlora.checks import require_effect

# The text on which an adapter must change the logits; any text would do.
_PROBE = "Which of these answers is the best one, and why is it better than the others?"


class AdapterError(ValueError):
    """An adapter cannot be loaded completely, or does not fit its tokenizer."""


class AdapterLM(HFLM):
    """``--model mixlora``: lm-eval's ``hf`` with an adapter of MixLoRA or of any PEFT method.

    Args:
        pretrained: Directory or hub name of the base model.
        adapter: Directory or hub name of the adapter.
        peft: The same as `adapter`, under the name that ``hf`` has for it.
        softmax_dtype: Data type in which logits become log-probabilities. ``hf`` takes the model's,
            and in half precision its three digits make ties between options.
        **others: Further arguments of ``hf``.

    Raises:
        AdapterError: No adapter is given, some of its weights are missing, or the tokenizer has
            more ids than the base model has embeddings (which are never resized).
        NoEffectError: The adapter leaves the logits of a probing text unchanged.
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
    """Return the model with an adapter, all of whose weights have been found.

    Args:
        model: The base model.
        adapter: Directory or hub name of the adapter.

    Raises:
        AdapterError: The adapter cannot be read, or weights of it are missing.
    """
    with warnings.catch_warnings():
        # PEFT warns of missing weights and goes on with random ones in their place.
        warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
        try:
            return PeftModel.from_pretrained(model, adapter)
        # A broken file raises exceptions of json, safetensors, torch or PEFT.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")[:200]
            kind = "" if isinstance(error, (UserWarning, ValueError)) else type(error).__name__
            raise AdapterError(
                f"adapter {adapter}: {': '.join(filter(None, (kind, reason)))}"
            ) from error


def register() -> None:
    """Add ``--model mixlora`` to the models of lm-eval in this process."""
    model_registry.register("mixlora", target=AdapterLM)
