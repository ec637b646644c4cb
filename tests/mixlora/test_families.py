"""Whole models of every family: what is injected, what is trained, saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model

from mixlora import MixLoraConfig
from mixlora.config import EXPERTS_IMPLEMENTATIONS
from mixlora.families import FAMILIES

from .models import FAMILY_CONFIGS, VOCAB, make_model, randomise, relative_error

IDS = torch.randint(3, VOCAB, (3, 11), generator=torch.Generator().manual_seed(1))


def adapted(family: str = "llama", seed: int = 0, **settings: Any) -> Any:
    """A tiny model with a random MixLoRA adapter, eval mode."""
    values: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 4, "num_experts": 5, "top_k": 2}
    model = get_peft_model(make_model(family, seed), MixLoraConfig(**values | settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def logits(model: Any, ids: torch.Tensor = IDS, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


def test_every_family_is_tested() -> None:
    assert set(FAMILY_CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("use_dora", [False, True], ids=["mixlora", "mixdora"])
@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_identity_at_initialisation(family: str, use_dora: bool) -> None:
    base = make_model(family)
    expected = logits(base)
    model = get_peft_model(base, MixLoraConfig(task_type="CAUSAL_LM", r=4, use_dora=use_dora))
    torch.testing.assert_close(logits(model.eval()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_implementations_agree_and_the_adapter_matters(family: str) -> None:
    model = adapted(family)
    results = []
    for implementation in EXPERTS_IMPLEMENTATIONS:
        model.peft_config["default"].experts_implementation = implementation
        results.append(logits(model))
        torch.testing.assert_close(results[-1], results[0], rtol=1e-4, atol=1e-5)
    assert relative_error(results[0], logits(make_model(family))) > 1e-2
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(make_model(family)), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_only_adapters_are_trained_and_all_of_them(family: str) -> None:
    model = adapted(family).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        is_adapter = "lora_" in name
        assert parameter.requires_grad == is_adapter, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == is_adapter, name
        assert not is_adapter or parameter.dtype == torch.float32, name


@pytest.mark.parametrize("use_dora", [False, True], ids=["mixlora", "mixdora"])
@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_save_and_load(family: str, use_dora: bool, tmp_path: Path) -> None:
    model = adapted(family, use_dora=use_dora)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(family), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    saved, kept = model.peft_config["default"], loaded.peft_config["default"]
    assert (kept.r, kept.num_experts, kept.use_dora) == (saved.r, saved.num_experts, use_dora)


def test_auto_class_loads_base_and_adapter(tmp_path: Path) -> None:
    base = make_model()
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, MixLoraConfig(task_type="CAUSAL_LM", r=4))
    randomise(model.base_model.model.model.layers[0].mlp.lora_B)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), logits(model.eval()), rtol=0, atol=0)


def test_several_adapters() -> None:
    model = adapted(seed=0)
    first = logits(model)
    model.add_adapter("second", MixLoraConfig(task_type="CAUSAL_LM", r=2, num_experts=3, top_k=1))
    torch.testing.assert_close(logits(model), first, rtol=0, atol=0)
    model.set_adapter("second")
    torch.testing.assert_close(logits(model), logits(make_model()), rtol=1e-4, atol=1e-5)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".second" in name for name in trained)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert not any("second" in name for name in model.state_dict())
    torch.testing.assert_close(logits(model), first, rtol=0, atol=0)


def test_two_adapters_at_once_are_refused() -> None:
    model = adapted()
    model.add_adapter("second", MixLoraConfig(task_type="CAUSAL_LM", r=2))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="one at a time"):
        logits(model)


def test_unload_gives_the_base_back_and_merging_is_refused() -> None:
    model = adapted()
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_adapter()
    base = model.unload()
    fresh = make_model()
    assert {name for name, _ in base.named_modules()} == {n for n, _ in fresh.named_modules()}
    torch.testing.assert_close(logits(base), logits(fresh), rtol=0, atol=0)


def test_generation_with_and_without_a_cache_agrees() -> None:
    model = adapted()
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    cached = model.generate(input_ids=IDS, use_cache=True, **options)
    assert cached.tolist() == model.generate(input_ids=IDS, use_cache=False, **options).tolist()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["gate_proj", "fc1"], "'fc1'.*llama has q_proj"),
        (["q_proj", "v_proj"], "at least one of gate_proj"),
        (["q_porj"], "q_porj"),
    ],
)
def test_targets_the_family_does_not_have_are_refused(targets: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(make_model(), MixLoraConfig(target_modules=targets))


def test_an_unknown_family_is_refused() -> None:
    import transformers

    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=VOCAB)
    model: Any = transformers.GPT2LMHeadModel(config)
    with pytest.raises(ValueError, match=r"gpt2.*supported: llama"):
        get_peft_model(model, MixLoraConfig())
