"""Precision, clipping and stepping, in one place for any number of optimisers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from anban.engine import parallel
from anban.engine.faults import Before, NonFinite
from anban.engine.settings import Train
from anban.tasks.contract import Task

#: Name under which the norm before clipping is logged; infinite where fp16 overflowed and the step was skipped.
GRADIENT_NORM = "gradient_norm"

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast for bf16 and fp16; for fp32 a context that does nothing."""
    return torch.autocast(device.type, _DTYPES.get(precision), enabled=precision in _DTYPES)


class Updater:
    """What a task's `update` uses: `autocast`, `backward`, and `step` of a named optimiser.

    Args:
        optimizers: by name; `step` clips the gradient of all of an optimiser's parameters together.
    """

    def __init__(
        self, optimizers: Mapping[str, torch.optim.Optimizer], settings: Train, device: torch.device
    ):
        self.optimizers, self.device = optimizers, device
        self.precision, self.clip_norm = settings.precision, settings.clip_norm
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.gradient_norm: Tensor | None = None
        self._before = Before() if settings.non_finite == "skip" else None
        self._losses: list[Tensor] = []

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.precision, self.device)

    def apply(self, task: Task, batches: Sequence[Any]) -> dict[str, Tensor]:
        """One `update` of the task, beginning without gradients and ending with one change of the loss scale.

        Raises:
            NonFinite: a loss or gradient is no finite number and `train.non_finite` is `skip`: everything is as before.
        """
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self._losses.clear()
        if self._before is not None:
            self._before.keep_buffers(task.modules.values())
        try:
            values = task.update(batches, self)
        except NonFinite:
            self._undo()
            raise
        self.scaler.update()
        if self.gradient_norm is not None:
            values = {**values, GRADIENT_NORM: self.gradient_norm}
        return values

    def backward(self, loss: Tensor, *names: str) -> None:
        """Accumulate the gradient of a loss in the parameters of the named optimisers only; without a name, in all.

        A generator's loss that runs through its critic must not leave a gradient there.
        """
        inputs = [
            p for name in names for group in self.optimizers[name].param_groups for p in group["params"]
        ]
        if self._before is not None:
            self._losses.append(loss.detach())
        self.scaler.scale(loss).backward(inputs=inputs or None)  # type: ignore[no-untyped-call]

    def step(self, name: str = "model") -> None:
        """Apply the accumulated gradient of one optimiser's parameters, and clear it."""
        optimizer = self.optimizers[name]
        if self._before is not None:
            self._refuse_non_finite(name)
            if len(self.optimizers) > 1:  # the next one may yet fail
                self._before.keep(optimizer)
        if self.clip_norm is not None:
            self.scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self.gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    def _refuse_non_finite(self, name: str) -> None:
        """Raise NonFinite before weights are touched; an overflow in fp16 is left to the loss scale."""
        loss = torch.stack([loss.float() for loss in self._losses]).sum()
        gradient = torch.zeros_like(loss)
        if not self.scaler.is_enabled():
            groups = self.optimizers[name].param_groups
            gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            gradient = get_total_norm(gradients, norm_type=math.inf)
        if parallel.any_true(not bool((loss + gradient).isfinite())):
            raise NonFinite(
                "gradient" if loss.isfinite() else "loss", (gradient if loss.isfinite() else loss).item()
            )

    def _undo(self) -> None:
        assert self._before is not None
        self._before.restore()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():  # it still knows of the gradients it has unscaled
            self.scaler.update(self.scaler.get_scale())
