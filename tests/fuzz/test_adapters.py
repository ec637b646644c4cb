"""Adapter folders, PEFT's and the authors': loaded to the bit, or refused by name; never run."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save
from torch import Tensor

from mixlora import MixLoraConfig, authors_format
from mixlora.config import LARGEST_CONFIG
from mixlora.lm_eval.model import AdapterError, load_adapter
from tests.mixlora.models import make_model, randomise
from tests.mixlora.test_authors_format import SETTINGS, make_weights

from .cases import cases, run
from .mutations import damaged, dumps, mutate, put_in_place

pytestmark = pytest.mark.long


class Code:
    """What makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def base() -> Any:
    return make_model()


@pytest.fixture(scope="module")
def peft_folder(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole adapter of PEFT's format."""
    config = MixLoraConfig(task_type="CAUSAL_LM", r=4, num_experts=3)
    model = get_peft_model(copy.deepcopy(base), config)
    randomise(torch.nn.ParameterList(p for p in model.parameters() if p.requires_grad))
    folder = tmp_path_factory.mktemp("peft")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters") / "adapter"


def adapter_weights(model: Any) -> dict[str, Tensor]:
    # Whether a vocabulary was resized is asked of the hub otherwise.
    return get_peft_model_state_dict(model, save_embedding_layers=False)


#: What is done to a weight, and whether the adapter can still be used.
HARMS: dict[str, tuple[Callable[[Tensor], Any], bool]] = {
    "as it is": (lambda w: w, True),
    "bfloat16": (lambda w: w.bfloat16(), True),
    "float64": (lambda w: w.double(), True),
    "row less": (lambda w: w[:-1].clone(), False),
    "transposed": (lambda w: w[..., None].clone(), False),
    "empty": (lambda w: w[:0].clone(), False),
    "one NaN": (lambda w: with_value(w, float("nan")), False),
    "one infinity": (lambda w: with_value(w, float("-inf")), False),
    "whole numbers": (lambda w: w.int(), False),
    "booleans": (lambda w: w > 0, False),
    "complex": (lambda w: w.to(torch.complex64), False),
    "half without end": (lambda w: (w + 1e6).half(), False),
}


def with_value(weight: Tensor, value: float) -> Tensor:
    weight = weight.clone()
    weight.view(-1)[-1] = value
    return weight


def harm(data: Any, weights: dict[str, Tensor]) -> tuple[bool, str]:
    """Change the weights; whether they can still be used, and the key that is wrong."""
    key = data.draw(st.sampled_from(sorted(weights)))
    how = data.draw(st.sampled_from([*HARMS, "missing", "extra", "renamed"]))
    if how in HARMS:
        change, usable = HARMS[how]
        weights[key] = change(weights[key])
        return usable, key
    if how == "extra":
        other = data.draw(st.sampled_from(["a\nb", key + ".x", "", "x" * 5_000, "norm.weight"]))
        weights[other] = torch.zeros(2)
        return False, other[:20].strip("\n").partition("\n")[0]
    value = weights.pop(key)
    if how == "renamed":
        weights[key.replace("layers.1", "layers.7").replace("layers.0", "layers.9")] = value
    return False, key


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    (folder.parent / "elsewhere").unlink(missing_ok=True)
    folder.mkdir()
    return folder


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key].to(found[key].dtype)) for key in expected
    )


def said_by(content: bytes) -> Any:
    """What a file of settings holds, as JSON; None if it is too long or none."""
    try:
        return json.loads(content.decode()) if len(content) <= LARGEST_CONFIG else None
    except (ValueError, RecursionError):
        return None


@cases(quick=40, torture=900)
@given(data=st.data())
def test_the_authors_weights(base: Any, folder: Path, data: Any) -> None:
    fresh(folder)
    weights: dict[Any, Any] = make_weights()
    usable, key = harm(data, weights)
    file = folder / "adapter_model.bin"
    marker = folder / "was run"
    content = data.draw(st.sampled_from(4 * ["weights"] + ["damaged", "code", "value", "name"]))
    if content == "code":
        weights[sorted(weights)[0]] = Code(marker)
    elif content == "value":
        weights["mixlora.layers.0.x"] = data.draw(st.sampled_from([None, 3, "x", [torch.ones(2)]]))
    elif content == "name":
        weights[data.draw(st.sampled_from([3, None, (1, 2), b"x"]))] = torch.zeros(2)
    torch.save(weights, file)
    raw = file.read_bytes()
    file.unlink()
    new = data.draw(damaged(raw)) if content == "damaged" else raw
    readable = put_in_place(data.draw, file, new)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS))
    ended = run(
        "adapters",
        lambda: authors_format.load(folder, copy.deepcopy(base)),
        names=[str(folder), "adapter_model.bin"],
    )
    assert not marker.exists()
    if not readable or content in ("code", "value", "name"):
        assert ended.refusal
    elif content == "weights":
        assert bool(ended.result) == usable
        assert usable or key in ended.refusal or "more" in ended.refusal
    if ended.result is not None:
        # Damaged bytes that torch does not look at; its sums are for those that it does.
        assert equal(dict(authors_format._places(ended.result, "default")), weights) or new != raw


@cases(quick=40, torture=900)
@given(data=st.data())
@example(data=None).via("settings of more than a megabyte")
def test_the_authors_settings(base: Any, folder: Path, data: Any) -> None:
    fresh(folder)
    settings = copy.deepcopy(SETTINGS) | {"expert_lora": {"r": SETTINGS["r"]}}
    torch.save(make_weights(), folder / "adapter_model.bin")
    file, readable, changed = folder / "adapter_config.json", True, set()
    if data is None:
        file.write_text(json.dumps(settings) + LARGEST_CONFIG * " ")
    else:
        for _ in range(data.draw(st.integers(0, 2))):
            changed.add(mutate(data.draw, settings))
        content = dumps(settings)
        if data.draw(st.integers(0, 2)) == 0:
            changed = {""}
            content = data.draw(damaged(content))
        readable = put_in_place(data.draw, file, content)
    ended = run(
        "adapters", lambda: authors_format.load(folder, copy.deepcopy(base)), names=[str(folder)]
    )
    if data is None:
        assert f"more than {LARGEST_CONFIG:,} bytes" in ended.refusal
        return
    said = said_by(content) if readable else None
    if not isinstance(said, dict):
        assert ended.refusal and "adapter_config.json" in ended.refusal
    elif said == SETTINGS | {"expert_lora": {"r": SETTINGS["r"]}}:
        assert ended.result is not None
    elif ended.refusal:
        # By the field, or because the weights are of other settings.
        assert (
            any(name in ended.refusal for name in changed) or "adapter_model.bin" in ended.refusal
        )
    else:
        config = ended.result.peft_config["default"]
        for name in ("r", "lora_alpha", "num_experts", "lora_dropout"):
            assert getattr(config, name) == said[name]
        assert config.top_k == said.get("top_k", 2)
        assert equal(dict(authors_format._places(ended.result, "default")), make_weights())


@cases(quick=40, torture=1100)
@given(data=st.data())
def test_pefts_weights(base: Any, peft_folder: Path, folder: Path, data: Any) -> None:
    fresh(folder)
    shutil.copy(peft_folder / "adapter_config.json", folder)
    weights = load_file(peft_folder / "adapter_model.safetensors")
    usable, key = harm(data, weights)
    key = key.removeprefix("base_model.model.")
    pickled = data.draw(st.booleans())
    file = folder / ("adapter_model.bin" if pickled else "adapter_model.safetensors")
    marker = folder / "was run"
    code = pickled and data.draw(st.integers(0, 3)) == 0
    torch.save(weights | ({"x": Code(marker)} if code else {}), file)
    raw = file.read_bytes() if pickled else save(weights)
    file.unlink()
    new = data.draw(damaged(raw)) if data.draw(st.integers(0, 3)) == 0 else raw
    readable = put_in_place(data.draw, file, new)
    ended = run(
        "adapters",
        lambda: load_adapter(copy.deepcopy(base), str(folder)),
        (AdapterError,),
        [f"adapter {folder}: "],
    )
    assert not marker.exists()
    if not readable or code:
        assert ended.refusal
    elif new == raw:
        assert bool(ended.result) == usable
        # PEFT's own way in has the same answer, by the same check.
        run("adapters", lambda: PeftModel.from_pretrained(copy.deepcopy(base), folder))
    if ended.result is not None and new == raw:
        assert equal(adapter_weights(ended.result), weights)


@cases(quick=40, torture=900)
@given(data=st.data())
@example(data=None).via("settings of more than a megabyte")
def test_pefts_settings(base: Any, peft_folder: Path, folder: Path, data: Any) -> None:
    fresh(folder)
    shutil.copy(peft_folder / "adapter_model.safetensors", folder)
    settings = json.loads((peft_folder / "adapter_config.json").read_text())
    before = copy.deepcopy(settings)
    file, readable = folder / "adapter_config.json", True
    if data is None:
        file.write_text(json.dumps(settings) + LARGEST_CONFIG * " ")
    else:
        if data.draw(st.booleans()):
            settings["peft_type"] = data.draw(
                st.sampled_from(["LORA", "IA3", "PROMPT_TUNING", "MIXLORA ", "", None, ["LORA"]])
            )
        for _ in range(data.draw(st.integers(0, 2))):
            mutate(data.draw, settings)
        content = dumps(settings)
        if data.draw(st.integers(0, 2)) == 0:
            content = data.draw(damaged(content))
        readable = put_in_place(data.draw, file, content)
    with warnings.catch_warnings():
        # PEFT says that it passes over settings that it does not know.
        warnings.simplefilter("ignore")
        ended = run(
            "adapters",
            lambda: load_adapter(copy.deepcopy(base), str(folder)),
            (AdapterError,),
            [f"adapter {folder}: "],
        )
    if data is None:
        assert f"more than {LARGEST_CONFIG:,} bytes" in ended.refusal
        return
    said = said_by(content) if readable else None
    if not isinstance(said, dict) or said.get("peft_type") != "MIXLORA":
        assert ended.refusal
    # Python's 1 is equal to its True, JSON's is another value.
    elif json.dumps(said, sort_keys=True) == json.dumps(before, sort_keys=True):
        assert ended.result is not None
    elif ended.result is not None:
        config = ended.result.peft_config["default"]
        for name in ("r", "lora_alpha", "num_experts", "top_k", "use_dora", "forward", "routing"):
            if name in said:
                assert getattr(config, name) == said[name]
        expected = load_file(peft_folder / "adapter_model.safetensors")
        assert equal(adapter_weights(ended.result), expected)


def test_weights_may_be_links_as_in_the_hubs_cache(
    base: Any, peft_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "adapter" / name).symlink_to(peft_folder / name)
    model = load_adapter(copy.deepcopy(base), str(tmp_path / "adapter"))
    expected = load_file(peft_folder / "adapter_model.safetensors")
    assert equal(adapter_weights(model), expected)
