"""The authors' adapter format: files written by hand, and directories that are not right.

test_official_parity.py shows that their package runs what we write, and that we run what it runs.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from mixlora import MixLoraModelForCausalLM, authors_format

from .models import make_model, relative_error
from .test_families import IDS, adapted, logits

EXPERTS, RANK = 3, 4
#: (in_features, out_features) of every projection of the llama in models.py.
SIZES = {
    "self_attn": {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32)},
    "mlp": {"gate_proj": (32, 44), "up_proj": (32, 44), "down_proj": (44, 32)},
}
SETTINGS: dict[str, Any] = {
    "base_model_name_or_path": "some/base",
    "task_type": "CAUSAL_LM",
    "peft_type": "MIXLORA",
    "bias": "none",
    "r": RANK,
    "lora_alpha": 6,
    "lora_dropout": 0.05,
    "target_modules": [name for sizes in SIZES.values() for name in sizes],
    "routing_strategy": "mixlora",
    "num_experts": EXPERTS,
    "top_k": 2,
    "act_fn": "silu",
}


def make_weights() -> dict[str, Tensor]:
    """Random tensors with the keys and shapes that their package expects."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    weights = {}
    for layer in ("mixlora.layers.0", "mixlora.layers.1"):
        weights[f"{layer}.mlp.moe_gate.weight"] = random(EXPERTS, 32)
        for name, (inputs, outputs) in SIZES["self_attn"].items():
            weights[f"{layer}.self_attn.{name}.lora_A.weight"] = random(RANK, inputs)
            weights[f"{layer}.self_attn.{name}.lora_B.weight"] = random(outputs, RANK)
        for name, (inputs, outputs) in SIZES["mlp"].items():
            for expert in range(EXPERTS):
                key = f"{layer}.mlp.{name}.experts.{expert}"
                weights[f"{key}.lora_A.weight"] = random(RANK, inputs)
                weights[f"{key}.lora_B.weight"] = random(outputs, RANK)
    return weights


def write_adapter(folder: Path, **settings: Any) -> dict[str, Tensor]:
    """Write an adapter in their format; returns its weights."""
    folder.mkdir(exist_ok=True)
    weights = make_weights()
    torch.save(weights, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    return weights


def routing_weights(p: list[float], top_p: float | None) -> dict[int, float]:
    """Routing weight of each expert that a token is sent to, from its router's probabilities."""
    ranked = sorted(range(EXPERTS), key=lambda e: -p[e])
    if top_p is None:
        return {e: p[e] / (p[ranked[0]] + p[ranked[1]]) for e in ranked[:2]}
    count = next(n for n in range(1, EXPERTS + 1) if sum(p[e] for e in ranked[:n]) > top_p)
    return {e: p[e] for e in ranked[:count]}


def ffn_by_hand(
    mlp: Any, weights: dict[str, Tensor], prefix: str, top_p: float | None, hidden: Tensor
) -> Tensor:
    """The mixture, token by token."""

    def project(name: str, expert: int, x: Tensor) -> Tensor:
        key, linear = f"{prefix}.{name}.experts.{expert}", getattr(mlp, name)
        low = weights[f"{key}.lora_B.weight"] @ (weights[f"{key}.lora_A.weight"] @ x)
        return linear(x) + SETTINGS["lora_alpha"] / RANK * low

    outputs = []
    for x in hidden.reshape(-1, 32):
        p = torch.softmax(weights[f"{prefix}.moe_gate.weight"] @ x, dim=0).tolist()
        y = torch.zeros(32)
        for e, weight in routing_weights(p, top_p).items():
            inner = torch.nn.functional.silu(project("gate_proj", e, x)) * project("up_proj", e, x)
            y += weight * project("down_proj", e, inner)
        outputs.append(y)
    return torch.stack(outputs).view(hidden.shape)


def by_hand(weights: dict[str, Tensor], top_p: float | None = None) -> Tensor:
    """Logits of the plain model with adapted attention weights and FFNs worked out by hand."""
    model = make_model()
    for index, layer in enumerate(model.model.layers):
        prefix = f"mixlora.layers.{index}"
        for name in SIZES["self_attn"]:
            key = f"{prefix}.self_attn.{name}"
            update = weights[f"{key}.lora_B.weight"] @ weights[f"{key}.lora_A.weight"]
            getattr(layer.self_attn, name).weight.data += SETTINGS["lora_alpha"] / RANK * update
        layer.mlp.forward = partial(ffn_by_hand, layer.mlp, weights, f"{prefix}.mlp", top_p)
    return logits(model)


@pytest.mark.parametrize("use_dora", [False, True], ids=["mixlora", "mixdora"])
def test_their_adapter_gives_the_logits_worked_out_by_hand(use_dora: bool, tmp_path: Path) -> None:
    # Their format has no magnitudes, so their MixDoRA is the same mixture.
    weights = write_adapter(tmp_path, use_dora=use_dora)
    model = authors_format.load(tmp_path, make_model())
    expected = by_hand(weights)
    assert relative_error(logits(model), expected) < 1e-5
    assert relative_error(expected, logits(make_model())) > 0.1
    assert not any(parameter.requires_grad for parameter in model.parameters())
    config: Any = model.peft_config["default"]
    assert (config.lora_dropout, config.use_dora) == (0.05, use_dora)


def test_their_dynamic_routing(tmp_path: Path) -> None:
    settings = {"routing_strategy": "mixlora-dynamic", "top_p": 0.6, "temperature": 0.0}
    weights = write_adapter(tmp_path, **settings)
    model = authors_format.load(tmp_path, make_model())
    assert relative_error(logits(model), by_hand(weights, top_p=0.6)) < 1e-5
    assert relative_error(logits(model), by_hand(weights)) > 1e-2


def test_what_is_written_is_what_was_read(tmp_path: Path) -> None:
    weights = write_adapter(tmp_path / "theirs")
    model = authors_format.load(tmp_path / "theirs", make_model(), adapter_name="alpaca")
    authors_format.save(model, tmp_path / "ours", "alpaca")
    written = torch.load(tmp_path / "ours" / "adapter_model.bin", weights_only=True)
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[key], weights[key]) for key in weights)
    # Saving a view would have saved all experts' storage with each expert.
    assert all(w.untyped_storage().nbytes() == w.nbytes for w in written.values())
    settings = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert 0 < settings.pop("lora_dropout") < 1e-9
    expected = SETTINGS | {
        "target_modules": sorted(SETTINGS["target_modules"]),
        "use_dora": False,
        "router_aux_loss_coef": 0.001,
        "router_init_range": 0.02,
    }
    assert settings == {k: v for k, v in expected.items() if k != "lora_dropout"}


def test_ours_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = adapted(lora_alpha=6, lora_dropout=0.1, router_aux_loss_coef=0.25)
    model.peft_config["default"].base_model_name_or_path = "some/base"
    authors_format.save(model, tmp_path)
    loaded = authors_format.load(tmp_path, make_model(), is_trainable=True).eval()
    assert torch.equal(logits(loaded), logits(model))
    config: Any = loaded.peft_config["default"]
    assert (config.lora_dropout, config.router_aux_loss_coef) == (0.0, 0.25)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_the_base_is_found_by_its_name(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "base")
    weights = write_adapter(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    assert (
        relative_error(logits(authors_format.load(tmp_path / "adapter")), by_hand(weights)) < 1e-5
    )


def test_their_mixdora_trains_on_from_its_norms(tmp_path: Path) -> None:
    write_adapter(tmp_path, use_dora=True)
    model: Any = authors_format.load(tmp_path, make_model(), is_trainable=True)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "magnitude" in n}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert len(before) == 2 * 7
    assert all(not torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type='LORA': expected 'MIXLORA'"),
        ({"routing_strategy": "mola"}, "routing_strategy='mola': expected 'mixlora' or"),
        ({"routing_strategy": "mixlora-switch"}, "expected 'mixlora' or 'mixlora-dynamic'$"),
        ({"temperature": 0.5}, "temperature=0.5: expected 0"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS': expected 'CAUSAL_LM' or 'QUESTION_ANS'"),
        ({"bias": "all"}, "bias='all': expected 'none'"),
        ({"use_rslora": True}, "use_rslora=True: expected False"),
        ({"jitter_noise": 0.1}, "jitter_noise=0.1: expected 0"),
        ({"expert_lora": {"r": 8}}, r"expert_lora\.r=8: expected 4, as outside"),
        ({"expert_lora": 3}, "expert_lora=3: expected settings by name"),
        ({"experts": 8, "depth": 1}, "settings that are not known: depth, experts"),
        ({"r": "4"}, "r='4': expected a whole number"),
        ({"top_k": 4}, r"top_k=4: expected .* at most num_experts \(3\)"),
        ({"target_modules": 7}, "adapter_config.json: target_modules=7: expected a list of names"),
        ({"target_modules": ["wq"]}, "'wq'"),
        ({"act_fn": "relu"}, "act_fn='relu': the model has 'silu'"),
        ({"num_experts": 4}, r"moe_gate\.weight of shape \(3, 32\): num_experts=4 in adapter_c"),
        # Refused before memory for 60,000 ranks is asked for.
        ({"r": 60_000}, r"lora_A\.weight of shape \(4, 32\): r=60000 in adapter_config\.json"),
    ],
)
def test_settings_that_cannot_be_honoured(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path, **settings)
    with pytest.raises(ValueError, match=message) as error:
        authors_format.load(tmp_path, make_model())
    assert "\n" not in str(error.value)


def test_settings_that_say_the_same_in_another_way(tmp_path: Path) -> None:
    targets = {name: True for name in SETTINGS["target_modules"]} | {"fc1": False, "dense": False}
    weights = write_adapter(
        tmp_path,
        target_modules=targets,
        expert_lora={"r": RANK, "lora_alpha": 6},
        task_type="QUESTION_ANS",
        router_loss=False,
        entropy_index=1.4,
    )
    model = authors_format.load(tmp_path, make_model())
    assert relative_error(logits(model), by_hand(weights)) < 1e-5
    config: Any = model.peft_config["default"]
    assert config.router_aux_loss_coef == 0


class Code:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("this must not be printed",)


GATE = "mixlora.layers.1.mlp.moe_gate.weight"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no adapter_model\.bin"),
        (b"no pickle", "without running code"),
        (Code(), "without running code"),
        ([torch.zeros(2)], "is no dictionary of tensors"),
        ({GATE: None}, rf"adapter_model\.bin lacks {GATE}$"),
        ({GATE: torch.zeros(3, 31)}, rf"{GATE} of shape \(3, 31\): expected \(3, 32\)$"),
        ({"mixlora.layers.2.x": torch.zeros(1)}, r"not know: mixlora\.layers\.2\.x$"),
    ],
)
def test_weights_that_are_not_right(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_adapter(tmp_path)
    file = tmp_path / "adapter_model.bin"
    if content is None:
        file.unlink()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        changed = {k: v for k, v in (weights | content).items() if v is not None}
        torch.save(changed, file)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=message) as error:
        authors_format.load(tmp_path, make_model())
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no adapter_config\.json"),
        ("{", "is not JSON"),
        ("[1]", "holds a list: expected settings by name"),
        (json.dumps({k: v for k, v in SETTINGS.items() if k != "num_experts"}), "lacks num_exp"),
    ],
)
def test_a_config_that_cannot_be_read(content: str | None, message: str, tmp_path: Path) -> None:
    write_adapter(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        authors_format.load(tmp_path, make_model())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True: .* no place for DoRA's magnitudes"),
        ({"routing": "top_p"}, "routing='top_p': the authors' package knows top_k alone"),
        ({"lora_alpha": 2.5}, r"lora_alpha=2\.5: .*whole numbers"),
        ({}, "base_model_name_or_path=None"),
    ],
)
def test_what_the_format_cannot_hold(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = adapted(**settings)
    model.peft_config["default"].base_model_name_or_path = "base" if settings else None
    with pytest.raises(ValueError, match=message):
        authors_format.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_other_models_and_methods_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not know the model type 'qwen3'; it knows llama"):
        authors_format.save(adapted("qwen3"), tmp_path)
    lora: Any = get_peft_model(make_model(), LoraConfig(task_type="CAUSAL_LM", r=2))
    with pytest.raises(ValueError, match="adapter 'default' is of LORA: expected MIXLORA"):
        authors_format.save(lora, tmp_path)


def test_code_written_for_their_package_runs(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "base")
    name = str(tmp_path / "base")
    write_adapter(tmp_path / "adapter", base_model_name_or_path=name, lora_dropout=1e-12)
    model, config = MixLoraModelForCausalLM.from_pretrained(
        str(tmp_path / "adapter"), adapter_name="theirs", torch_dtype=torch.float32
    )
    assert config.base_model_name_or_path == name
    assert model.active_adapters == ["theirs"] and not model.training
    expected = logits(authors_format.load(tmp_path / "adapter"))
    assert torch.equal(logits(model), expected)
    with pytest.raises(ValueError, match=r"has no adapter_config\.json"):
        MixLoraModelForCausalLM.from_pretrained(name)
