"""A Hugging Face tokenizer as the settings of a GGUF file.

llama.cpp splits text into words by rules of its own, which go by a name. Only tokenizers whose
rules are known to be one of these are written: with others it would silently read other tokens.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_ELSEWHERE = "write format='transformers' and run llama.cpp's own convert_hf_to_gguf.py on it"

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: llama.cpp's name of the rule that splits text, for each that is known.
_SPLITS = {
    ("bytes with GPT-2's rule",): "gpt-2",
    ("digits", "bytes with GPT-2's rule"): "smollm",
    (_LLAMA3, "bytes"): "llama-bpe",
    (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"), "bytes"): "qwen2",
}


def add_tokenizer(writer: Any, files: list[Path], vocab_size: int) -> Any:
    """Enter a tokenizer with its special tokens and chat template.

    Args:
        writer: gguf's writer.
        files: Files carried over, the tokenizer's among them.
        vocab_size: Rows of the embedding; what the tokenizer does not use is filled.

    Returns:
        The tokenizer.

    Raises:
        ValueError: There is none, or llama.cpp has no equal of it.
    """
    from transformers import AutoTokenizer

    folders = [file.parent for file in files if file.name == "tokenizer_config.json"]
    if not folders:
        raise ValueError("format='gguf' needs the tokenizer, and there is no tokenizer_config.json")
    tokenizer: Any = AutoTokenizer.from_pretrained(
        folders[0], local_files_only=True, trust_remote_code=False
    )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(f"{folders[0]}: the tokenizer has no tokenizer.json; {_ELSEWHERE}")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if len(tokenizer) > vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens: the model has {vocab_size}")
    if content["model"]["type"] != "BPE":
        raise ValueError(f"a tokenizer of type {content['model']['type']!r}; {_ELSEWHERE}")
    if content["model"].get("byte_fallback"):
        _add_sentencepiece(writer, tokenizer, content, vocab_size)
    else:
        _add_byte_level(writer, tokenizer, content, vocab_size)
    for kind in ("bos", "eos", "unk", "sep", "pad"):
        token_id = getattr(tokenizer, f"{kind}_token_id", None)
        if token_id is not None:
            getattr(writer, f"add_{kind}_token_id")(token_id)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(
        tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    )
    writer.add_add_eos_token(
        len(ids) > 1 and tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id
    )
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    return tokenizer


def _add_byte_level(writer: Any, tokenizer: Any, content: dict[str, Any], vocab_size: int) -> None:
    rule = _SPLITS.get(tuple(_steps(content["pre_tokenizer"])))
    normalizer = (content["normalizer"] or {}).get("type")
    # llama.cpp has no normalisation; of text that is in normal form already, as is usual, NFC
    # changes nothing, and Qwen's tokenizer has it.
    if rule is None or normalizer not in (None, "NFC"):
        raise ValueError(f"llama.cpp has no name for how this tokenizer splits text; {_ELSEWHERE}")
    if content["model"].get("ignore_merges") and rule != "llama-bpe":
        raise ValueError(f"llama.cpp merges where this tokenizer ignores merges; {_ELSEWHERE}")
    tokens, types = _tokens(tokenizer, content, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in _merges(content)])
    writer.add_add_space_prefix(False)


def _add_sentencepiece(
    writer: Any, tokenizer: Any, content: dict[str, Any], vocab_size: int
) -> None:
    """LLaMA-2's kind: spaces are letters, unknown characters are bytes."""
    import gguf

    text = json.dumps([content["normalizer"], content["pre_tokenizer"]], ensure_ascii=False)
    if "▁" not in text:
        raise ValueError(f"llama.cpp has no name for how this tokenizer splits text; {_ELSEWHERE}")
    prefix = (
        '"Prepend"' in text or re.search(r'"prepend_scheme": "(first|always)"', text) is not None
    )
    tokens, types = _tokens(tokenizer, content, vocab_size)
    for token_id, token in enumerate(tokens):
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            types[token_id] = gguf.TokenType.BYTE
    if tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = gguf.TokenType.UNKNOWN
    # llama.cpp merges the pair whose result has the highest score, Hugging Face's the first in the
    # list of merges.
    scores: dict[str, float] = {}
    for rank, pair in enumerate(_merges(content)):
        scores.setdefault("".join(pair), -float(rank))
    lowest = -float(len(scores) + 1)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([scores.get(token, lowest) for token in tokens])
    writer.add_token_types(types)
    writer.add_add_space_prefix(prefix)


def _tokens(
    tokenizer: Any, content: dict[str, Any], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Every id's text and kind."""
    import gguf

    tokens = [f"[UNUSED{token_id}]" for token_id in range(vocab_size)]
    types = [int(gguf.TokenType.UNUSED)] * vocab_size
    for token, token_id in content["model"]["vocab"].items():
        tokens[token_id], types[token_id] = token, int(gguf.TokenType.NORMAL)
    for token_id, added in tokenizer.added_tokens_decoder.items():
        kind = gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
        tokens[token_id], types[token_id] = added.content, int(kind)
    return tokens, types


def _merges(content: dict[str, Any]) -> list[list[str]]:
    merges = content["model"]["merges"]
    return [each.split(" ") if isinstance(each, str) else each for each in merges]


def _steps(step: dict[str, Any] | None) -> list[str]:
    """A pre-tokenizer's steps, each as the keys of `_SPLITS` have it."""
    if step is None:
        return []
    kind = step["type"]
    if kind == "Sequence":
        return [each for inner in step["pretokenizers"] for each in _steps(inner)]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return ["bytes with GPT-2's rule" if step["use_regex"] else "bytes"]
    if kind == "Digits" and step["individual_digits"]:
        return ["digits"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return [step["pattern"].get("Regex", "")]
    return [f"unknown: {kind}"]
