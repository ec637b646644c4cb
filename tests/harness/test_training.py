"""Fine-tuning: what the loss covers, what moves, what stops it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model

from harness.cells.spec import TrainSettings
from harness.run.batches import StepCollator, TrainingSet, parts_of
from harness.run.training import fine_tune
from mixlora import MixLoraConfig
from tasks.encoding import TrainingRow
from tests.mixlora.models import VOCAB, make_model

ROWS = [
    TrainingRow([5, 9, 11, 4, 7], 1, False),
    TrainingRow([8, 3, 6, 20, 21, 33, 40, 9], 3, True),
    TrainingRow([12, 13, 14], 2, False),
]


def as_batch(rows: list[TrainingRow]) -> dict[str, Any]:
    (batch,) = StepCollator(pad_token_id=0, packed=False)([[[("default", row) for row in rows]]])[
        "micro_batches"
    ]
    return batch


def tune(
    model: Any,
    train: TrainSettings,
    seed: int = 0,
    on_step: Any = None,
    checkpointing: bool = False,
) -> dict[str, Any]:
    sets = {"default": TrainingSet(ROWS, seed)}
    on_step = on_step or (lambda *_: None)
    return fine_tune(model, sets, train, 0, on_step, checkpointing)["default"]


def answer_loss(model: Any, row: TrainingRow) -> tuple[float, int]:
    """Summed negative log-likelihood of a row's answer, one row at a time, all logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
    log_probs = torch.log_softmax(logits.double(), dim=-1)
    positions = range(len(row.input_ids) - row.num_target, len(row.input_ids))
    return -sum(log_probs[p - 1, row.input_ids[p]].item() for p in positions), row.num_target


@pytest.mark.parametrize("family", ["llama", "phi", "gemma2"])
def test_the_loss_is_on_the_answers_alone(family: str) -> None:
    model = make_model(family)
    with torch.no_grad():
        loss = model(**as_batch(ROWS)).loss.item()
    sums, counts = zip(*(answer_loss(model, row) for row in ROWS), strict=True)
    assert loss == pytest.approx(sum(sums) / sum(counts), rel=1e-4)


def adapter_weights(
    seed: int,
    checkpointing: bool = False,
    dropout: float = 0.05,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A MixLoRA adapter after fine-tuning on `ROWS`, and what `fine_tune` returned."""
    torch.manual_seed(3)
    config = MixLoraConfig(
        task_type="CAUSAL_LM", r=2, num_experts=3, router_aux_loss_coef=0.0, lora_dropout=dropout
    )
    model = get_peft_model(make_model(), config).to(dtype)
    values: dict[str, Any] = {"epochs": 4, "learning_rate": 1e-2, "batch_size": 3}
    train = TrainSettings(**values | settings)
    facts = tune(model, train, seed, checkpointing=checkpointing)
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, facts


def test_the_same_seed_gives_the_same_adapter() -> None:
    first, facts = adapter_weights(seed=0)
    again, _ = adapter_weights(seed=0)
    other, _ = adapter_weights(seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert facts["last_loss"] < facts["first_loss"]
    assert (facts["rows"], facts["steps"], facts["truncated"], facts["tokens"]) == (3, 4, 1, 16)


def test_checkpointing_changes_no_number() -> None:
    kept, facts = adapter_weights(seed=0)
    recomputed, facts_recomputed = adapter_weights(seed=0, checkpointing=True)
    assert facts_recomputed == facts
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_accumulated_micro_batches_equal_one_batch() -> None:
    # Dropout would draw other masks for other batches; and of gradients that are nothing but
    # float32's rounding, which differ with the batch, Adam makes whole steps.
    settings: dict[str, Any] = {"group_by_length": False, "dropout": 0.0, "dtype": torch.float64}
    whole, facts = adapter_weights(seed=0, **settings)
    parts, facts_of_parts = adapter_weights(seed=0, accumulation=3, **settings)
    # The rows' answers differ in length, so equal losses mean that micro-batches weigh by tokens.
    for name in ("first_loss", "last_loss"):
        assert facts_of_parts[name] == pytest.approx(facts[name], rel=1e-6)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = get_peft_model(make_model(), MixLoraConfig(task_type="CAUSAL_LM", r=2))
    with torch.no_grad():
        model.base_model.model.lm_head.weight[7] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        tune(model, TrainSettings(batch_size=3))


def test_steps_are_reported() -> None:
    model = get_peft_model(make_model(), MixLoraConfig(task_type="CAUSAL_LM", r=2))
    seen: list[tuple[int, int]] = []
    settings = TrainSettings(epochs=2, batch_size=2)
    tune(model, settings, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_vocabulary_of_the_rows_fits() -> None:
    assert max(max(row.input_ids) for row in ROWS) < VOCAB


def make_step(micro_batches: list[int]) -> list[dict[str, Any]]:
    """A step of micro-batches of so many rows."""
    rows = [[("default", ROWS[row % len(ROWS)]) for row in range(size)] for size in micro_batches]
    return StepCollator(pad_token_id=0, packed=False)([rows])["micro_batches"]


@pytest.mark.parametrize(
    ("micro_batches", "batch_size", "accumulation"),
    [
        ([6], 6, 1),
        ([5], 6, 1),
        ([1], 6, 1),
        ([6, 6, 2], 18, 3),
        ([3, 3, 3, 3, 3, 3], 18, 6),
        ([3, 3, 3, 2], 18, 6),
        ([2], 18, 6),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_compute_every_row_of_a_step_once(
    count: int, micro_batches: list[int], batch_size: int, accumulation: int
) -> None:
    step = make_step(micro_batches)
    settings = TrainSettings(batch_size=batch_size, accumulation=accumulation)
    parts = [parts_of(step, settings, rank, count) for rank in range(count)]
    whole = [row for each in step for row in zip(*by_row(each), strict=True)]
    found = [
        row
        for own in parts
        for part in own
        if part.counts
        for row in zip(*by_row(part.inputs), strict=True)
    ]
    assert sorted(map(str, found)) == sorted(map(str, whole))
    for own in parts:
        # DDP adds up once in a step, in every process.
        assert own
        for part in own:
            assert part.inputs["num_items_in_batch"] == step[0]["num_items_in_batch"]
            if not part.counts:
                assert (part.inputs["labels"] == -100).all()
                assert not part.inputs["attention_mask"].any()
    # Only rows that are shared out are balanced over all, and then by all at the same time.
    assert len({tuple(part.shared for part in own) for own in parts}) == 1 or not any(
        part.shared for own in parts for part in own
    )


def by_row(inputs: dict[str, Any]) -> list[Any]:
    names = ("input_ids", "attention_mask", "position_ids", "labels")
    return [inputs[name].tolist() for name in names]
