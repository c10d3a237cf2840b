"""Several processes, as torchrun starts them. With one process everything here does nothing."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def start(device: str) -> torch.device:
    """Join the other processes if torchrun started us; the device of this process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if device != "cuda":
        return torch.device(device)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def share(value: T) -> T:
    """The first process's value, in every process."""
    if world() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[no-any-return]


def gather(values: list[T]) -> list[T]:
    """The lists of all processes, one after the other, in every process."""
    if world() == 1:
        return values
    boxes: list[Any] = [None] * world()
    dist.all_gather_object(boxes, values)
    return [value for box in boxes for value in box]


def any_true(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if world() == 1:
        return flag
    box = torch.tensor(int(flag), device=device)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return bool(box.item())


def align(module: nn.Module) -> None:
    """Give every process the first one's buffers: each has counted its own batches' statistics since the last step."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def wrap(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with its gradients averaged over processes.

    Unused parameters are looked for, because published networks carry some (BIT's last ResNet stage).
    """
    if world() == 1 or not any(p.requires_grad for p in module.parameters()):
        return module
    devices = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)
