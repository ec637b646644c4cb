"""MixLoRA under torch's DDP and FSDP: no unused parameters, and the loss of a single process."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mixlora import MixLoraConfig
from mixlora.losses import balanced_over

from .models import make_model

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
CONFIGS: dict[str, Any] = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "up_proj"]),
    "dora": LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "up_proj"], use_dora=True
    ),
    # 16 experts for the 12 tokens of a process: some experts get no token.
    "mixlora": MixLoraConfig(
        task_type="CAUSAL_LM", r=2, lora_dropout=0.0, num_experts=16, router_aux_loss_coef=0.5
    ),
    "mixdora": MixLoraConfig(
        task_type="CAUSAL_LM",
        r=2,
        lora_dropout=0.0,
        num_experts=16,
        router_aux_loss_coef=0.5,
        use_dora=True,
    ),
}
IDS = torch.arange(24).reshape(4, 6) % 29


def tuned(method: str) -> Any:
    torch.manual_seed(0)
    model: Any = get_peft_model(make_model(), CONFIGS[method])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            whole = parameter.grad
            whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
            found[name.removeprefix("module.")] = whole
    return found


def with_ddp(model: Any) -> Any:
    return DistributedDataParallel(model, find_unused_parameters=False)


def with_fsdp(model: Any) -> Any:
    """Sharded as `examples/fsdp.yaml` says: by layer, frozen weights and adapters together."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def add_up(values: torch.Tensor) -> torch.Tensor:
    total = values.clone()
    dist.all_reduce(total)
    return total


def tuned_in_two(rank: int, wrapped: Callable[[Any], Any]) -> dict[str, Any]:
    """Two steps on this process's half of the rows.

    DDP notices in the second step if a parameter had no gradient in the first.
    """
    found = {}
    own = IDS.chunk(2)[rank]
    for method in CONFIGS:
        plain = tuned(method)
        model = wrapped(plain)
        with balanced_over(plain, add_up):
            for _ in range(2):
                model.zero_grad()
                loss = model(input_ids=own, labels=own, num_items_in_batch=20).loss
                # DDP and FSDP average gradients over the two processes; the sum is wanted.
                (2 * loss).backward()
        found[method] = (add_up(loss.detach()), gradients(model))
    return found


def step(rank: int, port: int, folder: str, wrapped: Callable[[Any], Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = tuned_in_two(rank, wrapped)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    # A DDP object that outlives its process group hangs at exit: it holds the interpreter's lock
    # while it waits for a thread that needs the lock.
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.parametrize("wrapped", [with_ddp, with_fsdp])
def test_two_processes_have_the_loss_and_gradients_of_one(
    wrapped: Callable[[Any], Any], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.spawn(step, (port, str(tmp_path), wrapped), nprocs=2, join=False)
    deadline = time.monotonic() + 300
    while not context.join(timeout=10):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail("the processes wait for each other")
    found = torch.load(tmp_path / "found.pt")
    for method in CONFIGS:
        model = tuned(method)
        loss = model(input_ids=IDS, labels=IDS, num_items_in_batch=20).loss
        loss.backward()
        torch.testing.assert_close(found[method][0], loss.detach(), rtol=1e-6, atol=1e-6)
        expected = gradients(model)
        assert found[method][1].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[method][1][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_shared_balance_needs_the_number_of_all_tokens() -> None:
    model = tuned("mixlora")
    with (
        balanced_over(model, lambda values: values),
        pytest.raises(ValueError, match="num_items_in_batch"),
    ):
        model(input_ids=IDS, labels=IDS)
    model(input_ids=IDS, labels=IDS)


def test_accelerate_reads_the_example_for_fsdp() -> None:
    config: Any = load_config_from_file(str(ROOT / "examples" / "fsdp.yaml"))
    assert config.distributed_type == DistributedType.FSDP
    settings = config.fsdp_config
    assert settings["fsdp_version"] == 2
    layer = settings["fsdp_transformer_layer_cls_to_wrap"]
    assert layer in {type(module).__name__ for module in make_model().modules()}
