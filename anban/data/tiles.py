"""Cutting large scenes into windows, and putting predictions of windows together again.

Shapes: B batch, C channels, H and W pixels, N windows.
"""

from __future__ import annotations

from collections.abc import Callable
from types import EllipsisType

import numpy as np
import torch
from torch import Tensor

from anban.errors import InputError

Predict = Callable[[Tensor, Tensor], Tensor]
Crop = tuple[EllipsisType, slice, slice]


def grid(height: int, width: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Corners (top, left) of square windows that cover a picture, row by row.

    The last window of a row or column is shifted inwards to end at the border, so every window lies inside
    the picture; a picture smaller than a window gets one window at 0, for which the caller pads.

    Raises:
        InputError: a size below 1, or a stride outside 1..size (pixels would be left out).
    """
    if size < 1 or not 1 <= stride <= size:
        raise InputError(
            f"windows of {size} pixels every {stride} pixels do not cover a picture",
            expected="size >= 1 and 1 <= stride <= size",
        )

    return [(top, left) for top in starts(height, size, stride) for left in starts(width, size, stride)]


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where the windows along one side begin: every `stride` pixels, the last one shifted inwards to end at the border."""
    last = max(0, length - size)
    return [*range(0, last, stride), last]


def pad_reflect(tensor: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Mirror (..., H, W) at its borders by any number of pixels; the border itself is not repeated.

    Unlike torch's own reflection padding it also takes integers and more pixels than the picture has.
    """
    if not (top or bottom or left or right):
        return tensor
    rows = np.pad(np.arange(tensor.shape[-2]), (top, bottom), mode="reflect")
    columns = np.pad(np.arange(tensor.shape[-1]), (left, right), mode="reflect")
    by_row = tensor.index_select(-2, torch.from_numpy(rows).to(tensor.device))
    return by_row.index_select(-1, torch.from_numpy(columns).to(tensor.device))


def pad_to_multiple(tensor: Tensor, multiple: int) -> tuple[Tensor, Crop]:
    """(..., H, W) mirrored at the bottom and right until both sides are multiples of `multiple`.

    Returns:
        The padded tensor, and an index that cuts a result of the padded size back: `result[crop]`.
    """
    height, width = tensor.shape[-2:]
    padded = pad_reflect(tensor, 0, -height % multiple, 0, -width % multiple)
    return padded, (..., slice(0, height), slice(0, width))


def predict_tiled(
    predict: Predict, a: Tensor, b: Tensor, size: int, stride: int, windows_per_batch: int | None = None
) -> Tensor:
    """Predict two dates window by window; where windows overlap, their probabilities are averaged.

    Args:
        predict: (N, C, size, size) twice -> probability (N, 1, size, size).
        a, b: the two dates, (B, C, H, W).
        size: side of a window in pixels; smaller pictures are mirrored up to it and cut back.
        stride: pixels from one window to the next, 1..size.
        windows_per_batch: windows given to `predict` at once; it bounds memory, not the result. None: one on a CPU,
            where more are slower (large maps are mapped and unmapped by the system), else eight.

    Returns:
        float32 probability (B, 1, H, W).
    """
    if windows_per_batch is None:
        windows_per_batch = 1 if a.device.type == "cpu" else 8
    height, width = a.shape[-2:]
    down, across = max(0, size - height), max(0, size - width)
    a, b = pad_reflect(a, 0, down, 0, across), pad_reflect(b, 0, down, 0, across)
    corners = grid(height + down, width + across, size, stride)
    windows = [(scene, top, left) for scene in range(len(a)) for top, left in corners]

    total = torch.zeros((len(a), 1, *a.shape[-2:]), dtype=torch.float32, device=a.device)
    count = torch.zeros_like(total[:1])
    for top, left in corners:
        count[..., top : top + size, left : left + size] += 1
    for start in range(0, len(windows), windows_per_batch):
        group = windows[start : start + windows_per_batch]
        parts = [
            torch.stack([x[scene, :, top : top + size, left : left + size] for scene, top, left in group])
            for x in (a, b)
        ]
        for (scene, top, left), probability in zip(group, predict(*parts), strict=True):
            total[scene, :, top : top + size, left : left + size] += probability.float()
    return (total / count)[..., :height, :width]
