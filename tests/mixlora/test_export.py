"""Exported mixtures against the adapters that they were made of; what is refused; the directory."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import mixlora
from mixlora.export import export_files
from mixlora.export.__main__ import main

from .export_models import BASES, IDS, load, logits, make_adapted, make_base, save

#: Mixtral's router takes its softmax in float32 whatever the model's type, which bounds how close
#: two models in float64 come; with one expert per token its weight is 1, and nothing is rounded.
ROUTER = 5e-6


def exported(model: Any, folder: Path, **options: Any) -> Path:
    """The directory that the files of a model were exported to."""
    base, adapter = save(model, folder)
    return export_files(base, adapter, folder / "result", **options).folder


@pytest.mark.parametrize("use_dora", [False, True], ids=["mixlora", "mixdora"])
@pytest.mark.parametrize("name", BASES)
def test_the_mixture_computes_what_the_adapter_does(
    name: str, use_dora: bool, tmp_path: Path
) -> None:
    model = make_adapted(make_base(name), use_dora=use_dora).double()
    expected = logits(model)
    with model.disable_adapter():
        assert (logits(model) - expected).abs().max() > 0.1
    result = load(exported(model, tmp_path), torch.float64)
    torch.testing.assert_close(logits(result), expected, rtol=0, atol=ROUTER)


@pytest.mark.parametrize("use_dora", [False, True], ids=["mixlora", "mixdora"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_with_one_expert_per_token_it_is_the_same_to_the_last_digits(
    name: str, use_dora: bool, tmp_path: Path
) -> None:
    model = make_adapted(make_base(name), use_dora=use_dora, top_k=1).double()
    # transformers keeps tables of sines in float32, and norms; both models do the same there.
    result = load(exported(model, tmp_path), torch.float64)
    torch.testing.assert_close(logits(result), logits(model), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "targets",
    [["up_proj", "down_proj"], ["gate_proj"], ["down_proj", "q_proj"], ["gate_proj", "o_proj"]],
    ids=" ".join,
)
@pytest.mark.parametrize("use_dora", [False, True], ids=["mixlora", "mixdora"])
def test_projections_without_an_adapter_are_the_base_s(
    targets: list[str], use_dora: bool, tmp_path: Path
) -> None:
    model = make_adapted(make_base("qwen2"), use_dora=use_dora, target_modules=targets).double()
    with model.disable_adapter():
        assert (logits(model) - logits(make_base("qwen2").double())).abs().max() < 1e-12
    result = load(exported(model, tmp_path), torch.float64)
    torch.testing.assert_close(logits(result), logits(model), rtol=0, atol=ROUTER)


@pytest.mark.parametrize("name", ["llama with tied embeddings", "mistral", "qwen2", "qwen3"])
def test_a_model_in_memory_gives_the_same_file(name: str, tmp_path: Path) -> None:
    model = make_adapted(make_base(name), use_dora=True)
    from_files = exported(model, tmp_path)
    result = mixlora.export(model, tmp_path / "live")
    assert result.folder == tmp_path / "live"
    first, second = (load_file(each / "model.safetensors") for each in (from_files, result.folder))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    one, other = (each / "config.json" for each in (from_files, result.folder))
    assert one.read_text() == other.read_text()
    tied = first["lm_head.weight"].numel() if model.config.tie_word_embeddings else 0
    assert result.num_parameters == sum(each.numel() for each in first.values()) - tied
    assert sum(each.numel() for each in load(from_files, torch.float32).parameters()) == (
        result.num_parameters
    )


def test_one_of_several_adapters_is_exported(tmp_path: Path) -> None:
    model = make_adapted(make_base("llama"))
    config = mixlora.MixLoraConfig(
        task_type="CAUSAL_LM", r=2, num_experts=3, init_lora_weights=False
    )
    model.add_adapter("second", config)
    first = logits(model)
    model.set_adapter("second")
    second = logits(model.eval())
    mixlora.export(model, tmp_path / "active")
    mixlora.export(model, tmp_path / "named", adapter_name="default")
    for folder, expected in (("active", second), ("named", first)):
        result = logits(load(tmp_path / folder, torch.float32))
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"active adapters \['default', 'second'\].*adapter_name"):
        mixlora.export(model, tmp_path / "both")


def test_generation_with_a_cache_is_the_same(tmp_path: Path) -> None:
    model = make_adapted(make_base("llama"))
    result = load(exported(model, tmp_path), torch.float32)
    options = {"max_new_tokens": 24, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    expected = model.generate(input_ids=IDS, **options)
    assert result.generate(input_ids=IDS, **options).tolist() == expected.tolist()


def test_float32_and_default_experts(tmp_path: Path) -> None:
    """As a user loads it, at sizes that torch's grouped product takes."""
    from transformers import AutoModelForCausalLM

    base = make_base("llama", hidden_size=48, intermediate_size=64)
    model = make_adapted(base)
    result = AutoModelForCausalLM.from_pretrained(exported(model, tmp_path)).eval()
    assert result.dtype == torch.float32
    torch.testing.assert_close(logits(result), logits(model), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_float32_rounded_once(dtype: str, tmp_path: Path) -> None:
    model = make_adapted(make_base("llama"))
    base, adapter = save(model, tmp_path)
    full = export_files(base, adapter, tmp_path / "full").files[0]
    half = export_files(base, adapter, tmp_path / "half", dtype=dtype).files[0]
    kind = getattr(torch, dtype)
    expected = load_file(full)
    for name, value in load_file(half).items():
        assert value.dtype == kind and torch.equal(value, expected[name].to(kind)), name
    result = logits(load(tmp_path / "half", torch.float32))
    difference = result - logits(model)
    assert difference.abs().mean() < 0.05 * logits(model).std()
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype


def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = make_adapted(make_base("llama"))
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 4] = 1e5
    base, adapter = save(model, tmp_path)
    with pytest.raises(ValueError, match=r"embed_tokens.weight has 100000, which float16 cannot"):
        export_files(base, adapter, tmp_path / "half", dtype="float16")
    assert {file.name for file in tmp_path.iterdir()} == {"base", "adapter"}


def test_large_models_are_split_among_files(tmp_path: Path) -> None:
    model = make_adapted(make_base("qwen2"))
    base, adapter = save(model, tmp_path)
    whole = export_files(base, adapter, tmp_path / "whole")
    split = export_files(base, adapter, tmp_path / "split", max_shard_size="40KB")
    assert len(split.files) > 3 and split.num_bytes == whole.num_bytes
    parts = [load_file(file) for file in split.files]
    for file, part in zip(split.files, parts, strict=True):
        content = sum(each.numel() * 4 for each in part.values())
        assert content <= 40_000 or len(part) == 1, file
    together = {name: value for part in parts for name, value in part.items()}
    expected = load_file(whole.files[0])
    assert together.keys() == expected.keys()
    assert all(torch.equal(together[name], expected[name]) for name in expected)
    index = json.loads((tmp_path / "split" / "model.safetensors.index.json").read_text())
    assert {name for name in index["weight_map"]} == set(expected)
    torch.testing.assert_close(
        logits(load(tmp_path / "split", torch.float32)),
        logits(load(tmp_path / "whole", torch.float32)),
        rtol=0,
        atol=0,
    )


def test_a_base_in_several_files_is_read(tmp_path: Path) -> None:
    model = make_adapted(make_base("llama"))
    base, adapter = save(model, tmp_path)
    expected = load_file(export_files(base, adapter, tmp_path / "one").files[0])
    weights = load_file(base / "model.safetensors")
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: weights[name] for name in part}, base / file)
        places |= dict.fromkeys(part, file)
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    again = load_file(export_files(base, adapter, tmp_path / "two").files[0])
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_published_names_are_used(tmp_path: Path) -> None:
    """Those of mistralai/Mixtral-8x7B-v0.1 and of Qwen's mixtures, which servers read."""
    mixtral = load_file(exported(make_adapted(make_base("llama")), tmp_path) / "model.safetensors")
    layer = "model.layers.1.block_sparse_moe"
    assert mixtral[f"{layer}.gate.weight"].shape == (5, 36)
    assert mixtral[f"{layer}.experts.4.w1.weight"].shape == (29, 36)
    assert mixtral[f"{layer}.experts.4.w2.weight"].shape == (36, 29)
    assert mixtral[f"{layer}.experts.4.w3.weight"].shape == (29, 36)
    assert not any(".mlp." in name or "lora" in name for name in mixtral)
    for kind in ("qwen2", "qwen3"):
        result = mixlora.export(make_adapted(make_base(kind)), tmp_path / kind)
        weights = load_file(result.files[0])
        assert weights["model.layers.0.mlp.gate.weight"].shape == (5, 36)
        assert weights["model.layers.0.mlp.experts.0.down_proj.weight"].shape == (36, 29)
        silent = [name for name in weights if "shared_expert" in name]
        assert len(silent) == (8 if kind == "qwen2" else 0)
        assert not any(weights[name].any() for name in silent)


def test_a_tied_head_is_written_for_servers_that_do_not_tie(tmp_path: Path) -> None:
    base = make_base("llama with tied embeddings")
    result = exported(make_adapted(base), tmp_path)
    weights = load_file(result / "model.safetensors")
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    loaded = load(result, torch.float32)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_settings_are_carried_over(tmp_path: Path) -> None:
    base = make_base("llama with llama3 rope", eos_token_id=[2, 7], rms_norm_eps=3e-4)
    base.generation_config.temperature = 0.25
    base.generation_config.do_sample = True
    result = exported(make_adapted(base), tmp_path)
    settings = json.loads((result / "config.json").read_text())
    rope = base.config.rope_parameters
    assert settings["architectures"] == ["MixtralForCausalLM"]
    assert settings["eos_token_id"] == [2, 7]
    assert settings["rms_norm_eps"] == 3e-4
    assert settings["rope_parameters"] == rope
    # Names of transformers 4, whose own defaults would be taken otherwise.
    assert settings["rope_theta"] == 5000.0 and settings["torch_dtype"] == "float32"
    assert settings["rope_scaling"] == {k: v for k, v in rope.items() if k != "rope_theta"}
    assert json.loads((result / "generation_config.json").read_text())["temperature"] == 0.25
    window = exported(make_adapted(make_base("mistral with a window")), tmp_path / "mistral")
    assert json.loads((window / "config.json").read_text())["sliding_window"] == 5
    qwen = exported(make_adapted(make_base("qwen3")), tmp_path / "qwen3")
    settings = json.loads((qwen / "config.json").read_text())
    assert (settings["num_experts"], settings["num_experts_per_tok"]) == (5, 2)
    assert settings["norm_topk_prob"] is True and settings["moe_intermediate_size"] == 29


def test_tokenizer_and_licence_are_carried_over_and_the_card_names_all(tmp_path: Path) -> None:
    model = make_adapted(make_base("llama"), use_dora=True)
    base, adapter = save(model, tmp_path)
    (base / "tokenizer_config.json").write_text('{"who": "base"}')
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tools.jinja").write_text("tools")
    (base / "LICENSE").write_text("be kind")
    (base / "pytorch_model.bin").write_text("not carried")
    result = export_files(base, adapter, tmp_path / "one").folder
    assert json.loads((result / "tokenizer_config.json").read_text()) == {"who": "base"}
    assert (result / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (result / "additional_chat_templates" / "tools.jinja").read_text() == "tools"
    assert (result / "LICENSE").read_text() == "be kind"
    assert not (result / "pytorch_model.bin").exists()
    card = (result / "README.md").read_text()
    for part in (str(base), str(adapter), "MixDoRA", "mixlora-repro 0.1.0", "5 experts"):
        assert part in card, part
    # Trained with tokens of its own, it was saved with its own tokenizer.
    (adapter / "tokenizer_config.json").write_text('{"who": "adapter"}')
    other = export_files(base, adapter, tmp_path / "two").folder
    assert json.loads((other / "tokenizer_config.json").read_text()) == {"who": "adapter"}
    assert not (other / "chat_template.jinja").exists()
    assert (other / "LICENSE").read_text() == "be kind"


@pytest.mark.parametrize("name", ["llama", "llama with tied embeddings"])
def test_embeddings_that_travel_with_the_adapter_are_taken(name: str, tmp_path: Path) -> None:
    base = make_base(name)
    base.resize_token_embeddings(70, mean_resizing=False)
    model = make_adapted(base)
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter, save_embedding_layers=True)
    make_base(name).save_pretrained(tmp_path / "base")
    export_files(tmp_path / "base", adapter, tmp_path / "result")
    result = load(tmp_path / "result", torch.float32)
    assert result.config.vocab_size == 70
    torch.testing.assert_close(logits(result), logits(model), rtol=0, atol=5e-5)


def test_a_model_quantised_in_memory_is_dequantised(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = make_base("llama", hidden_size=64, num_attention_heads=4, intermediate_size=128)
    for layer in base.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            linear = getattr(layer.mlp, name)
            sizes = linear.in_features, linear.out_features
            quantised = bitsandbytes.nn.Linear4bit(*sizes, bias=False, quant_type="nf4")
            quantised.weight = bitsandbytes.nn.Params4bit(
                linear.weight.data, requires_grad=False, quant_type="nf4"
            )
            setattr(layer.mlp, name, quantised.to("cpu"))
    base.is_loaded_in_4bit = True
    model = make_adapted(base)
    result = load(mixlora.export(model, tmp_path / "result").folder, torch.float32)
    torch.testing.assert_close(logits(result), logits(model), rtol=0, atol=2e-3)


REFUSED_ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "top_p": ({"routing": "top_p"}, "routing='top_p'.*same number of experts; serve the adapter"),
    "switch": ({"routing": "switch"}, "routing='switch'.*no capacity.*serve the adapter"),
}


@pytest.mark.parametrize("name", REFUSED_ADAPTERS)
def test_other_routings_are_refused(name: str, tmp_path: Path) -> None:
    settings, message = REFUSED_ADAPTERS[name]
    model = make_adapted(make_base("llama"), **settings)
    with pytest.raises(ValueError, match=message):
        mixlora.export(model, tmp_path / "live")
    with pytest.raises(ValueError, match=message):
        exported(model, tmp_path)
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gemma", {"head_dim": 6}, "model type 'gemma'.*llama, mistral, qwen2, qwen3.*serve"),
        ("gemma2", {"head_dim": 6}, "model type 'gemma2'"),
        ("gemma3_text", {"head_dim": 6}, "model type 'gemma3_text'"),
        ("phi", {}, "model type 'phi'"),
        ("phi3", {}, "model type 'phi3'"),
        (
            "llama",
            {"mlp_bias": True},
            r"layers\.0\.mlp\.down_proj\.bias: MixtralForCausalLM has no bias",
        ),
        (
            "llama",
            {"attention_bias": True},
            r"self_attn\.k_proj\.bias: MixtralForCausalLM has no bias there",
        ),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window=True"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window=True"),
    ],
)
def test_bases_without_a_counterpart_are_refused(
    name: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = make_adapted(make_base(name, **settings))
    with pytest.raises(ValueError, match=message):
        mixlora.export(model, tmp_path / "live")
    with pytest.raises(ValueError, match=message):
        exported(model, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"base", "adapter"}


def test_other_adapters_are_refused(tmp_path: Path) -> None:
    lora: Any = get_peft_model(make_base("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="'default' is of LORA: expected MIXLORA"):
        mixlora.export(lora, tmp_path / "result")
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match=r"adapter_config.json is of LORA: expected MIXLORA"):
        export_files(tmp_path / "lora", tmp_path / "lora", tmp_path / "result")
    model = make_adapted(make_base("llama"))
    with pytest.raises(ValueError, match="adapter_name='other': the model has default"):
        mixlora.export(model, tmp_path / "result", adapter_name="other")
    model.peft_config["default"].task_type = "SEQ_CLS"
    with pytest.raises(ValueError, match="task_type='SEQ_CLS' cannot be exported"):
        mixlora.export(model, tmp_path / "result")


def test_merging_is_refused_and_names_the_export() -> None:
    with pytest.raises(ValueError, match=r"cannot be merged.*mixlora\.export"):
        make_adapted(make_base("llama")).merge_and_unload()


def change(folder: Path, name: str, harm: Any) -> None:
    weights = load_file(folder / name)
    harm(weights)
    save_file(weights, folder / name)


ROUTER_KEY = "base_model.model.model.layers.1.mlp.lora_router.weight"
HARMS: dict[str, tuple[str, Any, str]] = {
    "a router is missing": (
        "adapter",
        lambda weights: weights.pop(ROUTER_KEY),
        rf"lacks {ROUTER_KEY}",
    ),
    "a router has four rows": (
        "adapter",
        lambda weights: weights.update({ROUTER_KEY: weights[ROUTER_KEY][:4].clone()}),
        rf"{ROUTER_KEY} of shape \(4, 36\): expected \(5, 36\)",
    ),
    "not a number": (
        "adapter",
        lambda weights: weights[ROUTER_KEY].fill_(float("nan")),
        f"NaN or infinity in {ROUTER_KEY}",
    ),
    "an unknown key": (
        "adapter",
        lambda weights: weights.update({"base_model.model.model.other": torch.zeros(2)}),
        "the adapter has base_model.model.model.other: MixtralForCausalLM has no place",
    ),
    "a norm is missing": (
        "base",
        lambda weights: weights.pop("model.norm.weight"),
        "base lacks model.norm.weight",
    ),
    "whole numbers": (
        "base",
        lambda weights: weights.update({"model.norm.weight": torch.ones(36, dtype=torch.int8)}),
        r"model.norm.weight of I8: expected F64, F32, BF16, F16",
    ),
    "an unknown tensor": (
        "base",
        lambda weights: weights.update({"model.layers.0.self_attn.sinks": torch.zeros(2)}),
        r"the base has model\.layers\.0\.self_attn\.sinks: MixtralForCausalLM has no place",
    ),
}


@pytest.mark.parametrize("name", HARMS)
def test_files_that_do_not_fit_are_refused_by_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    which, harm, message = HARMS[name]
    base, adapter = save(make_adapted(make_base("llama")), tmp_path)
    file = "model.safetensors" if which == "base" else "adapter_model.safetensors"
    change(tmp_path / which, file, harm)
    options = ["--base", str(base), "--adapter", str(adapter), "--to", str(tmp_path / "result")]
    capsys.readouterr()
    assert main(options) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert re.search(message, output.err), output.err
    assert {each.name for each in tmp_path.iterdir()} == {"base", "adapter"}


def test_what_is_no_model_or_adapter_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = save(make_adapted(make_base("llama")), tmp_path)
    truncated = tmp_path / "truncated"
    shutil.copytree(base, truncated)
    content = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(content[: len(content) // 2])
    quantised = tmp_path / "quantised"
    shutil.copytree(base, quantised)
    settings = json.loads((quantised / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(settings))
    empty = tmp_path / "empty"
    empty.mkdir()
    for one, other, message in (
        (adapter, adapter, "holds an adapter: expected a base model"),
        (base, base, "has no adapter_config.json: expected a PEFT adapter"),
        (empty, adapter, "has no model.safetensors: expected weights in safetensors"),
        (tmp_path / "absent", adapter, "expected a directory or a hub id"),
        (truncated, adapter, "model.safetensors cannot be read"),
        (quantised, adapter, r"has quantised weights \(quantization_config\)"),
    ):
        to = str(tmp_path / "result")
        capsys.readouterr()
        assert main(["--base", str(one), "--adapter", str(other), "--to", to]) == 2
        error = capsys.readouterr().err
        assert error.startswith("mixlora-export: ") and error.count("\n") == 1, error
        assert re.search(message, error), error
    assert not (tmp_path / "result").exists()


def test_options_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    base, adapter = save(make_adapted(make_base("llama")), tmp_path)
    for options, message in (
        ({"dtype": "int8"}, "dtype='int8': expected one of float32, bfloat16, float16"),
        ({"format": "onnx"}, "format='onnx': expected one of transformers, gguf"),
        ({"max_shard_size": "many"}, "max_shard_size='many': expected bytes"),
        ({"max_shard_size": 0}, "max_shard_size=0: expected bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            export_files(base, adapter, tmp_path / "result", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"full exists: choose another place"):
        export_files(base, adapter, tmp_path / "full")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    assert {each.name for each in tmp_path.iterdir()} == {"base", "adapter", "full"}


def test_the_command_finds_the_base_that_the_adapter_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_base("llama").save_pretrained(tmp_path / "base")
    base = type(make_base("llama")).from_pretrained(tmp_path / "base")
    model = make_adapted(base)
    model.save_pretrained(tmp_path / "adapter")
    to = tmp_path / "result"
    assert main(["--adapter", str(tmp_path / "adapter"), "--to", str(to)]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"{to}: ") and "parameters" in output.out
    result = load(to, torch.float32)
    torch.testing.assert_close(logits(result), logits(model), rtol=0, atol=5e-5)
    loaded: Any = PeftModel.from_pretrained(
        type(base).from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    torch.testing.assert_close(logits(loaded.eval()), logits(model), rtol=0, atol=0)


def run(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    code = options.pop("code", "")
    script = f"{code}\nimport sys\nfrom mixlora.export.__main__ import main\nsys.exit(main())"
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


#: Makes every tensor of a result take a while.
SLOW = """
import importlib, time
checkpoint = importlib.import_module("mixlora.export.checkpoint")
original = checkpoint._bytes
def slow(*arguments):
    time.sleep(0.05)
    return original(*arguments)
checkpoint._bytes = slow
"""


@pytest.mark.long
@pytest.mark.long
def test_a_killed_export_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    base, adapter = save(make_adapted(make_base("llama")), tmp_path)
    to = tmp_path / "results" / "model"
    options = ["--base", str(base), "--adapter", str(adapter), "--to", str(to)]
    process = run([*options, "--max-shard-size", "30KB"], code=SLOW)
    partial = to.with_name(".model.partial")
    deadline = time.monotonic() + 600
    while len(list(partial.glob("*.safetensors"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(ValueError, match="is being written by another process"):
        export_files(base, adapter, to)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not to.exists()
    assert partial.is_dir() and not (partial / "config.json").exists()
    result = export_files(base, adapter, to)
    assert [each.name for each in to.parent.iterdir()] == ["model"]
    assert load(result.folder, torch.float32)


@pytest.mark.long
@pytest.mark.long
def test_an_interrupted_export_cleans_up(tmp_path: Path) -> None:
    base, adapter = save(make_adapted(make_base("llama")), tmp_path)
    to = tmp_path / "results" / "model"
    options = ["--base", str(base), "--adapter", str(adapter), "--to", str(to)]
    process = run(options, code=SLOW)
    deadline = time.monotonic() + 600
    while not to.with_name(".model.partial").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert (process.returncode, error) == (
        130,
        "mixlora-export: stopped; nothing was left behind\n",
    )
    assert list(to.parent.iterdir()) == []


@pytest.mark.long
@pytest.mark.long
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """The system itself refuses to write more than so many bytes, in the middle of a file."""
    base, adapter = save(make_adapted(make_base("llama")), tmp_path)
    to = tmp_path / "results" / "model"
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
    options = ["--base", str(base), "--adapter", str(adapter), "--to", str(to)]
    process = run(options, code=limit)
    output, error = process.communicate()
    reason = os.strerror(errno.EFBIG)
    assert (process.returncode, output) == (2, "")
    assert error.startswith("mixlora-export: cannot write the model: ") and reason in error
    assert error.count("\n") == 1
    assert list(to.parent.iterdir()) == []


def test_too_little_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = save(make_adapted(make_base("llama")), tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    to = tmp_path / "results" / "model"
    assert main(["--base", str(base), "--adapter", str(adapter), "--to", str(to)]) == 2
    assert "results has 0.0 GB free: the model needs 0.0 GB" in capsys.readouterr().err
    assert list(to.parent.iterdir()) == []


#: Prints how much the process grew while it exported, in KiB.
MEASURED = """
import resource, sys
from mixlora.export import export_files
import transformers, torch
from transformers import MixtralConfig, AutoConfig
export_files(sys.argv[1], sys.argv[2], sys.argv[3] + "-warm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = export_files(sys.argv[4], sys.argv[5], sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, result.num_bytes)
"""


@pytest.mark.long
@pytest.mark.long
def test_it_streams(tmp_path: Path) -> None:
    """A result of 250 MB from a base of 55 MB, with less than a layer of it in memory."""
    small = save(make_adapted(make_base("llama")), tmp_path / "small")
    base = make_base("llama", hidden_size=384, intermediate_size=1536, num_hidden_layers=6)
    large = save(make_adapted(base, num_experts=6), tmp_path / "large")
    arguments = [*map(str, small), str(tmp_path / "result"), *map(str, large)]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    grown, num_bytes = map(int, output.split())
    layer = 6 * 3 * 384 * 1536 * 4
    assert num_bytes > 6 * layer
    assert grown * 1024 < layer
