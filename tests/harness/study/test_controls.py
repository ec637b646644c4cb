"""What an arm changes in training: its router, its learning rates, its method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.cells.spec import FROZEN, TRAINED, UNIFORM, TrainSettings
from harness.command_line import main
from harness.models.weights import MODELS, load_model, resolve
from harness.run.batches import TrainingSet
from harness.run.cell import add_adapter, control_router
from harness.run.training import _StepTrainer, fine_tune
from mixlora.layer import MixLoraFfn
from tasks.encoding import TrainingRow

pytestmark = pytest.mark.long

MIXTURE = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "num_experts": 4, "top_k": 2}


def adapted(method: str = "mixlora", settings: dict[str, Any] | None = None) -> nn.Module:
    base, _ = load_model(resolve(MODELS["tiny"]), "float32", "cpu")
    torch.manual_seed(0)
    return add_adapter(base, method, MIXTURE if settings is None else settings)


def rows(number: int = 8) -> TrainingSet:
    random = torch.Generator().manual_seed(1)
    found = []
    for _ in range(number):
        ids = torch.randint(5, 900, (12,), generator=random).tolist()
        found.append(TrainingRow(ids, 3, False))
    return TrainingSet(found, 0)


def trained(router: str, **changes: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A tuned model, and its trainable parameters from before."""
    model = adapted()
    control_router(model, router)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    settings = TrainSettings(
        epochs=2, learning_rate=1e-2, batch_size=4, weight_decay=0.0, router=router, **changes
    )
    fine_tune(model, {"default": rows()}, settings, 0, lambda *_: None)
    return model, before


@pytest.mark.parametrize(("router", "moves"), [(TRAINED, True), (FROZEN, False)])
def test_a_frozen_router_stays_as_it_was_drawn(router: str, moves: bool) -> None:
    model, before = trained(router)
    after = dict(model.named_parameters())
    routers = [name for name in before if "lora_router" in name]
    assert len(routers) == 4
    for name in routers:
        assert torch.equal(before[name], after[name].detach()) != moves
        assert before[name].std() > 0.01  # drawn at random, not zero
    experts = [name for name in before if "lora_B" in name and "mlp" in name]
    assert all(not torch.equal(before[name], after[name].detach()) for name in experts)


def test_uniform_weights_are_one_over_k_for_the_experts_that_the_router_selects() -> None:
    plain, uniform = adapted(), adapted()
    control_router(uniform, UNIFORM)
    hidden = torch.randn(17, 128, generator=torch.Generator().manual_seed(2))
    pairs = zip(_routers(plain), _routers(uniform), strict=True)
    for one, other in pairs:
        own, same = one(hidden), other(hidden)
        assert torch.equal(own.selected_experts, same.selected_experts)
        assert torch.equal(same.routing_weights, torch.full((17, 2), 0.5))
        assert own.routing_weights.std() > 0


def test_uniform_weights_are_what_the_layer_computes_with() -> None:
    model = adapted(settings={**MIXTURE, "init_lora_weights": False})
    layer = next(module for module in model.modules() if isinstance(module, MixLoraFfn))
    hidden = torch.randn(1, 9, 128, generator=torch.Generator().manual_seed(3))
    router = layer.lora_router["default"]
    selected = router(hidden[0]).selected_experts
    control_router(model, UNIFORM)
    with torch.no_grad():
        output = layer(hidden)[0]
        experts = layer.experts("default")
        base: Any = layer.base_layer
        for token in range(9):
            expected = torch.zeros(128)
            for expert in selected[token].tolist():
                gate, up = (_through(base, experts, n, expert, hidden[0, token]) for n in
                            ("gate_proj", "up_proj"))  # fmt: skip
                inner = nn.functional.silu(gate) * up
                expected += _through(base, experts, "down_proj", expert, inner) / 2
            assert torch.allclose(output[token], expected, atol=1e-5)


def _through(base: Any, experts: Any, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
    own = experts[name]
    low = own.lora_A[expert] @ x
    delta: torch.Tensor = own.scaling * (own.lora_B[expert].T @ low)
    frozen: torch.Tensor = getattr(base, name)(x)
    return frozen + delta


def _routers(model: nn.Module) -> list[Any]:
    return [m.lora_router["default"] for m in model.modules() if isinstance(m, MixLoraFfn)]


def rates_of(method: str, **changes: Any) -> dict[str, set[float]]:
    """Part of a parameter's name -> the learning rates of the parameters that have it."""
    model = adapted(method, MIXTURE if method == "mixlora" else {"r": 4, "lora_alpha": 8})
    found: dict[str, set[float]] = {}
    create = _StepTrainer.create_optimizer

    def kept(trainer: Any, model: Any = None) -> Any:
        optimizer = create(trainer, model)
        names = {id(value): name for name, value in trainer.model.named_parameters()}
        trainable = {id(v) for v in trainer.model.parameters() if v.requires_grad}
        seen = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(seen) == sorted(trainable)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                kind = next(k for k in ("lora_router", "lora_A", "lora_B") if k in name)
                found.setdefault(kind, set()).add(group["lr"])
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_StepTrainer, "create_optimizer", kept)
        settings = TrainSettings(epochs=1, learning_rate=1e-3, batch_size=4, **changes)
        fine_tune(model, {"default": rows()}, settings, 0, lambda *_: None)
    return found


def test_learning_rates_of_parts() -> None:
    plain = {"lora_router": {1e-3}, "lora_A": {1e-3}, "lora_B": {1e-3}}
    assert rates_of("mixlora") == plain
    assert rates_of("mixlora", router_rate_factor=10.0) == plain | {"lora_router": {1e-2}}
    assert rates_of("lora", lora_plus_ratio=16.0) == {"lora_A": {1e-3}, "lora_B": {1.6e-2}}


STUDY = """
title = "Methods of PEFT that nobody here wrote"
preset = "tiny"
models = ["tiny"]
tasks = ["arc-e"]
regimes = ["single-task"]
[rows]
train = 24
scored = 12
[training]
epochs = 1
[grid]
lowest = 1e-3
highest = 1e-2
smallest = 1e-3
largest = 1e-2
first_pass = 1
refined = 1
[seeds]
selection = [0]
finals = [1]
[judgement]
margin_points = 5.0
[arms.lora]
title = "LoRA"
method = "lora"
[arms.vera]
title = "VeRA"
peft_type = "VERA"
settings = { r = 16 }
[arms.ia3]
title = "IA3"
peft_type = "IA3"
settings = { feedforward_modules = ["down_proj"] }
[families.all]
question = "Which?"
reference = "lora"
arms = ["vera", "ia3"]
"""


def test_a_study_runs_and_goes_on_from_its_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "peft.toml", tmp_path / "output"
    path.write_text(STUDY, encoding="utf-8")
    arguments = ["--study", str(path), "--output", str(output), "--device", "cpu"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "VeRA" in first
    assert "not judged" not in first
    records = sorted((output / "records").iterdir())
    # Two rates in the selection; the chosen one and its only neighbour in the results.
    assert len(records) == 3 * (2 + 2)
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert main([*arguments, "--render-only"]) == 0
    assert capsys.readouterr().out == first
    times = {file: file.stat().st_mtime_ns for file in records}
    records[0].unlink()
    assert main(arguments) == 0
    assert records[0].exists()
    assert all(file.stat().st_mtime_ns == times[file] for file in records[1:])


def test_a_mistake_in_an_arm_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "peft.toml"
    path.write_text(STUDY.replace("{ r = 16 }", "{ rank = 16 }"), encoding="utf-8")
    assert main(["--study", str(path), "--output", str(tmp_path / "output")]) == 2
    said = capsys.readouterr().err.strip()
    mistake = "[arms.vera] unknown setting of VeraConfig 'rank'"
    assert said.startswith(f"reproduce.py: {path}: {mistake}")
    assert "\n" not in said
    assert not (tmp_path / "output").exists()
