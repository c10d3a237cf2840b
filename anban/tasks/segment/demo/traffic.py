"""What drives: cycles with and without riders, cars, trucks, buses, trams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anban.tasks.segment.demo.canvas import (
    CLOTHES,
    GLASS,
    METAL,
    PAINTS,
    TYRE,
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
from anban.tasks.segment.demo.sidewalk import draw_trunk


def draw_cycle(
    rng: Rng,
    canvas: Canvas,
    x: float,
    z: float,
    floor: Colour,
    *,
    motor: bool = False,
    ridden: bool = False,
) -> None:
    """A bicycle or motorcycle, turned from the side towards an end, alone or with a rider."""
    turn = rng.choice((-1, 1)) * (rng.uniform(0.5, 1) if rng.random() < 0.7 else rng.uniform(0.15, 0.3))
    name, radius = ("motorcycle", 0.3) if motor else ("bicycle", 0.34)
    frame = pick(rng, PAINTS)
    back, front = x - 0.55 * turn, x + 0.55 * turn
    canvas.polygon(ground(x - 0.8 * abs(turn), x + 0.8 * abs(turn), z - 0.2, z + 0.3), TYRE, None, 0.4)
    for wheel in (back, front):
        flat = radius * max(0.2, abs(turn))
        canvas.blob((wheel, radius, z), flat, radius, TYRE, name)
        # One looks through the spokes of a bicycle; its label is filled all the same.
        inner, seen = (0.5, METAL) if motor else (0.78, shade(floor, 0.9))
        canvas.blob((wheel, radius, z), inner * flat, inner * radius, seen, name)
    if motor:
        hull = [(-0.75, 0.6), (-0.3, 0.25), (0.3, 0.25), (0.45, 0.5),
                (0.6, 0.95), (0.35, 1.05), (0, 0.8), (-0.75, 0.85)]  # fmt: skip
        canvas.polygon([(x + turn * along, up, z) for along, up in hull], frame, name)
        canvas.polygon(upright(x - 0.2, z).patch(0, 0.4, 0.3, 0.6), shade(METAL, 0.7), name)
    saddle, bars = (x - 0.25 * turn, 0.9, z), (x + 0.45 * turn, 1.0, z)
    for start, end in (((back, radius, z), saddle), (saddle, (front, radius, z)), ((front, radius, z), bars)):
        canvas.polygon([(start[0] - 0.03, *start[1:]), (start[0] + 0.03, *start[1:]),
                        (end[0] + 0.03, *end[1:]), (end[0] - 0.03, *end[1:])], frame, name)  # fmt: skip
    canvas.polygon(upright(bars[0] - 0.25, z).patch(0, 0.5, 0.98, 1.04), frame, name)
    if ridden:
        _draw_rider(rng, canvas, x, z, turn, saddle, bars)


def _draw_rider(
    rng: Rng, canvas: Canvas, x: float, z: float, turn: float, saddle: Point, bars: Point
) -> None:
    legs, coat = pick(rng, CLOTHES), pick(rng, CLOTHES)
    lean = saddle[0] + 0.3 * turn
    for foot in (-0.1, 0.1):
        hip, pedal = saddle[0], x + 0.1 * turn + foot
        leg = [(hip - 0.1, 0.95), (hip + 0.1, 0.95), (pedal + 0.08, 0.3), (pedal - 0.06, 0.3)]
        canvas.polygon([(along, up, z) for along, up in leg], legs, "rider")
    draw_trunk(rng, canvas, (saddle[0], 0.95, z), (lean, 1.5, z), coat, "rider")
    arm = [(lean - 0.05, 1.45, z), (lean + 0.08, 1.45, z), (bars[0] + 0.05, 1.0, z), (bars[0] - 0.06, 1.0, z)]
    canvas.polygon(arm, shade(coat, 0.85), "rider")


def _disc(face: Face, along: float, up: float, radius: float) -> list[Point]:
    x, y, z = face.corner
    turns = [math.pi * i / 5 for i in range(10)]
    at = [(along + radius * math.cos(a), up + radius * math.sin(a) - y) for a in turns]
    return [(x + face.dx * s, y + t, z + face.dz * s) for s, t in at]


@dataclass(frozen=True)
class Spot:
    """The ground a vehicle takes, m, and how it stands there: along the street (towards us or away) or across it."""

    x: tuple[float, float]
    z: tuple[float, float]
    across: bool
    oncoming: bool

    @staticmethod
    def at(x: float, z: float, length: float, width: float, across: bool, oncoming: bool) -> Spot:
        wide, deep = (length, width) if across else (width, length)
        return Spot((x - wide / 2, x + wide / 2), (z, z + deep), across, oncoming)

    def meets(self, other: Spot, room: float = 0.4) -> bool:
        return all(
            a[0] - room < b[1] and b[0] - room < a[1] for a, b in ((self.x, other.x), (self.z, other.z))
        )


def _shadow(canvas: Canvas, spot: Spot) -> None:
    view = canvas.view
    reach = view.sun * 0.8 * view.clear
    left, right = min(spot.x[0], spot.x[0] - reach), max(spot.x[1], spot.x[1] - reach)
    canvas.polygon(ground(left, right, spot.z[0] - 0.2, spot.z[1]), (10, 11, 16), None, 0.6)


def _faces(spot: Spot, front: Face, flank: Face | None) -> tuple[Face | None, Face | None, float, float]:
    """The long side and the end of a vehicle as far as they are seen, and their lengths."""
    wide, deep = spot.x[1] - spot.x[0], spot.z[1] - spot.z[0]
    return (front, flank, wide, deep) if spot.across else (flank, front, deep, wide)


def _draw_wheels(
    canvas: Canvas, side: Face | None, places: Sequence[float], radius: float, name: str
) -> None:
    if side is None:
        return
    for along in places:
        canvas.polygon(_disc(side, along, radius, radius), TYRE, name)
        canvas.polygon(_disc(side, along, radius, 0.55 * radius), METAL, name)


def _draw_lights(canvas: Canvas, end: Face | None, width: float, up: float, spot: Spot, name: str) -> None:
    if end is None:
        return
    for left in (0.08, width - 0.42):
        colour = (236, 232, 214) if spot.oncoming else (168, 32, 30)
        canvas.polygon(end.patch(left, left + 0.34, up, up + 0.18), colour, name)


def draw_car(rng: Rng, canvas: Canvas, spot: Spot) -> None:
    paint, van = pick(rng, PAINTS), rng.random() < 0.2
    waist, roof = (1.1, 1.95) if van else (0.85, rng.uniform(1.4, 1.65))
    _shadow(canvas, spot)
    front, flank = box(canvas, spot.x, (0.22, waist), spot.z, paint, "car")
    side, end, length, width = _faces(spot, front, flank)
    _draw_wheels(canvas, side, (0.75, length - 0.8), 0.32, "car")
    if end is not None:
        for left in (0.05, width - 0.3):
            canvas.polygon(end.patch(left, left + 0.25, -0.22, 0.05), TYRE, "car")
    _draw_lights(canvas, end, width, waist - 0.5, spot, "car")
    # The cabin sits further from the bonnet than from the boot.
    boot, bonnet = (0.15, 0.7) if van else (0.5, 1.2)
    near, away = (bonnet, boot) if spot.oncoming else (boot, bonnet)
    x, z = spot.x, spot.z
    if spot.across:
        cabin, depth = (x[0] + near, x[1] - away), (z[0] + 0.1, z[1] - 0.1)
    else:
        cabin, depth = (x[0] + 0.1, x[1] - 0.1), (z[0] + near, z[1] - away)
    front, flank = box(canvas, cabin, (waist, roof), depth, paint, "car")
    inner = Spot(cabin, depth, spot.across, spot.oncoming)
    side, end, length, width = _faces(inner, front, flank)
    glass, tall = pick(rng, (GLASS, (70, 82, 94)), 6), roof - waist
    if side is not None:
        for part in range(2):
            left = 0.15 + part * length / 2
            canvas.polygon(side.patch(left, left + length / 2 - 0.25, 0.06, tall - 0.12), glass, "car")
    if end is not None:
        canvas.polygon(end.patch(0.14, width - 0.14, 0.06, tall - 0.1), glass, "car")


@dataclass(frozen=True)
class Coach:
    """A vehicle that is one long box: its class, sizes in m, rows of panes between `sill` and `lintel`."""

    name: str
    length: float
    width: float
    low: float
    high: float
    sill: float
    lintel: float
    pane: float


BUS = Coach("bus", 11, 2.5, 0.35, 3.1, 1.35, 2.4, 1.5)
TRAIN = Coach("train", 22, 2.4, 0.25, 3.4, 1.2, 2.5, 1.9)


def draw_coach(rng: Rng, canvas: Canvas, spot: Spot, coach: Coach) -> None:
    name, paint, stripe = coach.name, pick(rng, PAINTS), pick(rng, PAINTS)
    _shadow(canvas, spot)
    front, flank = box(canvas, spot.x, (coach.low, coach.high), spot.z, paint, name)
    side, end, length, width = _faces(spot, front, flank)
    sill, lintel = coach.sill - coach.low, coach.lintel - coach.low
    glass, height = pick(rng, (GLASS, (70, 82, 94)), 6), coach.high - coach.low
    if side is not None:
        canvas.polygon(side.patch(0, length, 0, 0.45), stripe, name)
        for left in np.arange(0.2, length - coach.pane, coach.pane):
            canvas.polygon(side.patch(left, left + coach.pane - 0.2, sill, lintel), glass, name)
        door = rng.uniform(1, length - 2)
        canvas.polygon(side.patch(door, door + 1.2, 0.05, lintel), shade(glass, 0.8), name)
    if end is not None:
        canvas.polygon(end.patch(0.2, width - 0.2, sill - 0.2 * spot.oncoming, lintel), glass, name)
        canvas.polygon(end.patch(0.5, width - 0.5, height - 0.45, height - 0.15), (30, 30, 30), name)
        canvas.polygon(end.patch(0, width, 0, 0.3), stripe, name)
    _draw_lights(canvas, end, width, 0.35, spot, name)
    if name == "bus":
        _draw_wheels(canvas, side, (2.2, length - 2.8), 0.45, name)
    elif side is not None:  # the joints of a tram, and the bow that reaches for the wire
        for joint in (length / 3, 2 * length / 3):
            canvas.polygon(side.patch(joint - 0.2, joint + 0.2, 0, height), (46, 46, 48), name)
        canvas.polygon(side.patch(length / 2, length / 2 + 0.15, height, height + 1.1), (50, 50, 52), name)


def draw_truck(rng: Rng, canvas: Canvas, spot: Spot) -> None:
    """A cab, and behind it a box for the goods; of the two the farther is drawn first."""
    paint, goods = pick(rng, PAINTS), pick(rng, (*PAINTS, WHITE, (120, 96, 70)))
    _shadow(canvas, spot)
    chassis = box(canvas, spot.x, (0.5, 0.95), spot.z, (44, 44, 46), "truck")
    side, _, length, _ = _faces(spot, *chassis)
    cab, gap = 1.9, 0.3
    # From the end that is nearer to us, or further left.
    parts = [(0.0, cab, True), (cab + gap, length, False)]
    if not spot.oncoming:
        parts = [(0.0, length - cab - gap, False), (length - cab, length, True)]
    for start, stop, is_cab in reversed(parts):
        x, z = spot.x, spot.z
        if spot.across:
            x = (x[0] + start, x[0] + stop)
        else:
            z = (z[0] + start, z[0] + stop)
        part = Spot(x, z, spot.across, spot.oncoming)
        faces = box(canvas, x, (0.75, 2.7 if is_cab else 3.5), z, paint if is_cab else goods, "truck")
        flank, end, long, wide = _faces(part, *faces)
        if is_cab and flank is not None:
            canvas.polygon(flank.patch(0.3, long - 0.4, 0.9, 1.7), GLASS, "truck")
        if start == 0 and end is not None:
            pane = (0.15, wide - 0.15, 0.8, 1.75) if is_cab else (wide / 2 - 0.04, wide / 2 + 0.04, 0.1, 2.6)
            canvas.polygon(end.patch(*pane), GLASS, "truck")
            _draw_lights(canvas, end, wide, 0.1, spot, "truck")
    if side is not None:
        _draw_wheels(
            canvas,
            replace(side, corner=(side.corner[0], 0, side.corner[2])),
            (1.0, length - 2.2, length - 1.1),
            0.45,
            "truck",
        )
