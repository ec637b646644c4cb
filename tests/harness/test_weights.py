"""Tests of finding and loading weights in a directory, in the repository and on the hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.models import weights
from harness.models.weights import (
    MODELS,
    ModelSource,
    WeightsError,
    load_model,
    resolve,
    resolve_device,
)

UNBUNDLED = ModelSource("some-model")


def save_model(directory: Path, **save_options: Any) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory, **save_options)
    words = Tokenizer(WordLevel({letter: i for i, letter in enumerate("abcdefgh")}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a", eos_token="b")
    tokenizer.save_pretrained(directory)
    return model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_model(tmp_path / "model")
    return tmp_path / "model"


def test_directory_gives_the_saved_weights(tmp_path: Path) -> None:
    saved = save_model(tmp_path)
    model, tokenizer = load_model(resolve(UNBUNDLED, tmp_path), "float32", "cpu")
    loaded = model.state_dict()
    assert loaded.keys() == saved.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.state_dict().items())
    assert not model.training
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("b", "b")


@pytest.mark.parametrize("dtype", weights.DTYPES)
def test_dtype_is_the_one_asked_for(directory: Path, dtype: str) -> None:
    model, _ = load_model(resolve(UNBUNDLED, directory), dtype, "cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_fingerprint_is_the_hash_of_the_content(directory: Path, tmp_path: Path) -> None:
    content = (directory / "model.safetensors").read_bytes()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        content += (directory / name).read_bytes()
    fingerprint = resolve(UNBUNDLED, directory).fingerprint
    assert fingerprint == hashlib.sha256(content).hexdigest()
    save_model(tmp_path / "other")
    assert resolve(UNBUNDLED, tmp_path / "other").fingerprint != fingerprint


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("config.json", True),  # another activation, say
        ("tokenizer.json", True),
        ("tokenizer_config.json", True),
        ("merges.txt", True),
        ("generation_config.json", False),
        ("README.md", False),
    ],
)
def test_fingerprint_covers_what_can_change_a_number(
    name: str, counts: bool, directory: Path
) -> None:
    before = resolve(UNBUNDLED, directory).fingerprint
    with (directory / name).open("a") as file:
        file.write("\n")
    assert (resolve(UNBUNDLED, directory).fingerprint != before) == counts


def test_fingerprint_covers_every_shard(tmp_path: Path) -> None:
    saved = save_model(tmp_path, max_shard_size="4KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    content = b"".join(shard.read_bytes() for shard in shards)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        content += (tmp_path / name).read_bytes()
    resolved = resolve(UNBUNDLED, tmp_path)
    assert resolved.fingerprint == hashlib.sha256(content).hexdigest()
    model, _ = load_model(resolved, "float32", "cpu")
    assert torch.equal(model.lm_head.weight, saved.lm_head.weight)
    shards[1].unlink()
    with pytest.raises(WeightsError, match=f"{shards[1].name} is missing"):
        resolve(UNBUNDLED, tmp_path)


def test_label_holds_no_path(directory: Path) -> None:
    resolved = resolve(UNBUNDLED, directory)
    assert (resolved.kind, resolved.label) == ("directory", "local model")


def test_bundled_model_loads() -> None:
    resolved = resolve(MODELS["tiny"])
    model, tokenizer = load_model(resolved, "float32", "cpu")
    assert resolved.kind == "bundled"
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
    assert tokenizer.pad_token is not None


def test_pickled_weights_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin, a pickle, is not read"):
        resolve(UNBUNDLED, directory)


def test_adapter_is_refused(directory: Path) -> None:
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="holds a PEFT adapter"):
        resolve(UNBUNDLED, directory)


def test_unusable_directories_are_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere: neither a directory"):
        resolve(UNBUNDLED, tmp_path / "nowhere")
    (directory / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        resolve(UNBUNDLED, directory)
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two" / name).touch()
    with pytest.raises(WeightsError, match=r"holds 2 \.gguf files"):
        resolve(UNBUNDLED, tmp_path / "two")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 500),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "llama", "hidden_size": "wide"}'),
        ("config.json", b'{"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}'),
        ("tokenizer.json", b"{}"),
    ],
)
def test_damaged_file_is_one_line(directory: Path, name: str, content: bytes) -> None:
    (directory / name).write_bytes(content)
    with pytest.raises(WeightsError, match="cannot load") as raised:
        load_model(resolve(UNBUNDLED, directory), "float32", "cpu")
    assert "\n" not in str(raised.value)


def test_missing_weights_are_not_made_up(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(WeightsError, match=r"lacks 9 of the weights, as model\.layers\.1\."):
        load_model(resolve(UNBUNDLED, directory), "float32", "cpu")


def test_hub_cache_is_used_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_model(tmp_path / "models--some--model" / "snapshots" / commit)
    model = ModelSource("some-model", hub_id="some/model", revision=commit)
    resolved = resolve(model)
    assert (resolved.kind, resolved.fingerprint, resolved.revision) == ("hub", commit, commit)
    assert resolved.label == "some/model@0123456789ab"
    load_model(resolved, "float32", "cpu")


def test_without_weights_one_line_lists_the_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = ModelSource(
        "some-model", gguf_package="not-installed", gguf_install="make it", hub_id="some/model"
    )
    with pytest.raises(WeightsError) as raised:
        resolve(model)
    message = str(raised.value)
    assert "\n" not in message
    for way in ("`make it`", "--model-path DIR", "hf download some/model", "HF_HUB_OFFLINE"):
        assert way in message


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "mps:1", "", "cuda:99"])
def test_impossible_device_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}'"):
        resolve_device(device)


@pytest.mark.parametrize(("devices", "expected"), [(0, "cpu"), (2, "cuda")])
def test_auto_device(devices: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    assert resolve_device("auto") == expected
    if devices:
        assert resolve_device("cuda:1") == "cuda:1"
    for unavailable in ("cuda:2", *(["cuda"] if not devices else [])):
        with pytest.raises(ValueError, match=f"torch sees {devices} CUDA devices"):
            resolve_device(unavailable)


def test_unknown_dtype_is_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match="unknown dtype 'int8'; known: float32, bfloat16"):
        load_model(resolve(UNBUNDLED, directory), "int8", "cpu")
