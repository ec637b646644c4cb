"""Study files: the two that ship, and the message of every kind of mistake."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harness.study.checked import FileError
from harness.study.file import read_study

STUDIES = Path(__file__).parents[3] / "studies"

SMALL = """
title = "A small study"
preset = "tiny"
models = ["tiny"]
tasks = ["arc-e", "obqa"]
regimes = ["single-task"]

[seeds]
selection = [0]
finals = [1, 2]

[judgement]
margin_points = 2.0

[arms.lora]
title = "LoRA"
method = "lora"

[arms.mixlora]
title = "MixLoRA"
method = "mixlora"
settings = { num_experts = 4 }

[families.methods]
question = "Is it better?"
reference = "lora"
arms = ["mixlora"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_study_is_read_with_its_hash(tmp_path: Path) -> None:
    found = read_study(written(tmp_path, SMALL))
    assert found.name == "small"
    assert found.sha256 == hashlib.sha256(SMALL.encode()).hexdigest()
    assert found.study.arms["mixlora"].settings == {"num_experts": 4}
    assert found.study.seeds.finals == [1, 2]
    assert found.study.training.model_dump(exclude_unset=True) == {}
    assert len(found.study.grid.first_rates) == 9


def test_any_change_of_the_file_is_another_study(tmp_path: Path) -> None:
    first = read_study(written(tmp_path, SMALL)).sha256
    assert read_study(written(tmp_path, f"{SMALL}# a comment\n")).sha256 != first


# Each: what stands in the file, what stands there by mistake, and the message's end.
MISTAKES = [
    ("margin_points", "margin_point", "[judgement]: unknown key 'margin_point' (did you mean "
     "margin_points?); known: metric, margin_points, level, power"),
    ("[families.methods]", "[famlies.methods]", "unknown key 'famlies' (did you mean families or "
     "arms?); known: title, preset, models, tasks, regimes, rows, training, grid, seeds, "
     "judgement, arms, families, hypotheses"),
    ('title = "A small study"\n', "", "title: missing"),
    ("finals = [1, 2]", 'finals = "1,2"', "[seeds] finals: is '1,2': expected a valid list"),
    ("finals = [1, 2]", "finals = [1, 2.5]",
     "[seeds] finals, entry 2: is 2.5: expected a valid integer"),
    ("finals = [1, 2]", "finals = [0, 1]",
     "[seeds]: finals: 0 is a seed of the selection too; expected others"),
    ('"arc-e", "obqa"', '"arc-e", "obqaa"', "tasks: unknown task 'obqaa' (did you mean obqa?); "
     "known: arc-e, arc-c, boolq, obqa, piqa, siqa, hellaswag, winogrande"),
    ('method = "mixlora"', 'method = "mixlor"', "[arms.mixlora] method: unknown method 'mixlor' "
     "(did you mean mixlora or mixdora?); known: base, lora, dora, mixlora, mixdora"),
    ('method = "lora"', 'method = "lora"\npeft_type = "VERA"',
     "[arms.lora]: expected either method or peft_type"),
    ('method = "lora"', 'method = "lora"\nrouter = "frozen"', "[arms.lora]: router: lora has no "
     "router; expected with method mixlora or mixdora only"),
    ('method = "mixlora"', 'method = "mixlora"\nrouter = "random"', "[arms.mixlora] router: is "
     "'random': expected 'trained', 'frozen' or 'uniform'"),
    ("margin_points = 2.0", "margin_points = 0",
     "[judgement] margin_points: is 0: expected greater than 0"),
    ('arms = ["mixlora"]', 'arms = ["mixlora", "mixdora"]', "[families.methods] arms: unknown arm "
     "'mixdora' (did you mean mixlora?); known: mixlora"),
    ('arms = ["mixlora"]', 'arms = ["lora"]',
     "[families.methods] arms: unknown arm 'lora' (did you mean mixlora?); known: mixlora"),
    ("[seeds]", "[training]\nepoch = 2\n[seeds]", "[training]: unknown key 'epoch' (did you mean "
     "epochs?); known: epochs, batch_size, accumulation, cutoff, weight_decay, group_by_length"),
    ("[seeds]", "[training]\nlearning_rate = 1e-3\n[seeds]", "[training]: unknown key "
     "'learning_rate'; known: epochs, batch_size, accumulation, cutoff, weight_decay, "
     "group_by_length"),
    ("[seeds]", "[grid]\nrefined = 3\n[seeds]",
     "[grid]: refined is 3: expected a multiple of first_pass (2)"),
    ("[seeds]", "[grid]\nlowest = 0.5\n[seeds]", "[grid]: smallest 1e-06, lowest 0.5, highest 0.1, "
     "largest 1: expected each to be at least the one before, and the highest above the lowest"),
    ('regimes = ["single-task"]', 'regimes = ["single"]',
     "regimes, entry 1: is 'single': expected 'single-task' or 'multi-task'"),
    ("[families.methods]", "[[hypotheses]]\nfamily = \"methods\"\narm = \"mixlora\"\n"
     "expect = \"equal\"\nmeaning = \"none\"\n[families.methods]",
     "[hypotheses 1] expect: is 'equal': expected 'better', 'worse' or 'equivalent'"),
    ('title = "LoRA"', 'title = "LoRA',
     "not TOML: Illegal character '\\n' (at line 16, column 14)"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES)
def test_a_mistake_is_named(tmp_path: Path, right: str, wrong: str, message: str) -> None:
    assert right in SMALL
    path = written(tmp_path, SMALL.replace(right, wrong, 1))
    with pytest.raises(FileError) as error:
        read_study(path)
    assert str(error.value) == f"{path}: {message}"


def test_all_mistakes_are_named_each_on_its_line(tmp_path: Path) -> None:
    text = SMALL.replace('"tiny"', '"tinny"', 1).replace("margin_points = 2.0", "power = 2")
    path = written(tmp_path, text)
    with pytest.raises(FileError) as error:
        read_study(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{path}: preset: unknown preset 'tinny' (did you mean tiny?)")
    assert lines[1] == f"{path}: [judgement] margin_points: missing"
    assert lines[2] == f"{path}: [judgement] power: is 2: expected less than 1"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.toml: cannot be read \(No such file"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe9"')
    with pytest.raises(FileError, match=r"latin\.toml: not UTF-8 .* at byte 9"):
        read_study(tmp_path / "latin.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(FileError, match=r"large\.toml: more than 1,048,576 bytes"):
        read_study(tmp_path / "large.toml")


def test_the_study_of_the_bundled_model_is_what_was_asked_for() -> None:
    study = read_study(STUDIES / "tiny-fair.toml").study
    assert len(study.tasks) == 8
    assert study.regimes == ["single-task", "multi-task"]
    assert len(study.seeds.finals) == 5
    assert (study.rows.validation_share, study.rows.validation_least) == (0.1, 64)
    assert (study.grid.lowest, study.grid.highest) == (1e-5, 1e-1)
    assert (study.grid.first_pass, study.grid.refined) == (2, 4)
    methods, controls = study.families["methods"], study.families["controls"]
    assert methods.reference == "lora"
    assert controls.reference == "mixlora"
    assert len(methods.arms) == 7
    assert len(controls.arms) == 8
    assert set(study.arms) == {"base", "lora", "mixlora", *methods.arms, *controls.arms}


def test_every_control_is_mixlora_with_one_thing_changed() -> None:
    study = read_study(STUDIES / "tiny-fair.toml").study
    plain = study.arms["mixlora"].model_dump(exclude={"title", "settings"})
    for name in study.families["controls"].arms:
        arm = study.arms[name]
        changed = {
            key for key, value in arm.model_dump(exclude={"title", "settings"}).items()
            if value != plain[key]
        }  # fmt: skip
        assert len(changed) + bool(arm.settings) == 1, name


def test_the_study_of_the_real_model_is_what_was_asked_for() -> None:
    study = read_study(STUDIES / "smollm2-fair.toml").study
    assert study.models == ["smollm2-135m"]
    assert len(study.tasks) >= 2
    assert study.rows.train is not None
    assert study.rows.train >= 1500
    assert study.rows.scored is not None
    assert study.rows.scored >= 500
    assert study.rows.validation_least >= 512
    assert len(study.seeds.finals) == 3
    assert study.grid.first_pass == study.grid.refined == 2
    compared = {"rslora", "dora", "mixlora", "mixdora", "mixlora-frozen-router"}
    assert set(study.arms) == {"base", "lora", "mixlora-one-large", *compared}
