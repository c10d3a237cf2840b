"""How a slice is denoised and measured, by name, so that every number can say it.

| name | what it does |
| --- | --- |
| `whole` | the whole slice at once, mirrored at its borders to what the network needs |
| `sliding-N-S` | windows of N pixels every S pixels, overlaps averaged |
| either with `+huA..B` | both images clipped to A..B Hounsfield units before they are compared; without it -1024..3072 |

`+hu-160..240` is the window of soft tissue that RED-CNN and many after it measure in. B - A is the data range of PSNR
and SSIM, so numbers of two windows cannot be compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anban.data.tiles import grid, pad_reflect
from anban.errors import InputError

WHOLE_RANGE = (-1024, 3072)


@dataclass(frozen=True)
class Protocol:
    """A way to denoise and to measure. `size` and `stride` are in pixels and None for the whole slice."""

    name: str
    size: int | None
    stride: int | None
    window: tuple[int, int]

    def to_dict(self, split: str, size: str) -> dict[str, Any]:
        """The stamp that a run's record keeps with its numbers; `size` is that of the slices, such as "512x512"."""
        return {
            "name": self.name,
            "split": split,
            "size": size if self.size is None else f"{self.size}x{self.size}",
            "stride": self.stride,
            "data_range": f"{self.window[1] - self.window[0]} HU ({self.window[0]}..{self.window[1]})",
            "ssim": "Gaussian 11x11, sigma 1.5, borders cropped, population covariance",
            "averaging": "mean over slices",
        }


def parse_protocol(name: str) -> Protocol:
    """The protocol of that name, called as its numbers are filed.

    Raises:
        InputError: an unknown name, a stride that would leave pixels out, or a window that is empty.
    """
    found = re.fullmatch(r"(?:whole|sliding-(\d+)-(\d+))(?:\+hu(-?\d+)\.\.(-?\d+))?", name)
    if found is None:
        raise InputError(f"Unknown protocol '{name}'.", expected="whole or sliding-N-S, each also with +huA..B",
                         do="for example whole+hu-160..240")  # fmt: skip
    size, stride = (int(found[1]), int(found[2])) if found[1] else (None, None)
    if size is not None and stride is not None and not 1 <= stride <= size:
        raise InputError(f"The protocol '{name}' would leave pixels out.",
                         expected="a stride from 1 to the window")  # fmt: skip
    window = (int(found[3]), int(found[4])) if found[3] else WHOLE_RANGE
    if window[0] >= window[1]:
        raise InputError(
            f"The protocol '{name}' measures in an empty window.", expected="the lower end first"
        )
    canonical = "whole" if size is None else f"sliding-{size}-{stride}"
    if window != WHOLE_RANGE:
        canonical += f"+hu{window[0]}..{window[1]}"
    return Protocol(canonical, size, stride, window)


def apply_protocol(protocol: Protocol, denoise: Callable[[Tensor], Tensor], noisy: Tensor) -> Tensor:
    """What `denoise` makes of slices (B, 1, H, W), seen whole or in windows.

    Args:
        protocol: how they are seen.
        denoise: (N, 1, h, w) -> (N, K, h, w).
        noisy: the slices.

    Returns:
        (B, K, H, W) float32.
    """
    size, stride = protocol.size, protocol.stride
    if size is None or stride is None:
        return denoise(noisy).float()
    height, width = noisy.shape[-2:]
    noisy = pad_reflect(noisy, 0, max(0, size - height), 0, max(0, size - width))
    total, count = None, torch.zeros_like(noisy[:1])
    for top, left in grid(noisy.shape[-2], noisy.shape[-1], size, stride):
        window = (..., slice(top, top + size), slice(left, left + size))
        made = denoise(noisy[window]).float()
        if total is None:
            total = made.new_zeros((len(noisy), made.shape[1], *noisy.shape[-2:]))
        total[window] += made
        count[window] += 1
    assert total is not None
    return (total / count)[..., :height, :width]
