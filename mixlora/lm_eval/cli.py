"""The command `mixlora-lm-eval`: lm-eval's own command line, with our model and tasks added."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mixlora.checks import NoEffectError
from mixlora.messages import one_line, short_repr

from .data import DataError

#: Where the YAML files of the paper's protocol lie; lm-eval's ``--include_path``.
TASK_CONFIGS = Path(__file__).parent / "task_configs"

# lm-eval's names of the model class that `model.AdapterLM` is derived from.
_HF = ("hf", "hf-auto", "huggingface")


class CommandError(ValueError):
    """The command line, or the file that it names, cannot be used."""


def main() -> int:
    """Run lm-eval's command line; returns the exit status, 2 for what of it is of no use."""
    try:
        from lm_eval._cli import HarnessCLI
        from lm_eval.utils import setup_logging
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        print(
            "mixlora-lm-eval: lm-eval is not installed; pip install 'mixlora-repro[lm-eval]'",
            file=sys.stderr,
        )
        return 2
    from .model import AdapterError, register

    setup_logging()
    register()
    command = HarnessCLI()
    arguments = command.parse_args()
    try:
        prepare(arguments)
        command.execute(arguments)
    except (AdapterError, NoEffectError, DataError, CommandError) as error:
        print(f"mixlora-lm-eval: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def prepare(arguments: Any) -> None:
    """Change a parsed command line: our tasks are found, and adapters are loaded by our class.

    ``--model hf`` with ``peft=`` becomes ``mixlora``: lm-eval's own loading resizes embeddings
    where the tokenizer has another size, says nothing of weights that are missing, and scores an
    adapter that does nothing.

    Raises:
        CommandError: The file of ``--config`` cannot be read, or its model_args are none.
    """
    from lm_eval.utils import simple_parse_args_string

    config = getattr(arguments, "config", None)
    # The command line goes before the file that --config names.
    wanted = _from_file(config) if config else {}
    wanted |= {name: value for name, value in vars(arguments).items() if value}
    if hasattr(arguments, "include_path"):
        others = [wanted["include_path"]] if "include_path" in wanted else []
        arguments.include_path = [str(TASK_CONFIGS), *others]
    model_args = wanted.get("model_args") or {}
    if isinstance(model_args, str):
        model_args = simple_parse_args_string(model_args)
    if not isinstance(model_args, dict):
        raise CommandError(
            f"model_args={short_repr(model_args)}: expected name=value,name=value or, in the file "
            "of --config, values by name"
        )
    if wanted.get("model", "hf") in _HF and "peft" in model_args:
        arguments.model = "mixlora"
        print("mixlora-lm-eval: peft= is loaded by --model mixlora, checked", file=sys.stderr)


def _from_file(config: str) -> dict[str, Any]:
    from lm_eval.config.evaluate_config import EvaluatorConfig

    try:
        return EvaluatorConfig.load_yaml_config(config)
    # lm-eval has another exception for each way in which a file can be wrong.
    except Exception as error:
        raise CommandError(f"--config {config}: {one_line(error)}") from error
