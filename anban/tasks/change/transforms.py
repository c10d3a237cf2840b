"""Augmentation of a pair of dates and their label: one draw of geometry for all three, one of light per date.

Every step takes and returns a sample: `a`, `b` as uint8 `tv_tensors.Image` (3, H, W) and `label` as uint8
`tv_tensors.Mask` (H, W), which torchvision's transforms resample by nearest neighbour. Steps draw from the
global generators, which the data set seeds from (seed, epoch, index), and never write into their input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from anban.data.tiles import pad_reflect
from anban.errors import InputError
from anban.recipe.schema import Collection, Count, Positive, Share, bind, pick

Sample = dict[str, Any]
Step = Callable[[Sample], Sample]
_Area = Annotated[float, Interval(gt=0, le=1)]  # share of the picture

# Name in a recipe -> address. The order is that of application, whatever the order in a recipe: geometry that
# needs the whole picture, then the crop, then cheap geometry, then light, then what hides pixels.
AUGMENTS: dict[str, str] = {
    "resize": "anban.tasks.change.transforms:Resize",
    "scale": "anban.tasks.change.transforms:Scale",
    "shift": "anban.tasks.change.transforms:Shift",
    "crop": "anban.tasks.change.transforms:Crop",
    "flip": "anban.tasks.change.transforms:Flip",
    "rotate90": "anban.tasks.change.transforms:Rotate90",
    "swap": "anban.tasks.change.transforms:Swap",
    "photometric": "anban.tasks.change.transforms:Photometric",
    "blur": "anban.tasks.change.transforms:Blur",
    "erase": "anban.tasks.change.transforms:Erase",
}


AUGMENT_SECTION = Collection(AUGMENTS)


def build_augment(config: Mapping[str, Mapping[str, Any] | None]) -> Augment:
    """Steps from a recipe's `augment` section: step name -> its arguments; null leaves the step out.

    Steps of one's own (`package.module:Class`) come after ours, in the order they are given in.

    Raises:
        InputError: an unknown step or argument (with the nearest known one), or arguments out of range.
    """
    chosen = bind({"augment": AUGMENT_SECTION}, {"augment": config})[0]["augment"]
    if "scale" in chosen and "crop" not in chosen:
        raise InputError(
            "'scale' gives every sample another size",
            where="augment.scale",
            expected="a 'crop' after it, so that a batch can be stacked",
            do="add augment.crop.size",
        )
    order = [name for name in AUGMENTS if name in chosen] + [name for name in chosen if name not in AUGMENTS]
    steps: dict[str, Step] = {}
    for name in order:
        try:
            steps[name] = pick(AUGMENTS, name, "augment")(**chosen[name])
        except InputError as error:
            raise InputError(
                error.what, where=f"augment.{name}", expected=error.expected, do=error.do
            ) from None
    return Augment(steps)


class Augment:
    """Steps by name, applied in the order of `AUGMENTS`."""

    def __init__(self, steps: dict[str, Step]):
        self.steps = steps

    def __call__(self, sample: Sample) -> Sample:
        """`a`, `b` (3, H, W) and, if there is one, `label` (H, W) as tv_tensors; the same keys come back."""
        for step in self.steps.values():
            sample = step(sample)
        return sample


class Resize:
    """Bring every sample to `size` x `size` pixels: dates bilinear, antialiased; the label nearest."""

    def __init__(self, size: Count):
        self.resize = v2.Resize([size, size], antialias=True)

    def __call__(self, sample: Sample) -> Sample:
        return dict(self.resize(sample))


class Scale:
    """Resample all three by one factor drawn uniformly from `ratio`. Needs a crop after it."""

    def __init__(self, ratio: tuple[Positive, Positive] = (0.5, 2.0)):
        if ratio[0] > ratio[1]:
            raise InputError(f"ratio {tuple(ratio)}", expected="(smallest, largest)")
        self.ratio = ratio

    def __call__(self, sample: Sample) -> Sample:
        factor = _uniform(*self.ratio)
        size = [max(1, round(side * factor)) for side in sample["a"].shape[-2:]]
        return dict(v2.Resize(size, antialias=True)(sample))


class Shift:
    """With probability `p`, move one date (drawn) by up to `pixels` each way: imperfect registration.

    The label stays with the ground. What comes in at the border is mirrored.
    """

    def __init__(self, pixels: Count = 2, p: Share = 0.5):
        self.pixels, self.p = pixels, p

    def __call__(self, sample: Sample) -> Sample:
        if not _happens(self.p):
            return sample
        date = "a" if _happens(0.5) else "b"
        down, right = (_integer(2 * self.pixels + 1) - self.pixels for _ in range(2))
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
        padded = {k: pad_reflect(x, 0, down, 0, across) for k, x in sample.items() if isinstance(x, Tensor)}
        for _ in range(self.tries):
            top, left = _integer(height + down - self.size + 1), _integer(width + across - self.size + 1)
            label = padded.get("label")
            if label is None or label[top : top + self.size, left : left + self.size].any():
                break
        window = (..., slice(top, top + self.size), slice(left, left + self.size))
        return sample | {k: tv_tensors.wrap(x[window], like=sample[k]) for k, x in padded.items()}


class Flip:
    """Mirror left-right with probability `horizontal` and top-bottom with probability `vertical`."""

    def __init__(self, horizontal: Share = 0.5, vertical: Share = 0.5):
        self.flip = v2.Compose([v2.RandomHorizontalFlip(horizontal), v2.RandomVerticalFlip(vertical)])

    def __call__(self, sample: Sample) -> Sample:
        return dict(self.flip(sample))


class Rotate90:
    """With probability `p`, turn by 90, 180 or 270 degrees; a picture that is not square only by 180."""

    def __init__(self, p: Share = 0.5):
        self.p = p

    def __call__(self, sample: Sample) -> Sample:
        if not _happens(self.p):
            return sample
        height, width = sample["a"].shape[-2:]
        turns = 1 + _integer(3) if height == width else 2
        turned = {k: torch.rot90(x, turns, (-2, -1)) for k, x in sample.items() if isinstance(x, Tensor)}
        return sample | {k: tv_tensors.wrap(x.contiguous(), like=sample[k]) for k, x in turned.items()}


class Swap:
    """With probability `p`, exchange the two dates; what changed stays changed."""

    def __init__(self, p: Share = 0.5):
        self.p = p

    def __call__(self, sample: Sample) -> Sample:
        return sample | {"a": sample["b"], "b": sample["a"]} if _happens(self.p) else sample


class Photometric:
    """Per date, with probability `p`: brightness, contrast, saturation and hue, each date by its own draw.

    Each of the first three is a factor in [1 - x, 1 + x]; hue is a turn within [-x, x], x at most 0.5.
    """

    def __init__(
        self,
        brightness: Share = 0.2,
        contrast: Share = 0.2,
        saturation: Share = 0.2,
        hue: Annotated[float, Interval(ge=0, le=0.5)] = 0.0,
        p: Share = 1.0,
    ):
        self.jitter = v2.ColorJitter(brightness, contrast, saturation, hue)
        self.p = p

    def __call__(self, sample: Sample) -> Sample:
        return sample | {date: self.jitter(sample[date]) for date in ("a", "b") if _happens(self.p)}


class Blur:
    """Per date, with probability `p`: Gaussian blur, its width drawn from `sigma` in pixels."""

    def __init__(self, sigma: tuple[Positive, Positive] = (0.1, 2.0), p: Share = 0.5):
        if sigma[0] > sigma[1]:
            raise InputError(f"sigma {tuple(sigma)}", expected="(smallest, largest)")
        self.sigma, self.p = sigma, p

    def __call__(self, sample: Sample) -> Sample:
        return sample | {date: self._blurred(sample[date]) for date in ("a", "b") if _happens(self.p)}

    def _blurred(self, image: Tensor) -> Tensor:
        sigma = _uniform(*self.sigma)
        # Beyond three sigma nothing is left; a kernel may not reach further than the picture it mirrors.
        reach = min(max(1, round(3 * sigma)), min(image.shape[-2:]) - 1)
        return F.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2) if reach > 0 else image


class Erase:
    """With probability `p`, black out one rectangle in both dates, where the label becomes no change.

    Its area is drawn from `area` (shares of the picture), its side ratio from 1:3 to 3:1.
    """

    def __init__(self, area: tuple[_Area, _Area] = (0.02, 0.2), p: Share = 0.5):
        if area[0] > area[1]:
            raise InputError(f"area {tuple(area)}", expected="(smallest, largest)")
        self.area, self.p = area, p

    def __call__(self, sample: Sample) -> Sample:
        if not _happens(self.p):
            return sample
        height, width = sample["a"].shape[-2:]
        share, ratio = _uniform(*self.area), 3 ** _uniform(-1.0, 1.0)
        tall = min(height, max(1, round((share * height * width * ratio) ** 0.5)))
        wide = min(width, max(1, round((share * height * width / ratio) ** 0.5)))
        top, left = _integer(height - tall + 1), _integer(width - wide + 1)
        erased = {k: x.clone() for k, x in sample.items() if isinstance(x, Tensor)}
        for x in erased.values():
            x[..., top : top + tall, left : left + wide] = 0
        return sample | {k: tv_tensors.wrap(x, like=sample[k]) for k, x in erased.items()}


def _happens(p: float) -> bool:
    return bool(torch.rand(()) < p)


def _integer(below: int) -> int:
    return int(torch.randint(below, ()))


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
