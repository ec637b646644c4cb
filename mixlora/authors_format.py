"""Adapters in the authors' format: PyPI's ``mixlora`` 0.2.3 runs it, and MoE-PEFT trains it.

    model = authors_format.load("path/of/their/adapter")  # a PeftModel like any other
    authors_format.save(model, "path/for/them")

`MixLoraModelForCausalLM` is what their package calls its way in, so that code written for it runs.

An adapter is a directory with ``adapter_config.json`` and ``adapter_model.bin``. The second is a
pickled dictionary of tensors; it is read by torch's ``weights_only`` reader, which runs no code.

What the format cannot hold, or their package does otherwise:

- The format has no DoRA magnitudes. Their package computes them anew when it loads an adapter, so
  its MixDoRA adapters act as MixLoRA. They are read that way (and can then be trained); MixDoRA
  adapters are not written.
- Their package refuses a dropout of 0, and its experts drop inputs in evaluation too. Adapters are
  written with a dropout too small to drop anything, which is read as 0.
- Their package knows only the ``mixlora`` routing, so no other is written. MoE-PEFT's
  ``mixlora-dynamic`` is read too (`TopPRouter`); its ``mixlora-switch`` does nothing in evaluation
  and is refused.
- Experts whose rank or scale differs from the attention adapters', noise on the router's input, and
  rank-stabilised scales are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from .checks import check_fit
from .config import LARGEST_CONFIG, PEFT_TYPE, MixLoraConfig
from .layer import reset_magnitudes
from .messages import printable_name, short_repr

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.bin"
#: The ``model_type`` in transformers of the models that their package can run.
MODEL_TYPES = ("llama", "gemma", "gemma2", "qwen2", "mistral", "phi", "phi3")

#: Name of a setting in their format -> name of the field of `MixLoraConfig`.
_FIELDS = {
    "r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "target_modules",
    "num_experts": "num_experts",
    "top_k": "top_k",
    "top_p": "top_p",
    "use_dora": "use_dora",
    "router_aux_loss_coef": "router_aux_loss_coef",
    "router_init_range": "router_init_std",
}
#: Their routing strategy -> our routing.
_ROUTINGS = {"mixlora": "top_k", "mixlora-dynamic": "top_p"}
_REQUIRED = (
    "base_model_name_or_path",
    "task_type",
    "peft_type",
    "routing_strategy",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "num_experts",
)
#: Settings of which only some values can be honoured, with those values.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": (str(PEFT_TYPE),),
    "routing_strategy": tuple(_ROUTINGS),
    "task_type": ("CAUSAL_LM", "QUESTION_ANS"),  # the package runs both as language models
    "bias": ("none",),
    "use_rslora": (False,),
    "jitter_noise": (0,),
    "temperature": (0,),  # it would divide probabilities
    "router_loss": (True, False),
}
#: Settings that were used in training and do not matter to how the weights are used.
_TRAINING_ONLY = (
    "lora_init",
    "router_dyn_loss_coef",
    "entropy_index",
    "entropy_type",
    "entropy_eps",
)
_LEAST_DROPOUT = 1e-12


def load(
    path: str | Path,
    model: PreTrainedModel | None = None,
    adapter_name: str = "default",
    is_trainable: bool = False,
) -> PeftModel:
    """A model with an adapter that is stored in the authors' format.

    Args:
        path: A local directory.
        model: The frozen model, which is changed as ``get_peft_model`` changes it. None loads the
            model that the adapter names, by transformers.
        adapter_name: The name that the adapter gets.
        is_trainable: Whether the adapter is to be trained; otherwise everything is frozen, and the
            model is in eval mode.

    Raises:
        ValueError: A file is missing or unreadable, a setting is missing, unknown or has a value
            that we cannot honour, or a weight is missing, unknown or has a wrong shape.
    """
    folder = Path(path)
    settings = _read_settings(folder / CONFIG_FILE)
    config = _to_config(settings, folder / CONFIG_FILE, inference_mode=not is_trainable)
    weights = _read_weights(folder / WEIGHTS_FILE)
    _check_sizes(config, weights, folder / WEIGHTS_FILE)
    base_name = settings["base_model_name_or_path"]
    if model is None:
        # The adapter chooses the model, so no code that comes with it may be run.
        model = AutoModelForCausalLM.from_pretrained(
            base_name, use_safetensors=True, trust_remote_code=False
        )
    used = _activation(model)
    if settings.get("act_fn") not in (None, used):
        act_fn = settings["act_fn"]
        raise ValueError(
            f"{folder / CONFIG_FILE}: act_fn={short_repr(act_fn)}: the model has {used!r}"
        )
    try:
        tuned = get_peft_model(model, config, adapter_name)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
    config.base_model_name_or_path = config.base_model_name_or_path or base_name
    places = dict(_places(tuned, adapter_name))
    check_fit(str(folder / WEIGHTS_FILE), weights, places)
    for key, place in places.items():
        place.copy_(weights[key])
    if config.use_dora:
        # As their package computes them, so that they rescale nothing.
        reset_magnitudes(tuned, adapter_name)
    return tuned if is_trainable else tuned.eval()


class MixLoraModelForCausalLM:
    """Loads adapters in the authors' format as their package does."""

    @staticmethod
    def from_pretrained(
        name_or_path: str, *model_args: Any, adapter_name: str = "default", **kwargs: Any
    ) -> tuple[PeftModel, MixLoraConfig]:
        """The model, and its adapter's settings.

        Args:
            name_or_path: The adapter's directory or hub id.
            model_args: Passed to ``AutoModelForCausalLM.from_pretrained`` with the base's name.
            adapter_name: The name that the adapter gets.
            kwargs: As model_args.

        Raises:
            ValueError: As `load`.
        """
        if not Path(name_or_path).exists():
            files = [CONFIG_FILE, WEIGHTS_FILE]
            name_or_path = snapshot_download(name_or_path, allow_patterns=files)
        config_file = Path(name_or_path, CONFIG_FILE)
        settings = _read_settings(config_file)
        _to_config(settings, config_file, inference_mode=True)
        # The adapter chooses the model, so no code that comes with it is run unless asked for.
        options = {"use_safetensors": True, "trust_remote_code": False} | kwargs
        base = AutoModelForCausalLM.from_pretrained(
            settings["base_model_name_or_path"], *model_args, **options
        )
        model = load(name_or_path, base, adapter_name)
        config: Any = model.peft_config[adapter_name]
        return model, config


def save(model: PeftModel, path: str | Path, adapter_name: str = "default") -> None:
    """Write an adapter in the authors' format.

    Args:
        model: The model with the adapter.
        path: The directory to write, which is made if it does not exist.
        adapter_name: Name of the adapter.

    Raises:
        ValueError: The adapter is not a MixLoRA adapter, or one that their package could not run.
    """
    config: Any = model.peft_config[adapter_name]
    if not isinstance(config, MixLoraConfig):
        kind = config.peft_type.value
        raise ValueError(f"adapter {adapter_name!r} is of {kind}: expected {PEFT_TYPE}")
    base: Any = model.get_base_model()
    if base.config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"the authors' package does not know the model type {base.config.model_type!r}; "
            f"it knows {', '.join(MODEL_TYPES)}"
        )
    if config.use_dora:
        raise ValueError("use_dora=True: the authors' format has no place for DoRA's magnitudes")
    if config.routing != "top_k":
        raise ValueError(f"routing={config.routing!r}: the authors' package knows top_k alone")
    if config.lora_alpha != int(config.lora_alpha):
        raise ValueError(f"lora_alpha={config.lora_alpha}: their format has whole numbers only")
    if not config.base_model_name_or_path:
        raise ValueError("base_model_name_or_path=None: the package loads the base by this name")
    settings: dict[str, Any] = {name: getattr(config, ours) for name, ours in _FIELDS.items()}
    del settings["top_p"]
    settings |= {
        "base_model_name_or_path": config.base_model_name_or_path,
        "lora_alpha": int(config.lora_alpha),
        "lora_dropout": _LEAST_DROPOUT,
        "target_modules": sorted(config.target_modules or ()),
        "router_aux_loss_coef": float(config.router_aux_loss_coef),
        "router_init_range": float(settings["router_init_range"]),
        "peft_type": str(PEFT_TYPE),
        "routing_strategy": "mixlora",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "act_fn": _activation(base),  # without it the package fails
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: place.cpu().contiguous().clone() for key, place in _places(model, adapter_name)}
    torch.save(weights, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _places(model: PeftModel, adapter_name: str) -> Iterator[tuple[str, Tensor]]:
    """(key in their format, view of our parameter in their shape, without gradient) of each."""
    base: Any = model.get_base_model()
    layers: Any = base.model.layers
    for index, layer in enumerate(layers):
        prefix = f"mixlora.layers.{index}"
        for name, module in layer.self_attn.named_children():
            if isinstance(module, LoraLayer):
                for each in ("lora_A", "lora_B"):
                    weight = getattr(module, each)[adapter_name].weight.detach()
                    yield f"{prefix}.self_attn.{name}.{each}.weight", weight
        block: Any = layer.mlp
        yield f"{prefix}.mlp.moe_gate.weight", block.lora_router[adapter_name].weight.detach()
        for name, experts in block.experts(adapter_name).items():
            for expert, (A, B) in enumerate(zip(experts.lora_A, experts.lora_B, strict=True)):
                key = f"{prefix}.mlp.{name}.experts.{expert}"
                yield f"{key}.lora_A.weight", A.detach()
                yield f"{key}.lora_B.weight", B.detach().T


def _activation(model: Any) -> str:
    """The name of the FFN's activation, which Gemma's config has under a name of its own."""
    config = model.config
    return getattr(config, "hidden_activation", None) or config.hidden_act


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_CONFIG + 1)
        settings = json.loads(content.decode("utf-8")) if len(content) <= LARGEST_CONFIG else None
    except FileNotFoundError as error:
        raise ValueError(f"{file.parent} has no {file.name}") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 raise these
        raise ValueError(f"{file} is not JSON: {error}") from error
    if len(content) > LARGEST_CONFIG:
        raise ValueError(f"{file} has more than {LARGEST_CONFIG:,} bytes")
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds a {type(settings).__name__}: expected settings by name")
    return settings


def _to_config(settings: dict[str, Any], file: Path, inference_mode: bool) -> MixLoraConfig:
    for name in _REQUIRED:
        if name not in settings:
            raise ValueError(f"{file} lacks {name}")
    for name, allowed in _ALLOWED.items():
        value = settings.get(name, allowed[0])
        if value not in allowed:
            expected = " or ".join(repr(each) for each in allowed)
            raise ValueError(f"{file}: {name}={short_repr(value)}: expected {expected}")
    base_name = settings["base_model_name_or_path"]
    if not isinstance(base_name, str) or not base_name:
        raise ValueError(
            f"{file}: base_model_name_or_path={short_repr(base_name)}: expected a name or a "
            "directory"
        )
    known = {*_FIELDS, *_REQUIRED, *_ALLOWED, *_TRAINING_ONLY, "act_fn", "expert_lora"}
    unknown = sorted(settings.keys() - known)
    if unknown:
        names = ", ".join(map(printable_name, unknown[:5]))
        raise ValueError(f"{file} has settings that are not known: {names}")
    expert_lora = settings.get("expert_lora", {})
    if not isinstance(expert_lora, dict):
        raise ValueError(
            f"{file}: expert_lora={short_repr(expert_lora)}: expected settings by name"
        )
    for name, value in expert_lora.items():
        if settings.get(name) != value:
            raise ValueError(
                f"{file}: expert_lora.{printable_name(name)}={short_repr(value)}: expected "
                f"{short_repr(settings.get(name))}, as outside"
            )
    values = {ours: settings[theirs] for theirs, ours in _FIELDS.items() if theirs in settings}
    values["routing"] = _ROUTINGS[settings["routing_strategy"]]
    if isinstance(values["target_modules"], dict):
        values["target_modules"] = [n for n, chosen in values["target_modules"].items() if chosen]
    if values["lora_dropout"] == _LEAST_DROPOUT:
        values["lora_dropout"] = 0.0
    if not settings.get("router_loss", True):
        values["router_aux_loss_coef"] = 0.0
    try:
        return MixLoraConfig(task_type="CAUSAL_LM", inference_mode=inference_mode, **values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def _check_sizes(config: MixLoraConfig, weights: dict[str, Tensor], file: Path) -> None:
    """Refuse settings of other sizes than the weights', before memory is asked for."""
    for end, name in ((".lora_A.weight", "r"), (".mlp.moe_gate.weight", "num_experts")):
        size = getattr(config, name)
        shapes = {key: tuple(w.shape) for key, w in weights.items() if key.endswith(end)}
        if not shapes:
            raise ValueError(f"{file} lacks every key that ends in {end}")
        for key, shape in shapes.items():
            if shape[:1] != (size,):
                raise ValueError(
                    f"{file} has {printable_name(key)} of shape {shape}: {name}={size} in "
                    f"{CONFIG_FILE}"
                )


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{file.parent} has no {file.name}") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    # A damaged pickle raises a different exception in every place. torch's message about code in it
    # is a page long and ends with how to run that code after all.
    except Exception as error:
        raise ValueError(f"{file} cannot be read as tensors alone, without running code") from error
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise ValueError(f"{file} is no dictionary of tensors by name")
    return weights
