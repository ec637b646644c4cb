"""An adapter's files: their content, loading in another process, weights that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file

from mixlora import MixLoraConfig

from .models import make_model, relative_error
from .test_families import IDS, adapted, logits

WEIGHTS = "adapter_model.safetensors"
ROUTER = "base_model.model.model.layers.1.mlp.lora_router.weight"


def write_logits(rank: int, folder: str) -> None:
    """Load the adapter in a folder and write its logits there; run in a process of its own."""
    model = PeftModel.from_pretrained(make_model(), folder)
    torch.save(logits(model), Path(folder) / "logits.pt")


@pytest.mark.parametrize("use_dora", [False, True], ids=["mixlora", "mixdora"])
@pytest.mark.long
def test_another_process_loads_the_same_bits(use_dora: bool, tmp_path: Path) -> None:
    model = adapted(use_dora=use_dora)
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        WEIGHTS,
    }
    saved = load_file(tmp_path / WEIGHTS)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(saved) == len(trained)
    for name, parameter in trained.items():
        key = name.replace(".default", "")
        if "self_attn" in key:  # PEFT's own name for DoRA's magnitude
            key = key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
        assert torch.equal(saved[key], parameter), name
    mp.spawn(write_logits, (str(tmp_path),), nprocs=1)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_load_adapter_beside_another(tmp_path: Path) -> None:
    second = adapted(seed=0, r=2, num_experts=3, top_k=1)
    second.save_pretrained(tmp_path)
    model = adapted(seed=0)
    first = logits(model)
    model.load_adapter(tmp_path, "second")
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(second))
    model.save_pretrained(tmp_path / "again", selected_adapters=["second"])
    again, saved = (load_file(f / WEIGHTS) for f in (tmp_path / "again" / "second", tmp_path))
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[key], saved[key]) for key in saved)


def test_transformers_loads_it_without_peft_in_the_way(tmp_path: Path) -> None:
    model = adapted()
    model.save_pretrained(tmp_path / "mixlora")
    adapted(r=2, num_experts=3).save_pretrained(tmp_path / "other")
    base = make_model()
    frozen = logits(base)
    info = base.load_adapter(str(tmp_path / "mixlora"))
    assert not info.missing_keys and not info.unexpected_keys
    assert torch.equal(logits(base), logits(model))
    base.load_adapter(str(tmp_path / "other"), adapter_name="other")
    assert base.active_adapters() == ["other"]
    assert relative_error(logits(base), logits(model)) > 1e-3
    base.set_adapter("default")
    assert torch.equal(logits(base), logits(model))
    base.disable_adapters()
    assert torch.equal(logits(base), frozen)
    base.enable_adapters()
    base.delete_adapter("other")
    assert torch.equal(logits(base), logits(model))


def lose(weights: dict[str, torch.Tensor]) -> None:
    del weights[ROUTER]


def lose_all_experts(weights: dict[str, torch.Tensor]) -> None:
    for key in [key for key in weights if ".mlp.lora_" in key]:
        del weights[key]


def add(weights: dict[str, torch.Tensor]) -> None:
    weights[ROUTER.replace("layers.1", "layers.2")] = weights[ROUTER].clone()


def add_to_the_base(weights: dict[str, torch.Tensor]) -> None:
    weights["base_model.model.model.norm.weight"] = torch.zeros(32)


def cut(weights: dict[str, torch.Tensor]) -> None:
    weights[ROUTER] = weights[ROUTER][:-1].clone()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose, r"lacks model\.layers\.1\.mlp\.lora_router\.weight$"),
        (lose_all_experts, r"lacks model\.layers\.0\.mlp\.lora_A\.\w+, .* and 12 more$"),
        (add, r"does not know: model\.layers\.2\.mlp\.lora_router\.weight$"),
        (add_to_the_base, r"does not know: model\.norm\.weight$"),
        (cut, r"layers\.1\.mlp\.lora_router\.weight of shape \(4, 32\): expected \(5, 32\)$"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    harm: Callable[[dict[str, torch.Tensor]], None], message: str, tmp_path: Path
) -> None:
    model = adapted()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    harm(weights)
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(make_model(), tmp_path)
    with pytest.raises(ValueError, match=message):
        model.load_adapter(tmp_path, "second")
    with pytest.raises(ValueError, match=message):
        set_peft_model_state_dict(model, weights)


def test_transformers_names_what_it_did_not_find(tmp_path: Path) -> None:
    # transformers loads adapters without PEFT's checks, so we cannot refuse there; it reports.
    adapted().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    lose(weights)
    save_file(weights, tmp_path / WEIGHTS)
    info = make_model().load_adapter(str(tmp_path))
    assert set(info.missing_keys) == {"model.layers.1.mlp.lora_router.default.weight"}


def test_a_config_that_does_not_fit_its_weights_is_refused(tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ValueError, match=r"lacks .*lora_magnitude_vector"):
        PeftModel.from_pretrained(make_model(), tmp_path)


def test_resized_embeddings_travel_with_the_adapter(tmp_path: Path) -> None:
    def resized() -> Any:
        model = make_model()
        model.resize_token_embeddings(70, mean_resizing=False)
        return model

    model = get_peft_model(resized(), MixLoraConfig(task_type="CAUSAL_LM", r=4))
    with torch.no_grad():
        model.get_input_embeddings().weight[-1] = 0.5
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    loaded = PeftModel.from_pretrained(resized(), tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_state_dict_of_one_adapter_goes_into_another() -> None:
    model = adapted()
    expected = logits(model)
    model.add_adapter("second", MixLoraConfig(task_type="CAUSAL_LM", r=4, num_experts=5, top_k=2))
    model.set_adapter("second")
    model.eval()
    assert relative_error(logits(model), expected) > 1e-3
    set_peft_model_state_dict(model, get_peft_model_state_dict(model), "second")
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_k_bit_preparation_keeps_the_adapter_in_float32(dtype: torch.dtype) -> None:
    """As over a quantised base: other weights in half precision, gradient checkpointing on."""
    base = make_model().to(dtype)
    base.is_loaded_in_4bit = True
    options = {"use_reentrant": False}
    base = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs=options)
    assert base.model.layers[0].gradient_checkpointing
    model = get_peft_model(base, MixLoraConfig(task_type="CAUSAL_LM", r=4)).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
            assert parameter.grad is not None, name
    assert model.base_model.model.model.layers[0].mlp.lora_router["default"].weight.grad.any()


def test_a_lora_adapter_beside_it_is_refused() -> None:
    model = adapted()
    with pytest.raises(ValueError, match="MIXLORA"):
        model.add_adapter("lora", LoraConfig(r=2, target_modules=["q_proj"]))
