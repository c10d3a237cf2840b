"""How the power of noise is spread over spatial frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def power_spectrum(noise: NDArray[Any]) -> tuple[Floats, Floats]:
    """Mean power of an image (H, W) in rings of frequency: cycles per pixel up to 0.5, and power in its units squared.

    Scaled such that white noise of variance v has the power v at every frequency.
    """
    height, width = noise.shape
    power = np.abs(np.fft.fft2(noise - noise.mean())) ** 2 / noise.size
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    rings = min(height, width) // 2
    number = np.minimum((radius / 0.5 * rings).astype(int), rings)  # the corners are a ring that is left out
    sums = np.bincount(number.ravel(), power.ravel(), rings + 1)[:rings]
    counts = np.bincount(number.ravel(), minlength=rings + 1)[:rings]
    frequencies: Floats = (np.arange(rings) + 0.5) * 0.5 / rings
    # The first ring holds the mean, which was taken out.
    return frequencies[1:], (sums / np.maximum(counts, 1))[1:]
