"""MixLoRA (arXiv 2404.15159) as a PEFT method: a frozen FFN shared by LoRA or DoRA experts.

    from peft import get_peft_model
    from mixlora import MixLoraConfig

    model = get_peft_model(model, MixLoraConfig(task_type="CAUSAL_LM"))

Importing this package registers the method with PEFT, so that ``get_peft_model``,
``PeftModel.from_pretrained`` and ``AutoPeftModelForCausalLM`` know it.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.utils import PeftType

from .authors_format import MixLoraModelForCausalLM
from .config import PEFT_TYPE, MixLoraConfig
from .expert_load import ExpertLoad
from .export import export
from .losses import load_balancing_loss
from .model import MixLoraModel

__all__ = [
    "ExpertLoad",
    "MixLoraConfig",
    "MixLoraModel",
    "MixLoraModelForCausalLM",
    "export",
    "load_balancing_loss",
]

__version__ = "0.1.0"


def _refuse_the_other_package() -> None:
    """Stop if the authors' package, which has the same import name, is installed as well.

    pip lets the two overwrite each other's files without a word, and uninstalling one removes files
    of the other.

    Raises:
        ImportError: The distribution ``mixlora`` is installed.
    """
    try:
        other = version("mixlora")
    except PackageNotFoundError:
        return
    raise ImportError(
        f"mixlora-repro cannot be used beside the package mixlora {other}, which has the same "
        "import name: run 'pip uninstall mixlora', and then 'pip install --force-reinstall "
        "--no-deps mixlora-repro'"
    )


def _register() -> None:
    """Enter the method into PEFT's registries.

    ``peft.register_peft_method`` accepts only names of PEFT's own enum, so its registries are
    filled here.

    Raises:
        RuntimeError: PEFT, or another package, already has a method of this name.
    """
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(PEFT_TYPE)  # type: ignore[call-overload]
    if PEFT_TYPE in list(PeftType) or known not in (None, MixLoraConfig):
        raise RuntimeError(
            "PEFT already has a method called MIXLORA: use that one, or remove what added it"
        )
    PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = MixLoraConfig  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = MixLoraModel  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = MixLoraModel.prefix  # type: ignore[index]


_refuse_the_other_package()
_register()
