"""What stands and walks on the sidewalks."""

from __future__ import annotations

import math

from anban.tasks.segment.demo.canvas import (
    CLOTHES,
    METAL,
    PAINTS,
    SKIN,
    TYRE,
    WHITE,
    Canvas,
    Colour,
    Point,
    Rng,
    box,
    pick,
    shade,
    upright,
)
from anban.tasks.segment.demo.street import draw_tree


def draw_pole(rng: Rng, canvas: Canvas, x: float, z: float, inwards: int) -> None:
    """A pole for nothing in particular, or a street lamp that reaches over the road."""
    height, thick, colour = rng.uniform(2.5, 8), rng.uniform(0.1, 0.22), pick(rng, (METAL, (84, 80, 76)))
    face = upright(x - thick / 2, z)
    canvas.polygon(face.patch(0, thick, 0, height), colour, "pole")
    if height > 5:
        reach = inwards * rng.uniform(0.8, 2.5)
        canvas.polygon(face.patch(0, reach, height - 0.12, height), colour, "pole")
        canvas.polygon(face.patch(reach, reach + inwards * 0.7, height - 0.2, height + 0.05), WHITE, "pole")


def draw_sign(rng: Rng, canvas: Canvas, x: float, z: float, inwards: int) -> None:
    height, half = rng.uniform(2.0, 3.0), rng.uniform(0.32, 0.55)
    canvas.polygon(upright(x - 0.05, z).patch(0, 0.1, 0, height + half), METAL, "pole")
    rim, field = (
        ((178, 40, 44), WHITE),
        ((42, 70, 140), WHITE),
        ((206, 176, 60), (60, 60, 60)),
        (WHITE, WHITE),
    )[rng.integers(4)]
    sides = int(rng.choice((3, 4, 12)))
    turn = -math.pi / 2 if sides == 3 else math.pi / 4
    for share, colour in ((1.0, rim), (0.62, field)):
        corners = [turn + 2 * math.pi * i / sides for i in range(sides)]
        points = [(x + share * half * math.cos(a), height - share * half * math.sin(a), z) for a in corners]
        canvas.polygon(points, colour, "traffic sign")
    canvas.polygon(upright(x - half / 4, z).patch(0, half / 2, height - 0.08, height + 0.08), rim, None)


def draw_traffic_light(rng: Rng, canvas: Canvas, x: float, z: float, inwards: int) -> None:
    """On a pole, sometimes with a second one on an arm over the road."""
    low, lit = rng.uniform(2.1, 2.7), rng.integers(3)
    places = [(x, low)]
    canvas.polygon(upright(x - 0.07, z).patch(0, 0.14, 0, low + 0.2), METAL, "pole")
    if rng.random() < 0.4:
        reach = inwards * rng.uniform(2, 4)
        canvas.polygon(upright(x - 0.07, z).patch(0, 0.14, low, 5.3), METAL, "pole")
        canvas.polygon(upright(x, z).patch(0, reach, 5.2, 5.32), METAL, "pole")
        places.append((x + reach, 4.4))
    for at, foot in places:
        canvas.polygon(upright(at - 0.19, z).patch(0, 0.38, foot, foot + 1.0), (36, 38, 38), "traffic light")
        for lamp, colour in enumerate(((70, 200, 130), (230, 180, 60), (220, 60, 50))):
            light = colour if lamp == lit else shade(colour, 0.25)
            canvas.blob((at, foot + 0.2 + 0.3 * lamp, z), 0.12, 0.12, light, "traffic light")


def draw_street_tree(rng: Rng, canvas: Canvas, x: float, z: float, inwards: int) -> None:
    draw_tree(rng, canvas, x, z, float(rng.uniform(4, 9)))


def draw_bin(rng: Rng, canvas: Canvas, x: float, z: float, inwards: int) -> None:
    """Bins, boxes and the like, which are ignored in scoring."""
    wide, high = rng.uniform(0.4, 1.2), rng.uniform(0.7, 1.4)
    box(canvas, (x, x + wide), (0, high), (z, z + 0.6), pick(rng, PAINTS), "static")


def draw_person(rng: Rng, canvas: Canvas, x: float, z: float, inwards: int) -> None:
    height = rng.uniform(1.5, 1.9)
    stride, legs, coat = rng.uniform(0.05, 0.3), pick(rng, CLOTHES), pick(rng, CLOTHES)
    hip = 0.48 * height
    for foot in (-stride, stride):
        leg = [(x - 0.1, hip, z), (x + 0.1, hip, z), (x + foot + 0.08, 0, z), (x + foot - 0.08, 0, z)]
        canvas.polygon(leg, legs, "person")
    draw_trunk(rng, canvas, (x, hip, z), (x, 0.83 * height, z), coat, "person")
    for arm in (-1, 1):
        hand = x + arm * (0.24 + 0.4 * stride)
        sleeve = [(x + arm * 0.16, 0.82 * height, z), (x + arm * 0.24, 0.82 * height, z)]
        canvas.polygon([*sleeve, (hand, hip, z), (hand - arm * 0.1, hip, z)], shade(coat, 0.85), "person")


def draw_trunk(rng: Rng, canvas: Canvas, hip: Point, neck: Point, coat: Colour, name: str) -> None:
    """A trunk from hip to neck and a head on it."""
    (x, low, z), (top, high, _) = hip, neck
    trunk = [
        (x - 0.16, low - 0.05, z),
        (x + 0.16, low - 0.05, z),
        (top + 0.22, high, z),
        (top - 0.22, high, z),
    ]
    canvas.polygon(trunk, coat, name)
    canvas.blob((top, high + 0.15, z), 0.11, 0.15, pick(rng, SKIN), name)
    hair = pick(rng, (TYRE, (86, 62, 44), (150, 130, 96), WHITE))
    canvas.blob((top, high + 0.22, z), 0.11, 0.09, hair, name)
