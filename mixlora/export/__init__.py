"""A MixLoRA adapter and its base written out as an ordinary sparse mixture of experts.

With top-k routing on a Llama-shaped base, expert e's projection is ``W + s B_e A_e`` (for MixDoRA
with its rows scaled by magnitude over norm), the router is the mixture's gate, and the attention's
adapters merge. So the result is a Mixtral, Qwen2-MoE or Qwen3-MoE checkpoint, or a GGUF file, that
computes the same and needs nothing of this package:

    mixlora-export --base DIR --adapter DIR --to DIR
    mixlora.export(model, "DIR")
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel, get_peft_model_state_dict

from ..config import PEFT_TYPE, MixLoraConfig
from .folder import FILE_SIZE, Result, parse_size
from .sources import InFiles, InMemory, Tensors, find_folder, live_tensors, tokenizer_files
from .targets import check_adapter, check_base

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

__all__ = ["FORMATS", "Result", "export", "export_files"]

FORMATS = ("transformers", "gguf")


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        base: the frozen model's tensors by their names in its checkpoint.
        adapter: the adapter's tensors by their names in its file.
        base_config: the base's transformers configuration.
        adapter_config: the adapter's settings.
        base_name: how the card names the base.
        adapter_name: how the card names the adapter.
        files: files to carry over as they are: tokenizer, chat template, generation settings,
            licences.
    """

    base: Tensors
    adapter: Tensors
    base_config: PreTrainedConfig
    adapter_config: MixLoraConfig
    base_name: str
    adapter_name: str
    files: list[Path]


def export(
    model: PeftModel,
    to: str | Path,
    *,
    adapter_name: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    format: str = "transformers",
    dtype: str | None = None,
    max_shard_size: str | int = FILE_SIZE,
) -> Result:
    """Write a model in memory and its MixLoRA adapter as a mixture of experts.

    Args:
        model: A base with a MixLoRA adapter; it is not changed. A base quantised by bitsandbytes is
            dequantised, as the adapter saw it.
        to: The directory to make; it may not exist, or be empty.
        adapter_name: Which adapter. None: the active one.
        tokenizer: Saved along, with its chat template; the GGUF format needs it.
        format: "transformers" or "gguf".
        dtype: type of the result's weights: "float32", "bfloat16" or "float16", for GGUF "F32",
            "F16" or "Q8_0". None: the base's own, for GGUF "F16".
        max_shard_size: Largest file of weights, in bytes or as "5GB".

    Raises:
        ValueError: There is no mixture of experts that computes the same, or an argument has a
            value that is not allowed.
        OSError: The directory cannot be written; nothing is left there.
    """
    active = list(model.active_adapters) if adapter_name is None else [adapter_name]
    if len(active) != 1:
        raise ValueError(
            f"active adapters {active}: a mixture has the experts of one, give adapter_name"
        )
    name = active[0]
    if name not in model.peft_config:
        raise ValueError(f"adapter_name={name!r}: the model has {', '.join(model.peft_config)}")
    config = _mixlora(model.peft_config[name], f"adapter {name!r}")
    base: Any = model.get_base_model()
    with tempfile.TemporaryDirectory() as scratch:
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        if getattr(base, "generation_config", None) is not None:
            base.generation_config.save_pretrained(scratch)
        weights = get_peft_model_state_dict(model, None, name, save_embedding_layers=False)
        source = Source(
            InMemory(live_tensors(base)),
            InMemory(weights),
            base.config,
            config,
            base.config._name_or_path or "a model in memory",
            f"{name!r} of a model in memory",
            sorted(Path(scratch).iterdir()),
        )
        return _write(source, Path(to), format, dtype, max_shard_size)


def export_files(
    base: str | Path | None,
    adapter: str | Path,
    to: str | Path,
    *,
    format: str = "transformers",
    dtype: str | None = None,
    max_shard_size: str | int = FILE_SIZE,
) -> Result:
    """Write a base and an adapter that are stored in files as a mixture of experts.

    Tensors are read, merged and written one at a time, so neither model is ever in memory.

    Args:
        base: A directory with safetensors weights, a hub id, or (for the GGUF format) a GGUF file.
            None: what the adapter names.
        adapter: An adapter's directory or hub id.
        to: As for `export`.
        format: Likewise.
        dtype: Likewise.
        max_shard_size: Likewise.

    Raises:
        ValueError: As `export`; or a file is missing, unreadable or does not fit.
        OSError: The directory cannot be written; nothing is left there.
    """
    from transformers import AutoConfig

    adapter_folder = find_folder("adapter", str(adapter), None)
    settings_file = adapter_folder / "adapter_config.json"
    if not settings_file.is_file():
        raise ValueError(f"{adapter_folder} has no adapter_config.json: expected a PEFT adapter")
    config = _mixlora(MixLoraConfig.from_pretrained(str(adapter_folder)), str(settings_file))
    base = base or config.base_model_name_or_path
    if not base:
        raise ValueError(f"{settings_file} names no base model: give --base")
    tensors: Tensors
    if str(base).endswith(".gguf"):
        if format != "gguf":
            raise ValueError(
                f"{base}: a GGUF base is exported as format='gguf'; for transformers give the "
                "directory that it was made from"
            )
        _need_gguf()
        from .gguf_source import InGguf

        tensors = InGguf(Path(base))
        base_config, files = tensors.config, []
    else:
        folder = find_folder("base", str(base), config.revision)
        if (folder / "adapter_config.json").is_file():
            raise ValueError(f"{folder} holds an adapter: expected a base model")
        tensors = InFiles(folder, "model")
        try:
            base_config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'config.json'} cannot be read: {error}") from error
        if getattr(base_config, "quantization_config", None) is not None:
            raise ValueError(
                f"{folder} has quantised weights (quantization_config): give the base they were "
                "made from, or export the model in memory: mixlora.export(model, ...)"
            )
        files = tokenizer_files(folder, adapter_folder)
    source = Source(
        tensors,
        InFiles(adapter_folder, "adapter_model"),
        base_config,
        config,
        str(base),
        str(adapter),
        files,
    )
    return _write(source, Path(to), format, dtype, max_shard_size)


def _write(
    source: Source, to: Path, format: str, dtype: str | None, max_shard_size: str | int
) -> Result:
    largest = parse_size(max_shard_size)
    check_adapter(source.adapter_config)
    check_base(source.base_config)
    if format == "transformers":
        from .checkpoint import write
    elif format == "gguf":
        _need_gguf()
        from .gguf_file import write
    else:
        raise ValueError(f"format={format!r}: expected one of {', '.join(FORMATS)}")
    return write(source, to, dtype, largest)


def _mixlora(config: Any, whose: str) -> MixLoraConfig:
    if not isinstance(config, MixLoraConfig):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ValueError(f"{whose} is of {kind}: expected {PEFT_TYPE}")
    return config


def _need_gguf() -> None:
    if find_spec("gguf") is None:
        raise ValueError("GGUF needs a package: pip install 'mixlora-repro[gguf]'")
