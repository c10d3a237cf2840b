"""What a scene holds and where, and the picture a camera takes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from anban.errors import InputError
from anban.tasks.segment.classes import LABEL_IDS
from anban.tasks.segment.demo.canvas import (
    PAINTS,
    SCALE,
    Array,
    Canvas,
    Rng,
    View,
    pick,
)
from anban.tasks.segment.demo.sidewalk import (
    draw_bin,
    draw_person,
    draw_pole,
    draw_sign,
    draw_street_tree,
    draw_traffic_light,
)
from anban.tasks.segment.demo.street import Street, draw_end, draw_ground, draw_lots, plan_street
from anban.tasks.segment.demo.traffic import BUS, TRAIN, Spot, draw_car, draw_coach, draw_cycle, draw_truck

#: Class -> deviation of its fine and of its coarse texture, grey levels.
TEXTURE = {
    "road": (4, 5),
    "sidewalk": (5, 6),
    "building": (4, 6),
    "wall": (7, 6),
    "fence": (5, 3),
    "vegetation": (15, 12),
    "terrain": (11, 9),
    "sky": (0.5, 7),
}


Placed = tuple[float, Callable[[], None]]
"""How far away something stands (m), and what draws it."""


def place_vehicles(rng: Rng, canvas: Canvas, street: Street) -> list[Placed]:
    """Vehicles on free ground, with the distance of each: parked, in the lanes, crossing at the end."""
    taken: list[Spot] = []
    found: list[Placed] = []

    def put(spot: Spot, draw: Callable[[], None]) -> None:
        if spot.z[0] < 4 or spot.z[1] > street.far + 20 or any(spot.meets(other) for other in taken):
            return
        taken.append(spot)
        found.append((spot.z[0], draw))

    end = street.end
    crossing = 10.0 if end is None else end - 5.5
    busy = rng.uniform(0.2, 1)

    def car(x: float, z: float, across: bool, oncoming: bool) -> None:
        spot = Spot.at(x, z, 4.3, 1.8, across, oncoming)
        put(spot, partial(draw_car, rng, canvas, spot))

    def heavy(x: float, z: float, across: bool, oncoming: bool) -> None:
        kind = rng.choice(("bus", "truck", "train"), p=(0.3, 0.3, 0.4))
        if kind == "truck":
            spot = Spot.at(x, z, float(rng.uniform(6, 9)), 2.4, across, oncoming)
            put(spot, partial(draw_truck, rng, canvas, spot))
            return
        if kind == "train" and not across:
            if not street.rails:
                return
            x = street.left + 2
        coach = BUS if kind == "bus" else TRAIN
        spot = Spot.at(x, z, coach.length, coach.width, across, oncoming)
        put(spot, partial(draw_coach, rng, canvas, spot, coach))

    if rng.random() < 0.9:
        across = end is not None and rng.random() < 0.6
        z = crossing if across else rng.uniform(9, 26)
        x = rng.uniform(-12, 12) if across else rng.choice((street.left + 2, street.right - 1.8))
        heavy(x, z, across, bool(rng.random() < 0.6))
    if end is not None:
        for _ in range(rng.poisson(1.0)):
            car(rng.uniform(-18, 18), crossing, True, bool(rng.random() < 0.5))
    for side in (-1, 1):
        if rng.random() < 0.6:
            z, edge = rng.uniform(5, 12), street.edge(side)
            for _ in range(rng.integers(1, 7)):
                car(edge - side * 1.0, z, False, side < 0)
                z += rng.uniform(4.8, 9)
    for _ in range(rng.poisson(2 * busy)):
        ours = rng.random() < 0.5
        x = 0.2 if ours else street.left + 2.2
        car(x, rng.uniform(6, 45), False, not ours)
    for _ in range(rng.poisson(1.6)):
        x, z = float(rng.uniform(street.left + 0.5, street.right - 0.3)), float(rng.uniform(5, 16))
        motor = bool(rng.random() < 0.5)
        ridden = partial(draw_cycle, rng, canvas, x, z, street.asphalt, motor=motor, ridden=True)
        put(Spot.at(x, z, 1.8, 0.6, True, False), ridden)
    return found


def place_furniture(rng: Rng, canvas: Canvas, street: Street) -> list[Placed]:
    """Everything upright on the sidewalks, and the people there and on the crossing."""
    found: list[Placed] = []
    stop = street.far - 9
    kinds = (
        (draw_pole, 2.5, 0.15, 45),
        (draw_sign, 1.6, 0.15, 30),
        (draw_traffic_light, 0.5, 0.15, 20),
        (draw_street_tree, 1.6, 0.2, 45),
        (draw_bin, 0.5, 0.7, 25),
        (draw_person, 2.4, 0.55, 24),
    )
    for side in (-1, 1):
        wide = street.sidewalks[int(side > 0)]
        for draw, count, across, far in kinds:
            for _ in range(rng.poisson(count)):
                x = street.edge(side) + side * wide * min(1.0, across + rng.uniform(0, 0.25))
                z = rng.uniform(5, min(far, stop))
                found.append((z, partial(draw, rng, canvas, x, z, -side)))
        if street.end is not None and rng.random() < 0.7:
            x, z = street.edge(side) + side * 0.4, street.end - 9.5
            found.append((z, partial(draw_traffic_light, rng, canvas, x, z, -side)))
        for _ in range(rng.poisson(0.7)):  # parked cycles
            x, z = street.edge(side) + side * wide * rng.uniform(0.3, 0.9), rng.uniform(5, 15)
            motor = bool(rng.random() < 0.4)
            found.append((z, partial(draw_cycle, rng, canvas, x, z, street.paving, motor=motor)))
    if rng.random() < 0.35:
        for _ in range(rng.integers(1, 4)):
            x, z = rng.uniform(street.left, street.right), rng.uniform(7, 22)
            found.append((z, partial(draw_person, rng, canvas, x, z, 0)))
    return found


def _draw_own_car(rng: Rng, canvas: Canvas) -> None:
    """The bonnet at the lower edge and the border of the picture, both ignored in scoring."""
    width, height = canvas.width, canvas.height
    if rng.random() < 0.6:
        rise, colour = height * rng.uniform(0.03, 0.09), pick(rng, PAINTS)
        turns = [math.pi * i / 12 for i in range(13)]
        bow = [(width / 2 - 0.55 * width * math.cos(a), height - rise * math.sin(a)) for a in turns]
        canvas.flat(bow, colour, "ego vehicle")
    ImageDraw.Draw(canvas.labels).rectangle(
        (0, 0, width - 1, height - 1), outline=LABEL_IDS["out of roi"], width=SCALE
    )


def _noise(rng: Rng, size: tuple[int, int], cell: float) -> Array:
    """(H, W) float32 of mean about 0 and deviation about 1, smooth over `cell` px."""
    small = (max(2, round(size[0] / cell)), max(2, round(size[1] / cell)))
    field = Image.fromarray(rng.standard_normal(small, dtype=np.float32))
    return np.asarray(field.resize(size[::-1], Image.Resampling.BICUBIC))


def _photograph(rng: Rng, canvas: Canvas, size: tuple[int, int]) -> tuple[Array, Array]:
    """The picture (H, W, 3) with texture and the camera's faults, and its label map (H, W), both uint8."""
    small = canvas.picture.resize(size[::-1], Image.Resampling.BOX)
    labels = np.asarray(canvas.labels.resize(size[::-1], Image.Resampling.NEAREST))
    fine, coarse = np.full((2, 256), 3, np.float32)
    for name, (a, b) in TEXTURE.items():
        fine[LABEL_IDS[name]], coarse[LABEL_IDS[name]] = a, b
    texture = fine[labels] * _noise(rng, size, 1.3)
    texture += coarse[labels] * (0.6 * _noise(rng, size, 4) + 0.6 * _noise(rng, size, 14))
    picture = np.asarray(small, np.float32) + texture[..., None]
    down, right = (np.linspace(-1, 1, side, dtype=np.float32) ** 2 for side in size)
    falloff = 1 - rng.uniform(0, 0.12) * (down[:, None] + right)
    gains = rng.uniform(0.75, 1.15) * (1 + rng.uniform(-0.08, 0.08, 3)) * falloff[..., None]
    picture = 255 * (np.clip(picture * gains, 0, 255) / 255) ** rng.uniform(0.85, 1.2)
    picture += rng.uniform(1, 4) * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), labels


def make_scene(seed: int, size: tuple[int, int] = (128, 256)) -> tuple[Array, Array]:
    """One scene: a pure function of its arguments.

    Args:
        seed: any whole number from 0 on; each gives another scene.
        size: height and width of the picture in px, each at least 32.

    Returns:
        The picture (H, W, 3), RGB, and its label map (H, W) of Cityscapes' `labelIds`; both uint8.

    Raises:
        InputError: a size below 32.
    """
    if min(size) < 32:
        raise InputError(f"size is {size}", where="make_scene, size", expected="at least 32 x 32 px")
    light, plan, ground, lots, things, traffic, lens = (
        np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(7)
    )
    height, width = (SCALE * side for side in size)
    clear = 1 - light.random() ** 2
    grey, blue = np.array((196, 200, 204)), np.array((128, 168, 208))
    sky = (grey + light.uniform(0, 1) * clear * (blue - grey)) * light.uniform(0.85, 1.15)
    view = View(
        focal=width * light.uniform(0.75, 1.0),
        middle=width * light.uniform(0.38, 0.62),
        horizon=height * light.uniform(0.36, 0.5),
        eye=light.uniform(1.25, 1.9),
        haze=light.uniform(60, 240),
        sky=(float(sky[0]), float(sky[1]), float(sky[2])),
        sun=int(light.choice((-1, 1))),
        rise=light.uniform(0.5, 1.6),
        clear=clear,
    )
    street, canvas = plan_street(plan), Canvas(view, size)
    draw_ground(ground, canvas, street)
    draw_end(lots, canvas, street)
    placed = place_vehicles(traffic, canvas, street) + place_furniture(things, canvas, street)
    placed.sort(key=lambda thing: -thing[0])
    # The lots hide what drives in the crossing street, and nothing of what is nearer.
    for z, draw in placed:
        if z > street.lots_end:
            draw()
    for side in (-1, 1):
        draw_lots(lots, canvas, street, side)
    for z, draw in placed:
        if z <= street.lots_end:
            draw()
    _draw_own_car(ground, canvas)
    return _photograph(lens, canvas, size)
