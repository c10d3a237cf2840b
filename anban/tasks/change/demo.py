"""Generated pairs of aerial-like pictures for change detection, to try and test with no download.

A scene is a small piece of ground at about 0.5 m a pixel: terrain, fields, roads, trees, buildings. It is
drawn twice, as an earlier date A and a later date B, from one colour map and one height map a date;
sunlight on the height map gives the roof planes, the crowns and every cast shadow.

What counts as change: the footprint (the outline of the roof seen from straight above) of a building that
stands at one date and not at the other, appeared or vanished, and nothing else. The label lies in the frame
of date B.

What does not count, though it changes many more pixels: season, light and white balance, direction, length
and depth of shadows, misregistration of date A (half-pixel steps, up to 2 px), blur and sensor noise, trees
that grow, are felled or planted, cars, resurfaced roads, repainted roofs, cleared or paved plots, and the
garden and driveway of a new building. A roof partly under a tree is labelled whole; a building that stays
is never extended or rebuilt.

The layout on disk is that of LEVIR-CD (Chen and Shi, "A Spatial-Temporal Attention-Based Method and a New
Dataset for Remote Sensing Image Change Detection", Remote Sensing 12(10), 2020):
`{train,val,test}/{A,B,label}/*.png`. The scenes resemble aerial pictures; scores on them say nothing about
real ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anban.data.generated import write_generated
from anban.errors import InputError

Array = NDArray[Any]
Colour = tuple[float, float, float]

# Raise it with every edit that changes a pixel, so that folders written before are written anew.
VERSION = 1
SPLITS = ("train", "val", "test")
FOLDERS = ("A", "B", "label")

# Everything is drawn SCALE times finer and averaged down: smooth edges, and shifts in steps of 1 / SCALE px.
SCALE = 2
# Ground drawn around the frame, px: room for the registration shift and for shadows and crowns that reach in.
MARGIN = 6
MAX_SHIFT = 2.0
STRONGEST = 2.0
# Buildings are counted per square of this side, px.
UNIT = 128

ROOFS: tuple[Colour, ...] = (
    (104, 96, 88),
    (88, 84, 82),
    (124, 112, 100),
    (112, 104, 104),
    (138, 98, 80),
    (154, 148, 140),
    (96, 98, 108),
    (126, 118, 94),
    (100, 102, 84),
)
FLAT_ROOFS: tuple[Colour, ...] = (
    (186, 184, 178),
    (150, 150, 148),
    (120, 120, 122),
    (206, 204, 198),
    (140, 150, 156),
)
CARS: tuple[Colour, ...] = ((214, 214, 212), (52, 54, 58), (130, 132, 136), (132, 44, 40), (54, 70, 110))
GRASS: Colour = (84, 98, 60)
DRY_GRASS: Colour = (136, 124, 96)
SOIL: Colour = (148, 130, 106)
LEAVES: Colour = (56, 74, 44)
BARE_TREES: Colour = (104, 98, 84)
CONCRETE: Colour = (176, 170, 158)


@dataclass(frozen=True)
class SceneSettings:
    """What scenes hold. The last eight are nuisances, given as strengths: 0 is off, 1 usual, 2 the most.

    With every strength at 0 the dates differ by buildings (with their gardens and driveways) only, and a pair
    without change is one picture twice.

    Args:
        size: side of the square pictures, px, at least 32.
        buildings: fewest and most buildings per 128 x 128 px (fewer where they do not fit).
        unchanged: share of pairs in which no building changes, 0..1.
        appear: in the other pairs, share of buildings that stand at date B only, 0..1.
        vanish: in the other pairs, share of buildings that stand at date A only; `appear` + `vanish` <= 1.
        clustered: share of the other pairs in which the buildings of one side all change together, 0..1.
        season: colours of grass, fields and leaves differ.
        light: gain, gamma, haze, white balance and clouds before the sun differ.
        shift: date A is moved, up to 2 px along each axis at 1.
        noise: blur and sensor noise.
        trees: trees and scrub grow, are felled and planted.
        cars: how many cars, elsewhere at each date.
        shadows: the sun stands elsewhere; at 0 it stands in one place and still casts shadows.
        surfaces: roads resurfaced, roofs repainted, plots cleared or paved.

    Raises:
        InputError: a value outside its range.
    """

    size: int = 128
    buildings: tuple[int, int] = (4, 10)
    unchanged: float = 0.15
    appear: float = 0.4
    vanish: float = 0.12
    clustered: float = 0.35
    season: float = 1.0
    light: float = 1.0
    shift: float = 1.0
    noise: float = 1.0
    trees: float = 1.0
    cars: float = 1.0
    shadows: float = 1.0
    surfaces: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 32:
            raise InputError(f"size is {self.size}", where="SceneSettings.size", expected="at least 32 px")
        if not 0 <= self.buildings[0] <= self.buildings[1]:
            raise InputError(
                f"buildings is {self.buildings}",
                where="SceneSettings.buildings",
                expected="0 <= fewest <= most",
            )
        for name in ("unchanged", "appear", "vanish", "clustered"):
            self._check(name, 1.0)
        for name in ("season", "light", "shift", "noise", "trees", "cars", "shadows", "surfaces"):
            self._check(name, STRONGEST)
        if self.appear + self.vanish > 1:
            raise InputError(
                f"appear + vanish is {self.appear + self.vanish:g}",
                where="SceneSettings",
                expected="at most 1: a building does one or the other",
            )

    def _check(self, name: str, most: float) -> None:
        value = getattr(self, name)
        if not 0 <= value <= most:
            raise InputError(f"{name} is {value}", where=f"SceneSettings.{name}", expected=f"0 to {most:g}")


# Sizes, rates and colours below are set by eye against LEVIR-CD; those a study may want to vary are settings.

# --- what a scene holds ------------------------------------------------------------


@dataclass(frozen=True)
class _Road:
    """A circular road through `point`, and maybe a straight one across it there; px, radians."""

    point: tuple[float, float]
    centre: tuple[float, float]
    radius: float
    half: float
    crossing: bool


@dataclass(frozen=True)
class _Building:
    """`wings`: (centre along, centre across, half length, half width) in the building's own axes; px.

    `walls` is the height of the eaves, `colours` the roof at each date, `drive` how far the driveway reaches.
    """

    x: float
    y: float
    angle: float
    wings: tuple[tuple[float, float, float, float], ...]
    roof: str
    walls: float
    colours: tuple[Colour, Colour]
    drive: float
    dates: tuple[bool, bool] = (True, True)

    @property
    def reach(self) -> float:
        """Radius of a circle around (x, y) that holds the building."""
        return max(math.hypot(abs(u) + a, abs(v) + b) for u, v, a, b in self.wings)


@dataclass(frozen=True)
class _Footprint:
    """A building on the fine grid: where, which pixels, how high (px)."""

    window: tuple[slice, slice]
    inside: Array
    height: Array


@dataclass(frozen=True)
class _Tree:
    """Radius (0: not there) at each date and sway of date A, px; tone of the leaves -1..1; whether shed."""

    x: float
    y: float
    radii: tuple[float, float]
    sway: tuple[float, float]
    tone: float
    sheds: bool


@dataclass(frozen=True)
class _Plot:
    """Flat ground without its grass: a slab or a yard with sharp edges if `paved`, else bare soil; px."""

    x: float
    y: float
    angle: float
    half_length: float
    half_width: float
    colour: Colour
    paved: bool
    dates: tuple[bool, bool]


@dataclass(frozen=True)
class _Surfaces:
    """Colour of the roads at each date, whether they have kerbs and a painted middle line, and the plots."""

    roads: tuple[Colour, Colour]
    kerbs: bool
    marked: bool
    plots: tuple[_Plot, ...]


class _Grid:
    """The fine grid: `n` x `n` pixels, `x` and `y` their centres in px of the frame (so from -MARGIN on)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.n = SCALE * (size + 2 * MARGIN)
        axis = (np.arange(self.n, dtype=np.float32) + 0.5) / SCALE - MARGIN
        self.x, self.y = axis[None, :], axis[:, None]

    def window(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """The pixels within `reach` px of (x, y) along both axes; may be empty."""

        def span(at: float) -> slice:
            first, last = ((at + sign * reach + MARGIN) * SCALE for sign in (-1, 1))
            return slice(max(0, math.floor(first)), max(0, min(self.n, math.ceil(last))))

        return span(y), span(x)

    def local(self, window: tuple[slice, slice], x: float, y: float, angle: float) -> tuple[Array, Array]:
        """Coordinates along and across an axis at `angle` through (x, y), px, over the window."""
        dy, dx = self.y[window[0]] - np.float32(y), self.x[:, window[1]] - np.float32(x)
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        return dx * cos + dy * sin, dy * cos - dx * sin


def _noise(rng: np.random.Generator, n: int, coarsest: float, finest: float, roughness: float) -> Array:
    """(n, n) float32 of mean 0 and deviation 1, with detail from `coarsest` to `finest` px across.

    Noise doubled in size and refined by weaker noise half as large, repeated.
    """
    side, gain, most = max(2, round(n / (SCALE * coarsest))), 1.0, n / (SCALE * finest)
    field = rng.standard_normal((side, side), dtype=np.float32)
    while 2 * side <= most:
        side, gain = 2 * side, gain * roughness
        field = _resize(field, side) + np.float32(gain) * rng.standard_normal((side, side), dtype=np.float32)
    field = (field - field.mean()) / field.std()
    return field if side == n else _resize(field, n)


def _resize(field: Array, side: int) -> Array:
    return np.asarray(Image.fromarray(field).resize((side, side), Image.Resampling.BICUBIC))


def _plan_road(rng: np.random.Generator, size: int) -> _Road:
    x, y = rng.uniform(0.25, 0.75, 2) * size
    radius, heading = rng.uniform(0.6, 5.0) * UNIT, rng.uniform(0, 2 * math.pi)
    centre = (x - radius * math.cos(heading), y - radius * math.sin(heading))
    return _Road((x, y), centre, radius, rng.uniform(4.0, 7.0), bool(rng.random() < 0.35))


def _road_distances(road: _Road, x: Any, y: Any) -> tuple[Any, Any]:
    """Distance (px) to the middle of the circular road and of the crossing one."""
    (px, py), (cx, cy) = road.point, road.centre
    ring = np.abs(np.hypot(x - np.float32(cx), y - np.float32(cy)) - np.float32(road.radius))
    # The crossing road runs along the circle's radius, so the tangent measures the distance from it.
    tx, ty = -(py - cy) / road.radius, (px - cx) / road.radius
    return ring, np.abs((x - np.float32(px)) * np.float32(tx) + (y - np.float32(py)) * np.float32(ty))


def _plan_buildings(rng: np.random.Generator, road: _Road, settings: SceneSettings) -> list[_Building]:
    """Buildings along the road first, then anywhere; none on a road, none on another."""
    size = settings.size
    low, high = (round(count * (size / UNIT) ** 2) for count in settings.buildings)
    wanted = int(rng.integers(low, high + 1))
    large = rng.random() < 0.15
    flat_share, main_roof = (0.8, None) if large else (0.08, ROOFS[rng.integers(len(ROOFS))])
    start = math.atan2(road.point[1] - road.centre[1], road.point[0] - road.centre[0])
    slots = [(s, side) for s in np.arange(-size, size, 36.0 if large else 25.0) for side in (-1, 1)]
    order = rng.permutation(len(slots))
    buildings: list[_Building] = []
    for turn in range(len(slots) + 6 * wanted):
        if len(buildings) >= wanted:
            break
        length, width = (
            (rng.uniform(11, 21), rng.uniform(8, 13)) if large else (rng.uniform(7, 11), rng.uniform(5.5, 8))
        )
        drive = 0.0
        if turn < len(slots):
            along, side = slots[order[turn]]
            setback = road.half + rng.uniform(4, 11)
            at = start + (along + rng.uniform(-3, 3)) / road.radius
            out = road.radius + side * (setback + width)
            x, y = road.centre[0] + out * math.cos(at), road.centre[1] + out * math.sin(at)
            # Turned so that the building's own "across" axis points to the road.
            angle = at + (math.pi / 2 if side > 0 else -math.pi / 2) + rng.normal(0, 0.08)
            drive = setback - road.half + width
        else:
            x, y = rng.uniform(0, size, 2)
            angle = rng.uniform(0, math.pi)
        wings = [(0.0, 0.0, length, width)]
        if rng.random() < 0.65:
            sign, half = rng.choice((-1.0, 1.0)), length * rng.uniform(0.3, 0.5)
            wings.append(
                (sign * (length - half), rng.uniform(0.3, 0.5) * width * rng.choice((-1.0, 1.0)), half, width)
            )
        flat = rng.random() < flat_share
        palette = FLAT_ROOFS if flat else ROOFS
        same = main_roof is not None and not flat and rng.random() < 0.6
        first, second = (
            _tint(rng, main_roof if same and main_roof else palette[rng.integers(len(palette))]) for _ in "ab"
        )
        repainted = rng.random() < 0.25 * settings.surfaces
        new = _Building(
            float(x),
            float(y),
            float(angle),
            tuple(wings),
            "flat" if flat else ("hip" if rng.random() < 0.6 else "gable"),
            rng.uniform(5, 11) if large else rng.uniform(4.5, 8),
            (second if repainted else first, first),
            drive,
        )
        ring, crossing = _road_distances(road, x, y)
        clear = road.half + 2 + width
        if not (0 <= x < size and 0 <= y < size) or ring < clear or (road.crossing and crossing < clear):
            continue
        if any(math.hypot(x - o.x, y - o.y) < 0.8 * (new.reach + o.reach) for o in buildings):
            continue
        buildings.append(new)
    return buildings


def _tint(rng: np.random.Generator, colour: Colour) -> Colour:
    red, green, blue = np.asarray(colour) + rng.normal(0, 10) + rng.normal(0, 3, 3)
    return (float(red), float(green), float(blue))


def _plan_change(
    rng: np.random.Generator, buildings: Sequence[_Building], settings: SceneSettings
) -> list[_Building]:
    """The same buildings with the dates at which they stand."""
    appear, vanish = settings.appear, settings.vanish
    unchanged, clustered = rng.random() < settings.unchanged, rng.random() < settings.clustered
    growing = rng.random() * (appear + vanish) < appear
    heading, middle = rng.uniform(0, 2 * math.pi), settings.size * rng.uniform(0.3, 0.7, 2)
    draws = rng.random(len(buildings))
    if unchanged or appear + vanish == 0 or not buildings:
        return list(buildings)
    new, gone = (False, True), (True, False)
    all_dates = [new if d < appear else gone if d < appear + vanish else (True, True) for d in draws]
    if clustered:
        for i, b in enumerate(buildings):
            near = (b.x - middle[0]) * math.cos(heading) + (b.y - middle[1]) * math.sin(heading) > 0
            all_dates[i] = (new if growing else gone) if near else (True, True)
    if all(dates == (True, True) for dates in all_dates):
        all_dates[int(draws.argmin())] = new if growing else gone
    return [replace(b, dates=dates) for b, dates in zip(buildings, all_dates, strict=True)]


def _plan_trees(rng: np.random.Generator, road: _Road, settings: SceneSettings) -> list[_Tree]:
    size, trees = settings.size, []
    count = int(rng.uniform(6, 60) * (size / UNIT) ** 2)
    big = rng.uniform(0.8, 1.4)
    for _ in range(count):
        x, y = rng.uniform(-MARGIN, size + MARGIN, 2)
        radius = big * (2.2 + 3.5 * rng.random() ** 2)
        growth, fate, sway = 0.4 * rng.random(), rng.random(), rng.normal(0, 0.4, 2) * settings.trees
        tone, sheds = rng.uniform(-1, 1), bool(rng.random() < 0.4)
        ring, crossing = _road_distances(road, x, y)
        if ring < road.half + 1.5 or (road.crossing and crossing < road.half + 1.5):
            continue
        early = radius * (1 - min(1.0, settings.trees * growth))
        radii = (early, radius)
        if fate < 0.12 * settings.trees:
            radii = (0.0, radius) if fate < 0.06 * settings.trees else (early, 0.0)
        trees.append(_Tree(float(x), float(y), radii, (float(sway[0]), float(sway[1])), float(tone), sheds))
    return trees


def _plan_surfaces(rng: np.random.Generator, settings: SceneSettings) -> _Surfaces:
    def asphalt() -> Colour:
        grey = rng.uniform(88, 166)
        return (grey + 2, grey, grey - 4)

    strength = settings.surfaces
    later, other, resurfaced = asphalt(), asphalt(), rng.random() < 0.5 * strength
    kerbs, marked = bool(rng.random() < 0.5), bool(rng.random() < 0.35)
    plots = []
    for _ in range(int(rng.poisson(3.5 * (settings.size / UNIT) ** 2))):
        x, y = rng.uniform(0, settings.size, 2)
        paved, grounds = (
            rng.random() < 0.6,
            (CONCRETE, (118, 114, 110), FLAT_ROOFS[rng.integers(len(FLAT_ROOFS))]),
        )
        colour = _tint(rng, grounds[rng.integers(3)] if paved else SOIL)
        half_length, half_width = rng.uniform(6, 14), rng.uniform(5, 9)
        fate, early = rng.random(), bool(rng.random() < 0.35)
        dates = (early, not early) if fate < 0.6 * strength else (True, True)
        plots.append(
            _Plot(float(x), float(y), rng.uniform(0, math.pi), half_length, half_width, colour, paved, dates)
        )
    return _Surfaces((other if resurfaced else later, later), kerbs, marked, tuple(plots))


def _raise_building(grid: _Grid, building: _Building) -> _Footprint:
    window = grid.window(building.x, building.y, building.reach + 1)
    along, across = grid.local(window, building.x, building.y, building.angle)
    height = np.zeros(along.shape, np.float32)
    for u, v, half_length, half_width in building.wings:
        ends, sides = half_length - np.abs(along - np.float32(u)), half_width - np.abs(across - np.float32(v))
        depth = np.minimum(ends, sides)
        # A wing narrower than long has its ridge along its length; a gable slopes to the two long sides only.
        short = sides if half_width <= half_length else ends
        slope = {"hip": 0.55 * depth, "gable": 0.55 * short, "flat": 0.0 * depth}[building.roof]
        height = np.maximum(height, np.where(depth > 0, building.walls + slope, 0))
    return _Footprint(window, height > 0, height)


class _Terrain:
    """What the ground is made of at both dates."""

    def __init__(self, rng: np.random.Generator, grid: _Grid) -> None:
        self.cover = _noise(rng, grid.n, coarsest=40, finest=2, roughness=0.62)
        self.patches = _noise(rng, grid.n, coarsest=16, finest=1, roughness=0.75)
        self.detail = _noise(rng, grid.n, coarsest=4, finest=0.7, roughness=0.9)
        self.wood = _noise(rng, grid.n, coarsest=18, finest=1, roughness=0.62)
        self.barren = rng.uniform(-1.2, 0.6)
        self.green = rng.uniform(0.25, 0.75)
        self.wooded = rng.uniform(0.6, 2.8)
        self.farmed = rng.random() < 0.2
        angle, width = rng.uniform(0, math.pi), rng.uniform(28, 60)
        everything = (slice(None), slice(None))
        along, across = grid.local(everything, grid.size / 2, grid.size / 2, angle)
        self.fields = ((along / np.float32(width)).astype(np.int32) + (along > 0)) % 8
        self.furrows = np.sin(across * np.float32(rng.uniform(1.0, 1.8))) * np.float32(rng.uniform(2, 5))
        self.crops = rng.random(8)


@dataclass(frozen=True)
class _Scene:
    """All that both dates are drawn from."""

    settings: SceneSettings
    grid: _Grid
    terrain: _Terrain
    road: _Road
    buildings: Sequence[tuple[_Building, _Footprint]]
    trees: Sequence[_Tree]
    surfaces: _Surfaces


# --- drawing one date ------------------------------------------------------------


def _blend(
    image: Array, share: Array | float, colour: Any, window: tuple[slice, slice] | None = None
) -> None:
    """Move `image` (3, n, n) towards a colour (or a picture) by `share` (n, n), 0..1, in place."""
    part = image if window is None else image[(slice(None), *window)]
    target = np.asarray(colour, np.float32)
    part += share * ((target[:, None, None] if target.ndim == 1 else target) - part)


def _mix(first: Colour, second: Colour, share: float) -> Array:
    return np.asarray(first, np.float32) * (1 - share) + np.asarray(second, np.float32) * share


def _edge(distance: Array, softness: float = 0.5) -> Array:
    """1 where `distance` (px, positive inside) is well inside, 0 well outside."""
    return np.clip(distance / np.float32(2 * softness) + np.float32(0.5), 0, 1)


def _draw_ground(rng: np.random.Generator, scene: _Scene) -> tuple[Array, float]:
    """Ground (3, n, n), and how green the date is, 0..1."""
    terrain, season, n = scene.terrain, scene.settings.season, scene.grid.n
    green = float(np.clip(terrain.green + 0.45 * season * rng.uniform(-1, 1), 0, 1))
    crops = np.clip(terrain.crops + season * rng.uniform(-0.6, 0.6, len(terrain.crops)), 0, 1)
    weather = _noise(rng, n, coarsest=36, finest=4, roughness=0.5)
    cover = (
        terrain.cover
        + 0.5 * terrain.patches
        + np.float32(0.35 * season) * weather
        - np.float32(terrain.barren)
    )
    ground = np.empty((3, n, n), np.float32)
    ground[:] = np.asarray(SOIL, np.float32)[:, None, None]
    _blend(ground, np.clip(0.5 + 0.35 * cover, 0, 1), _mix(DRY_GRASS, GRASS, green))
    if terrain.farmed:
        tones = np.stack([_mix(SOIL, GRASS, float(c)) for c in crops], 1)
        _blend(ground, 0.8, tones[:, terrain.fields] + terrain.furrows)
    ground += 9 * terrain.patches + 7 * terrain.detail
    return ground, green


def _draw_date(rng: np.random.Generator, date: int, scene: _Scene) -> tuple[Array, Array]:
    """Colours (3, n, n) 0..255 before the light falls on them, and heights (n, n) in px."""
    # A stream each, so that the number of cars does not move the trees.
    weather, traffic, growth = rng.spawn(3)
    grid, terrain, road, surfaces = scene.grid, scene.terrain, scene.road, scene.surfaces
    image, green = _draw_ground(weather, scene)
    height = np.zeros((grid.n, grid.n), np.float32)
    standing = [(b, f) for b, f in scene.buildings if b.dates[date]]
    felled = np.zeros((grid.n, grid.n), bool)

    for plot in surfaces.plots:
        if plot.dates[date]:
            window = grid.window(plot.x, plot.y, math.hypot(plot.half_length, plot.half_width) + 2)
            along, across = grid.local(window, plot.x, plot.y, plot.angle)
            inside = np.minimum(plot.half_length - np.abs(along), plot.half_width - np.abs(across))
            ragged = 0.0 if plot.paved else 1.5
            _blend(
                image,
                (0.9 if plot.paved else 0.75) * _edge(inside + ragged * terrain.detail[window]),
                plot.colour,
                window,
            )
            felled[window] |= inside > 0
    for b, _ in standing:
        window = grid.window(b.x, b.y, b.reach + 8)
        along, across = grid.local(window, b.x, b.y, b.angle)
        garden = b.reach + 4 - np.maximum(np.abs(along), np.abs(across)) + 2 * terrain.patches[window]
        _blend(image, 0.55 * _edge(garden, 2.0), _mix(DRY_GRASS, GRASS, min(1.0, green + 0.25)), window)
        felled[window] |= garden > 3

    ring, crossing = _road_distances(road, grid.x, grid.y)
    middle = np.minimum(ring, crossing) if road.crossing else ring
    _blend(image, 0.8 * _edge(road.half + 2.2 - middle), CONCRETE if surfaces.kerbs else SOIL)
    for b, _ in standing:
        if b.drive:
            u = b.wings[-1][0]
            window = grid.window(b.x, b.y, b.drive + b.reach)
            along, across = grid.local(window, b.x, b.y, b.angle)
            lane = np.minimum(2.6 - np.abs(along - np.float32(u)), np.minimum(across, b.drive + 1 - across))
            _blend(image, _edge(lane), CONCRETE, window)
    paved = _edge(road.half - middle)
    _blend(image, paved, surfaces.roads[date])
    if surfaces.marked:
        _blend(image, 0.6 * _edge(0.35 - ring, 0.3), (206, 200, 178))
    image += (0.4 * paved) * (4 * terrain.detail)

    for b, f in standing:
        part = image[(slice(None), *f.window)]
        texture = 3.5 * terrain.detail[f.window] + 2 * terrain.patches[f.window]
        part[:, f.inside] = np.asarray(b.colours[date], np.float32)[:, None] + texture[f.inside]
        np.maximum(height[f.window], f.height, out=height[f.window])

    for x, y, angle, colour in _park_cars(traffic, scene, [b for b, _ in standing]):
        window = grid.window(x, y, 6)
        along, across = grid.local(window, x, y, angle)
        inside = np.minimum(4.2 - np.abs(along), 1.9 - np.abs(across)) > 0
        glass = inside & (np.abs(along - 0.6) < 2.4) & (np.abs(along - 0.4) > 1.2)
        part = image[(slice(None), *window)]
        part[:, inside] = np.asarray(colour, np.float32)[:, None]
        part[:, glass] *= np.float32(0.45)
        np.maximum(height[window], np.where(inside, np.float32(2.5), 0), out=height[window])

    felled |= (middle < road.half + 2) | (height > 0)
    _plant(growth, date, scene, image, height, felled, green)
    return image, height


def _plant(
    rng: np.random.Generator,
    date: int,
    scene: _Scene,
    image: Array,
    height: Array,
    felled: Array,
    green: float,
) -> None:
    """Scrub (where nothing is `felled`) and trees, onto the picture and the heights, in place."""
    grid, terrain = scene.grid, scene.terrain
    wooded = terrain.wooded - 0.25 * scene.settings.trees * rng.uniform(-1, 1)
    crown = np.clip(2.2 * (terrain.wood - np.float32(wooded - 1)), 0, 4) * ~felled
    tone = np.clip(0.5 * terrain.cover, -1, 1)
    bare = np.zeros_like(crown)
    for tree in scene.trees:
        radius, (sx, sy) = tree.radii[date], tree.sway if date == 0 else (0.0, 0.0)
        x, y = tree.x + sx, tree.y + sy
        row, column = (int((at + MARGIN) * SCALE) for at in (tree.y, tree.x))
        inside = 0 <= row < grid.n and 0 <= column < grid.n
        if radius <= 0 or not inside or height[row, column] > 3:
            continue
        window = grid.window(x, y, 1.4 * radius)
        away = np.hypot(grid.x[:, window[1]] - np.float32(x), grid.y[window[0]] - np.float32(y))
        away = away * (1 + 0.13 * terrain.patches[window]) / np.float32(radius)
        dome = np.where(away < 1, radius * (0.6 + 0.9 * np.sqrt(np.clip(1 - away * away, 0, 1))), 0)
        taller = dome > crown[window]
        crown[window][taller] = dome[taller]
        tone[window][taller] = tree.tone
        bare[window][taller] = (1 - green) if tree.sheds else 0.15 * (1 - green)
    over = crown > height
    leaves = np.asarray((9, 10, 6), np.float32)[:, None, None] * tone
    leaves += np.asarray(LEAVES, np.float32)[:, None, None]
    leaves += bare * (np.asarray(BARE_TREES, np.float32)[:, None, None] - leaves)
    leaves += 5 * terrain.detail
    _blend(image, over * (0.95 - 0.35 * bare), leaves)
    # Bumps on the crown: the sun then lights leaves instead of a smooth ball.
    np.copyto(height, crown + np.clip(0.7 * terrain.detail, -1, 1), where=over)


def _park_cars(
    rng: np.random.Generator, scene: _Scene, buildings: Sequence[_Building]
) -> list[tuple[float, float, float, Colour]]:
    """(x, y, heading, colour) of cars on the roads and on driveways."""
    cars, road, settings = [], scene.road, scene.settings
    start = math.atan2(road.point[1] - road.centre[1], road.point[0] - road.centre[0])
    for _ in range(int(rng.poisson(1.8 * settings.cars * settings.size / UNIT))):
        at = start + rng.uniform(-0.8, 0.8) * settings.size / road.radius
        out = road.radius + rng.choice((-1, 1)) * (road.half - 2.2)
        x, y = road.centre[0] + out * math.cos(at), road.centre[1] + out * math.sin(at)
        cars.append((x, y, at + math.pi / 2))
    for b in buildings:
        if b.drive and rng.random() < 0.3 * settings.cars:
            u, v = b.wings[-1][0], b.drive - 4.5
            x = b.x + u * math.cos(b.angle) - v * math.sin(b.angle)
            y = b.y + u * math.sin(b.angle) + v * math.cos(b.angle)
            cars.append((x, y, b.angle + math.pi / 2))
    return [(x, y, angle, CARS[rng.integers(len(CARS))]) for x, y, angle in cars]


# --- light and camera ------------------------------------------------------------


@dataclass(frozen=True)
class _Sun:
    """Where it stands (radians) and how much of its light the clouds let through, 0..1."""

    azimuth: float
    elevation: float
    clear: float


def _light(image: Array, height: Array, sun: _Sun) -> None:
    """Sunlight, onto the picture in place: slopes by how they face it, shadows where it is hidden."""
    sx, sy = math.cos(sun.azimuth), math.sin(sun.azimuth)
    gy, gx = (np.clip(SCALE * slope, -1, 1) for slope in np.gradient(height))
    shade = 1 - np.float32(0.33 * sun.clear) * (gx * np.float32(sx) + gy * np.float32(sy))
    # A point is in shadow when, walking towards the sun, something rises above the ray; `horizon` is how
    # high a point must lie for its ray to clear everything.
    rise = math.tan(sun.elevation)
    reach = float(height.max()) / rise
    pad = SCALE * (math.ceil(reach) + 1)
    wide = np.pad(height, pad)
    n = height.shape[0]
    horizon = np.zeros_like(height)
    for step in range(1, math.ceil(reach) + 1):
        dx, dy = (round(SCALE * step * s) for s in (sx, sy))
        seen = wide[pad + dy : pad + dy + n, pad + dx : pad + dx + n] - np.float32(step * rise)
        np.maximum(horizon, seen, out=horizon)
    shadow = np.float32(0.62 * sun.clear) * np.clip(horizon - height, 0, 1)
    # What is left in a shadow is skylight, which is blue.
    for channel, left in zip(image, (0.32, 0.36, 0.46), strict=True):
        channel *= shade * (1 - np.float32(1 - left) * shadow)


def _shrink(fine: Array) -> Array:
    """Means over SCALE x SCALE pixels of the last two axes."""
    parts = [fine[..., i::SCALE, j::SCALE] for i in range(SCALE) for j in range(SCALE)]
    return np.asarray(sum(parts[1:], parts[0]) / np.float32(SCALE**2))


def _photograph(
    rng: np.random.Generator, image: Array, settings: SceneSettings, shift: tuple[float, float]
) -> Array:
    """The (size, size, 3) uint8 picture of a lit (3, n, n) one, moved by `shift` (x, y) px."""
    blur = 0.12 * min(1.0, settings.noise) * rng.random() + 0.04
    gains = 1 + settings.light * (0.14 * rng.uniform(-1, 1) + 0.05 * rng.uniform(-1, 1, 3))
    gamma = 1 + 0.18 * settings.light * rng.uniform(-1, 1)
    haze = 14 * settings.light * rng.random()
    grain = settings.noise * rng.uniform(1.5, 5)
    size = settings.size
    left, top = (SCALE * (MARGIN - 1) - round(SCALE * s) for s in shift)
    span = SCALE * (size + 2)
    crop = image[:, top : top + span, left : left + span]
    small = _shrink(crop)
    for rows in (True, False):
        first, middle, last = (
            (small[:, :-2], small[:, 1:-1], small[:, 2:])
            if rows
            else (small[..., :-2], small[..., 1:-1], small[..., 2:])
        )
        small = np.float32(blur) * (first + last) + np.float32(1 - 2 * blur) * middle
    tone = 255 * np.clip(small / 255, 0, 1) ** np.float32(gamma)
    tone = tone * gains.astype(np.float32)[:, None, None] * np.float32(1 - haze / 255) + np.float32(haze)
    tone += np.float32(grain) * rng.standard_normal(tone.shape, dtype=np.float32)
    return np.ascontiguousarray(np.clip(np.rint(tone), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def make_scene(seed: int, settings: SceneSettings | None = None) -> tuple[Array, Array, Array]:
    """One pair: a pure function of its arguments.

    Args:
        seed: any whole number from 0 on; each gives another scene.
        settings: what scenes hold; None for the usual.

    Returns:
        Date A and date B, (size, size, 3) uint8 RGB each, and the label, (size, size) uint8: 255 where a
        building stands at one date only (in the frame of B), 0 elsewhere.
    """
    settings = settings or SceneSettings()
    # A stream for each part: switching one nuisance off leaves the draws of the others as they were.
    layout, change, ground, plants, works, sky, *dates = (
        np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(8)
    )
    grid, road = _Grid(settings.size), _plan_road(layout, settings.size)
    buildings = _plan_change(change, _plan_buildings(layout, road, settings), settings)
    scene = _Scene(
        settings,
        grid,
        _Terrain(ground, grid),
        road,
        [(b, _raise_building(grid, b)) for b in buildings],
        _plan_trees(plants, road, settings),
        _plan_surfaces(works, settings),
    )
    azimuth, elevation = sky.uniform(0, 2 * math.pi), sky.uniform(0.65, 1.05)
    turn, lift = settings.shadows * sky.uniform(-1, 1, 2)
    clear = 1 - min(1.0, settings.light) * 0.65 * sky.random(2) ** 2
    suns = (
        _Sun(azimuth + 1.2 * turn, float(np.clip(elevation + 0.25 * lift, 0.6, 1.2)), clear[0]),
        _Sun(azimuth, elevation, clear[1]),
    )
    x, y = np.clip(settings.shift * MAX_SHIFT * sky.uniform(-1, 1, 2), 1 - MARGIN, MARGIN - 1)
    shifts = ((float(x), float(y)), (0.0, 0.0))

    pictures = []
    for date, rng in enumerate(dates):
        image, height = _draw_date(rng, date, scene)
        _light(image, height, suns[date])
        pictures.append(_photograph(rng, image, settings, shifts[date]))

    # Roofs may touch: what counts is whether any building covers a point, at one date and not at the other.
    built = np.zeros((2, grid.n, grid.n), bool)
    for building, footprint in scene.buildings:
        for standing in np.flatnonzero(building.dates):
            built[standing][footprint.window] |= footprint.inside
    changed = (built[0] != built[1]).astype(np.float32)
    edge = SCALE * MARGIN
    inner = _shrink(changed[edge:-edge, edge:-edge])
    return pictures[0], pictures[1], np.where(inner >= 0.5, np.uint8(255), np.uint8(0))


# --- the folder ------------------------------------------------------------


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of one pair; no two of (seed, split, index) share one (`index` below 2**32)."""
    return ((seed * len(SPLITS) + SPLITS.index(split)) << 32) + index


def write_demo(
    root: Path,
    *,
    train: int = 64,
    val: int = 16,
    test: int = 32,
    size: int | None = None,
    seed: int = 0,
    settings: SceneSettings | None = None,
) -> Path:
    """Write a small data set, `root/{train,val,test}/{A,B,label}/<split>_<index>.png`, and `root/demo.json`.

    The folder appears complete or not at all. If it is there already with the same numbers, nothing is
    written; with other numbers (or pictures missing) it is replaced, as long as it holds nothing but such
    pictures.

    Args:
        root: the folder to write; its parents are made.
        train, val, test: pairs in each split, 0 or more.
        size: side of the pictures, px; None: as in `settings`.
        seed: from 0 on; the splits never share a scene, nor do two seeds.
        settings: what scenes hold; None for the usual.

    Returns:
        `root`.

    Raises:
        InputError: `root` is a file, or a folder with anything else in it; a count or the seed is below 0.
    """
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    for name, value in (*counts.items(), ("seed", seed)):
        if value < 0:
            raise InputError(f"{name} is {value}", where=f"write_demo, {name}", expected="0 or more")
    settings = settings or SceneSettings()
    settings = settings if size is None else replace(settings, size=size)

    def files(job: tuple[str, int]) -> list[str]:
        split, index = job
        return [f"{split}/{folder}/{split}_{index:04d}.png" for folder in FOLDERS]

    def write(job: tuple[str, int], paths: Sequence[Path]) -> None:
        for pixels, path in zip(make_scene(scene_seed(seed, *job), settings), paths, strict=True):
            Image.fromarray(pixels).save(path, compress_level=4)

    return write_generated(
        Path(root),
        {"version": VERSION, "seed": seed, "splits": counts, "settings": asdict(settings)},
        [f"{split}/{folder}" for split in SPLITS for folder in FOLDERS],
        [(split, index) for split in SPLITS for index in range(counts[split])],
        files,
        write,
    )


if __name__ == "__main__":  # python -m anban.tasks.change.demo FOLDER
    import sys

    if len(sys.argv) != 2:
        sys.exit("usage: python -m anban.tasks.change.demo FOLDER")
    print(write_demo(Path(sys.argv[1])))
