"""Cells on a 4-bit or 8-bit base: every method trains and is scored, and the record says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from harness.cells.spec import RunOptions, RunSpec
from harness.models import quantise
from harness.models.quantise import QUANTIZATIONS
from harness.models.weights import MODELS, load_model, resolve
from harness.request import single_task
from harness.run.cell import add_adapter
from harness.run.inputs import InputLoader
from harness.schedule.executor import execute
from harness.store.records import RecordStore
from tasks.sources import open_source

from .builders import make_request

pytestmark = pytest.mark.long

EVERY_QUANTISATION = pytest.mark.parametrize("quantize", QUANTIZATIONS)


def cells(
    quantize: str | None, methods: list[str], tasks: tuple[str, ...] = ("piqa",)
) -> list[RunSpec]:
    request = make_request(
        tasks=tasks,
        methods=methods,
        scoring="choice",
        quantize=quantize,
        limit_train=16,
        limit_eval=8,
    )
    return single_task()(request)


def test_the_default_leaves_the_id_of_a_cell() -> None:
    (plain,), (quantised,) = cells(None, ["lora"]), cells("4bit", ["lora"])
    assert "quantize" not in plain.to_json()
    assert quantised.to_json() == plain.to_json() | {"quantize": "4bit"}
    assert RunSpec.from_json(quantised.to_json()) == quantised
    assert "4bit" in quantised.title


def test_without_bitsandbytes_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"bitsandbytes is not installed; pip install"):
        load_model(resolve(MODELS["tiny"]), "float32", "cpu", "4bit")


@EVERY_QUANTISATION
def test_linear_layers_but_the_head_are_quantised(quantize: str) -> None:
    pytest.importorskip("bitsandbytes")
    weights = resolve(MODELS["tiny"])
    plain, _ = load_model(weights, "float32", "cpu")
    model, tokenizer = load_model(weights, "float32", "cpu", quantize)
    dtype = {"4bit": torch.uint8, "8bit": torch.int8}[quantize]
    for name, parameter in model.named_parameters():
        wanted = dtype if "_proj" in name else torch.float32
        assert parameter.dtype == wanted, name
    assert model.num_parameters() == plain.num_parameters()
    ids = tokenizer("What is the hammer?", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits, expected = model(ids).logits, plain(ids).logits
    error = (logits - expected).norm() / expected.norm()
    assert 0 < error < {"4bit": 0.3, "8bit": 0.05}[quantize]


@EVERY_QUANTISATION
def test_every_method_trains_and_is_scored(quantize: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    wanted = cells(quantize, ["base", "lora", "dora", "mixlora", "mixdora"])
    # What resetting a DoRA magnitude needs of a quantised weight.
    quirky = dataclasses.replace(wanted[2], quirks=("frozen-dora-magnitude",))
    plain = cells(None, ["base"])
    loader = InputLoader(open_source(bundled=True), {"tiny": resolve(MODELS["tiny"])})
    store = RecordStore(tmp_path)
    options = RunOptions(gradient_checkpointing=True)
    outcome = execute([*plain, *wanted, quirky], loader, store, fresh=False, options=options)
    assert outcome.failed == {}
    parameters = {record.base_parameters for record in outcome.records.values()}
    assert len(parameters) == 1
    for spec, record in outcome.records.items():
        if spec.train is not None:
            assert record.training["last_loss"] < record.training["first_loss"], spec.title


def test_packed_cells_are_as_each_alone(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    wanted = cells("4bit", ["mixlora"], ("piqa", "arc-e"))
    loader = InputLoader(open_source(bundled=True), {"tiny": resolve(MODELS["tiny"])})
    alone, packed = (
        execute(
            wanted,
            loader,
            RecordStore(tmp_path / str(size)),
            fresh=False,
            options=RunOptions(packed=size),
        )
        for size in (1, 2)
    )
    assert alone.failed == packed.failed == {}
    for spec, record in packed.records.items():
        other = alone.records[dataclasses.replace(spec, packed_with=())]
        assert spec.packed_with and record.training == pytest.approx(other.training, rel=1e-4)


@EVERY_QUANTISATION
def test_the_router_is_float32_over_a_half_precision_base(quantize: str) -> None:
    pytest.importorskip("bitsandbytes")
    base, tokenizer = load_model(resolve(MODELS["tiny"]), "bfloat16", "cpu", quantize)
    settings = {"r": 2, "lora_alpha": 4, "num_experts": 3, "top_k": 2}
    model = add_adapter(base, "mixlora", settings)
    routers = [p for name, p in model.named_parameters() if "router" in name]
    assert len(routers) == 4 and {p.dtype for p in routers} == {torch.float32}
    ids = tokenizer("What is the hammer?", return_tensors="pt")["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in routers)
