"""Colour jitter as CoinCheung/BiSeNet does it (lib/data/transform_cv2.py), to the last bit.

It is not torchvision's: contrast turns about the constant 74 and not about the mean of the picture, saturation about the
plain mean of the channels, and every step drops the fraction.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors

from anban.data.augment import Sample, pictures, uniform
from anban.recipe.schema import NonNegative

_PIVOT = 74.0


class ColorJitter:
    """Change brightness, then contrast, then saturation, each by a factor drawn from [max(0, 1 - x), 1 + x].

    An x of None leaves its step out, without a draw.
    """

    def __init__(
        self,
        brightness: NonNegative | None = 0.4,
        contrast: NonNegative | None = 0.4,
        saturation: NonNegative | None = 0.4,
    ):
        steps = (
            (adjust_brightness, brightness),
            (adjust_contrast, contrast),
            (adjust_saturation, saturation),
        )
        self.steps = [(adjust, reach) for adjust, reach in steps if reach is not None]

    def __call__(self, sample: Sample) -> Sample:
        changed: Sample = {}
        for name, picture in pictures(sample).items():
            image: Tensor = picture.as_subclass(Tensor)
            for adjust, reach in self.steps:
                image = adjust(image, uniform(max(0.0, 1 - reach), 1 + reach))
            changed[name] = tv_tensors.Image(image)
        return sample | changed


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Every value times `factor`; uint8 (3, H, W), as in the two others."""
    return _looked_up(image, torch.arange(256, dtype=torch.float64) * factor)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """The distance of every value from 74 times `factor`."""
    return _looked_up(image, _PIVOT + (torch.arange(256, dtype=torch.float64) - _PIVOT) * factor)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """The distance of every value from the mean of its pixel times `factor`."""
    own, other = 1 + 2 * factor, 1 - factor
    mix = torch.tensor([[own, other, other], [other, own, other], [other, other, own]], dtype=torch.float32)
    mixed = (image.flatten(1).T.float() @ mix).div_(3).clamp_(0, 255)
    return mixed.byte().T.reshape(image.shape)


def _looked_up(image: Tensor, values: Tensor) -> Tensor:
    table = values.clamp(0, 255).byte()
    return table[image.long()]
