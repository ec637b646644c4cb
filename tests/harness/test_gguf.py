"""Tests of weights in GGUF files: what is read, the cache of converted weights, and packages."""

from __future__ import annotations

import hashlib
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import PreTrainedModel

from harness.models.weights import MODELS, ModelSource, WeightsError, load_model, resolve

UNBUNDLED = ModelSource("some-model")
HIDDEN, FFN, HEADS = 32, 48, 2


@pytest.fixture
def gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A one-layer Llama of known numbers, as llama.cpp stores it, in a folder of its own."""
    monkeypatch.setenv("MIXLORA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "gguf").mkdir()
    path = tmp_path / "gguf" / "small.gguf"
    alphabet = ["<|endoftext|>", *"0123456789abcdef", "Ġ", "Ċ", "ĠĠ", "ĠĠĠ", "12"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(alphabet))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(alphabet)
    writer.add_token_types([3] + [1] * (len(alphabet) - 1))
    writer.add_token_merges(["Ġ Ġ", "ĠĠ Ġ", "1 2"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id):
        add(0)
    for name, tensor in gguf_tensors(len(alphabet)).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(vocab_size: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {
        "token_embd": (vocab_size, HIDDEN),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (HIDDEN, HIDDEN),
        "blk.0.attn_v": (HIDDEN, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (FFN, HIDDEN),
        "blk.0.ffn_up": (FFN, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, FFN),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "output_norm": (HIDDEN,),
    }
    return {
        f"{name}.weight": generator.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def install_package(site: Path, gguf_file: Path) -> None:
    """What pip leaves of a package that holds a GGUF file; importing it is an error."""
    (site / "some_gguf").mkdir(parents=True)
    shutil.copy(gguf_file, site / "some_gguf" / "packaged.gguf")
    (site / "some_gguf" / "__init__.py").write_text("raise RuntimeError('imported')")
    info = site / "some_gguf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-gguf\nVersion: 1.0\n")
    (info / "RECORD").write_text("some_gguf/__init__.py,,\nsome_gguf/packaged.gguf,,\n")


def test_gguf_gives_the_stored_weights(gguf_file: Path) -> None:
    model, _ = load_model(resolve(UNBUNDLED, gguf_file), "float32", "cpu")
    stored = gguf_tensors(model.config.vocab_size)
    layer = model.model.layers[0]
    # llama.cpp stores the rows of q and k with the two halves of each head interleaved.
    queries = stored["blk.0.attn_q.weight"].reshape(HEADS, HIDDEN // HEADS // 2, 2, HIDDEN)
    queries = queries.swapaxes(1, 2).reshape(HIDDEN, HIDDEN)
    for parameter, expected in (
        (model.model.embed_tokens.weight, stored["token_embd.weight"]),
        (model.lm_head.weight, stored["token_embd.weight"]),
        (layer.self_attn.q_proj.weight, queries),
        (layer.self_attn.v_proj.weight, stored["blk.0.attn_v.weight"]),
        (layer.mlp.down_proj.weight, stored["blk.0.ffn_down.weight"]),
        (layer.post_attention_layernorm.weight, stored["blk.0.ffn_norm.weight"]),
    ):
        np.testing.assert_array_equal(parameter.detach().numpy(), expected)


def test_gguf_tokenizer_splits_numbers_into_digits(gguf_file: Path) -> None:
    _, tokenizer = load_model(resolve(UNBUNDLED, gguf_file), "float32", "cpu")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a   12")["input_ids"])
    assert tokens == ["a", "ĠĠĠ", "1", "2"]


def test_gguf_is_converted_once(gguf_file: Path) -> None:
    resolved = resolve(UNBUNDLED, gguf_file.parent)
    first, _ = load_model(resolved, "float32", "cpu")
    gguf_file.unlink()
    second, _ = load_model(resolved, "float32", "cpu")
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)


def test_killed_conversion_leaves_no_half_cache(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(model: PreTrainedModel, directory: Path) -> None:
        Path(directory).mkdir()
        Path(directory, "config.json").write_text("{}")
        raise KeyboardInterrupt

    resolved = resolve(UNBUNDLED, gguf_file)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PreTrainedModel, "save_pretrained", killed)
        load_model(resolved, "float32", "cpu")
    assert list((tmp_path / "cache").iterdir()) == []
    load_model(resolved, "float32", "cpu")
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("kept_bytes", [0, 100, 3000])
def test_truncated_gguf_is_one_line(gguf_file: Path, tmp_path: Path, kept_bytes: int) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:kept_bytes])
    with pytest.raises(WeightsError, match=r"cannot load .*small\.gguf") as raised:
        load_model(resolve(UNBUNDLED, gguf_file), "float32", "cpu")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "cache").exists()


def test_unwritable_cache_names_the_variable(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIXLORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="set MIXLORA_CACHE to a writable folder"):
        load_model(resolve(UNBUNDLED, gguf_file), "float32", "cpu")


def test_package_is_found_without_importing_it(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelSource("some-model", gguf_package="some-gguf", hub_id="nobody/nothing")
    install_package(tmp_path / "site", gguf_file)
    monkeypatch.syspath_prepend(tmp_path / "site")
    resolved = resolve(model)
    content_hash = hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    assert (resolved.kind, resolved.fingerprint) == ("gguf-package", content_hash)
    assert resolved.label == "packaged.gguf of some-gguf"
    assert resolve(model, gguf_file).kind == "directory"

    (tmp_path / "site" / "some_gguf" / "packaged.gguf").unlink()
    with pytest.raises(WeightsError, match="package some-gguf"):
        resolve(model)


@pytest.mark.slow
def test_smollm2_from_its_package_continues_sensibly(tmp_path: Path) -> None:
    source = MODELS["smollm2-135m"]
    try:
        metadata.distribution(source.gguf_package or "")
    except metadata.PackageNotFoundError:
        pytest.skip("`make small` installs the package")
    model, tokenizer = load_model(resolve(source), "float32", "cpu")
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(tokens[0, -1]) == " Paris"
