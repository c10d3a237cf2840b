"""Numbers that are not finite: steps that are left out as if they had not been, and what is kept of every fault."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from anban.errors import InputError
from anban.record import RunFolder
from anban.record.files import to_json, write_atomically
from anban.tasks.contract import Symptom

#: A run that leaves out so many steps one after the other, or goes back so often, has diverged.
MOST_SKIPPED = 10
MOST_ROLLED_BACK = 3

_SHOWN = 8


class NonFinite(Exception):
    """The loss or the gradient of the step at hand is no finite number, and the step has left no trace."""

    def __init__(self, name: str, value: float):
        super().__init__(f"the {name} is {value}")


class Before:
    """What a step changes, as it was: all buffers, and the weights and states of optimisers that have stepped."""

    def __init__(self) -> None:
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._states: list[tuple[torch.optim.Optimizer, dict[str, Any]]] = []

    def keep_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Begin anew with the buffers: a forward pass alone changes the statistics of a batch normalisation."""
        self._tensors = [(b, b.clone()) for module in modules for b in module.buffers()]
        self._states = []

    def keep(self, optimizer: torch.optim.Optimizer) -> None:
        self._tensors += [
            (p, p.detach().clone()) for group in optimizer.param_groups for p in group["params"]
        ]
        self._states.append((optimizer, copy.deepcopy(optimizer.state_dict())))

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, value in self._tensors:
            tensor.copy_(value)
        for optimizer, state in self._states:
            optimizer.load_state_dict(state)


def named(data: Dataset[Any], keys: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """The `epoch`, `index` and, where the task gives one, `name` of samples, which are read again to ask them."""
    found = []
    for epoch, index in keys:
        try:
            sample = data[epoch, index]
        except InputError:  # the fault is reported, not another one
            sample = None
        name = sample.get("name") if isinstance(sample, Mapping) else None
        found.append({"epoch": epoch, "index": index, "name": name})
    return found


def keep(run: RunFolder, step: int, try_: int, fault: Mapping[str, Any]) -> str:
    """Write a fault to `faults/step-N.json` of the run; the file's name in the run.

    Args:
        try_: how often the run had gone back before, which is part of the name.
    """
    name = f"faults/step-{step}{f'-try-{try_ + 1}' if try_ else ''}.json"
    (run.path / "faults").mkdir(exist_ok=True)
    write_atomically(run.path / name, to_json(fault, indent=1) + "\n")
    return name


def told(samples: Sequence[Mapping[str, Any]]) -> str:
    """The names of samples in a few words."""
    names = [str(sample["name"] or sample["index"]) for sample in samples]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def skipped(steps: Sequence[int], why: str) -> Symptom:
    """The finding of a run that has left steps out."""
    return Symptom("non-finite", f"{len(steps)} step{'s' if len(steps) > 1 else ''} left out ({_latest(steps)}): at the last of "
                   f"them {why}",
                   "A sample that the loss cannot bear, or steps so large that a loss or gradient left the range of its type.",
                   "Look at the samples that faults/ names; lower optimizer.lr or set train.clip_norm if they change.")  # fmt: skip


def rolled_back(steps: Sequence[int], to: int, why: str) -> Symptom:
    """The finding of a run that has gone back."""
    return Symptom("non-finite", f"gone back {len(steps)} time{'s' if len(steps) > 1 else ''} of {MOST_ROLLED_BACK} "
                   f"({_latest(steps)}), the last time to step {to}: {why}",
                   "Steps so large that a loss, gradient or weight left the range of its type, or a sample that the loss "
                   "cannot bear.",
                   "Lower optimizer.lr, lengthen schedule.warmup or set train.clip_norm; faults/ names the samples.")  # fmt: skip


def _latest(steps: Sequence[int]) -> str:
    before = "... " if len(steps) > _SHOWN else ""
    return f"step{'s' if len(steps) > 1 else ''} {before}{', '.join(map(str, steps[-_SHOWN:]))}"
