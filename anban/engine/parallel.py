"""Several processes, as torchrun starts them. With one process everything here does nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from anban.record.process import identity, shown_state

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def start(device: str) -> torch.device:
    """Join the other processes if torchrun started us; the device of this process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # What is no tensor of a GPU goes past the GPUs: no step waits for them to ask whether to stop.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        store, number, count = next(rendezvous("env://"))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # on several hosts they do not count together
            # torchrun's store still has the addresses of the processes that these are started in place of.
            store = PrefixStore(f"start-{restarts()}", store)
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
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


def mean(values: Tensor) -> Tensor:
    """The mean over processes, on the CPU."""
    if world() == 1:
        return values.cpu()
    total = values.cpu().clone()
    dist.all_reduce(total)
    return total / world()


def any_true(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if world() == 1:
        return flag
    box = torch.tensor(int(flag))
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


# When one of them fails ------------------------------------------------------------------------------------------


def restarts() -> int:
    """How often torchrun has started the processes anew because one of this host had failed (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch() -> str | None:
    """torchrun's name of this launch, which restarts keep; None for a process that it has not started."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def processes() -> list[dict[str, Any]]:
    """Who all processes are, by rank; ask while all are there."""
    return gather([identity()])


def left(error: BaseException) -> bool:
    """Whether an error only says that another process has left: then every exchange with the others fails."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def first_failure(error: BaseException, why: str, folder: Path, known: Sequence[dict[str, Any]]) -> str:
    """What ended a run of several processes: the failure it began with, and in which process of which host.

    A process that fails by itself says so in `failed-rankN.txt` before its connections close and the others fail for
    want of it; the error is given a note of which one it is. One that was killed says nothing; the first of the others
    to notice looks which one is gone, and logs it.

    Args:
        why: the error in one message.
        folder: the run's.
        known: what `processes` found.
    """
    if left(error):
        for file in sorted(folder.glob("failed-rank*.txt"), key=lambda file: file.stat().st_mtime):
            return file.read_text(encoding="utf-8")
        gone = [name(n, known) for n, who in enumerate(known) if is_gone(who)]
        if gone:
            why = f"{' and '.join(gone)} is gone: killed, by someone or by the system for want of memory"
        else:
            why = f"{name(rank(), known)}: another one does not answer any more: {why}"
        logger.error(why)
    else:
        error.add_note(f"  in:       {name(rank(), known)}")
        why = f"{name(rank(), known)}: {why}"
    (folder / f"failed-rank{rank()}.txt").write_text(why, encoding="utf-8")
    return why


def name(number: int, known: Sequence[dict[str, Any]]) -> str:
    """A process as a person may look for it."""
    who = known[number]
    return f"process {number} of {len(known)} (pid {who['pid']} on {who['host']})"


def is_gone(who: dict[str, Any]) -> bool:
    """Whether the process has ended; False where it ran on another host."""
    return shown_state("running", who["host"], who["pid"], who["process"]) == "lost"
