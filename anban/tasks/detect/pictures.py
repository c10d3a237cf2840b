"""Boxes drawn over pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]


def palette(classes: int) -> list[tuple[int, int, int]]:
    """A colour for each class; neighbours in the list lie far apart in hue."""
    turns = [(0.61803398875 * number) % 1 for number in range(classes)]
    return [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(turn, 0.85, 0.95)) for turn in turns]  # type: ignore[misc]


def draw_boxes(
    image: Pixels, boxes: NDArray[np.floating], labels: Sequence[int], texts: Sequence[str], classes: int
) -> Pixels:
    """The picture (H, W, 3) with boxes (N, 4) in the colours of their classes, each with its text."""
    colours = palette(classes)
    drawn = Image.fromarray(image)
    pen = ImageDraw.Draw(drawn)
    thick, size = (max(least, round(min(image.shape[:2]) / part)) for least, part in ((1, 200), (8, 30)))
    for box, label, text in zip(boxes.tolist(), labels, texts, strict=True):
        pen.rectangle(box, outline=colours[label], width=thick)
        if text:
            _, _, width, height = pen.textbbox((0, 0), text, font_size=size)
            top = max(0, box[1] - height)  # above the box, where there is room
            pen.rectangle((box[0], top, box[0] + width, top + height), fill=colours[label])
            pen.text((box[0], top), text, fill=(0, 0, 0), font_size=size)
    return np.asarray(drawn)
