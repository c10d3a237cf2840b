"""The numbers reported for denoised slices, and the one that picks the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from anban.metrics.restoration import psnr, rmse, ssim

SELECT = "psnr"
SCORES = ("psnr", "ssim", "rmse")
INPUT = "low_dose_"
"""Before the name of a score: that of the low-dose slice itself, what every method starts from."""


def slice_scores(
    restored: Tensor, target: Tensor, window: tuple[float, float]
) -> list[dict[str, float | None]]:
    r"""The scores of each slice; None where one is undefined (PSNR of equal images).

    Formula of psnr: $20 \log_{10} \frac{R}{\mathrm{RMSE}}$, where $R$ is the width of the window of Hounsfield units
    that both images are clipped to, in decibels; a split's score is the mean over its slices.

    Formula of ssim: $\frac{1}{N} \sum_i \frac{(2 \mu_i \hat\mu_i + c_1)(2 s_i + c_2)}{(\mu_i^2 + \hat\mu_i^2
    + c_1)(\sigma_i^2 + \hat\sigma_i^2 + c_2)}$, with means, variances and covariance of a Gaussian window of 11x11
    pixels, $c_1 = (0.01 R)^2$, $c_2 = (0.03 R)^2$, and without the pixels whose window leaves the image.

    Formula of rmse: $\sqrt{\frac{1}{N} \sum_i (\hat x_i - x_i)^2}$, in Hounsfield units, over the pixels of a slice.

    Args:
        restored, target: (B, 1, H, W) in Hounsfield units.
        window: lowest and highest Hounsfield unit that counts; its width is the data range.
    """
    restored, target = (image.double().clamp(*window) for image in (restored, target))
    data_range = window[1] - window[0]
    # SSIM of values from 0 on: its constants are made for such.
    shifted = (restored - window[0], target - window[0])
    found = {
        "psnr": psnr(restored, target, data_range=data_range),
        "ssim": ssim(*shifted, data_range=data_range),
        "rmse": rmse(restored, target),
    }
    return [
        {name: finite(float(values[number])) for name, values in found.items()}
        for number in range(len(restored))
    ]


FORMULAS = slice_scores
"""The function whose docstring has the formulas of the scores."""


def summary(records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The mean over slices of each score, the low-dose slices' own first; None where it is defined for none."""
    names = [INPUT + name for name in SCORES] + list(SCORES)
    return {name: _mean([record["scores"][name] for record in records]) for name in names}


def by_patient(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Patient -> the mean over their slices of each score; slices of unknown patients are left out."""
    patients = sorted({record["patient"] for record in records if record["patient"]})
    return {
        patient: summary([record for record in records if record["patient"] == patient])
        for patient in patients
    }


def finite(value: float) -> float | None:
    """The value, None if it is no finite number."""
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None
