"""The sizes at which pictures are given to a detector, by name.

| name | what the network sees |
| --- | --- |
| `whole` | the picture as it is |
| `short-N`, `short-N-M` | resized in proportion: the shorter side N pixels, or less where the longer one would have more than M |
| `size-N`, `size-HxW` | resized to that height and width |

Boxes are brought back to the picture's own pixels, in which they are scored. Afterwards, pictures are padded to the right and below
to multiples of 32 pixels, as in torchvision and MMDetection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from anban.errors import InputError
from anban.tasks.detect.transforms import fitted

MULTIPLE = 32
Size = tuple[int, int]

_COUNT = r"[1-9]\d*"
_GRAMMAR = re.compile(
    rf"whole|short-(?P<short>{_COUNT})(?:-(?P<longest>{_COUNT}))?|size-(?P<height>{_COUNT})(?:x(?P<width>{_COUNT}))?"
)


@dataclass(frozen=True)
class Protocol:
    """How pictures are resized: to `size`, by their shorter side, or not."""

    name: str
    size: Size | None = None
    short: int | None = None
    longest: int | None = None

    def of(self, height: int, width: int) -> Size:
        """(height, width) of what a picture of this size becomes."""
        if self.size is not None:
            return self.size
        return (height, width) if self.short is None else fitted(height, width, self.short, self.longest)


def parse_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        InputError: a name outside the table above.
    """
    found = _GRAMMAR.fullmatch(name)
    if found is None:
        raise InputError(f"unknown protocol '{name}'",
                         expected="whole, short-N, short-N-M, size-N or size-HxW, such as short-800-1333")  # fmt: skip
    short, longest, height, width = (
        None if found[key] is None else int(found[key]) for key in ("short", "longest", "height", "width")
    )
    if height is not None:
        size = (height, width or height)
        return Protocol(f"size-{size[0]}" if size[0] == size[1] else f"size-{size[0]}x{size[1]}", size=size)
    return Protocol(name, short=short, longest=longest)


def resized(images: Tensor, size: Size) -> Tensor:
    """Images (B, 3, H, W) at (height, width), bilinear with antialiasing."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def padded(image: Tensor, height: int, width: int) -> Tensor:
    """(..., h, w) with zeros, which is the mean colour, to the right and below, up to multiples of MULTIPLE that hold height and width."""
    down, across = (-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
    return F.pad(image, (0, across - image.shape[-1], 0, down - image.shape[-2]))
