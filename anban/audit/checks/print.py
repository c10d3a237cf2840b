"""Photographs and scans of prints: a sheet on a table or scanner, a poster on a wall, the dots of a press.

* Sheet. Something large with four straight sides, at least three of which are seen, on a plain ground that reaches the
  border of the picture. Frames and boxes of an electronic original are like that too; but their ground is perfectly even,
  and that of a photograph or scan never is (shade, noise, grain). What stands on a ground full of detail, a sign before a
  hedge, say, is a thing that was photographed, and no print.
* Press. Halftone dots stand on a slanted square grid: the spectrum has two equally high and lonely peaks at a right angle.

Show-through and prints whose edges are cut off are not found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage
from scipy.spatial import ConvexHull
from skimage.draw import polygon
from skimage.filters import threshold_otsu

from anban.audit.finding import Finding, Shape
from anban.audit.picture import Picture
from anban.recipe.schema import Count, Positive, Share

#: Longest side of the picture in which a sheet is looked for; the widths in pixels below are at this size.
_SIDE = 256

#: Side of the blocks whose spectra are averaged to find halftone dots.
_BLOCK = 128

Plane = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """See limits.yaml."""

    least_area: Share
    fit: Share
    sides: Count
    straight: Share
    edge: Share
    plain: Share
    noise: Share
    dots: Positive


def check(picture: Picture, limits: Limits) -> list[Finding]:
    """paper_edges, with the corners of the sheet, or the grid of the dots."""
    if sheet := find_sheet(picture.rgb, limits):
        corners = sheet.corners * (picture.size[0] / sheet.width)
        shape = Shape("polygon", tuple((float(x), float(y)) for x, y in corners), "sheet")
        what = f"a sheet with {sheet.sides} straight sides, {sheet.area:.0%} of the picture, lies on a plain ground"
        data = {
            "sides": sheet.sides,
            "area": round(sheet.area, 4),
            "fit": round(sheet.fit, 4),
            **_pose(corners),
        }
        return [Finding("paper_edges", what, round(sheet.fit, 3), (shape,), {**data, "tint": sheet.tint})]
    height, period = halftone(picture.detail)
    if height > limits.dots:
        what = f"halftone dots every {period:.1f} pixels, {height:.0f} times as strong as their surroundings"
        return [
            Finding("paper_edges", what, round(height / (height + limits.dots), 3), (), {"period": period})
        ]
    return []


def _pose(corners: Points) -> dict[str, float]:
    """How far the sheet is turned (degrees), and how much shorter the shorter of two opposite sides is."""
    sides = np.roll(corners, -1, 0) - corners
    lengths = np.linalg.norm(sides, axis=1)
    turned = np.degrees(np.arctan2(sides[:, 1], sides[:, 0]))
    turned = (turned + 45) % 90 - 45
    ratio = min(
        lengths[0] / lengths[2], lengths[1] / lengths[3], lengths[2] / lengths[0], lengths[3] / lengths[1]
    )
    return {"turned": round(float(np.median(turned)), 2), "perspective": round(1 - float(ratio), 3)}


class Sheet(NamedTuple):
    """A quadrilateral on a plain ground.

    Attributes:
        corners: (4, 2), x and y in a picture of `width` pixels.
        sides: of the four, how many are seen and straight.
        fit: intersection over union with the region found.
        area: share of the picture.
        tint: mean red, green and blue of its brightest half, 0 to 255.
    """

    corners: Points
    width: int
    sides: int
    fit: float
    area: float
    tint: list[int]


def find_sheet(rgb: NDArray[np.uint8], limits: Limits) -> Sheet | None:
    """The sheet with the best fit; None if there is none.

    Args:
        rgb: (H, W, 3).
    """
    image = Image.fromarray(rgb)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    colour = np.asarray(image, np.float32) / 255
    gray = colour @ np.array([0.299, 0.587, 0.114], np.float32)
    if min(gray.shape) < 64:
        return None
    steep = np.maximum.reduce([_steepness(colour[..., k]) for k in range(3)])
    grain = np.abs(gray - ndimage.gaussian_filter(gray, 1))
    best: Sheet | None = None
    for region, ground in _regions(colour, gray, steep, limits):
        if not ground.any() or np.median(grain[ground]) < limits.noise:
            continue
        if (steep[ground] < _STEEPS[-1]).mean() < limits.plain or (quad := _quadrilateral(region)) is None:
            continue
        filled = np.zeros(gray.shape, bool)
        filled[polygon(quad[:, 1], quad[:, 0], gray.shape)] = True  # type: ignore[no-untyped-call]
        fit = float((filled & region).sum() / (filled | region).sum())
        if fit < max(limits.fit, best.fit if best else 0):
            continue
        sides = _sides_seen(quad, steep, region, limits)
        if sides >= limits.sides:
            bright = region & (gray >= np.median(gray[region]))
            tint = [round(255 * float(value)) for value in colour[bright].mean(0)]
            best = Sheet(quad, gray.shape[1], sides, fit, float(region.mean()), tint)
    return best


def _steepness(values: Plane) -> Plane:
    steep: Plane = np.hypot(*np.gradient(ndimage.gaussian_filter(values, 0.8)))
    return steep


#: Steepness below which a place is plain: a strict and a generous one.
_STEEPS = (0.02, 0.04)


def _regions(colour: Plane, gray: Plane, steep: Plane, limits: Limits) -> Iterator[tuple[Mask, Mask]]:
    """Large compact regions and the ground around them: what interrupts a plain ground, and what is brighter or paler."""
    for limit in _STEEPS:
        labels, _ = ndimage.label(ndimage.binary_erosion(steep < limit, np.ones((3, 3))))
        counts = np.bincount(labels.ravel())
        ring = np.concatenate([labels[1], labels[-2], labels[:, 1], labels[:, -2]])
        at_border = [int(label) for label in np.unique(ring) if label and counts[label] > 0.005 * labels.size]
        tones = {label: colour[labels == label].mean(0) for label in at_border}
        for seed in sorted(at_border, key=lambda label: -counts[label])[:2]:
            alike = [label for label in at_border if np.abs(tones[label] - tones[seed]).max() < 0.15]
            ground = np.isin(labels, alike)
            filled = ndimage.maximum_filter(ground, 5)
            for region in _compact(~filled, limits.least_area):
                yield region, ground
    channels = [colour[..., k] for k in range(3)]
    saturation = np.maximum.reduce(channels) - np.minimum.reduce(channels)
    for values, sign in ((ndimage.grey_closing(gray, 7), 1), (ndimage.grey_opening(saturation, 7), -1)):
        if np.ptp(values) < 0.08:
            continue
        limit = threshold_otsu(values)  # type: ignore[no-untyped-call]
        above = sign * values > sign * limit
        for region in _compact(above, limits.least_area):
            yield region, ~ndimage.maximum_filter(region, 9)


def _compact(mask: Mask, least_area: float) -> Iterator[Mask]:
    """The three largest parts of a mask that are large enough, convex, and not all of the picture."""
    labels, _ = ndimage.label(ndimage.maximum_filter(ndimage.minimum_filter(mask, 5), 5))
    counts = np.bincount(labels.ravel())[1:]
    for number in np.argsort(counts)[::-1][:3]:
        region = ndimage.binary_fill_holes(labels == number + 1)
        if least_area < region.mean() < 0.97:
            edge = np.argwhere(_edge(region))
            if region.sum() > 0.85 * ConvexHull(edge).volume:
                yield region


def _quadrilateral(region: Mask) -> Points | None:
    """Four lines through the region's edge, met in its corners (4, 2); None where it has no four sides."""
    edge = np.argwhere(_edge(region))[:, ::-1].astype(float)
    corners = _smallest_rectangle(edge[ConvexHull(edge).vertices])
    for _ in range(4):
        lines = []
        nearest = np.argmin([_distance(edge, corners[k], corners[(k + 1) % 4]) for k in range(4)], 0)
        for k in range(4):
            points = edge[nearest == k]
            if len(points) < 6:
                return None
            lines.append(_line(points))
        met = [_meet(lines[k - 1], lines[k]) for k in range(4)]
        if any(point is None for point in met):
            return None
        corners = np.array(met)
    return corners


def _smallest_rectangle(hull: Points) -> Points:
    """One of its sides lies along a side of the hull (Freeman and Shapira, 1975)."""
    best, least = hull, np.inf
    for along in np.roll(hull, -1, 0) - hull:
        angle = np.arctan2(along[1], along[0])
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        low, high = (hull @ turn.T).min(0), (hull @ turn.T).max(0)
        if (area := float(np.prod(high - low))) < least:
            best, least = np.array([low, [high[0], low[1]], high, [low[0], high[1]]]) @ turn, area
    return best


def _distance(points: Points, begin: Points, end: Points) -> Points:
    """From points (N, 2) to a line segment."""
    along = end - begin
    place = np.clip((points - begin) @ along / max(float(along @ along), 1e-9), 0, 1)
    distance: Points = np.linalg.norm(points - begin - place[:, None] * along, axis=1)
    return distance


def _line(points: Points) -> tuple[Points, float]:
    """Normal and offset of the line of least absolute distances, by reweighted least squares."""
    weights = np.ones(len(points))
    for _ in range(4):
        middle = weights @ points / weights.sum()
        away = points - middle
        normal = np.linalg.eigh((away * weights[:, None]).T @ away)[1][:, 0]
        weights = 1 / np.maximum(np.abs(away @ normal), 0.5)
    return normal, float(normal @ middle)


def _meet(first: tuple[Points, float], second: tuple[Points, float]) -> Points | None:
    normals = np.array([first[0], second[0]])
    if abs(np.linalg.det(normals)) < 0.3:  # far from a right angle
        return None
    return np.linalg.solve(normals, np.array([first[1], second[1]]))


def _sides_seen(quad: Points, steep: Plane, region: Mask, limits: Limits) -> int:
    """Sides that lie within the picture, along which the region's edge is straight and the picture has an edge."""
    height, width = steep.shape
    from_edge = ndimage.distance_transform_edt(~_edge(region))
    near = ndimage.maximum_filter(steep, 7)
    seen = 0
    for k in range(4):
        along = quad[(k + 1) % 4] - quad[k]
        steps = np.linspace(0.05, 0.95, max(2, int(np.linalg.norm(along))))
        x, y = np.rint(quad[k] + steps[:, None] * along).astype(int).T
        inside = (x > 3) & (x < width - 4) & (y > 3) & (y < height - 4)
        if inside.mean() < 0.6:
            continue
        place = y[inside], x[inside]
        sharp = (near[place] > _STEEPS[0]).mean()
        off = np.quantile(from_edge[place], 0.8)
        seen += bool(sharp > limits.edge and off < limits.straight * max(steep.shape))
    return seen


def _edge(region: Mask) -> Mask:
    edge: Mask = region & ~ndimage.binary_erosion(region)
    return edge


def halftone(gray: NDArray[np.uint8]) -> tuple[float, float]:
    """How far two peaks of the spectrum at a right angle rise above their surroundings, and their period in pixels.

    Args:
        gray: (H, W), in own pixels. Too small a picture has 0.
    """
    rows, columns = gray.shape[0] // _BLOCK, gray.shape[1] // _BLOCK
    if rows * columns < 4:
        return 0.0, 0.0
    blocks = gray[: rows * _BLOCK, : columns * _BLOCK].reshape(rows, _BLOCK, columns, _BLOCK).swapaxes(1, 2)
    flat = blocks.reshape(-1, _BLOCK, _BLOCK).astype(np.float32)
    window = np.hanning(_BLOCK).astype(np.float32)
    power = np.abs(fft.fft2((flat - flat.mean((1, 2), keepdims=True)) * np.outer(window, window))) ** 2
    # The median, because dots are everywhere and a fence is not; half a gray value of noise, because flat areas have none.
    quiet = 0.25 * float((window**2).sum()) ** 2
    strength = fft.fftshift(np.median(power, 0)) + quiet
    rise = strength / np.exp(ndimage.gaussian_filter(np.log(strength), 4))
    middle = _BLOCK // 2
    y, x = np.mgrid[:_BLOCK, :_BLOCK] - middle
    radius, angle = np.hypot(x, y) / _BLOCK, np.degrees(np.arctan2(y, x)) % 90
    slanted = (radius > 0.06) & (radius < 0.47) & (angle > 8) & (angle < 82)
    both = np.zeros_like(rise)
    paired = rise[1:, 1:]  # the first row and column have no counterpart at a right angle
    both[1:, 1:] = np.minimum(paired, ndimage.maximum_filter(np.rot90(paired), 3))
    both[~slanted] = 0
    top = np.unravel_index(int(both.argmax()), both.shape)
    return float(both[top]), round(float(1 / max(radius[top], 1e-6)), 2)
