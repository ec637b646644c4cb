"""What it costs to serve an adapter: as it is, and exported as a mixture of experts.

    pip install xllamacpp && make small
    PYTHONPATH=. python examples/serving.py --threads 2 --rounds 5 --to OUTPUT

Compared are the frozen model alone and the adapter in transformers with PEFT, the exported
checkpoint in transformers, and its GGUF files in llama.cpp. Each round times each of them once, one
after the other, so that what else the machine does falls on all; the table has the median over
rounds, and the range. Adapter and base are those of SmolLM2-135M in a GGUF file, float32 in
transformers. The adapter's weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from tabulate import tabulate
from transformers import AutoModelForCausalLM

from harness.models.weights import MODELS, load_model, resolve
from mixlora import MixLoraConfig
from mixlora.export import export_files

#: Takes a prompt and the number of tokens to generate; returns seconds.
Run = Callable[[list[int], int], float]


def main() -> None:
    """Export, time, and print the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    weights = resolve(MODELS["smollm2-135m"], options.gguf)
    base, _ = load_model(weights, "float32", "cpu")
    num_base = sum(each.numel() for each in base.parameters())
    torch.manual_seed(0)
    config = MixLoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    folder = options.to
    adapter = folder / "adapter"
    model.save_pretrained(adapter)
    num_adapter = sum(each.numel() for name, each in model.named_parameters() if "lora_" in name)
    source = base.config._name_or_path
    results = {"transformers": _exported(source, adapter, folder / "transformers", "transformers")}
    for kind in ("F16", "Q8_0"):
        results[kind] = _exported(weights.path, adapter, folder / kind, "gguf", kind)
    exported = AutoModelForCausalLM.from_pretrained(folder / "transformers").eval()

    def frozen(prompt: list[int], count: int) -> float:
        with model.disable_adapter():
            return _seconds(model, prompt, count)

    runs: dict[str, tuple[Run, int, float]] = {
        "frozen model alone": (frozen, num_base, 4 * num_base),
        "adapter (PEFT)": (
            lambda *each: _seconds(model, *each),
            num_base + num_adapter,
            4 * (num_base + num_adapter),
        ),
        "exported, transformers": (
            lambda *each: _seconds(exported, *each),
            results["transformers"].num_parameters,
            results["transformers"].num_bytes,
        ),
    }
    for kind in ("F16", "Q8_0"):
        run = _llama_cpp(results[kind].files[0], options.threads)
        runs[f"exported, llama.cpp {kind}"] = (
            run,
            results[kind].num_parameters,
            results[kind].num_bytes,
        )
    prompt = torch.randint(1000, 40000, (options.prompt,)).tolist()
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for round_number in range(options.rounds + 1):
        for name, (run, _, _) in runs.items():
            first = run(prompt, 1)
            rest = run(prompt, 1 + options.new) - first
            if round_number:  # the first warms up
                rates[name].append((options.prompt / first, options.new / rest))
    rows = [
        [
            name,
            f"{parameters / 1e9:.3f} B",
            f"{size / 1e9:.2f} GB",
            *map(_range, zip(*rates[name], strict=True)),
        ]
        for name, (_, parameters, size) in runs.items()
    ]
    head = ["", "parameters", "weights", "prompt, tokens/s", "decode, tokens/s"]
    print(
        f"SmolLM2-135M, {options.threads} threads, prompt of {options.prompt} tokens, "
        f"{options.new} new ones, median of {options.rounds} interleaved rounds (least, most):\n"
    )
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--to", type=Path, required=True, help="a new directory, of 5 GB")
    parser.add_argument("--gguf", type=Path, help="SmolLM2's file, if `make small` was not run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens that are generated")
    return parser.parse_args()


def _exported(
    base: Path | str, adapter: Path, to: Path, format: str, dtype: str | None = None
) -> Any:
    result = export_files(base, adapter, to, format=format, dtype=dtype)
    print(f"exported {to}", file=sys.stderr)
    return result


def _seconds(model: Any, prompt: list[int], count: int) -> float:
    """Time for greedy decoding of so many tokens, with a cache, stopping at none."""
    ids = torch.tensor([prompt])
    start = time.perf_counter()
    result = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
    )
    seconds = time.perf_counter() - start
    if result.shape[1] != len(prompt) + count:
        raise RuntimeError(f"{result.shape[1] - len(prompt)} tokens: expected {count}")
    return seconds


def _llama_cpp(file: Path, threads: int) -> Run:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = 2048
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)

    def run(prompt: list[int], count: int) -> float:
        request = {
            "prompt": prompt,
            "max_tokens": count,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        start = time.perf_counter()
        answer = server.handle_completions(request)
        seconds = time.perf_counter() - start
        if answer["usage"]["completion_tokens"] != count:
            raise RuntimeError(f"llama.cpp answered {answer}")
        return seconds

    return run


def _range(values: tuple[float, ...]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}, {max(values):.1f})"


if __name__ == "__main__":
    main()
