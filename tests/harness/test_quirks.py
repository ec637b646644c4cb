"""Each quirk of the released code does what it says, to the cells that it concerns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from harness.cells.packing import make_packs
from harness.cells.quirks import QUIRKS
from harness.cells.spec import RunSpec, TrainSettings
from harness.models.weights import MODELS, load_model, resolve
from harness.run.batches import StepCollator, TrainingSet
from harness.run.cell import freeze_magnitudes
from harness.run.scoring import dropout_modules
from harness.run.training import fine_tune
from mixlora import MixLoraConfig
from mixlora.layer import reset_magnitudes
from reproduce import main
from tasks.encoding import TrainingRow, encode_training
from tasks.prompts import Prompt
from tasks.scoring import score
from tests.harness.builders import make_request
from tests.harness.test_training import ROWS
from tests.mixlora.models import make_model, randomise

PAD = 2


@pytest.fixture
def tiny() -> tuple[Any, Any]:
    """The bundled model and its tokenizer."""
    return load_model(resolve(MODELS["tiny"]), "float32", "cpu")


@pytest.fixture
def tiny_model(tiny: tuple[Any, Any]) -> Any:
    return tiny[0]


@pytest.fixture
def tiny_tokenizer(tiny: tuple[Any, Any]) -> Any:
    return tiny[1]


def batch(rows: list[TrainingRow], *quirks: str) -> dict[str, Any]:
    step = [[("default", row) for row in rows]]
    (inputs,) = StepCollator(PAD, False, quirks)([step])["micro_batches"]
    return inputs


def tuned(method: str, **changes: Any) -> RunSpec:
    return make_request("paper", **changes).cell("gemma-2b", method, ["arc-e"], ["arc-e"], 0)


# --- which cells a quirk concerns ---


def test_a_cell_has_the_quirks_that_concern_it() -> None:
    everywhere = {"loss-on-prompt", "loss-on-pad", "eval-dropout", "pad-side", "truncate-answer"}
    expected = {
        "base": {"arc-nine-labels"},
        "lora": everywhere | {"arc-nine-labels"},
        "dora": everywhere | {"arc-nine-labels", "frozen-dora-magnitude"},
        "mixlora": everywhere | {"arc-nine-labels", "aux-over-pad"},
        "mixdora": set(QUIRKS),
    }
    for method, names in expected.items():
        assert set(tuned(method, protocol="upstream").quirks) == names
        assert tuned(method).quirks == ()
    boolq = make_request("paper", protocol="upstream").cell(
        "gemma-2b", "lora", ["boolq"], ["boolq"], 0
    )
    assert set(boolq.quirks) == everywhere
    by_choice = tuned("lora", protocol="upstream", scoring="choice")
    assert "arc-nine-labels" not in by_choice.quirks
    # The bundled model's adapters have no dropout.
    tiny = make_request(protocol="upstream").cell("tiny", "lora", ["arc-e"], ["arc-e"], 0)
    assert "eval-dropout" not in tiny.quirks


def test_quirks_are_part_of_a_cell() -> None:
    plain, quirky = tuned("lora"), tuned("lora", quirks=["pad-side"])
    assert plain != quirky and "pad-side" in quirky.title
    assert RunSpec.from_json(quirky.to_json()) == quirky
    assert "quirks" not in plain.to_json()  # ids of before there were any stay
    for quirks, sizes in (([], [4]), (["loss-on-pad"], [1] * 4)):
        request = make_request("paper", quirks=quirks)
        cells = [request.cell("gemma-2b", "mixlora", ["piqa"], ["piqa"], s) for s in range(4)]
        assert [len(pack) for pack in make_packs(cells, 4)] == sizes


def test_unknown_names_are_a_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--quirk", "pad-sid"], "unknown quirk 'pad-sid' (did you mean pad-side"),
        (["--protocol", "upsteam"], "unknown protocol 'upsteam' (did you mean upstream"),
        (["--table", "quirks", "--quirk", "pad-side"], "the table has the quirks for rows"),
        (["--table", "quirks", "--settings", "pad"], "unknown setting 'pad'"),
    ):
        assert main([*arguments, "--dry-run"]) == 2
        assert message in capsys.readouterr().err


def test_the_table_has_a_cell_for_each_quirk_where_it_concerns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--table", "quirks", "--preset", "paper", "--models", "gemma-2b", "--dry-run"]
    assert main([*arguments, "--tasks", "arc-e,boolq"]) == 0
    listed = capsys.readouterr().out
    # Of 4 methods on 2 tasks: 5 rows for all, two magnitudes, two losses, arc-e by nine labels.
    assert "68 cells" in listed  # 8 clean + 5 x 8 + 2 x 2 + 2 x 2 + 4 + 8 upstream
    assert main([*arguments, "--tasks", "boolq", "--settings", "eval-dropout"]) == 0
    assert "8 cells" in capsys.readouterr().out


# --- what each does ---


@pytest.mark.parametrize("quirks", [("loss-on-pad",), ("loss-on-pad", "pad-side"), ()])
@pytest.mark.parametrize("loss_on_prompt", [False, True])
def test_the_loss_covers_what_it_should(quirks: tuple[str, ...], loss_on_prompt: bool) -> None:
    rows = ROWS
    if loss_on_prompt:
        rows = [TrainingRow(row.input_ids, len(row.input_ids) - 1, False) for row in ROWS]
    model = make_model()
    longest = max(len(row.input_ids) for row in rows)
    total, count = 0.0, 0
    for row in rows:
        padding = longest - len(row.input_ids)
        ids = [PAD] * padding + row.input_ids
        mask = [0] * padding + [1] * len(row.input_ids)
        positions = [max(0, column - padding) for column in range(longest)]
        if "pad-side" in quirks:
            positions = list(range(longest))
        with torch.no_grad():
            log_probs = (
                model(
                    input_ids=torch.tensor([ids]),
                    attention_mask=torch.tensor([mask]),
                    position_ids=torch.tensor([positions]),
                )
                .logits[0]
                .double()
                .log_softmax(dim=-1)
            )
        for column in range(1, longest):
            is_padding, is_target = column < padding, column >= longest - row.num_target
            if is_target or (is_padding and "loss-on-pad" in quirks):
                total -= log_probs[column - 1, ids[column]].item()
                count += 1
    inputs = batch(rows, *quirks)
    assert inputs["num_items_in_batch"] == count
    with torch.no_grad():
        assert model(**inputs).loss.item() == pytest.approx(total / count, rel=1e-4)


def test_rows_that_are_too_long_lose_their_answer(tiny_tokenizer: Any) -> None:
    prompt = Prompt("the sun is very hot\nAnswer:", (" A", " B"), (1, 1), "an-id")
    whole = encode_training(tiny_tokenizer, prompt, 1, 512)
    for cutoff in range(3, len(whole.input_ids) + 2):
        row = encode_training(tiny_tokenizer, prompt, 1, cutoff, truncate_answer=True)
        assert row.input_ids == whole.input_ids[:cutoff]
        lost = max(0, len(whole.input_ids) - cutoff)
        assert row.num_target == max(0, whole.num_target - lost)
        assert row.truncated == (lost > 0)
        row = encode_training(
            tiny_tokenizer, prompt, 1, cutoff, truncate_answer=True, loss_on_prompt=True
        )
        assert row.num_target == len(row.input_ids) - 1


def test_a_step_of_rows_without_answers_changes_nothing() -> None:
    model = get_peft_model(make_model(), LoraConfig(task_type="CAUSAL_LM", r=2))
    before = get_peft_model_state_dict(model)
    before = {name: value.clone() for name, value in before.items()}
    rows = [TrainingRow([5, 9, 11], 0, True), TrainingRow([4, 8], 0, True)]
    settings = TrainSettings(epochs=1, batch_size=2, weight_decay=0.0)
    facts = fine_tune(model, {"default": TrainingSet(rows, 0)}, settings, PAD, lambda *_: None)
    assert facts["default"]["last_loss"] == 0.0
    after = get_peft_model_state_dict(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_nine_labels_compete_for_arc(tiny_model: Any, tiny_tokenizer: Any) -> None:
    labels = tuple(f" {label}" for label in "1234ABCDE")
    prompts = [
        Prompt(f"{text}\nAnswer:", (" A", " B", " C"), (1, 1, 1), text) for text in ("sun", "ice")
    ]
    quirky = [Prompt(p.text, p.continuations, p.option_lengths, p.id, labels) for p in prompts]
    plain = score(tiny_model, tiny_tokenizer, prompts, "label")
    nine = score(tiny_model, tiny_tokenizer, quirky, "label")
    for before, after, prompt in zip(plain, nine, prompts, strict=True):
        ids = tiny_tokenizer(prompt.text, return_tensors="pt").input_ids
        with torch.no_grad():
            log_probs = tiny_model(input_ids=ids).logits[0, -1].log_softmax(dim=-1)
        # " 1" to " 4" begin with one token where digits stand alone, and count once then.
        firsts = [
            tiny_tokenizer(prompt.text + label).input_ids[ids.shape[1]]
            for label in (*prompt.continuations, *labels)
        ]
        expected = [log_probs[token].item() for token in dict.fromkeys(firsts)]
        assert after.scores == pytest.approx(expected, abs=1e-4)
        assert before.scores == pytest.approx(expected[:3], abs=1e-4)
        assert after.label == expected.index(max(expected))


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("mixture", [False, True])
def test_dropout_stays_active_at_evaluation(
    mixture: bool, use_dora: bool, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    kind: Any = MixLoraConfig if mixture else LoraConfig
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    config = kind(
        task_type="CAUSAL_LM", r=4, lora_dropout=0.5, use_dora=use_dora, target_modules=targets
    )
    model = get_peft_model(tiny_model, config)
    randomise(model, scale=0.1)
    model.eval()
    prompts = [Prompt("the sun\nAnswer:", (" is hot", " is a cold stone"), (6, 15), "an-id")]

    def scores(seed: int, live: bool) -> tuple[float, ...]:
        torch.manual_seed(seed)
        modules = dropout_modules(model) if live else []
        return score(model, tiny_tokenizer, prompts, "choice", live=modules)[0].scores

    assert scores(0, live=False) == scores(1, live=False)
    assert scores(0, live=True) == scores(0, live=True)
    assert scores(0, live=True) != scores(1, live=True)
    assert not any(module.training for module in model.modules())
    # Every adapted layer drops, also where DoRA has a way of its own.
    live = set(map(id, dropout_modules(model)))
    dropping = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p == 0.5]
    assert dropping and live >= set(map(id, dropping))


@pytest.mark.parametrize("method", ["dora", "mixdora"])
def test_frozen_magnitudes_make_dora_act_as_lora(method: str) -> None:
    def adapted(use_dora: bool) -> Any:
        torch.manual_seed(5)
        settings: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 2, "use_dora": use_dora}
        if method == "mixdora":
            config: Any = MixLoraConfig(num_experts=3, lora_dropout=0.0, **settings)
        else:
            config = LoraConfig(target_modules=["q_proj", "gate_proj", "down_proj"], **settings)
        return get_peft_model(make_model(), config)

    model = adapted(use_dora=True)
    freeze_magnitudes(model)
    magnitudes = {n: p.clone() for n, p in model.named_parameters() if "magnitude" in n}
    assert magnitudes
    settings = TrainSettings(epochs=3, learning_rate=1e-2, batch_size=3)
    fine_tune(model, {"default": TrainingSet(ROWS, 0)}, settings, PAD, lambda *_: None)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in magnitudes.items())
    reset_magnitudes(model, "default")
    model.eval()

    # The same A, B and routers without magnitudes.
    lora = adapted(use_dora=False)
    state = get_peft_model_state_dict(model)
    state = {name: value for name, value in state.items() if "magnitude" not in name}
    set_peft_model_state_dict(lora, state)
    lora.eval()
    ids = torch.tensor([ROWS[1].input_ids])
    with torch.no_grad():
        expected = lora(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        # Not because the adapter does nothing.
        assert (
            lora.get_base_model()(input_ids=ids).logits - make_model()(ids).logits
        ).abs().max() > 1e-2


def test_the_auxiliary_loss_counts_padding_when_told_to() -> None:
    settings: dict[str, Any] = {"num_experts": 5, "top_k": 2, "router_aux_loss_coef": 0.5}
    losses = {}
    for over_padding in (False, True):
        torch.manual_seed(6)
        config = MixLoraConfig(
            task_type="CAUSAL_LM", r=2, aux_loss_over_padding=over_padding, **settings
        )
        model = get_peft_model(make_model(), config)
        randomise(model)
        model.eval()
        caught: list[torch.Tensor] = []
        for layer in model.base_model.model.model.layers:
            layer.mlp.lora_router["default"].register_forward_hook(
                lambda _m, _i, out, kept=caught: kept.append(out.router_logits.detach())
            )
        inputs = batch(ROWS)
        with torch.no_grad():
            losses[over_padding] = model(**inputs).loss.item()
    plain = load_balancing_loss_func(tuple(caught), 5, 2, inputs["attention_mask"])
    padded = load_balancing_loss_func(tuple(caught), 5, 2, None)
    difference = 0.5 * (padded - plain).item()
    assert abs(difference) > 1e-4
    assert losses[True] - losses[False] == pytest.approx(difference, rel=1e-2)


# --- whole cells ---


def test_a_cell_with_all_quirks_runs_and_says_so(tmp_path: Path) -> None:
    arguments = ["--table", "quirks", "--tasks", "arc-e", "--methods", "mixdora"]
    arguments += ["--limit-train", "16", "--limit-eval", "8", "--output", str(tmp_path)]
    assert main([*arguments, "--scoring", "label", "--settings", "upstream"]) == 0
    text = (tmp_path / "tables" / "quirks.md").read_text()
    assert "MixDoRA, all of them" in text and "MixDoRA, clean" in text
    assert "training rows that truncate-answer cut" not in text  # that row was not asked for
    commands = json.loads((tmp_path / "tables" / "quirks.provenance.json").read_text())
    assert commands["cells"] == "2 done, 0 failed, 0 unavailable"
    records = [json.loads(path.read_text()) for path in (tmp_path / "records").glob("*.json")]
    quirks = sorted(record["spec"].get("quirks", []) for record in records)
    # The bundled adapters have no dropout.
    assert quirks == [[], [name for name in QUIRKS if name != "eval-dropout"]]
