"""Makes one measurement, in a fresh process, so that its memory peak is its own."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, set_seed

from harness.cells.methods import get_method
from harness.models.shapes import build_config, kept_vocabulary
from harness.run import provenance
from harness.run.cell import add_adapter, target_modules
from harness.speed.profiling import Profile

from .spec import WARMUP, MeasureSpec, Subject

_SEED = 0

#: Does one run of a workload under a profile.
_Run = Callable[[Profile], None]


def measure(argument: dict[str, Any]) -> dict[str, Any]:
    """Make a measurement.

    Args:
        argument: `MeasureSpec.to_json()`, with a definite device and number of threads.

    Returns:
        "reports" (one `Report.to_json()` per subject), "load_average" at the start, "device_name".
    """
    spec = MeasureSpec.from_json(argument)
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    torch.set_num_threads(spec.threads)
    device = torch.device(spec.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else provenance.processor()
    base = _random_model(spec)
    # The subjects share the frozen weights, so that memory holds them once.
    weights = {id(parameter): parameter for parameter in base.parameters()}
    runs = [
        _prepare(_with_adapters(copy.deepcopy(base, dict(weights)), subject), subject, spec)
        for subject in spec.subjects
    ]
    reports = _peak(spec, runs) if spec.quantity == "memory" else _take_turns(spec, runs)
    return {"reports": reports, "load_average": load_average, "device_name": name}


def _random_model(spec: MeasureSpec) -> nn.Module:
    set_seed(_SEED)
    config = build_config(spec.shape, spec.layers)
    config.vocab_size = kept_vocabulary(spec.shape, spec.layers)
    with torch.device(spec.device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, spec.dtype))


def _with_adapters(base: nn.Module, subject: Subject) -> Any:
    """The subject's model, with a random B in every adapter, as after training (it starts as 0)."""
    set_seed(_SEED)
    settings = dict(subject.settings)
    model: Any = add_adapter(base, subject.method, settings)
    names = _adapter_names(subject)
    targets = target_modules(model.config.model_type)
    for name in names[1:]:
        model.add_adapter(name, get_method(subject.method).config(targets, settings))
    if len(names) > 1:
        model.base_model.set_adapter(names)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def _adapter_names(subject: Subject) -> list[str]:
    return ["default", *(f"adapter-{number}" for number in range(2, subject.adapters + 1))]


def _prepare(model: Any, subject: Subject, spec: MeasureSpec) -> _Run:
    """A function that does one run of the workload for a subject: random tokens, no padding."""
    generator = torch.Generator().manual_seed(_SEED)
    size = (subject.rows, subject.length)
    input_ids = torch.randint(model.config.vocab_size, size, generator=generator).to(spec.device)
    packed: dict[str, Any] = {}
    if subject.adapters > 1:
        names = _adapter_names(subject)
        packed["adapter_names"] = [name for name in names for _ in range(subject.batch)]
    make = {"train": _train, "inference": _inference, "decode": _decode}[spec.workload]
    return make(model, input_ids, packed)


def _train(model: Any, input_ids: Tensor, packed: dict[str, Any]) -> _Run:
    model.train()

    def run(profile: Profile) -> None:
        with profile.run():
            with profile.phase("forward"):
                outputs = model(input_ids=input_ids, labels=input_ids, use_cache=False, **packed)
            loss = outputs.loss
            # As a training loop lets the logits go before the backward pass.
            del outputs
            with profile.phase("backward"):
                loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def _inference(model: Any, input_ids: Tensor, packed: dict[str, Any]) -> _Run:
    model.eval()

    def run(profile: Profile) -> None:
        with torch.no_grad(), profile.run(), profile.phase("forward"):
            model(input_ids=input_ids, use_cache=False, **packed)

    return run


def _decode(model: Any, input_ids: Tensor, packed: dict[str, Any]) -> _Run:
    model.eval()
    with torch.no_grad():
        cache = model(input_ids=input_ids, use_cache=True, **packed).past_key_values
    next_ids = input_ids[:, -1:]

    def run(profile: Profile) -> None:
        with torch.no_grad(), profile.run(), profile.phase("forward"):
            model(input_ids=next_ids, past_key_values=cache, use_cache=True, **packed)
        # Every run follows a prompt of the same length.
        cache.crop(-1)

    return run


def _take_turns(spec: MeasureSpec, runs: list[_Run]) -> list[dict[str, Any]]:
    """Run the subjects in turns, so that what slows the machine for a while slows all of them."""
    with ExitStack() as stack:
        profiles = [
            stack.enter_context(Profile(spec.device, subject.tokens(spec.workload), WARMUP))
            for subject in spec.subjects
        ]
        for _ in range(WARMUP + spec.runs):
            for run, profile in zip(runs, profiles, strict=True):
                run(profile)
    return [profile.report().to_json() for profile in profiles]


def _peak(spec: MeasureSpec, runs: list[_Run]) -> list[dict[str, Any]]:
    """The first run of the only subject; before it runs only what loads torch's own code."""
    layer = nn.Linear(8, 8, device=spec.device)
    layer(torch.ones(8, 8, device=spec.device)).sum().backward()
    gc.collect()
    with Profile(spec.device, spec.measured.tokens(spec.workload), warmup=0) as profile:
        for run in runs:
            run(profile)
    return [profile.report().to_json()]
