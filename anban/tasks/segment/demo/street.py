"""The street itself: ground, and what lines it on both sides and closes it at its end."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from anban.tasks.segment.demo.canvas import (
    ASPHALT,
    FACADES,
    GLASS,
    GRASS,
    LEAVES,
    METAL,
    NEAR,
    PAINTS,
    PAVING,
    WHITE,
    Canvas,
    Colour,
    Face,
    Point,
    Rng,
    box,
    ground,
    pick,
    shade,
    upright,
)


@dataclass(frozen=True)
class Street:
    """Across the street, m: `left` and `right` edges of the road, then on each side (left, right) the widths of the
    sidewalk and of the verge behind it. `end` is where another street crosses; None where nothing ends the view.
    """

    left: float
    right: float
    sidewalks: tuple[float, float]
    verges: tuple[float, float]
    end: float | None
    asphalt: Colour
    paving: Colour
    grass: Colour
    rails: bool

    def edge(self, side: int) -> float:
        return self.right if side > 0 else self.left

    def lots(self, side: int) -> float:
        """Where the lots of that side begin."""
        i = int(side > 0)
        return self.edge(side) + side * (self.sidewalks[i] + self.verges[i])

    @property
    def far(self) -> float:
        return 130.0 if self.end is None else self.end

    @property
    def lots_end(self) -> float:
        """Where the lots end, which leaves room for the crossing street and its sidewalk."""
        return self.far - 8


def plan_street(rng: Rng) -> Street:
    """A street; the camera drives on its right half."""
    return Street(
        left=-rng.uniform(4.5, 9),
        right=rng.uniform(2, 5),
        sidewalks=(rng.uniform(1.5, 4.5), rng.uniform(1.5, 4.5)),
        verges=(rng.uniform(0.5, 5) * (rng.random() < 0.5), rng.uniform(0.5, 5) * (rng.random() < 0.5)),
        end=float(rng.uniform(28, 60)) if rng.random() < 0.45 else None,
        asphalt=pick(rng, ASPHALT),
        paving=pick(rng, PAVING),
        grass=pick(rng, GRASS),
        rails=bool(rng.random() < 0.45),
    )


def draw_ground(rng: Rng, canvas: Canvas, street: Street) -> None:
    """Sky, what lies at the horizon, and the ground in strips, so that haze can take the far ones."""
    view, far = canvas.view, street.far
    top = view.horizon
    canvas.flat([(0, 0), (canvas.width, 0), (canvas.width, top), (0, top)], view.sky, "sky")
    wild = rng.random() < 0.6
    for x in np.arange(-160, 160, 12.0):
        if rng.random() < 0.75:
            high, z = rng.uniform(4, 14), 140.0
            if wild:
                canvas.blob((x, 0, z), rng.uniform(8, 16), high, pick(rng, LEAVES), "vegetation")
            else:
                shape = upright(x, z).patch(0, rng.uniform(8, 20), 0, 2 * high)
                canvas.polygon(shape, pick(rng, FACADES), "building")
    cuts = [NEAR, 4, 7, 11, 17, 26, 40, 60, 90, 150, 5000]
    cross = street.end
    for near, end in reversed(list(itertools.pairwise(cuts))):
        canvas.polygon(ground(-400, 400, near, end), street.grass, "terrain")
        for side in (-1, 1):
            edge, i = street.edge(side), int(side > 0)
            out = edge + side * street.sidewalks[i]
            canvas.polygon(ground(edge, out, near, end), street.paving, "sidewalk")
            canvas.polygon(ground(edge, edge + side * 0.25, near, end), shade(street.paving, 1.2), "sidewalk")
            if not street.verges[i]:
                canvas.polygon(ground(out, 3 * out, near, end), shade(street.paving, 0.95), "sidewalk")
        canvas.polygon(ground(street.left, street.right, near, end), street.asphalt, "road")
    if cross is not None:
        canvas.polygon(ground(-80, 80, cross - 9, cross + 3), street.paving, "sidewalk")
        canvas.polygon(ground(-80, 80, cross - 7, cross), shade(street.asphalt, 1.03), "road")
    stop = far if cross is None else cross - 8
    if street.rails:
        middle = street.left + 2
        canvas.polygon(ground(middle - 1, middle + 1, NEAR, stop), shade(street.asphalt, 0.9), "rail track")
        for x in (middle - 0.75, middle + 0.65):
            canvas.polygon(ground(x, x + 0.1, NEAR, stop), METAL, None)
    line = (street.left + street.right) / 2
    start = float(rng.uniform(0, 6))
    for z in np.arange(NEAR + start, min(stop, 60), 6):
        canvas.polygon(ground(line - 0.07, line + 0.07, z, z + 3), WHITE, None, 0.75)
    if cross is not None and rng.random() < 0.6:
        for x in np.arange(street.left + 0.5, street.right - 0.3, 1.0):
            canvas.polygon(ground(x, x + 0.5, stop - 4, stop - 1), WHITE, None, 0.8)
    for _ in range(rng.integers(3, 9)):  # repairs of the surface
        x, z = rng.uniform(street.left, street.right - 1), rng.uniform(3, 30)
        patch = ground(x, x + rng.uniform(0.5, 2), z, z + rng.uniform(0.5, 6))
        canvas.polygon(patch, shade(street.asphalt, rng.uniform(0.75, 1.15)), None, 0.5)


# Lots ------------------------------------------------------------------------------------------------------------


def _draw_windows(rng: Rng, canvas: Canvas, face: Face, length: float, height: float, light: float) -> None:
    """Rows of windows, and at the foot shop fronts or doors."""
    view = canvas.view
    storey, spacing = rng.uniform(2.7, 3.6), rng.uniform(1.6, 3.4)
    wide, tall = spacing * rng.uniform(0.4, 0.75), storey * rng.uniform(0.4, 0.65)
    glass = shade(pick(rng, (GLASS, (84, 96, 110), (70, 66, 60))), light)
    shops = rng.random() < 0.4
    for column in range(int(length / spacing)):
        left = (column + 0.5) * spacing - wide / 2
        depth = face.corner[2] + face.dz * left
        if view.focal * wide / max(depth, NEAR) < (2.5 if face.dz == 0 else 8):
            continue
        for floor in range(1 if shops else 0, int(height / storey)):
            low = floor * storey + 0.9
            if view.horizon + view.focal * (view.eye - low) / max(depth, NEAR) < 0:
                break  # above the picture
            canvas.polygon(face.patch(left, left + wide, low, low + tall), glass, None)
    if shops:
        canvas.polygon(face.patch(0.5, length - 0.5, 0.3, 2.6), shade(glass, 0.9), None)
        canvas.polygon(face.patch(0, length, 2.7, 3.2), shade(pick(rng, PAINTS), light), None)


def _draw_building(
    rng: Rng, canvas: Canvas, x: tuple[float, float], z: tuple[float, float], height: float
) -> None:
    colour = pick(rng, FACADES)
    front, flank = box(canvas, x, (0, height), z, colour, "building")
    for face, length in ((flank, z[1] - z[0]), (front, x[1] - x[0])):
        if face is not None:
            side = 0 if face is front else 1 if x[0] > 0 else -1
            _draw_windows(rng, canvas, face, length, height, canvas.view.facing(side))


def _draw_wall(rng: Rng, canvas: Canvas, face: Face, length: float, light: float) -> None:
    height, colour = rng.uniform(1.2, 3.2), shade(pick(rng, FACADES), 0.95 * light)
    canvas.polygon(face.patch(0, length, 0, height), colour, "wall")
    for row in np.arange(0.4, height, 0.4):
        canvas.polygon(face.patch(0, length, row, row + 0.05), shade(colour, 0.82), None)
    canvas.polygon(face.patch(0, length, height - 0.15, height), shade(colour, 1.15), None)


def _draw_fence(rng: Rng, canvas: Canvas, face: Face, length: float, light: float) -> None:
    """The label is one area; in the picture what lies behind shows between the bars."""
    height = rng.uniform(0.9, 2.0)
    colour = shade(pick(rng, (METAL, (70, 66, 60), WHITE, (70, 84, 66))), light)
    first, last = face.corner[2], face.corner[2] + face.dz * length
    canvas.polygon(face.patch(0, length, 0, height), shade(colour, 0.8), "fence", 0.35)
    for low in (0.12, height - 0.15):
        canvas.polygon(face.patch(0, length, low, low + 0.09), colour, None)
    step, along = rng.uniform(0.2, 0.4), 0.0
    while along < length:
        # As far apart as still can be told apart from here.
        depth = first + (last - first) * along / length
        canvas.polygon(face.patch(along, along + 0.07, 0, height), colour, None)
        along += max(step, 7 * depth / canvas.view.focal * max(1.0, depth * face.dz / 8))


def draw_tree(rng: Rng, canvas: Canvas, x: float, z: float, height: float) -> None:
    """A trunk with a crown of leaves, all of it vegetation."""
    colour, crown = pick(rng, LEAVES), height * rng.uniform(0.26, 0.4)
    trunk, thick = height - 1.6 * crown, 0.03 * height
    bark = pick(rng, ((86, 74, 62), (104, 98, 90)))
    canvas.polygon(upright(x - thick / 2, z).patch(0, thick, 0, trunk + crown / 2), bark, "vegetation")
    _draw_leaves(rng, canvas, (x, trunk + 0.8 * crown, z), crown, 0.9 * crown, colour)


def _draw_leaves(rng: Rng, canvas: Canvas, centre: Point, across: float, up: float, colour: Colour) -> None:
    """Bunches of leaves around a point, the lower and those away from the sun darker."""
    x, y, z = centre
    pixels = canvas.view.focal * max(across, up) / max(z, NEAR)
    for _ in range(int(np.clip(pixels / 2, 6, 40))):
        angle, radius = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random())
        dx, dy = radius * math.cos(angle), radius * math.sin(angle)
        light = 1 + 0.22 * dy + 0.15 * canvas.view.sun * canvas.view.clear * dx + rng.normal(0, 0.1)
        size = rng.uniform(0.16, 0.34)
        bunch = (x + 0.75 * across * dx, y + 0.75 * up * dy, z)
        canvas.blob(bunch, size * across, size * up, shade(colour, light), "vegetation")


def _draw_hedge(rng: Rng, canvas: Canvas, x: float, near: float, far: float) -> None:
    colour, height = pick(rng, LEAVES), rng.uniform(0.8, 2.8)
    face = Face((x, 0, near), 0, 1)
    canvas.polygon(face.patch(0, far - near, 0, 0.8 * height), shade(colour, 0.85), "vegetation")
    for z in np.geomspace(far, max(near, 2.0), 14):
        _draw_leaves(rng, canvas, (x, 0.6 * height, z), 0.7 * height, 0.5 * height, colour)


def draw_lots(rng: Rng, canvas: Canvas, street: Street, side: int) -> None:
    """What lines the street on one side, far to near."""
    view, x = canvas.view, street.lots(side)
    light = view.facing(side)
    built, lots, z = rng.uniform(0.35, 0.9), [], NEAR
    while z < street.lots_end:
        length = float(rng.uniform(6, 22))
        lots.append((z, min(z + length, street.lots_end)))
        z += length + (rng.uniform(0, 6) if rng.random() < 0.3 else 0)
    for near, far in reversed(lots):
        length = far - near
        if rng.random() < built:
            back = x + side * rng.uniform(0, 1.5)
            deep = back + side * rng.uniform(8, 16)
            height = float(rng.uniform(4, 20))
            _draw_building(rng, canvas, (min(back, deep), max(back, deep)), (near, far), height)
            if view.sun == side:  # its shadow falls into the street
                reach = x - side * min(14, height / view.rise)
                canvas.polygon(ground(x, reach, near, far), (12, 14, 24), None, 0.55 * view.clear)
            continue
        for _ in range(rng.poisson(1.5)):
            tree = (x + side * rng.uniform(2, 12), rng.uniform(max(near, 6), max(far, 7)), rng.uniform(4, 12))
            draw_tree(rng, canvas, *tree)
        kind, face = rng.random(), Face((x, 0, near), 0, 1)
        if kind < 0.28:
            _draw_wall(rng, canvas, face, length, light)
        elif kind < 0.6:
            _draw_fence(rng, canvas, face, length, light)
        elif kind < 0.85:
            _draw_hedge(rng, canvas, x, near, far)


def draw_end(rng: Rng, canvas: Canvas, street: Street) -> None:
    """The far side of the crossing street, which closes the view."""
    if street.end is None:
        return
    z, x = street.end + 3, -60.0
    while x < 60:
        width, kind = float(rng.uniform(8, 22)), rng.random()
        face = upright(x, z)
        if kind < 0.6:
            _draw_building(rng, canvas, (x, x + width), (z, z + 12), float(rng.uniform(5, 18)))
        else:
            for _ in range(4):
                at = x + rng.uniform(0, width)
                draw_tree(rng, canvas, at, z + rng.uniform(1, 10), float(rng.uniform(5, 12)))
            if kind < 0.8:
                _draw_wall(rng, canvas, face, width, canvas.view.facing(0))
            else:
                _draw_fence(rng, canvas, face, width, canvas.view.facing(0))
        x += width
