"""MixLoRA over bitsandbytes' 4-bit and 8-bit layers equals MixLoRA over their dequantised weights.

This holds in training mode. In evaluation an 8-bit layer also quantises its inputs, with a scale
that depends on the whole batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from mixlora import MixLoraConfig
from mixlora.config import EXPERTS_IMPLEMENTATIONS

from .models import randomise

bitsandbytes = pytest.importorskip("bitsandbytes")

IDS = torch.randint(61, (3, 11), generator=torch.Generator().manual_seed(0))
BITS = ("4bit", "8bit")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama, saved."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def load(base: Path, bits: str) -> Any:
    options: dict[str, Any] = {"load_in_8bit": True}
    if bits == "4bit":
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        options |= {"bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    return AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(**options),
    )


def dequantised(base: Path, quantised: Any) -> Any:
    """A plain model with the numbers that the quantised one stands for."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    number = 0
    for name, module in quantised.named_modules():
        if type(module).__module__.startswith("bitsandbytes"):
            weight = module.weight
            if weight.dtype == torch.int8:
                value = weight.data.float() * weight.SCB.unsqueeze(1) / 127
            else:
                value = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            assert not torch.equal(value, plain.get_submodule(name).weight)
            plain.get_submodule(name).weight.data = value.float()
            number += 1
    assert number == 14
    return plain


def adapted(model: Any, use_dora: bool, implementation: str = "auto") -> Any:
    torch.manual_seed(2)
    config = MixLoraConfig(
        task_type="CAUSAL_LM",
        r=3,
        lora_alpha=5,
        num_experts=4,
        lora_dropout=0.0,
        use_dora=use_dora,
        experts_implementation=implementation,
    )
    model = get_peft_model(model, config)
    for _, parameter in adapter_of(model):
        randomise(torch.nn.ParameterList([parameter]), scale=0.1)
    return model


def adapter_of(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def results_of(model: Any) -> dict[str, torch.Tensor]:
    """Logits and every gradient of a training step."""
    model.train()
    model.zero_grad()
    outputs = model(input_ids=IDS, labels=IDS)
    outputs.loss.backward()
    return {"logits": outputs.logits.detach()} | {
        name: p.grad.clone() for name, p in adapter_of(model) if p.grad is not None
    }


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys() and len(wanted) > 20
    for name, value in wanted.items():
        assert value.norm() > 0, name
        assert (found[name] - value).norm() < 1e-4 * value.norm(), name


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("use_dora", [False, True])
def test_every_implementation_equals_the_dequantised_model(
    base: Path, bits: str, use_dora: bool
) -> None:
    plain = dequantised(base, load(base, bits))
    wanted = results_of(adapted(plain, use_dora, "naive"))
    for implementation in EXPERTS_IMPLEMENTATIONS:
        if implementation == "grouped" and use_dora:
            continue
        model = adapted(load(base, bits), use_dora, implementation)
        assert_close(results_of(model), wanted)
        # Again after an evaluation, which must leave the frozen layers as they were.
        model.eval()
        with torch.inference_mode():
            model(input_ids=IDS)
        assert_close(results_of(model), wanted)


@pytest.mark.parametrize("bits", BITS)
def test_evaluation_is_near_the_dequantised_model(base: Path, bits: str) -> None:
    wanted = adapted(dequantised(base, load(base, bits)), use_dora=False).eval()
    model = adapted(load(base, bits), use_dora=False).eval()
    with torch.inference_mode():
        logits, expected = (each(input_ids=IDS).logits for each in (model, wanted))
    tolerance = 1e-5 if bits == "4bit" else 0.05
    assert (logits - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("use_dora", [False, True])
def test_the_adapter_is_float32_and_comes_back(
    base: Path, bits: str, use_dora: bool, tmp_path: Path
) -> None:
    model = adapted(load(base, bits), use_dora)
    adapter = adapter_of(model)
    assert {parameter.dtype for _, parameter in adapter} == {torch.float32}
    assert sum("lora_router" in name for name, _ in adapter) == 2
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(load(base, bits), str(tmp_path))
    with torch.inference_mode():
        first, second = (each.eval()(input_ids=IDS).logits for each in (model, again))
    assert torch.equal(first, second)


def test_weights_that_are_repacked_are_refused(base: Path) -> None:
    model = load(base, "4bit")
    model.model.layers[1].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="load it anew and add the adapter first"):
        adapted(model, use_dora=False)
