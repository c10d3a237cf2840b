"""What the losses share: maps as rows of float32 pixels, and the mean over the counted ones."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_rows(
    logit: Tensor, target: Tensor, valid: Tensor | None, *, per_image: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The three as float32 rows of pixels, (B, N) or, for the batch as a whole, (1, B N)."""
    shape = _pixels(logit)
    for name, other in (("target", target), ("valid", valid)):
        if other is not None and _pixels(other) != shape:
            raise ValueError(
                f"{name} is {tuple(other.shape)}, logit is {tuple(logit.shape)}: not the same pixels"
            )
    size = (shape[0], -1) if per_image and shape[0] > 0 else (1, shape[0] * shape[1] * shape[2])
    logit, target = logit.float().reshape(size), target.float().reshape(size)
    return logit, target, torch.ones_like(target) if valid is None else valid.float().reshape(size)


def _pixels(tensor: Tensor) -> tuple[int, int, int]:
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != 3:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)}; expected (B, 1, H, W) or (B, H, W)")
    return (tensor.shape[0], tensor.shape[1], tensor.shape[2])


def counted_mean(cost: Tensor, weight: Tensor) -> Tensor:
    """Mean of cost over the entries of weight 1; 0 when there are none."""
    return (cost * weight).sum() / weight.sum().clamp(min=1)
