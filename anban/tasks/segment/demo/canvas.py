"""Camera, light, and what everything is drawn with: the picture and the label map are drawn at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from anban.tasks.segment.classes import LABEL_IDS

Array = NDArray[Any]
Rng = np.random.Generator
Colour = tuple[float, float, float]
Point = tuple[float, float, float]

# Everything is drawn SCALE times finer: smooth edges in the picture.
SCALE = 2
# Nothing is drawn nearer to the camera than this, m.
NEAR = 1.2

ASPHALT: tuple[Colour, ...] = ((92, 92, 96), (112, 110, 108), (78, 80, 86), (128, 122, 116))
PAVING: tuple[Colour, ...] = ((124, 120, 116), (104, 104, 106), (146, 130, 120), (92, 90, 90))
FACADES: tuple[Colour, ...] = (
    (176, 160, 136),
    (142, 120, 104),
    (120, 122, 126),
    (190, 186, 178),
    (136, 84, 70),
    (162, 142, 96),
    (96, 92, 92),
    (110, 124, 132),
)
PAINTS: tuple[Colour, ...] = (
    (44, 46, 50),
    (200, 202, 204),
    (126, 130, 134),
    (140, 38, 36),
    (48, 66, 108),
    (88, 92, 98),
    (196, 168, 60),
    (64, 92, 72),
)
CLOTHES: tuple[Colour, ...] = (
    (40, 42, 52),
    (84, 84, 92),
    (142, 46, 44),
    (58, 74, 116),
    (168, 160, 148),
    (92, 76, 58),
    (66, 96, 72),
)
LEAVES: tuple[Colour, ...] = ((62, 82, 44), (84, 96, 50), (52, 70, 48), (108, 100, 56))
GRASS: tuple[Colour, ...] = ((92, 108, 58), (120, 116, 72), (76, 92, 56))
SKIN: tuple[Colour, ...] = ((206, 164, 138), (150, 108, 84), (96, 68, 54))
METAL: Colour = (112, 114, 116)
GLASS: Colour = (52, 60, 70)
TYRE: Colour = (34, 34, 36)
WHITE: Colour = (214, 212, 204)


def pick(rng: Rng, chart: Sequence[Colour], spread: float = 10) -> Colour:
    """One of the chart's colours, a little lighter or darker and a little off."""
    red, green, blue = (
        np.asarray(chart[int(rng.integers(len(chart)))]) + rng.normal(0, spread) + rng.normal(0, 4, 3)
    )
    return (float(red), float(green), float(blue))


def shade(colour: Colour, factor: float) -> Colour:
    """The colour in more (above 1) or less light."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


@dataclass(frozen=True)
class View:
    """Camera and light. Points are (x right, y up, z ahead) in m from the ground under the camera.

    `focal`, `middle` (x of the vanishing point) and `horizon` in px of the fine canvas; `eye` in m; `haze` is the
    distance in m at which about two thirds of a colour are gone; `sun` is -1 (left) or 1 (right), `rise` the
    tangent of its elevation, `clear` 0 (overcast) to 1.
    """

    focal: float
    middle: float
    horizon: float
    eye: float
    haze: float
    sky: Colour
    sun: int
    rise: float
    clear: float

    def project(self, point: Point) -> tuple[float, float]:
        x, y, z = point
        scale = self.focal / max(z, NEAR)
        return (self.middle + scale * x, self.horizon + scale * (self.eye - y))

    def facing(self, side: int) -> float:
        """Brightness of a surface seen on that side of the street (-1 left, 1 right) or across it (0)."""
        return 1 - 0.3 * self.clear * self.sun * side if side else 1 - 0.08 * self.clear


class Canvas:
    """The picture and the label map, drawn together at SCALE times the final size."""

    def __init__(self, view: View, size: tuple[int, int]):
        height, width = (SCALE * side for side in size)
        self.view, self.width, self.height = view, width, height
        self.picture = Image.new("RGB", (width, height))
        self.labels = Image.new("L", (width, height))
        self._brush = ImageDraw.Draw(self.picture, "RGBA")
        self._pen = ImageDraw.Draw(self.labels)

    def polygon(
        self, points: Sequence[Point], colour: Colour, name: str | None, opacity: float = 1.0
    ) -> None:
        """Fill a polygon of points in the street; without a class it changes the picture only."""
        depth = sum(point[2] for point in points) / len(points)
        self.flat([self.view.project(p) for p in points], self._hazed(colour, depth), name, opacity)

    def blob(self, centre: Point, across: float, up: float, colour: Colour, name: str | None) -> None:
        """Fill an upright ellipse that faces the camera, its half axes in m."""
        u, v = self.view.project(centre)
        scale = self.view.focal / max(centre[2], NEAR)
        box = (u - scale * across, v - scale * up, u + scale * across, v + scale * up)
        self._brush.ellipse(box, fill=_ink(self._hazed(colour, centre[2])))
        if name is not None:
            self._pen.ellipse(box, fill=LABEL_IDS[name])

    def flat(
        self, points: Sequence[tuple[float, float]], colour: Colour, name: str | None, opacity: float = 1.0
    ) -> None:
        """Fill a polygon given in pixels of the canvas."""
        self._brush.polygon(points, fill=_ink(colour, opacity))
        if name is not None:
            self._pen.polygon(points, fill=LABEL_IDS[name])

    def _hazed(self, colour: Colour, depth: float) -> Colour:
        share = 1 - math.exp(-max(0.0, depth - 5) / self.view.haze)
        red, green, blue = (c + share * (s - c) for c, s in zip(colour, self.view.sky, strict=True))
        return (red, green, blue)


def _ink(colour: Colour, opacity: float = 1.0) -> tuple[int, int, int, int]:
    red, green, blue = (min(255, max(0, round(value))) for value in colour)
    return (red, green, blue, round(255 * opacity))


@dataclass(frozen=True)
class Face:
    """An upright rectangle: `corner` at its foot, its foot running along `dx`, `dz` (a unit vector)."""

    corner: Point
    dx: float
    dz: float

    def patch(self, left: float, right: float, low: float, high: float) -> list[Point]:
        """A rectangle on it, in m from the corner."""
        x, y, z = self.corner
        return [
            (x + self.dx * along, y + up, z + self.dz * along)
            for along, up in ((left, low), (right, low), (right, high), (left, high))
        ]


def upright(x: float, z: float) -> Face:
    """A face towards the camera whose foot begins at (x, z)."""
    return Face((x, 0, z), 1, 0)


def ground(left: float, right: float, near: float, far: float, height: float = 0.0) -> list[Point]:
    """A level rectangle, on the ground or at a height."""
    return [(left, height, near), (right, height, near), (right, height, far), (left, height, far)]


def box(
    canvas: Canvas,
    x: tuple[float, float],
    y: tuple[float, float],
    z: tuple[float, float],
    colour: Colour,
    name: str,
) -> tuple[Face, Face | None]:
    """An upright box: its face towards the camera, and that towards the middle of the view if it is seen."""
    view = canvas.view
    height = y[1] - y[0]
    flank = None
    if y[1] < view.eye:
        canvas.polygon(ground(*x, *z, y[1]), shade(colour, 1.12), name)
    if x[0] > 0 or x[1] < 0:
        side = 1 if x[0] > 0 else -1
        flank = Face((x[0] if side > 0 else x[1], y[0], z[0]), 0, 1)
        canvas.polygon(flank.patch(0, z[1] - z[0], 0, height), shade(colour, view.facing(side)), name)
    front = Face((x[0], y[0], z[0]), 1, 0)
    canvas.polygon(front.patch(0, x[1] - x[0], 0, height), shade(colour, view.facing(0)), name)
    return front, flank
