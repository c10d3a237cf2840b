"""Resolution, blur, compression artefacts and enlargement.

* Blur: how wide edges are (after Marziliano et al., "Perceptual blur and ringing metrics", 2004). In blocks with contrast
  the width of the steepest edge is the block's contrast over its largest gradient. What counts is the sharpest tenth:
  a picture with a soft background has sharp edges too, a blurred one has none.
* Compression: how much larger jumps are across the lines of an 8 x 8 grid than elsewhere (after Wang et al., "Blind
  measurement of blocking artifacts in images", 2000).
* Enlargement: interpolation leaves a period in the second derivative (Gallagher, "Detection of linear and cubic
  interpolation in JPEG compressed images", 2005). Factors of 2, 4 and 8 have the period of JPEG's own blocks and cannot be
  told this way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anban.audit.finding import Finding, Shape
from anban.audit.picture import Picture
from anban.recipe.schema import Count, NonNegative, Positive, Share

_BLOCK = 16


@dataclass(frozen=True)
class Limits:
    """See limits.yaml."""

    least_pixels: Count
    contrast: Share
    edge_blocks: Count
    edge_width: Positive
    blockiness: Positive
    block_jump: NonNegative
    period_peak: Positive
    period_width: Positive


def check(picture: Picture, limits: Limits) -> list[Finding]:
    """low_resolution, blurred, compressed, upscaled."""
    found = []
    width, height = picture.size
    if width * height < limits.least_pixels:
        what = f"{width} x {height} pixels, fewer than {limits.least_pixels} in all"
        found.append(Finding("low_resolution", what, 1.0, data={"pixels": width * height}))
    edges = edge_widths(picture.gray, limits.contrast)
    width10 = float(np.percentile(edges.widths, 10)) if len(edges.widths) >= limits.edge_blocks else 0.0
    if width10 > limits.edge_width:
        found.append(_blurred(picture, edges, width10, limits))
    ratio, jump = blockiness(picture.detail)
    if ratio > limits.blockiness and jump > limits.block_jump:
        what = (
            f"jumps are {ratio:.1f} times as large across 8-pixel blocks as within, by {jump:.1f} gray levels"
        )
        data = {"ratio": ratio, "jump": jump}
        found.append(Finding("compressed", what, _sure(ratio, limits.blockiness), data=data))
    peak, period = interpolation(picture.detail)
    if peak > limits.period_peak and width10 > limits.period_width:
        what = f"fine structure repeats every {period:.2f} pixels in both directions, as enlarging leaves it"
        data = {"peak": peak, "period": period}
        found.append(Finding("upscaled", what, _sure(peak, limits.period_peak), data=data))
    return found


def _blurred(picture: Picture, edges: Edges, width: float, limits: Limits) -> Finding:
    what = f"even the sharpest tenth of the edges is {width:.1f} pixels wide"
    sharpest = np.argsort(edges.widths)[:3]
    shapes = []
    for row, column in edges.places[sharpest]:
        left, top = column * _BLOCK / picture.scale, row * _BLOCK / picture.scale
        side = _BLOCK / picture.scale
        shapes.append(Shape("box", ((left, top), (left + side, top + side)), "sharpest"))
    data = {"edge_width": width, "edges": len(edges.widths)}
    return Finding("blurred", what, _sure(width, limits.edge_width), tuple(shapes), data)


def _sure(value: float, limit: float) -> float:
    """0.5 at the limit, towards 1 beyond it."""
    return round(value / (value + limit), 3)


@dataclass(frozen=True)
class Edges:
    """Of each block with contrast: the width of its steepest edge in pixels (N,), and its row and column (N, 2)."""

    widths: NDArray[np.float32]
    places: NDArray[np.intp]


def edge_widths(gray: NDArray[np.float32], contrast: float) -> Edges:
    """Widths of the steepest edges in blocks of 16 pixels.

    Args:
        gray: (H, W), 0 to 1.
        contrast: blocks with a smaller range of values say nothing.
    """
    steep = np.sqrt(np.diff(gray, axis=1)[:-1] ** 2 + np.diff(gray, axis=0)[:, :-1] ** 2)
    rows, columns = steep.shape[0] // _BLOCK, steep.shape[1] // _BLOCK

    def blocks(values: NDArray[np.float32]) -> NDArray[np.float32]:
        cut = values[: rows * _BLOCK, : columns * _BLOCK]
        return cut.reshape(rows, _BLOCK, columns, _BLOCK)

    each = blocks(
        gray
    )  # reduced down the columns first, which takes a seventh of the time of both axes at once
    span = each.max(1, initial=0).max(2, initial=0) - each.min(1, initial=1).min(2, initial=1)
    peak = blocks(steep).max(1, initial=0).max(2, initial=0)
    telling = span > contrast
    return Edges(span[telling] / np.maximum(peak[telling], 1e-6), np.argwhere(telling))


def blockiness(gray: NDArray[np.uint8]) -> tuple[float, float]:
    """Jumps on the lines of the likeliest 8 x 8 grid over those elsewhere, and the excess in gray levels.

    Args:
        gray: (H, W), in own pixels.

    Returns:
        of both directions the smaller ratio with its excess; zeros for a picture that is too small.
    """
    found = []
    for values in (gray.astype(np.int16).T, gray.astype(np.int16)):
        jumps = np.abs(np.diff(values, axis=0))
        twice = np.maximum(2 * jumps[1:-1] - jumps[:-2] - jumps[2:], 0)
        beyond = twice.mean(1, dtype=np.float32) / 2
        if len(beyond) < 64:
            return 0.0, 0.0
        phases = np.median(beyond[: len(beyond) // 8 * 8].reshape(-1, 8), axis=0)
        line = int(phases.argmax())
        elsewhere = float(np.delete(phases, line).mean())
        found.append((float(phases[line]) / (elsewhere + 0.05), float(phases[line]) - elsewhere))
    return min(found)


def interpolation(gray: NDArray[np.uint8]) -> tuple[float, float]:
    """How far the strongest period of the second derivative rises above the middle one, and that period in pixels.

    Both directions have to agree on the period; where they do not the rise is 0. A period of p pixels is left by enlarging
    p times, or p / (p - 1) times.

    Args:
        gray: (H, W), in own pixels.
    """
    found = []
    for values in (gray.astype(np.float32), gray.T.astype(np.float32)):
        second = np.abs(values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]).mean(0)
        if len(second) < 128:
            return 0.0, 1.0
        second = (second - np.convolve(second, np.ones(9) / 9, "same"))[8:-8]
        spectrum = np.abs(np.fft.rfft(second * np.hanning(len(second))))
        frequency = np.fft.rfftfreq(len(second))
        away = np.abs(frequency * 8 - np.round(frequency * 8)) > 20 / len(second)  # not JPEG's blocks
        open_to = np.where(away & (frequency > 0.1), spectrum, 0)
        top = int(open_to.argmax())
        middle = float(np.median(spectrum[frequency > 0.1]))
        found.append((float(spectrum[top]) / (middle + 1e-6), float(frequency[top]), 1.5 / len(second)))
    (rise, first, step), (other, second_frequency, other_step) = found
    agree = abs(first - second_frequency) <= step + other_step
    return min(rise, other) if agree else 0.0, 1 / max(first, 1e-6)
