"""Augmentation of a pair of dates: the steps that only two dates have, beside the shared ones."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from torchvision import tv_tensors

from anban.data.augment import Sample, happens, integer, maps, uniform
from anban.data.tiles import pad_reflect
from anban.errors import InputError
from anban.recipe.schema import Collection, Count, Share

_Area = Annotated[float, Interval(gt=0, le=1)]  # share of the picture

AUGMENTS: dict[str, str] = {
    "resize": "anban.data.augment:Resize",
    "scale": "anban.data.augment:Scale",
    "shift": "anban.tasks.change.transforms:Shift",
    "crop": "anban.tasks.change.transforms:Crop",
    "flip": "anban.data.augment:Flip",
    "rotate90": "anban.data.augment:Rotate90",
    "swap": "anban.tasks.change.transforms:Swap",
    "photometric": "anban.data.augment:Photometric",
    "blur": "anban.data.augment:Blur",
    "erase": "anban.tasks.change.transforms:Erase",
}
"""Name in a recipe -> address, in the order of application."""

AUGMENT_SECTION = Collection(AUGMENTS)


class Shift:
    """With probability `p`, move one date (drawn) by up to `pixels` each way: imperfect registration.

    The label stays with the ground. What comes in at the border is mirrored.
    """

    def __init__(self, pixels: Count = 2, p: Share = 0.5):
        self.pixels, self.p = pixels, p

    def __call__(self, sample: Sample) -> Sample:
        if not happens(self.p):
            return sample
        date = "a" if happens(0.5) else "b"
        down, right = (integer(2 * self.pixels + 1) - self.pixels for _ in range(2))
        height, width = sample[date].shape[-2:]
        padded = pad_reflect(sample[date], max(0, down), max(0, -down), max(0, right), max(0, -right))
        top, left = max(0, -down), max(0, -right)
        moved = padded[..., top : top + height, left : left + width]
        return sample | {date: tv_tensors.Image(moved)}


class Crop:
    """Cut a window of `size` x `size` pixels at a drawn place; a smaller picture is mirrored up to it first.

    With `keep_change`, up to `tries` places are drawn until the window holds change; failing that, the last.
    """

    def __init__(self, size: Count, keep_change: bool = False, tries: Count = 10):
        self.size, self.tries = size, tries if keep_change else 1

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample["a"].shape[-2:]
        down, across = max(0, self.size - height), max(0, self.size - width)
        top, left = 0, 0
        padded = {k: pad_reflect(x, 0, down, 0, across) for k, x in maps(sample).items()}
        for _ in range(self.tries):
            top, left = integer(height + down - self.size + 1), integer(width + across - self.size + 1)
            label = padded.get("label")
            if label is None or label[top : top + self.size, left : left + self.size].any():
                break
        window = (..., slice(top, top + self.size), slice(left, left + self.size))
        return sample | {k: tv_tensors.wrap(x[window], like=sample[k]) for k, x in padded.items()}


class Swap:
    """With probability `p`, exchange the two dates; what changed stays changed."""

    def __init__(self, p: Share = 0.5):
        self.p = p

    def __call__(self, sample: Sample) -> Sample:
        return sample | {"a": sample["b"], "b": sample["a"]} if happens(self.p) else sample


class Erase:
    """With probability `p`, black out one rectangle in both dates, where the label becomes no change.

    Its area is drawn from `area` (shares of the picture), its side ratio from 1:3 to 3:1.
    """

    def __init__(self, area: tuple[_Area, _Area] = (0.02, 0.2), p: Share = 0.5):
        if area[0] > area[1]:
            raise InputError(f"area {tuple(area)}", expected="(smallest, largest)")
        self.area, self.p = area, p

    def __call__(self, sample: Sample) -> Sample:
        if not happens(self.p):
            return sample
        height, width = sample["a"].shape[-2:]
        share, ratio = uniform(*self.area), 3 ** uniform(-1.0, 1.0)
        tall = min(height, max(1, round((share * height * width * ratio) ** 0.5)))
        wide = min(width, max(1, round((share * height * width / ratio) ** 0.5)))
        top, left = integer(height - tall + 1), integer(width - wide + 1)
        erased = {k: x.clone() for k, x in maps(sample).items()}
        for x in erased.values():
            x[..., top : top + tall, left : left + wide] = 0
        return sample | {k: tv_tensors.wrap(x, like=sample[k]) for k, x in erased.items()}
