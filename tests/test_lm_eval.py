"""lm-eval through our front door gives, example by example, what our own harness gives."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lm_eval import tasks as lm_eval_tasks
from lm_eval import utils as lm_eval_utils
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mixlora import MixLoraConfig
from mixlora.checks import NoEffectError
from mixlora.lm_eval import cli
from mixlora.lm_eval.data import DataError, load
from mixlora.lm_eval.model import AdapterError, AdapterLM, register
from tasks import TASK_NAMES, Example, get_task
from tasks.base import SCORINGS, Scoring
from tasks.lm_eval_configs import CONFIG_DIR, write
from tasks.prompts import Prompt, render
from tasks.scoring import Prediction, score
from tasks.sources import MINIATURE_DIR, LocalSource
from tests.mixlora.models import randomise
from tests.tasks.conftest import ROWS

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
BASE = str(ROOT / "tasks" / "miniature" / "model")
LIMIT = 6

EVERY_TASK = pytest.mark.parametrize(
    ("name", "scoring"), [(name, scoring) for name in TASK_NAMES for scoring in SCORINGS]
)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests share what the library has converted, and leave nothing in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield


def base_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


def config_name(name: str, scoring: str) -> str:
    suffix = "_choice" if scoring == "choice" else ""
    return f"mixlora_{get_task(name).lm_eval.name}{suffix}"


def manager(data_dir: Path) -> TaskManager:
    """A task manager of our configs alone: reading those of lm-eval takes ten seconds."""
    return TaskManager(
        include_path=str(cli.TASK_CONFIGS),
        include_defaults=False,
        metadata={"data_dir": str(data_dir)},  # type: ignore[dict-item]
    )


@functools.cache
def examples(name: str, data_dir: Path) -> list[Example]:
    task = get_task(name)
    return LocalSource(data_dir, "").load(task, task.eval_split)


def own_prompts(
    name: str, scoring: Scoring, data_dir: Path, limit: int
) -> list[tuple[Prompt, int]]:
    return [
        (render(get_task(name), example, scoring), example.answer)
        for example in examples(name, data_dir)[:limit]
    ]


def assert_same_requests(name: str, scoring: Scoring, data_dir: Path, limit: int) -> None:
    wanted = own_prompts(name, scoring, data_dir, limit)
    task = manager(data_dir).load([config_name(name, scoring)])["tasks"][config_name(name, scoring)]
    assert len(task.eval_docs) == len(examples(name, data_dir))
    task.build_all_requests(limit=limit)
    requests = [(each.doc_id, *each.args) for each in task.instances]
    assert requests == [
        (index, prompt.text, continuation)
        for index, (prompt, _) in enumerate(wanted)
        for continuation in prompt.continuations
    ]
    targets = [task.doc_to_target(doc) for _, doc in task.doc_iterator(limit=limit)]
    assert targets == [answer for _, answer in wanted]


@EVERY_TASK
def test_requests_are_those_of_our_prompts(name: str, scoring: Scoring, tmp_path: Path) -> None:
    assert_same_requests(name, scoring, MINIATURE_DIR, 20)
    # These rows have spaces at the ends of texts, question marks, options that are called 1 to 4,
    # and a line separator in a question.
    task = get_task(name)
    folder = tmp_path / task.directory
    folder.mkdir()
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS[name])
    (folder / f"{task.eval_split}.jsonl").write_text(lines, encoding="utf-8")
    assert_same_requests(name, scoring, tmp_path, 20)


@pytest.mark.shared_data
@EVERY_TASK
def test_requests_on_real_rows(name: str, scoring: Scoring, shared_data: Path) -> None:
    assert_same_requests(name, scoring, shared_data, 300)


def test_the_committed_configs_are_those_that_the_definitions_give(tmp_path: Path) -> None:
    write(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in cli.TASK_CONFIGS.iterdir()}
    assert CONFIG_DIR == cli.TASK_CONFIGS


def test_configs_name_the_hubs_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None, revision: str | None, split: str) -> Any:
        asked.append((path, name, revision, split))
        return datasets.Dataset.from_list([{"rows": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    index = TaskManager(include_path=str(cli.TASK_CONFIGS), include_defaults=False).task_index
    names = [config_name(name, scoring) for name in TASK_NAMES for scoring in SCORINGS]
    assert sorted(index) == sorted(names)
    for name in names:
        load(**index[name].cfg["dataset_kwargs"])  # type: ignore[index]
    hubs = [(get_task(name).hub, get_task(name).eval_split) for name in TASK_NAMES]
    wanted = [(hub.path, hub.config, hub.revision, split) for hub, split in hubs]
    assert asked == [each for each in wanted for _ in SCORINGS]


def test_missing_and_double_data_is_named(tmp_path: Path) -> None:
    where = {"directory": "piqa", "split": "validation", "hub_path": "", "data_dir": str(tmp_path)}
    with pytest.raises(DataError, match=r"piqa/validation.jsonl, .* found none"):
        load(**where)
    (tmp_path / "piqa").mkdir()
    for end in ("jsonl", "parquet"):
        (tmp_path / "piqa" / f"validation.{end}").touch()
    with pytest.raises(DataError, match=r"found validation.jsonl and validation.parquet"):
        load(**where)
    (tmp_path / "piqa" / "validation.jsonl").unlink()
    with pytest.raises(DataError, match=r"piqa/validation.parquet: cannot be read \(.*\)$"):
        load(**where)


def save_adapter(folder: Path, trained: bool = True) -> Path:
    torch.manual_seed(5)
    config = MixLoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, num_experts=4)
    model = get_peft_model(base_model(), config)
    if trained:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "router" not in name:
                randomise_parameter(parameter)
    model.save_pretrained(str(folder))
    return folder


def randomise_parameter(parameter: torch.nn.Parameter) -> None:
    randomise(torch.nn.ParameterList([parameter]), scale=0.1)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter"))


def own_predictions(model: Any, name: str, scoring: Scoring) -> list[tuple[Prediction, int]]:
    wanted = own_prompts(name, scoring, MINIATURE_DIR, LIMIT)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    predictions = score(model, tokenizer, [prompt for prompt, _ in wanted], scoring)
    return list(zip(predictions, [answer for _, answer in wanted], strict=True))


def test_every_example_scores_the_same(adapter: Path) -> None:
    lm = AdapterLM(BASE, adapter=str(adapter), dtype="float32", device="cpu", batch_size=16)
    names = [config_name(name, scoring) for name in TASK_NAMES for scoring in SCORINGS]
    loaded = manager(MINIATURE_DIR).load(names)
    found: Any = evaluate(lm, loaded, limit=LIMIT, bootstrap_iters=0)  # type: ignore[arg-type]
    base = base_model()
    plain = own_predictions(base, "piqa", "choice")
    model = PeftModel.from_pretrained(base, str(adapter))
    for name in TASK_NAMES:
        for scoring in SCORINGS:
            samples = found["samples"][config_name(name, scoring)]
            own = own_predictions(model, name, scoring)
            assert len(samples) == len(own) == LIMIT
            for sample, (prediction, answer) in zip(samples, own, strict=True):
                scores = [value for value, _ in sample["filtered_resps"]]
                assert scores == pytest.approx(prediction.scores, abs=1e-4)
                assert sample["acc"] == (prediction.label == answer)
                if scoring == "choice":
                    assert sample["acc_norm"] == (prediction.label_norm == answer)
    adapted = own_predictions(model, "piqa", "choice")
    # Otherwise the adapter had no effect and the test compared the base model with itself.
    assert (
        max(
            abs(a - b)
            for (one, _), (other, _) in zip(adapted, plain, strict=True)
            for a, b in zip(one.scores, other.scores, strict=True)
        )
        > 0.1
    )


def test_labels_of_several_tokens_differ_as_documented(adapter: Path) -> None:
    """We compare first tokens, lm-eval whole words: the test above needs words of one token."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for word in ("A", "B", "C", "D", "true", "false"):
        with_word = tokenizer(f"Answer: {word}")["input_ids"]
        assert len(with_word) == len(tokenizer("Answer:")["input_ids"]) + 1


def test_an_adapter_without_effect_is_refused(tmp_path: Path) -> None:
    adapter = str(save_adapter(tmp_path, trained=False))
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(NoEffectError, match="unchanged"):
            AdapterLM(BASE, adapter=adapter, dtype=dtype, device="cpu")


def test_an_adapter_that_is_not_all_there_is_refused(adapter: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    lost = next(name for name in weights if "router" in name)
    save_file(
        {k: v for k, v in weights.items() if k != lost}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    with pytest.raises(AdapterError, match=r"lacks .*lora_router\.weight"):
        AdapterLM(BASE, adapter=str(tmp_path), device="cpu")


@pytest.mark.parametrize("arguments", [{}, {"adapter": "a", "peft": "b"}])
def test_one_adapter_is_asked_for(arguments: dict[str, str]) -> None:
    with pytest.raises(AdapterError, match="expected adapter=DIR"):
        AdapterLM(BASE, device="cpu", **arguments)


def test_embeddings_keep_their_size(adapter: Path, tmp_path: Path) -> None:
    base = base_model()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows = base.get_input_embeddings().num_embeddings
    base.resize_token_embeddings(rows + 3)
    for folder in (tmp_path / "wide", tmp_path / "many"):
        base.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    lm = AdapterLM(str(tmp_path / "wide"), adapter=str(adapter), device="cpu")
    assert lm.model.get_input_embeddings().num_embeddings == rows + 3 > len(tokenizer)

    tokenizer.add_tokens([f"<extra{n}>" for n in range(rows + 4 - len(tokenizer))])
    tokenizer.save_pretrained(tmp_path / "many")
    with pytest.raises(AdapterError, match=f"{rows + 4} tokens, the base model embeds {rows + 3}"):
        AdapterLM(str(tmp_path / "many"), adapter=str(adapter), device="cpu")


def arguments_of(**values: Any) -> Namespace:
    return Namespace(**{"command": "run", "include_path": None, "model": None} | values)


def test_hf_with_peft_is_loaded_by_our_class(tmp_path: Path) -> None:
    given = arguments_of(model="hf", model_args={"pretrained": "x", "peft": "y"})
    cli.prepare(given)
    assert given.model == "mixlora"
    assert given.model_args == {"pretrained": "x", "peft": "y"}
    stock = arguments_of(model="hf", model_args={"pretrained": "x"}, include_path="mine")
    cli.prepare(stock)
    assert stock.model == "hf"
    assert stock.include_path == [str(cli.TASK_CONFIGS), "mine"]
    config = tmp_path / "run.yaml"
    config.write_text("model: hf\nmodel_args: pretrained=x,peft=y\n")
    from_file = arguments_of(config=str(config))
    cli.prepare(from_file)
    assert from_file.model == "mixlora"
    config.write_text("model: hf\nmodel_args: pretrained=some/peft\n")
    without = arguments_of(config=str(config))
    cli.prepare(without)
    assert without.model is None


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that runs the command in this process, without the tasks of lm-eval itself."""
    ours = functools.partial(TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", ours)
    monkeypatch.setattr(lm_eval_utils, "setup_logging", lambda: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: str) -> int:
        rows = ["--metadata", f"data_dir={MINIATURE_DIR}"]
        line = ["mixlora-lm-eval", *arguments, "--device", "cpu", "--limit", str(LIMIT), *rows]
        monkeypatch.setattr(sys, "argv", line)
        return cli.main()

    return run


def test_hf_with_an_adapter_without_effect(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save_adapter(tmp_path / "fresh", trained=False)
    arguments = ["--model", "hf", "--model_args", f"pretrained={BASE},peft={adapter}"]
    assert command(*arguments, "--tasks", "mixlora_piqa") == 2
    captured = capsys.readouterr()
    assert "|mixlora_piqa" not in captured.out
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("mixlora-lm-eval: the adapter leaves the base model's logits unchanged")


def test_the_command_in_a_process_of_its_own(adapter: Path, tmp_path: Path) -> None:
    """The tasks of lm-eval are known as well, nothing is downloaded, and accuracies are ours."""
    names = [("arc-e", "label"), ("piqa", "choice")]
    code = "import sys; from mixlora.lm_eval.cli import main; sys.exit(main())"
    model_args = f"pretrained={BASE},adapter={adapter},dtype=float32"
    line = [sys.executable, "-c", code, "--model", "mixlora", "--model_args", model_args]
    line += ["--tasks", ",".join(config_name(*each) for each in names), "--limit", str(LIMIT)]
    line += ["--device", "cpu", "--output_path", str(tmp_path / "out")]
    line += ["--metadata", f"data_dir={MINIATURE_DIR}"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(line, cwd=ROOT, env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").rglob("*.json")
    results = json.loads(file.read_text())["results"]
    model = PeftModel.from_pretrained(base_model(), str(adapter))
    for name, scoring in names:
        own = own_predictions(model, name, scoring)  # type: ignore[arg-type]
        right = sum(prediction.label == answer for prediction, answer in own)
        assert results[config_name(name, scoring)]["acc,none"] == pytest.approx(right / LIMIT)


def test_without_lm_eval_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")

    class Absent:
        def find_spec(self, name: str, *_: Any) -> None:
            if name.partition(".")[0] == "lm_eval":
                raise error

    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    assert cli.main() == 2
    assert "pip install 'mixlora-repro[lm-eval]'" in capsys.readouterr().err


def test_the_model_is_known_to_lm_eval() -> None:
    from lm_eval.api.registry import get_model

    register()
    register()
    assert get_model("mixlora") is AdapterLM
