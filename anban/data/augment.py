"""Augmentation of samples: one draw of geometry for all pictures and the label, one of light per picture.

Every step takes and returns a sample: pictures as uint8 `tv_tensors.Image` (3, H, W) under their names and `label` as uint8
`tv_tensors.Mask` (H, W), which torchvision's transforms resample by nearest neighbour; other values pass through. Steps draw
from the global generators, which the data set seeds from (seed, epoch, index), and never write into their input.

A task has a table of steps, in the order in which they are applied whatever the order in a recipe: geometry that needs the
whole picture, then the crop, then cheap geometry, then light, then what hides pixels.
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

from anban.errors import InputError
from anban.recipe.schema import Collection, Count, Positive, Share, bind, pick

Sample = dict[str, Any]
Step = Callable[[Sample], Sample]
Size = Count | tuple[Count, Count]
"""Pixels of a square, or (height, width)."""


def build_augment(config: Mapping[str, Mapping[str, Any] | None], section: Collection) -> Augment:
    """Steps from a recipe's `augment` section: step name -> its arguments; null leaves the step out.

    Steps of one's own (`package.module:Class`) come after the task's, in the order they are given in.

    Raises:
        InputError: an unknown step or argument (with the nearest known one), or arguments out of range.
    """
    chosen = bind({"augment": section}, {"augment": config})[0]["augment"]
    if "scale" in chosen and "crop" not in chosen:
        raise InputError(
            "'scale' gives every sample another size",
            where="augment.scale",
            expected="a 'crop' after it, so that a batch can be stacked",
            do="add augment.crop.size",
        )
    order = [name for name in section.table if name in chosen] + [
        name for name in chosen if name not in section.table
    ]
    steps: dict[str, Step] = {}
    for name in order:
        try:
            steps[name] = pick(section.table, name, "augment")(**chosen[name])
        except InputError as error:
            raise InputError(
                error.what, where=f"augment.{name}", expected=error.expected, do=error.do
            ) from None
    return Augment(steps)


class Augment:
    """Steps by name, applied in this order."""

    def __init__(self, steps: dict[str, Step]):
        self.steps = steps

    def __call__(self, sample: Sample) -> Sample:
        """A sample with its pictures and, if there is one, its label as tv_tensors; the same keys come back."""
        for step in self.steps.values():
            sample = step(sample)
        return sample


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def pictures(sample: Sample) -> dict[str, tv_tensors.Image]:
    """The pictures of a sample by name."""
    return {name: value for name, value in sample.items() if isinstance(value, tv_tensors.Image)}


def maps(sample: Sample) -> dict[str, Tensor]:
    """Pictures and label by name: all that geometry applies to."""
    return {name: value for name, value in sample.items() if isinstance(value, Tensor)}


class Resize:
    """Bring every sample to `size` pixels, a side or (height, width): pictures bilinear, antialiased; the label nearest."""

    def __init__(self, size: Size):
        self.resize = v2.Resize(list(sides(size)), antialias=True)

    def __call__(self, sample: Sample) -> Sample:
        return dict(self.resize(sample))


class Scale:
    """Resample pictures and label by one factor drawn uniformly from `ratio`. Needs a crop after it."""

    def __init__(self, ratio: tuple[Positive, Positive] = (0.5, 2.0)):
        if ratio[0] > ratio[1]:
            raise InputError(f"ratio {tuple(ratio)}", expected="(smallest, largest)")
        self.ratio = ratio

    def __call__(self, sample: Sample) -> Sample:
        factor = uniform(*self.ratio)
        size = [max(1, round(side * factor)) for side in _shape(sample)]
        return dict(v2.Resize(size, antialias=True)(sample))


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
        if not happens(self.p):
            return sample
        height, width = _shape(sample)
        turns = 1 + integer(3) if height == width else 2
        turned = {k: torch.rot90(x, turns, (-2, -1)) for k, x in maps(sample).items()}
        return sample | {k: tv_tensors.wrap(x.contiguous(), like=sample[k]) for k, x in turned.items()}


class Photometric:
    """Per picture, with probability `p`: brightness, contrast, saturation and hue, each picture by its own draw.

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
        return sample | {k: self.jitter(x) for k, x in pictures(sample).items() if happens(self.p)}


class Blur:
    """Per picture, with probability `p`: Gaussian blur, its width drawn from `sigma` in pixels."""

    def __init__(self, sigma: tuple[Positive, Positive] = (0.1, 2.0), p: Share = 0.5):
        if sigma[0] > sigma[1]:
            raise InputError(f"sigma {tuple(sigma)}", expected="(smallest, largest)")
        self.sigma, self.p = sigma, p

    def __call__(self, sample: Sample) -> Sample:
        return sample | {k: self._blurred(x) for k, x in pictures(sample).items() if happens(self.p)}

    def _blurred(self, image: Tensor) -> Tensor:
        sigma = uniform(*self.sigma)
        # Beyond three sigma nothing is left; a kernel may not reach further than the picture it mirrors.
        reach = min(max(1, round(3 * sigma)), min(image.shape[-2:]) - 1)
        return F.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2) if reach > 0 else image


def _shape(sample: Sample) -> tuple[int, int]:
    """Height and width of a sample."""
    height, width = next(iter(pictures(sample).values())).shape[-2:]
    return height, width


def happens(p: float) -> bool:
    """True with probability `p`."""
    return bool(torch.rand(()) < p)


def integer(below: int) -> int:
    """One of 0 .. below - 1."""
    return int(torch.randint(below, ()))


def uniform(low: float, high: float) -> float:
    """A number from low to high."""
    return low + (high - low) * float(torch.rand(()))
