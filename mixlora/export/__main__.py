"""The command ``mixlora-export``: a base and a MixLoRA adapter become a mixture of experts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import FORMATS, export_files
from .folder import FILE_SIZE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a user's mistake, or a disk's, is one line and status 2."""
    options = _parser().parse_args(arguments)
    try:
        result = export_files(
            options.base,
            options.adapter,
            options.to,
            format=options.format,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
        )
    except (OSError, ValueError) as error:
        print(f"mixlora-export: {_described(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mixlora-export: stopped; nothing was left behind", file=sys.stderr)
        return 130
    size = f"{result.num_parameters / 1e9:.3g} B parameters, {result.num_bytes / 1e9:.3g} GB"
    print(f"{result.folder}: {size}")
    if result.modelfile is not None:
        print(f"\nModelfile for `ollama create NAME -f {result.folder}/Modelfile`:\n")
        print(result.modelfile)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mixlora-export",
        description="Write a base model and a MixLoRA adapter as an ordinary mixture of experts: "
        "Mixtral, Qwen2-MoE or Qwen3-MoE for transformers, vLLM and SGLang, or a GGUF file for "
        "llama.cpp and ollama.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--base",
        metavar="DIR|ID|FILE",
        help="the frozen model: a directory with safetensors weights, a hub id, or for --format "
        "gguf also a GGUF file (default: what the adapter names)",
    )
    parser.add_argument(
        "--adapter", metavar="DIR|ID", required=True, help="the adapter's directory or hub id"
    )
    parser.add_argument("--to", metavar="DIR", required=True, help="the directory to make")
    parser.add_argument("--format", choices=FORMATS, default="transformers")
    parser.add_argument(
        "--dtype",
        help="float32, bfloat16 or float16 (default: the base's); for --format gguf F32, F16 or "
        "Q8_0 (default: F16)",
    )
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        default=FILE_SIZE,
        help="largest file of weights of --format transformers (default: %(default)s)",
    )
    return parser


def _described(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"cannot write the model: {where}{error.strerror}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
