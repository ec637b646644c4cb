"""The GGUF format of llama.cpp and ollama: one file with weights, settings and tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quant_shape_to_byte_shape, quantize
from torch import Tensor
from tqdm import tqdm

from .checkpoint import check_finite
from .folder import Result, card, new_folder
from .gguf_names import GgufNames, to_interleaved
from .gguf_source import InGguf, heads_of
from .gguf_vocab import add_tokenizer
from .plan import Planned, plan
from .targets import INSTEAD

if TYPE_CHECKING:
    from . import Source

#: What the weights may be stored as.
_TYPES = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
#: GGUF's architecture for each model type, and the attention projections that may have a bias.
#: llama.cpp's qwen2moe does not renormalise the experts' weights; its llama has Qwen2's biases.
_ARCHITECTURES: dict[str, tuple[str, frozenset[str]]] = {
    "llama": ("llama", frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})),
    "mistral": ("llama", frozenset()),
    "qwen2": ("llama", frozenset({"q_proj", "k_proj", "v_proj"})),
    "qwen3": ("qwen3moe", frozenset()),
}
_EXPERT = re.compile(r"(.+\.mlp\.experts)\.\d+\.(\w+\.weight)")
_ROPE_FACTORS = "rope_freqs.weight"
#: Settings of a GGUF base that the result has of its own.
_OWN = ("general.architecture", "general.file_type", "general.quantization_version")


def write(source: Source, to: Path, dtype: str | None, largest_file: int) -> Result:
    """Write a GGUF file and ollama's Modelfile; see `mixlora.export.export` for the arguments.

    The router, the norms and the biases stay in float32. largest_file does not apply.

    Raises:
        ValueError: It cannot be exported, or dtype is unknown.
        OSError: It cannot be written; nothing is left.
    """
    name_of_type = (dtype or "F16").upper()
    if name_of_type not in _TYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(_TYPES)} for format='gguf'")
    base = source.base_config
    if base.hidden_act != "silu":
        raise ValueError(
            f"hidden_act={base.hidden_act!r} cannot be exported as GGUF: llama.cpp's mixtures have "
            f"silu alone; {INSTEAD}"
        )
    arch, biases = _ARCHITECTURES[base.model_type]
    planned = plan(source, biases, f"llama.cpp's {arch}")
    tensors = _stacked(planned, GgufNames(arch, base.num_hidden_layers))
    factors = _rope_factors(source, arch)
    if factors is not None:
        tensors[_ROPE_FACTORS] = [Planned(_ROPE_FACTORS, tuple(factors.shape), lambda: factors)]
    writer = GGUFWriter(None, arch)
    context, stop = _add_settings(writer, source, arch, planned[0].shape[0])
    writer.add_file_type(_TYPES[name_of_type][1])
    num_bytes = 0
    types = {}
    for name, parts in tensors.items():
        types[name] = _type_of(name, parts[0], _TYPES[name_of_type][0])
        shape = quant_shape_to_byte_shape(_shape(parts), types[name])
        size = torch.Size(shape).numel()
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, types[name])
        num_bytes += size
    num_parameters = sum(torch.Size(each.shape).numel() for each in planned)
    file_name = f"{to.name}-{name_of_type}.gguf"
    modelfile = f"FROM ./{file_name}\nPARAMETER num_ctx {context}\n"
    if stop is not None:
        modelfile += f"PARAMETER stop {stop}\n"
    with new_folder(to, num_bytes) as folder:
        try:
            writer.write_header_to_file(folder / file_name)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            progress = tqdm(total=num_bytes, unit="B", unit_scale=True, disable=None, desc="export")
            with progress:
                for name, parts in tensors.items():
                    data = _data(parts, types[name], arch, base)
                    writer.write_tensor_data(data)
                    progress.update(data.nbytes)
        finally:
            writer.close()
        (folder / "Modelfile").write_text(modelfile, encoding="utf-8")
        usage = f"`llama-cli -m {file_name}`, or `ollama create NAME -f Modelfile`.\n"
        text = card(source, f"{arch} (GGUF)", name_of_type, num_parameters, usage)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return Result(to, [to / file_name], num_bytes, num_parameters, modelfile)


def _stacked(planned: list[Planned], names: GgufNames) -> dict[str, list[Planned]]:
    """The tensors of the file by name, each with its parts: the experts of a projection are one."""
    tensors: dict[str, list[Planned]] = {}
    for each in planned:
        tensors.setdefault(names.find(_EXPERT.sub(r"\1.\2", each.name)), []).append(each)
    return tensors


def _shape(parts: list[Planned]) -> tuple[int, ...]:
    is_stack = _EXPERT.fullmatch(parts[0].name) is not None
    return (len(parts), *parts[0].shape) if is_stack else parts[0].shape


def _type_of(name: str, each: Planned, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    """The type of one tensor: llama.cpp wants vectors and routers in float32.

    Raises:
        ValueError: Its rows cannot be cut into the blocks of the type.
    """
    if len(each.shape) == 1 or "ffn_gate_inp" in name:
        return GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    if each.shape[-1] % block:
        raise ValueError(
            f"dtype={wanted.name} needs rows of a multiple of {block}: {each.name} has "
            f"{each.shape[-1]}; choose F16"
        )
    return wanted


def _data(
    parts: list[Planned], wanted: GGMLQuantizationType, arch: str, config: Any
) -> np.ndarray[Any, Any]:
    """A tensor's bytes; an expert at a time is held in float32."""
    shape = quant_shape_to_byte_shape(_shape(parts), wanted)
    data = np.empty((len(parts), torch.Size(shape).numel() // len(parts)), dtype=np.uint8)
    for row, each in zip(data, parts, strict=True):
        tensor = each.make().to("cpu", torch.float32)
        heads = heads_of(each.name, config)
        if heads is not None and arch == "llama":
            tensor = to_interleaved(tensor, heads)
        if wanted == GGMLQuantizationType.F16:
            check_finite(each.name, tensor, tensor.to(torch.float16))
        row[:] = quantize(tensor.contiguous().numpy(), wanted).view(np.uint8).reshape(-1)
    return data.reshape(shape)


def _add_settings(
    writer: GGUFWriter, source: Source, arch: str, vocab_size: int
) -> tuple[int, str | None]:
    """Everything but the tensors.

    Returns:
        The context length, and the text of the token that ends an answer.
    """
    adapter = source.adapter_config
    if isinstance(source.base, InGguf):
        context, stop = _copy_settings(writer, source.base.reader, arch)
    else:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(Path(source.base_name).name + " with MixLoRA")
        context = _add_sizes(writer, source.base_config, vocab_size)
        tokenizer = add_tokenizer(writer, source.files, vocab_size)
        stop = tokenizer.eos_token
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_expert_count(adapter.num_experts)
    writer.add_expert_used_count(adapter.top_k)
    if arch == "qwen3moe":
        writer.add_expert_feed_forward_length(source.base_config.intermediate_size)
    return context, stop


def _copy_settings(writer: GGUFWriter, reader: Any, arch: str) -> tuple[int, str | None]:
    base_arch = reader.fields["general.architecture"].contents()
    for name, entry in reader.fields.items():
        if name in _OWN or name.startswith(("GGUF.", "split.")):
            continue
        inner = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
        renamed = re.sub(rf"^{re.escape(base_arch)}\.", f"{arch}.", name)
        writer.add_key_value(renamed, entry.contents(), entry.types[0], inner)
    context = reader.fields[f"{base_arch}.context_length"].contents()
    end = reader.fields.get("tokenizer.ggml.eos_token_id")
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    return context, tokens.contents()[end.contents()] if end is not None and tokens else None


def _add_sizes(writer: GGUFWriter, config: Any, vocab_size: int) -> int:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # llama.cpp's llama has no sliding window, so the window is all the context there is.
    windows = (config.max_position_embeddings, getattr(config, "sliding_window", None))
    context = min(each for each in windows if each)
    writer.add_vocab_size(vocab_size)
    writer.add_context_length(context)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    return context


def _rope_factors(source: Source, arch: str) -> Tensor | None:
    """(head_dim / 2,) by which llama.cpp divides the frequencies, if they are not in the settings.

    Raises:
        ValueError: llama.cpp has no equal of the base's rope scaling.
    """
    if isinstance(source.base, InGguf):
        stored = [each for each in source.base.reader.tensors if each.name == _ROPE_FACTORS]
        return torch.from_numpy(stored[0].data.copy()) if stored else None
    rope = source.base_config.rope_parameters
    kind = rope["rope_type"]
    plain = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
    if kind == "llama3" and arch == "llama":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](source.base_config, device="cpu")
        powers = torch.arange(0, 2 * len(scaled), 2, dtype=torch.float32) / (2 * len(scaled))
        return rope["rope_theta"] ** -powers / scaled
    if kind not in ("default", "linear", "yarn") or rope.keys() - plain:
        raise ValueError(
            f"rope_parameters={rope} cannot be exported as GGUF: llama.cpp's {arch} has default, "
            f"linear and yarn without further settings{' and llama3' * (arch == 'llama')}; "
            f"choose format='transformers'"
        )
    return None
