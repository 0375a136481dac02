"""Training on several processes. The model does not know of them.

Each process computes on different batches. Parameters, gradients and optimiser state are sharded (FSDP2).
Processes are started by `torchrun`, by Ray Train, or by hand with the same environment variables.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all processes: its number, how many there are, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0


def join(device: str | None = None) -> World:
    """Join the processes that were started together.

    They are found by an existing process group, or by the variables RANK and WORLD_SIZE. device: None means a
    GPU if there is one. Raises `ValueError` for a device that does not exist here.
    """
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device {device}: take cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: there is no GPU that PyTorch can use here; take cpu")
    gpu = torch.cuda.is_available() if device is None else device == "cuda"
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if gpu else "gloo")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", local % torch.cuda.device_count()) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(where)
    if dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), where)
    return World(0, 1, where)


def shard(model: nn.Module, blocks: Sequence[nn.Module], world: World, bf16: bool) -> None:
    """Shard a model's parameters over the processes, block by block, in place. One process shards nothing."""
    if world.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # The transformer returns a view, and no code writes into the view.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    mesh = init_device_mesh(world.device.type, (world.size,))
    # Inputs are not cast, as autocast decides: in bfloat16, times up to 1000 would become multiples of 4.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=False,
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def whole(tensor: Tensor) -> Tensor:
    """A whole tensor, gathered from all processes, on the CPU. Every process must call this function."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered.cpu().clone()


def gathered_tensors(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Whole tensors, on the CPU of the first process. The other processes take part and get no tensors."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor)
        if world.first:
            found[name] = gathered
    return found


def forget_gathered(model: nn.Module) -> None:
    """Drop gathered copies of parameters. Without this call, old values may be used after a change."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor with the sharding, device and dtype of `like`. Every process must call this function."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor):
        full = tensor.to(like.device_mesh.device_type, like.dtype)
        return distribute_tensor(full, like.device_mesh, like.placements)
    return tensor.to(like.device, like.dtype)


def mean(values: Tensor, world: World) -> Tensor:
    """The mean over all processes, element by element."""
    if world.size > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= world.size
    return values


def gathered(value: Any, world: World) -> list[Any]:
    """A small Python value of each process, in the order of ranks."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def together(action: Callable[[], T], world: World) -> T:
    """The result of `action` in this process. A `ValueError` in one process is raised in all processes.

    Without this, the other processes would wait for ever for the process that failed.
    """
    if world.size == 1:
        return action()
    try:
        found = action()
    except ValueError as error:
        gathered(str(error), world)
        raise
    elsewhere = next((text for text in gathered(None, world) if text is not None), None)
    if elsewhere is not None:
        raise ValueError(elsewhere)
    return found


def wait(world: World) -> None:
    """Wait until all processes have called this function."""
    if world.size > 1:
        dist.barrier()
