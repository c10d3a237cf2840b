"""Augmentation of a picture and its label map: the steps of street-scene training, beside the shared ones.

The order is that of CoinCheung/BiSeNet (lib/data/transform_cv2.py): scale, crop, flip, colour jitter.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from anban.data.augment import Sample, Size, integer, sides, uniform
from anban.errors import InputError
from anban.recipe.schema import Collection, Count, Positive, Share
from anban.tasks.segment.classes import IGNORE

AUGMENTS: dict[str, str] = {
    "resize": "anban.data.augment:Resize",
    "scale": "anban.tasks.segment.transforms:Scale",
    "crop": "anban.tasks.segment.transforms:Crop",
    "flip": "anban.tasks.segment.transforms:Flip",
    "rotate90": "anban.data.augment:Rotate90",
    "jitter": "anban.tasks.segment.jitter:ColorJitter",
    "photometric": "anban.data.augment:Photometric",
    "blur": "anban.data.augment:Blur",
}
"""Name in a recipe -> address, in the order of application."""

AUGMENT_SECTION = Collection(AUGMENTS)


class Scale:
    """Resample picture and label by one factor: one of `factors`, or without them any from `ratio`, all as likely.

    Needs a crop after it. The defaults are those of CoinCheung/BiSeNet for BiSeNetV1 on Cityscapes; its first release
    has factors instead: 0.75, 1, 1.25, 1.5, 1.75, 2.
    """

    def __init__(self, ratio: tuple[Positive, Positive] = (0.75, 2.0), factors: list[Positive] | None = None):
        if ratio[0] > ratio[1]:
            raise InputError(f"ratio {tuple(ratio)}", expected="(smallest, largest)")
        if factors == []:
            raise InputError("no factors", expected="at least one, or null")
        self.ratio, self.factors = ratio, factors

    def __call__(self, sample: Sample) -> Sample:
        factor = self.factors[integer(len(self.factors))] if self.factors else uniform(*self.ratio)
        size = [max(1, round(side * factor)) for side in sample["image"].shape[-2:]]
        return dict(v2.Resize(size, antialias=True)(sample))


class Crop:
    """Cut a window of `size` pixels, a side or (height, width), at a drawn place.

    A smaller picture lies in the middle of the window; what surrounds it is ignored in the label and in the picture
    black, as CoinCheung/BiSeNet has it, or of the picture's mean colour.

    Args:
        size: of the window.
        fill: the colour around smaller pictures.
        category_max_share: draw again where one class has more than this share of the window's pixels that are not
            ignored, or all are (mmsegmentation's cat_max_ratio, there 0.75). 1: take the first place.
        tries: places that are drawn at most; the last one is taken as it is.
    """

    def __init__(
        self,
        size: Size,
        fill: Literal["black", "mean"] = "black",
        category_max_share: Share = 1.0,
        tries: Count = 10,
    ):
        self.size, self.fill = sides(size), fill
        self.share, self.tries = category_max_share, tries if category_max_share < 1 else 1

    def __call__(self, sample: Sample) -> Sample:
        image = sample["image"].as_subclass(Tensor)
        label = sample["label"].as_subclass(Tensor) if "label" in sample else None
        height, width = self.size
        down, across = (max(0, want - have) for want, have in zip(self.size, image.shape[-2:], strict=True))
        if down or across:
            border = (across // 2, across - across // 2, down // 2, down - down // 2)
            image = _padded(image, border, self.fill)
            label = None if label is None else F.pad(label, border, value=IGNORE)
        window: tuple[slice, slice] = (slice(0, height), slice(0, width))
        for _ in range(self.tries):
            top, left = integer(image.shape[-2] - height + 1), integer(image.shape[-1] - width + 1)
            window = (slice(top, top + height), slice(left, left + width))
            if label is None or self._varied(label[window]):
                break
        cut: Sample = {"image": tv_tensors.Image(image[:, window[0], window[1]])}
        return sample | cut | ({} if label is None else {"label": tv_tensors.Mask(label[window])})

    def _varied(self, label: Tensor) -> bool:
        if self.share == 1:
            return True
        counts = torch.bincount(label.flatten(), minlength=IGNORE + 1)[:IGNORE]
        return bool(0 < counts.max() <= self.share * counts.sum())


class Flip:
    """Mirror left-right with probability `horizontal`, and, where up and down are alike, top-bottom with `vertical`."""

    def __init__(self, horizontal: Share = 0.5, vertical: Share = 0.0):
        self.flip = v2.Compose([v2.RandomHorizontalFlip(horizontal), v2.RandomVerticalFlip(vertical)])

    def __call__(self, sample: Sample) -> Sample:
        return dict(self.flip(sample))


def _padded(image: Tensor, border: tuple[int, int, int, int], fill: str) -> Tensor:
    """uint8 (3, H, W) with a border (left, right, top, bottom)."""
    if fill == "black":
        return F.pad(image, border)
    mean = image.float().mean(dim=(1, 2), keepdim=True).round().to(torch.uint8)
    inside = F.pad(torch.ones_like(image[:1], dtype=torch.bool), border)
    return torch.where(inside, F.pad(image, border), mean)
