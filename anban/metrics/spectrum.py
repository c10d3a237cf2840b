"""What noise looks like in numbers: its power over spatial frequencies, and how often each value occurs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Bins of a histogram.
BINS = 80


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


def histogram_edges(noise: NDArray[Any]) -> Floats:
    """Edges of BINS bins around 0, four standard deviations of the noise to either side.

    CT slices store whole Hounsfield units: each bin is as wide as a whole number of them, lest the histogram look like a comb.
    """
    step = max(1, round(8 * float(noise.std()) / BINS))
    edges: Floats = np.float64(step) * (np.arange(BINS + 1, dtype=np.float64) - BINS / 2 - 0.5)
    return edges
