"""How near restored images are to the true ones.

Shapes, in every function here:
    restored, target  (B, C, H, W), any type, in the same units
    result            (B,), float64: one number per image; the score of a split is their mean

Computed in float64. Shapes that do not match raise ValueError. The scores of a clipped image differ from
those of the raw one: clip, and convert to Hounsfield units or whatever `data_range` is in, before.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor

Range = Annotated[float, Gt(0)]

_SIZE, _SIGMA, _UNIFORM_SIZE = 11, 1.5, 7


def rmse(restored: Tensor, target: Tensor) -> Tensor:
    r"""Root of the mean squared difference, in the units of the images.

    Formula of rmse: $\sqrt{\frac{1}{N} \sum_i (\hat x_i - x_i)^2}$, over the $N$ values of an image.
    """
    restored, target = _pair(restored, target)
    return (restored - target).square().mean(dim=(1, 2, 3)).sqrt()


def psnr(restored: Tensor, target: Tensor, *, data_range: Range) -> Tensor:
    r"""Peak signal-to-noise ratio, in decibels.

    Formula of psnr: $20 \log_{10} \frac{R}{\mathrm{RMSE}}$, where $R$ is the range of the data, infinite
    where the images are equal.

    Args:
        data_range: the largest less the smallest possible value (4096 for Hounsfield units from -1024 to
            3072, 1 for 0..1), not that of the image at hand.
    """
    return 20 * torch.log10(_range(data_range) / rmse(restored, target))


def ssim(
    restored: Tensor,
    target: Tensor,
    *,
    data_range: Range,
    window: Literal["gaussian", "uniform"] = "gaussian",
    border: Literal["crop", "zeros"] = "crop",
    covariance: Literal["population", "sample"] = "population",
) -> Tensor:
    r"""Structural similarity, mean over an image; 1 for equal images.

    Formula of ssim: $\frac{1}{N} \sum_i \frac{(2 \mu_i \hat\mu_i + c_1)(2 s_i + c_2)}{(\mu_i^2 + \hat\mu_i^2
    + c_1)(\sigma_i^2 + \hat\sigma_i^2 + c_2)}$, where means $\mu$, variances $\sigma^2$ and the covariance
    $s$ are those of a window around pixel $i$, $c_1 = (0.01 R)^2$, $c_2 = (0.03 R)^2$ and $R$ is the range of
    the data.

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", section
    III.B. The defaults are the paper's, and scikit-image's `structural_similarity(gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False)`; scikit-image's own defaults are window "uniform" and covariance
    "sample".

    Args:
        data_range: as in `psnr`.
        window: a Gaussian of 11x11 pixels with sigma 1.5, or 7x7 pixels alike.
        border: "crop" leaves out pixels whose window leaves the image; "zeros" counts them, with zeros around
            the image, as the measures of RED-CNN's and the diary's code do. In Hounsfield units zero is
            water, not air.
        covariance: whether variances are divided by the pixels of the window, or by one less.

    Raises:
        ValueError: with "crop", an image smaller than the window.
    """
    restored, target = _pair(restored, target)
    channels = restored.shape[1]
    if window == "gaussian":
        kernel = gaussian_window(channels).to(restored.device)
    else:
        kernel = restored.new_full((channels, 1, _UNIFORM_SIZE, _UNIFORM_SIZE), 1 / _UNIFORM_SIZE**2)
    size = kernel.shape[-1]
    if border == "crop" and min(restored.shape[-2:]) < size:
        raise ValueError(f"images of {tuple(restored.shape[-2:])} pixels; the window has {size}")
    padding = size // 2 if border == "zeros" else 0

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(image, kernel, padding=padding, groups=channels)

    mean_r, mean_t = mean(restored), mean(target)
    unbiased = size**2 / (size**2 - 1) if covariance == "sample" else 1.0
    variance_r = unbiased * (mean(restored.square()) - mean_r.square())
    variance_t = unbiased * (mean(target.square()) - mean_t.square())
    shared = unbiased * (mean(restored * target) - mean_r * mean_t)
    c1, c2 = (0.01 * _range(data_range)) ** 2, (0.03 * _range(data_range)) ** 2
    luminance = (2 * mean_r * mean_t + c1) / (mean_r.square() + mean_t.square() + c1)
    structure = (2 * shared + c2) / (variance_r + variance_t + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def gaussian_window(channels: int) -> Tensor:
    """The weights of `ssim`'s Gaussian window, (channels, 1, 11, 11), float64, summing to 1 per channel."""
    steps = torch.arange(_SIZE, dtype=torch.float64) - _SIZE // 2
    profile = torch.exp(-steps.square() / (2 * _SIGMA**2))
    profile = profile / profile.sum()
    return torch.outer(profile, profile).expand(channels, 1, _SIZE, _SIZE)


def _pair(restored: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if restored.shape != target.shape or restored.ndim != 4:
        raise ValueError(
            f"restored is {tuple(restored.shape)}, target is {tuple(target.shape)}; "
            "expected the same (B, C, H, W)"
        )
    return restored.double(), target.double()


def _range(data_range: float) -> float:
    if not data_range > 0:
        raise ValueError(f"a data range of {data_range}; it is positive")
    return data_range
