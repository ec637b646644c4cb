"""Real measurements of a small model: what runs, what a run leaves, and running out of memory."""

from __future__ import annotations

import copy
import functools
import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.models.shapes import SHAPES, kept_vocabulary
from harness.speed import profiling, worker
from harness.speed.records import MeasureStore
from harness.speed.rows import ROWS
from harness.speed.run import _ALLOCATOR, measure_missing
from harness.speed.spec import MeasureSpec
from reproduce import main

from .measure_builders import make_measure_spec

pytestmark = pytest.mark.long

SMALL = ("--layers", "1", "--tokens", "2x4", "--runs", "1", "--device", "cpu")


def spec_of(*names: str, **changes: Any) -> MeasureSpec:
    subjects = tuple(ROWS[name].subject(2, 4) for name in names)
    return make_measure_spec(subjects=subjects, threads=1, **changes)


@pytest.fixture(scope="module")
def base() -> torch.nn.Module:
    """The base of a measurement: one layer of smollm2-135m, of random weights."""
    return worker._random_model(spec_of("lora"))


def test_the_head_keeps_its_share(base: torch.nn.Module) -> None:
    whole = SHAPES["smollm2-135m"].values
    share = base.config.vocab_size / whole["vocab_size"]  # type: ignore[union-attr]
    assert share == pytest.approx(1 / whole["num_hidden_layers"], rel=1e-3)
    assert kept_vocabulary("llama2-7b", 32) == 32000


@pytest.mark.parametrize("quantity", ["latency", "memory"])
def test_what_the_allocator_does_with_what_is_freed(quantity: str) -> None:
    """For latency it keeps the pages of freed tensors, for memory it returns them at once."""
    target = f"{__name__}:resident_bytes_freed"
    freed = profiling.call_in_fresh_process(target, 2**26, environment=_ALLOCATOR[quantity])
    assert freed == pytest.approx(2**26 if quantity == "memory" else 0, abs=2**22)


def resident_bytes_freed(size: int) -> int:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    # Of 128 KiB each: by default glibc would keep them until their heap's end is free.
    tensors = [torch.ones(2**15) for _ in range(size // 2**17)]
    before = resident()
    del tensors
    return before - resident()


@pytest.mark.parametrize("name", ROWS)
def test_every_adapter_does_something(name: str, base: torch.nn.Module) -> None:
    """With B at 0, as adapters start, the output would be the base's and A without a gradient."""
    subject = ROWS[name].subject(2, 4)
    frozen = {id(parameter): parameter for parameter in base.parameters()}
    model = worker._with_adapters(copy.deepcopy(base, dict(frozen)), subject)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert not {id(parameter) for parameter in trainable.values()} & set(frozen)
    shared = {id(p) for p in model.parameters() if not p.requires_grad}
    assert shared <= set(frozen)
    adapters = {
        part for n in trainable for part in n.split(".") if part in ("default", "adapter-2")
    }
    assert len(adapters) == subject.adapters
    assert all(p.any() for n, p in trainable.items() if "lora_B" in n)
    assert sum("lora_B" in n for n in trainable) >= 7 * subject.adapters


def test_decoding_stays_at_the_same_position(base: torch.nn.Module) -> None:
    spec = spec_of("mixlora/fused", workload="decode")
    model = worker._with_adapters(copy.deepcopy(base), spec.measured)
    seen: list[tuple[int, int]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((kwargs["input_ids"].shape[1], kwargs["past_key_values"].get_seq_length()))

    run = worker._prepare(model, spec.measured, spec)
    model.base_model.model.register_forward_pre_hook(note, with_kwargs=True)
    with profiling.Profile("cpu", 2, warmup=0) as profile:
        for _ in range(3):
            run(profile)
    assert seen == [(1, 4)] * 3


def test_subjects_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def noted(name: str) -> Any:
        def run(profile: profiling.Profile) -> None:
            turns.append(name)
            with profile.run(), profile.phase("forward"):
                pass

        return run

    spec = spec_of("lora", "mixlora/fused", runs=3)
    reports = worker._take_turns(spec, [noted("a"), noted("b")])
    assert turns == ["a", "b"] * 5
    assert [len(report["latency"]["forward"]["seconds"]) for report in reports] == [3, 3]


def test_the_printed_ratio_is_that_of_the_raw_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call_here(target: str, argument: dict[str, Any], environment: Any) -> Any:
        return json.loads(json.dumps(worker.measure(argument)))

    # A process each is what the next test has; here it would take minutes.
    monkeypatch.setattr(profiling, "call_in_fresh_process", call_here)
    arguments = ["--table", "efficiency", *SMALL, "--methods", "lora,mixlora/fused"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    heading = next(line for line in printed.splitlines() if line.startswith("| method"))
    line = next(line for line in printed.splitlines() if line.startswith("| MixLoRA fused"))
    names, cells = ([c.strip() for c in text.split("|")[1:-1]] for text in (heading, line))
    ratios = dict(zip(names, cells, strict=True))

    records = [json.loads(path.read_text()) for path in (tmp_path / "measurements").iterdir()]
    assert len(records) == 12
    checked = set()
    for record in records:
        spec = record["spec"]
        if spec["quantity"] == "memory" or len(spec["subjects"]) == 1:
            continue
        lora, ours = (report["latency"] for report in record["reports"])
        batch = spec["subjects"][1]["batch"]
        column = {"train": "train forward", "inference": "inference forward"}.get(
            spec["workload"], f"decode, batch {batch}"
        )
        seconds = zip(ours["forward"]["seconds"], lora["forward"]["seconds"], strict=True)
        ratio = statistics.median(100 * a / b for a, b in seconds)
        assert ratios[column] == (f"{ratio:.1f}" if ratio < 1000 else f"{ratio:,.0f}")
        assert all(0 < second < 60 for second in ours["forward"]["seconds"])
        checked.add(column)
    assert len(checked) == 4
    assert main([*arguments, "--output", str(tmp_path), "--render-only"]) == 0
    again = capsys.readouterr().out
    assert [t for t in again.splitlines() if "|" in t] == [
        t for t in printed.splitlines() if "|" in t
    ]


def test_out_of_memory_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = functools.partial(profiling.call_in_fresh_process, memory_limit_bytes=16 * 10**9)
    monkeypatch.setattr(profiling, "call_in_fresh_process", limited)
    # 80 GB of token ids alone, so that nothing is computed before it fails.
    subject = ROWS["lora"].subject(10**10, 1)
    large = make_measure_spec(quantity="memory", runs=1, threads=1, subjects=(subject,))
    specs = [large, spec_of("lora", quantity="memory", workload="train", runs=1)]
    records = measure_missing(specs, MeasureStore(tmp_path), fresh=True)
    assert [record.status for record in records.values()] == ["OOM", "done"]
    assert "memory" in records[large].reason
    assert len(list((tmp_path / "measurements").iterdir())) == 2
    (report,) = records[specs[1]].reports
    memory = report["memory"]
    # One layer and a 30th of the embedding are 18 MB in float32, and there before the run.
    assert 18e6 < memory["process"]["baseline_bytes"] < memory["process"]["peak_bytes"]
    assert memory["torch_allocated"]["peak_bytes"] is None
    assert len(report["latency"]["backward"]["seconds"]) == 1


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    specs = [
        spec_of("lora", "mixlora/fused", workload="train", device="cuda"),
        spec_of("lora", quantity="memory", workload="train", device="cuda", runs=1),
    ]
    latency, memory = measure_missing(specs, MeasureStore(tmp_path), fresh=True).values()
    assert (latency.status, memory.status) == ("done", "done")
    assert latency.reports[1]["latency"]["backward"]["source"] == "cuda events"
    allocated = memory.reports[0]["memory"]["torch_allocated"]
    assert 127e6 < allocated["baseline_bytes"] < allocated["peak_bytes"]
