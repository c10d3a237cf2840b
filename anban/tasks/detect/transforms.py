"""Augmentation of a picture with boxes: torchvision's transforms move the boxes along; what is lost with a crop is left out.

A sample has `image`, a uint8 `tv_tensors.Image` (3, H, W), `boxes`, `tv_tensors.BoundingBoxes` (N, 4), and their `labels` (N).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from anban.data.augment import Sample, Size, happens, integer, sides
from anban.errors import InputError
from anban.recipe.schema import Collection, Count, Share

AUGMENTS: dict[str, str] = {
    "resize": "anban.tasks.detect.transforms:Resize",
    "crop": "anban.tasks.detect.transforms:Crop",
    "flip": "anban.data.augment:Flip",
    "photometric": "anban.data.augment:Photometric",
    "blur": "anban.data.augment:Blur",
    "cutout": "anban.tasks.detect.transforms:Cutout",
}
"""Name in a recipe -> address, in the order of application."""

AUGMENT_SECTION = Collection(AUGMENTS)


class Resize:
    """Bring a picture to `size` (height, width), or keep its proportions: its shorter side to one of `short`, as all likely.

    Args:
        size: of all pictures, a side or (height, width).
        short: pixels of the shorter side.
        longest: the longer side gets at most this many; the shorter one then less.
    """

    def __init__(
        self, size: Size | None = None, short: list[Count] | Count | None = None, longest: Count | None = None
    ):
        if (size is None) == (short is None) or (size is not None and longest is not None) or short == []:
            raise InputError(f"size is {size}, short {short} and longest {longest}",
                             expected="either size, or short, with or without longest")  # fmt: skip
        self.size, self.longest = size, longest
        self.short = [short] if isinstance(short, int) else short

    def __call__(self, sample: Sample) -> Sample:
        if self.short is None:
            assert self.size is not None
            size = sides(self.size)
        else:
            height, width = sample["image"].shape[-2:]
            size = fitted(height, width, self.short[integer(len(self.short))], self.longest)
        return dict(v2.Resize(list(size), antialias=True)(sample))


def fitted(height: int, width: int, short: int, longest: int | None) -> tuple[int, int]:
    """(height, width) with the shorter side `short`, or less where the longer one would exceed `longest`."""
    scale = short / min(height, width)
    if longest is not None:
        scale = min(scale, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Crop:
    """Cut a window of `size` pixels, a side or (height, width), at a drawn place; a smaller picture is cut less.

    Boxes are cut with it, and are left out where less than `visible` of their area remains.

    Args:
        size: of the window.
        visible: share of a box's area.
        p: how often to cut at all.
    """

    def __init__(self, size: Size, visible: Share = 0.3, p: Share = 1.0):
        self.size, self.visible, self.p = sides(size), visible, p

    def __call__(self, sample: Sample) -> Sample:
        if not happens(self.p):
            return sample
        height, width = (
            min(want, have) for want, have in zip(self.size, sample["image"].shape[-2:], strict=True)
        )
        top = integer(sample["image"].shape[-2] - height + 1)
        left = integer(sample["image"].shape[-1] - width + 1)
        boxes = sample["boxes"].as_subclass(Tensor)
        moved = boxes - boxes.new_tensor([left, top, left, top])
        cut = torch.stack([moved[:, 0::2].clamp(0, width), moved[:, 1::2].clamp(0, height)], dim=-1).flatten(
            1
        )
        kept = (_areas(cut) > 0) & (_areas(cut) >= self.visible * _areas(moved))
        image = tv_tensors.Image(sample["image"][:, top : top + height, left : left + width])
        return sample | {
            "image": image,
            "boxes": tv_tensors.BoundingBoxes(cut[kept], format="XYXY", canvas_size=(height, width)),
            "labels": sample["labels"][kept],
        }


class Cutout:
    """Black out `holes` rectangles of `share` of the picture's height and width at drawn places (DeVries and Taylor, 2017).

    As MMDetection's CutOut, boxes stay whatever is left of them.
    """

    def __init__(self, holes: Count = 1, share: Annotated[float, Interval(gt=0, le=1)] = 0.5):
        self.holes, self.share = holes, share

    def __call__(self, sample: Sample) -> Sample:
        image = sample["image"].clone()
        height, width = image.shape[-2:]
        for _ in range(self.holes):
            top, left = integer(height), integer(width)
            bottom, right = (math.ceil(self.share * side) for side in (height, width))
            image[:, top : top + bottom, left : left + right] = 0
        return sample | {"image": tv_tensors.Image(image)}


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
