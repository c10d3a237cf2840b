"""Marks laid over a picture: words of stock agencies and owners, a pattern that repeats, a small text in the corner, and
across a folder the same overlay in many pictures.

Within one picture:

* Words. A line of text that says whose picture it is (©, @name, "sample", the names of stock agencies, 样图, 无断転載).
* The same text again and again, spread over the picture in both directions (a price list repeats in one only).
* The only text of the picture, small and in a corner: a signature or logo.
* A pattern that repeats on a lattice, read or not: the autocorrelation of the picture without its coarse structure has
  peaks at two steps and at their sum. Lines of text, fences and edges make ridges there, not peaks. Where most of the
  picture is plain there is nothing for a mark to lie over: repeats are then the content (a sheet of sprites).

Across pictures (Dekel et al., "On the effectiveness of visible watermarks", CVPR 2017): the median of their gradients at
the same place. Of different pictures it is near zero, of the mark that they share it is the mark's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

from anban.audit.checks.language import Line, lines_of
from anban.audit.finding import Finding, Shape
from anban.audit.picture import Picture
from anban.recipe.schema import Count, Positive, Share

#: What marks say; a line counts if one of them makes up most of it, or if it begins with © or @.
WORDS = re.compile(
    r"(?<![a-z])(copyright(ed)?|watermark(ed)?|sample|preview|proof only|do not copy|all rights reserved|stock ?photos?|"
    "shutterstock|getty ?images|istock(photo)?|alamy|adobe ?stock|dreamstime|depositphotos|123rf|freepik|pngtree|"
    r"vecteezy|pixta|unsplash|pixiv)(?![a-z])|图虫(网)?|视觉中国|昵图网|千图网|包图网|摄图网|千库网|汇图网|全景网|站酷|花瓣网?|小红书|"
    "样图|樣圖|水印|版权所有|版權所有|禁止转载|请勿盗图|盗图必究|サンプル|無断転載(禁止)?|転載禁止",
    re.IGNORECASE,
)
_OWNER = re.compile(r"^\W*[©@]\s*\w{2,}")

#: Longest side of the picture in which repeats are looked for, and how much of it a step may be.
_SIDE, _REACH = 512, 2 / 3
#: Side of the windows that pictures of a folder are compared in, and where in the picture they lie.
_WINDOW = 192
_ANCHORS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5))

Plane = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Limits:
    """See limits.yaml."""

    confidence: Share
    word_share: Share
    repeats: Count
    corner: Share
    corner_area: Share
    plain: Share
    rise: Positive
    share: Share
    ridge: Share
    pictures: Count
    halves_alike: Share
    significance: Positive
    visible: Share
    least_area: Share
    most_area: Share
    alike: Share


def check(picture: Picture, limits: Limits) -> list[Finding]:
    """watermark, by the first sign of one."""
    lines = [line for line in lines_of(picture) if line.confidence >= limits.confidence]
    words, repeated = _words(lines, limits), _repeated_text(picture, lines, limits)
    if told := words or repeated or _corner(picture, lines, limits):
        what, marks = told
        confidence = round(float(np.mean([line.confidence for line in marks])), 3)
        shapes = tuple(Shape("polygon", line.box, line.text) for line in marks)
        return [Finding("watermark", what, confidence, shapes, {"texts": [line.text for line in marks]})]
    if (lattice := repeats(picture.gray, limits)) is None:
        return []
    scale = max(picture.size) / _SIDE
    steps = [(round(x * max(scale, 1)), round(y * max(scale, 1))) for x, y in lattice.steps]
    what = f"a pattern repeats every {steps[0]} and {steps[1]} pixels, {lattice.rise:.0f} times above chance"
    return [Finding("watermark", what, round(1 - limits.rise / (2 * lattice.rise), 3), (), {"steps": steps})]


def _words(lines: Sequence[Line], limits: Limits) -> tuple[str, list[Line]] | None:
    def says_so(line: Line) -> bool:
        known = sum(len(match.group()) for match in WORDS.finditer(line.text))
        return known >= limits.word_share * len(line.text) or bool(_OWNER.match(line.text))

    marks = [line for line in lines if says_so(line)]
    return (f"'{marks[0].text}' is written over it", marks) if marks else None


def _repeated_text(picture: Picture, lines: Sequence[Line], limits: Limits) -> tuple[str, list[Line]] | None:
    counts = Counter(line.text.casefold() for line in lines if line.letters >= 4)
    for text, count in counts.items():
        marks = [line for line in lines if line.text.casefold() == text]
        middles = np.array([np.mean(line.box, 0) for line in marks])
        if count >= limits.repeats and (np.ptp(middles, 0) > np.array(picture.size) / 3).all():
            return f"'{marks[0].text}' is written over it {count} times", marks
    return None


def _corner(picture: Picture, lines: Sequence[Line], limits: Limits) -> tuple[str, list[Line]] | None:
    if len(lines) != 1:
        return None
    box, size = np.array(lines[0].box), np.array(picture.size)
    near = np.minimum(box.min(0), size - box.max(0)) / size
    area = np.prod(np.ptp(box, 0) / size)
    if (near < limits.corner).all() and area < limits.corner_area:
        return f"its only text, '{lines[0].text}', stands small in a corner", list(lines)
    return None


class Lattice(NamedTuple):
    """Two steps (x, y), in pixels of the shrunken picture, and how far above chance the weakest peak is."""

    steps: tuple[tuple[int, int], tuple[int, int]]
    rise: float


def repeats(gray: Plane, limits: Limits) -> Lattice | None:
    """The lattice on which a pattern repeats all over the picture; None if there is none.

    Args:
        gray: (H, W), 0 to 1.
    """
    small = _shrunk(gray)
    if min(small.shape) < 64 or plain_share(small) > limits.plain:
        return None
    likeness = autocorrelation(small)
    reach = likeness.shape[1] // 2
    rows, columns = np.arange(likeness.shape[0])[:, None], np.arange(-reach, reach + 1)[None]
    least = 0.06 * max(small.shape)
    oblique = (rows > least) & (np.abs(columns) > least)  # on the axes lie the ridges of all upright edges
    noise = 1.4826 * float(np.median(np.abs(likeness[oblique])))
    floor = max(limits.rise * noise, limits.share)
    tops = oblique & (likeness > floor) & (likeness == ndimage.maximum_filter(likeness, 9))
    peaks = [(likeness[y, x], int(y), int(x) - reach) for y, x in np.argwhere(tops)]
    peaks = [
        peak
        for peak in sorted(peaks, reverse=True)[:20]
        if _ring(likeness, *peak[1:]) < limits.ridge * peak[0]
    ]

    def at(y: int, x: int) -> float:
        y, x = (-y, -x) if y < 0 else (y, x)
        around = likeness[max(0, y - 2) : y + 3, max(0, x + reach - 2) : max(0, x + reach + 3)]
        return float(around.max(initial=0))

    for number, (height, y, x) in enumerate(peaks):
        for other, v, u in peaks[number + 1 :]:
            turned = abs(x * v - y * u) > 0.5 * np.hypot(x, y) * np.hypot(u, v)
            if turned and (sum_ := max(at(y + v, x + u), at(y - v, x - u))) > floor:
                return Lattice(((x, y), (u, v)), float(min(height, other, sum_)) / max(noise, 1e-9))
    return None


def autocorrelation(gray: Plane) -> Plane:
    """How alike a picture is to itself a step further, of fine structure only and of all contrasts alike.

    Args:
        gray: (H, W), 0 to 1.

    Returns:
        (2/3 H, 2 * 2/3 W + 1): rows are steps down, columns steps from left to right, the middle one being 0.
    """
    height, width = gray.shape
    fine = gray - ndimage.gaussian_filter(gray, 2)
    fine = fine / (np.sqrt(ndimage.gaussian_filter(fine * fine, 8)) + 1.5 / 255)
    fine = np.clip(fine, -2, 2)
    fine = fine - fine.mean()
    shape = [fft.next_fast_len(int((1 + _REACH) * side) + 1, real=True) for side in gray.shape]
    full = fft.irfft2(np.abs(fft.rfft2(fine, shape)) ** 2, shape) / max(float((fine * fine).sum()), 1e-9)
    rows, reach = int(_REACH * height), int(_REACH * width)
    half = np.concatenate([full[:rows, -reach:], full[:rows, : reach + 1]], 1)
    overlap = (1 - np.arange(rows)[:, None] / height) * (
        1 - np.abs(np.arange(-reach, reach + 1))[None] / width
    )
    likeness: Plane = ((half - ndimage.gaussian_filter(half, 5)) / np.sqrt(overlap)).astype(np.float32)
    return likeness


def _ring(likeness: Plane, y: int, x: int) -> float:
    """The largest value six steps around a peak: as high as the peak on a ridge, low around a point."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    rows = np.clip(np.rint(y + 6 * np.sin(angles)).astype(int), 0, likeness.shape[0] - 1)
    columns = np.rint(x + likeness.shape[1] // 2 + 6 * np.cos(angles)).astype(int)
    return float(likeness[rows, np.clip(columns, 0, likeness.shape[1] - 1)].max())


def plain_share(gray: Plane) -> float:
    """Share of the pixels that are as bright as most: the even background."""
    counts = np.histogram(gray, 64, (0, 1))[0]
    return float(np.convolve(counts, np.ones(3), "same").max() / gray.size)


def _shrunk(gray: Plane) -> Plane:
    image = Image.fromarray((gray * 255).astype(np.uint8))
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(image, np.float32) / 255


@dataclass(frozen=True)
class Mark:
    """What many pictures share at one place.

    Attributes:
        anchor: where the window lies: of the free room, the share to its left and above it.
        gradient: (2, 192, 192), down and right, of the gray values.
        where: (192, 192) bool, pixels at which the mark has an edge.
    """

    anchor: tuple[float, float]
    gradient: Plane
    where: NDArray[np.bool_]


def shared_marks(pictures: Sequence[Picture], limits: Limits) -> list[Mark]:
    """The marks that different pictures, of a folder say, have at the same place: in a corner or in the middle.

    Args:
        pictures: some of them, different ones; at least `limits.pictures` large enough.
    """
    found = []
    for anchor in _ANCHORS:
        windows = [window for picture in pictures if (window := _window(picture, anchor)) is not None]
        if len(windows) < limits.pictures:
            continue
        gradients = np.stack([_gradient(window) for window in windows])
        middle = np.median(gradients, 0)
        # What two halves of the pictures have in common is no chance: without a mark they are as good as unrelated.
        first, second = np.median(gradients[::2], 0).ravel(), np.median(gradients[1::2], 0).ravel()
        if first @ second < limits.halves_alike * np.linalg.norm(first) * np.linalg.norm(second) + 1e-9:
            continue
        spread = 1.4826 * np.median(np.abs(gradients - middle), 0)
        # The median of n values has 1.2533 / sqrt(n) times the standard deviation of one.
        chance = np.hypot(*spread) * 1.2533 / np.sqrt(len(windows))
        where = np.hypot(*middle) > np.maximum(limits.significance * chance, limits.visible)
        where &= _bunched(where)
        if limits.least_area < where.mean() < limits.most_area:
            found.append(Mark(anchor, middle, where))
    return found


def _bunched(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether a place belongs to the letters and lines of a mark, or is on its own by chance."""
    dense = ndimage.uniform_filter(where.astype(np.float32), 5) > 0.2
    labels, _ = ndimage.label(ndimage.binary_dilation(where & dense, np.ones((9, 9))))
    counts = np.bincount(labels[where & dense], minlength=int(labels.max()) + 1)
    bunched: NDArray[np.bool_] = dense & (counts >= 0.05 * counts.sum())[labels] & (labels > 0)
    return bunched


def carries(picture: Picture, mark: Mark, limits: Limits) -> Finding | None:
    """Whether a picture has the mark, too."""
    window = _window(picture, mark.anchor)
    if window is None:
        return None
    own, common = _gradient(window)[:, mark.where].ravel(), mark.gradient[:, mark.where].ravel()
    lengths = float(np.linalg.norm(own) * np.linalg.norm(common))
    likeness = float(own @ common) / max(lengths, 1e-9)
    if likeness < limits.alike:
        return None
    left, top = _corner_of(picture, mark.anchor)
    rows, columns = np.flatnonzero(mark.where.any(1)), np.flatnonzero(mark.where.any(0))
    corners = [(left + columns[0], top + rows[0]), (left + columns[-1] + 1, top + rows[-1] + 1)]
    box = tuple((float(x) / picture.scale, float(y) / picture.scale) for x, y in corners)
    what = f"other pictures of the folder have the same mark at this place (likeness {likeness:.2f})"
    return Finding("watermark", what, round(likeness, 3), (Shape("box", box, "shared"),))


def _corner_of(picture: Picture, anchor: tuple[float, float]) -> tuple[int, int]:
    height, width = picture.gray.shape
    return round((width - _WINDOW) * anchor[0]), round((height - _WINDOW) * anchor[1])


def _window(picture: Picture, anchor: tuple[float, float]) -> Plane | None:
    if min(picture.gray.shape) < _WINDOW:
        return None
    left, top = _corner_of(picture, anchor)
    return picture.gray[top : top + _WINDOW, left : left + _WINDOW]


def _gradient(gray: Plane) -> Plane:
    return np.stack([np.diff(gray, axis=0, append=gray[-1:]), np.diff(gray, axis=1, append=gray[:, -1:])])
