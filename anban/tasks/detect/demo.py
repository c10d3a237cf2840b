"""Generated pictures of cells with boxes, to try and test with no download: `python -m anban.tasks.detect.demo FOLDER`.

Discs, rings and rods of many sizes and colours on a rough ground, some of them one over another, and now and then none at all.
Colour tells nothing: all kinds are painted from one chart. The boxes are those of the drawn pixels, hidden ones included. The layout
on disk is that of COCO. Scores on these pictures say nothing about real ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anban.data.generated import write_generated
from anban.errors import InputError

# Raise it with every edit that changes a pixel or a box, so that folders written before are written anew.
VERSION = 1
SPLITS = ("train", "val", "test")
CLASSES = ("disc", "ring", "rod")

_PAINTS = np.array(
    [(196, 72, 80), (86, 116, 190), (92, 160, 98), (206, 168, 84), (150, 96, 170)], dtype=np.float64
)
_EMPTY = 0.05
"""Share of pictures without a cell."""


@dataclass(frozen=True)
class Cell:
    """One object: its kind (a number of CLASSES), its pixels (H, W), the box around them and its paint."""

    kind: int
    pixels: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    paint: NDArray[np.float64]


def make_cells(seed: int, size: int) -> list[Cell]:
    """The cells of a picture of `size` x `size` pixels, in the order in which they are drawn."""
    draw = np.random.default_rng(seed)
    cells: list[Cell] = []
    if draw.random() < _EMPTY:
        return cells
    rows, columns = np.mgrid[:size, :size] + 0.5
    for _ in range(int(draw.integers(2, 8))):
        kind = int(draw.integers(len(CLASSES)))
        radius = size * float(draw.uniform(0.06, 0.16))
        y, x = draw.uniform(radius, size - radius, 2)
        angle, paint = draw.uniform(0, np.pi), _PAINTS[draw.integers(len(_PAINTS))]
        along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        if kind == 2:  # all points near a line
            beyond = np.maximum(np.abs(along) - 0.75 * radius, 0)
            pixels = np.hypot(beyond, across) < 0.3 * radius
        else:
            distance = np.hypot(along / draw.uniform(0.85, 1.0), across) / radius
            pixels = (distance < 1) & ((kind == 0) | (distance > 0.55))
        where = np.argwhere(pixels)
        (top, left), (bottom, right) = where.min(axis=0), where.max(axis=0) + 1
        box = (int(left), int(top), int(right), int(bottom))
        if all(_shared(box, other.box) < 0.25 for other in cells):
            cells.append(Cell(kind, pixels, box, paint + draw.normal(0, 12, 3)))
    return cells


def paint(cells: Sequence[Cell], seed: int, size: int) -> NDArray[np.uint8]:
    """The picture (size, size, 3) of these cells."""
    draw = np.random.default_rng([seed, 1])
    coarse = draw.normal(0, 14, (size // 16 + 2, size // 16 + 2))
    rough = Image.fromarray(coarse.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    image = draw.uniform(200, 226, 3) + np.asarray(rough, dtype=np.float64)[..., None]
    for cell in cells:
        image[cell.pixels] = 0.85 * cell.paint + 0.15 * image[cell.pixels]
    image += draw.normal(0, 6, image.shape)
    return image.clip(0, 255).round().astype(np.uint8)


def _shared(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    """Intersection of two boxes over the area of the smaller one."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return max(width, 0) * max(height, 0) / min(areas)


def write_demo(
    root: Path, *, train: int = 160, val: int = 32, test: int = 32, size: int = 128, seed: int = 0
) -> Path:
    """Write a small data set in the layout of COCO, and `root/demo.json`; see `anban.data.generated.write_generated`.

    Args:
        root: the folder to write; its parents are made.
        train, val, test: pictures in each split, 0 or more.
        size: side of the pictures in pixels.
        seed: from 0 on; the splits never share a picture, nor do two seeds.

    Raises:
        InputError: `root` is a file, or a folder with anything else in it; a count or the seed is below 0.
    """
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    for name, value in (*counts.items(), ("seed", seed)):
        if value < 0:
            raise InputError(f"{name} is {value}", where=f"write_demo, {name}", expected="0 or more")

    def of(split: str, index: int) -> int:
        return ((seed * len(SPLITS) + SPLITS.index(split)) << 32) + index

    def files(job: tuple[str, int | None]) -> list[str]:
        split, index = job
        return [f"annotations/{split}.json" if index is None else f"images/{split}/{index:06d}.png"]

    def write(job: tuple[str, int | None], paths: Sequence[Path]) -> None:
        split, index = job
        if index is None:
            found = [make_cells(of(split, number), size) for number in range(counts[split])]
            paths[0].write_text(json.dumps(_annotations(found, size)), encoding="utf-8")
        else:
            pixels = paint(make_cells(of(split, index), size), of(split, index), size)
            Image.fromarray(pixels).save(paths[0], compress_level=4)

    return write_generated(
        Path(root),
        {"task": "detect", "version": VERSION, "seed": seed, "splits": counts, "size": size},
        ["annotations", *(f"images/{split}" for split in SPLITS)],
        [(split, index) for split in SPLITS if counts[split] for index in (None, *range(counts[split]))],
        files,
        write,
    )


def _annotations(pictures: Sequence[Sequence[Cell]], size: int) -> dict[str, Any]:
    """What COCO's json says of these pictures."""
    found: list[dict[str, Any]] = []
    for number, cells in enumerate(pictures):
        for cell in cells:
            x1, y1, x2, y2 = cell.box
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": number + 1,
                    "category_id": cell.kind + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(cell.pixels.sum()),
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": number + 1, "file_name": f"{number:06d}.png", "height": size, "width": size}
            for number in range(len(pictures))
        ],
        "annotations": found,
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(CLASSES)],
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m anban.tasks.detect.demo FOLDER")
    print(write_demo(Path(sys.argv[1])))
