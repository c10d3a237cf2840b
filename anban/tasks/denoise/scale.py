"""Images in a scale of their own, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anban.errors import InputError


@dataclass(frozen=True)
class Scale:
    """(x - mean) / divisor, one for a noisy image and its clean counterpart: noise stays their difference."""

    mean: float
    divisor: float

    @classmethod
    def of(cls, noisy: Tensor, by: Literal["deviation", "variance"] = "deviation") -> Scale:
        """The scale of a noisy image, of any shape: its mean, and its standard deviation.

        Args:
            by: "variance" divides by the variance instead, as CNCL's code does: the result depends on the
                units of the image and is tiny for Hounsfield units (deviations of some hundred are divided by
                some ten thousand).

        Raises:
            InputError: the image is of one value.
        """
        variance, mean = (float(value) for value in torch.var_mean(noisy.double(), correction=0))
        if variance == 0:
            raise InputError(
                f"an image whose pixels are all {mean:g} has no scale", expected="an image with contrast"
            )
        return cls(mean, variance if by == "variance" else variance**0.5)

    def apply(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.divisor

    def undo(self, image: Tensor) -> Tensor:
        return image * self.divisor + self.mean


def to_hounsfield(image: Tensor, low: float = -1024.0, high: float = 3072.0) -> Tensor:
    """Hounsfield units of an image in 0..1, clipped to the window from `low` (0) to `high` (1)."""
    return (image * (high - low) + low).clamp(low, high)
