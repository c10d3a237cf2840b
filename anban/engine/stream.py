"""The endless sequence of training batches: which samples step N sees is a pure function of (seed, N).

There is no position to store and nothing to replay: a resumed run asks for step N and gets it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from anban.data.draws import derive
from anban.errors import InputError


def order(samples: int, seed: int, epoch: int) -> list[int]:
    """The permutation of sample numbers in one epoch."""
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    return torch.randperm(samples, generator=generator).tolist()  # type: ignore[no-any-return]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """For each step from `first` to `last`, this process's share of the batch as (epoch, index) pairs.

    Args:
        samples: size of the training split.
        batch: samples per step over all processes; a smaller split gives batches of its whole size.
        rank, world: this process and how many there are.
        parts: micro-batches that a share is cut into; a batch of a whole small split leaves out what cannot be
            cut into equal ones.
    """

    def __init__(
        self,
        samples: int,
        batch: int,
        seed: int,
        first: int,
        last: int,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ):
        size = min(batch, samples)
        self.samples, self.batch, self.seed = samples, size - size % min(size, parts * world), seed
        self.first, self.last, self.rank, self.world = first, last, rank, world

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = max(1, self.samples // self.batch)
        known_epoch, permutation = -1, []
        for step in range(self.first, self.last):
            epoch, position = divmod(step, per_epoch)
            if epoch != known_epoch:
                known_epoch, permutation = epoch, order(self.samples, self.seed, epoch)
            indices = permutation[position * self.batch : (position + 1) * self.batch]
            yield [(epoch, index) for index in indices[self.rank :: self.world]]


def _context() -> str:
    """How workers are started: a fork of this process would copy the threads that the log and the board run."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class _Guarded(Dataset[Any]):
    """A data set that hands over what it refuses: raised in a worker, it would arrive as the text of a traceback."""

    def __init__(self, dataset: Dataset[Any]):
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except InputError as error:
            return error


def _collate_parts(
    samples: Sequence[Any], collate: Callable[[Sequence[Any]], Any], parts: int
) -> list[Any] | InputError:
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    size = -(-len(samples) // parts)
    return [collate(samples[i : i + size]) for i in range(0, len(samples), size)]


def _accepted(batch: list[Any] | InputError) -> list[Any]:
    if isinstance(batch, InputError):
        raise batch
    return batch


def batches(
    dataset: Dataset[Any],
    sampler: Sampler[list[Any]] | Sequence[list[Any]],
    collate: Callable[[Sequence[Any]], Any],
    *,
    parts: int = 1,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[list[Any]]:
    """For each entry of the sampler, its samples as `parts` micro-batches.

    Raises:
        InputError: of the data set, about a sample that cannot be read; wherever it was met.
    """
    loader: DataLoader[Any] = DataLoader(
        _Guarded(dataset),
        batch_sampler=sampler,
        collate_fn=partial(_collate_parts, collate=collate, parts=parts),
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        multiprocessing_context=_context() if workers else None,
    )
    with _spared():
        return map(_accepted, iter(loader))


@contextlib.contextmanager
def _spared() -> Iterator[None]:
    """Processes started here do not hear SIGUSR1 and SIGUSR2.

    A scheduler sends them to every process of a job, and the one that trains still needs its loaders to end in order.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which has no such signals either
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def to_device(batch: Any, device: torch.device) -> Any:
    """Tensors of a batch on the device; names and numbers as they are."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
