"""Generating one demo scene (two dates and a label), at 128 and at 256 pixels, against writing and reading its PNG files.

The demo's data set is drawn while a newcomer waits. No other program draws these scenes, so the peer is what any
source of pictures has to spend: three files compressed as the demo does and decoded again, in memory. The last row is
the larger scene against the smaller, which has a quarter of the pixels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anban.tasks.change.demo import SceneSettings, make_scene
from benchmarks.timing import Measure, Row, interleave, row, seconds

SEEDS = range(8)  # scenes differ in what they hold; each measurement goes through all of these


def run(rounds: int) -> list[Row]:
    """Seconds per scene."""
    measures: dict[str, Measure] = {}
    for size in (128, 256):
        settings = SceneSettings(size=size)
        seeds, scenes = cycle(SEEDS), cycle([make_scene(seed, settings) for seed in SEEDS])
        draw, store = partial(_draw, seeds, settings), partial(_store, scenes)
        measures[f"make_scene, {size} px"] = seconds(draw, repeat=len(SEEDS))
        measures[f"PNG files, {size} px"] = seconds(store, repeat=len(SEEDS))
    values = interleave(measures, rounds)
    return [
        row(values, "a scene", "make_scene, 128 px", "PNG files, 128 px"),
        row(values, "a scene", "make_scene, 256 px", "PNG files, 256 px"),
        row(values, "a scene", "make_scene, 256 px", "make_scene, 128 px"),
    ]


def _draw(seeds: Iterator[int], settings: SceneSettings) -> None:
    make_scene(next(seeds), settings)


def _store(scenes: Iterator[Sequence[NDArray[Any]]]) -> None:
    for pixels in next(scenes):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG", compress_level=4)
        np.asarray(Image.open(file))
