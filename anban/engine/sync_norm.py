"""Batch normalisation over the samples of all processes (`train.sync_batch_norm`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anban.engine import parallel
from anban.errors import InputError


def synchronise(network: nn.Module, device: torch.device) -> None:
    """Let every batch norm of a network see the samples of all processes; with one process nothing changes.

    The modules stay the objects they are, with their parameters and buffers: only what they compute is exchanged.

    Raises:
        InputError: a batch norm that computes something of its own.
    """
    if parallel.world() == 1:
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                raise InputError(f"A norm of the kind {type(module).__name__} cannot be synchronised.",
                                 where="train.sync_batch_norm", expected="ordinary batch norms",
                                 do="set it to false, or choose another norm")  # fmt: skip
            module.__class__ = nn.SyncBatchNorm if device.type == "cuda" else SyncBatchNorm
            vars(module)["process_group"] = None  # all processes


class SyncBatchNorm(_BatchNorm):
    """What torch.nn.SyncBatchNorm computes, which exists on GPUs only: (N, C, *) -> (N, C, *).

    Mean and variance are those of the joined batch of all processes, in training; gradients flow through both.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of them, as there are no classes of it for one, two and three."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        shape = (1, -1, *[1] * (x.ndim - 2))
        over = [axis for axis in range(x.ndim) if axis != 1]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        own = values.new_tensor([values.numel() / values.shape[1]])
        joined = _Summed.apply(torch.cat((values.sum(over), own)))
        total, count = joined[:-1], joined[-1].detach()
        mean = total / count
        centred = values - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(over)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        made: Tensor = normal.to(x.dtype)
        return made

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Take the statistics of a batch, its variance the unbiased one, into the running ones."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Summed(torch.autograd.Function):
    """The sum over processes. Each one's result depends on every one's input, so gradients are summed alike."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed: Tensor = _Summed.apply(gradient)
        return summed
