"""Generated street scenes for semantic segmentation, to try and test with no download.

A scene is what a camera behind a windscreen sees of an invented street: metres, perspective, lots on both sides,
what stands on the sidewalks and what drives. Everything is drawn far to near, into the picture and into the label
map at once; light, haze, texture and the camera's faults come after, and do not touch the labels.

The 19 classes of Cityscapes appear under their own `labelIds`, and so do some that are ignored in scoring (rail
tracks, bins, the bonnet of the camera's own car, the border). Colour alone decides little: cars, buses,
trucks and trams are painted from one chart, walls like buildings, sidewalks like roads, riders dress like persons.

The layout on disk is that of Cityscapes (Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene
Understanding", CVPR 2016): `leftImg8bit/<split>/<city>` and `gtFine/<split>/<city>`. Scores on these scenes say
nothing about real streets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from anban.data.generated import write_generated
from anban.errors import InputError
from anban.tasks.segment.demo.scene import make_scene

__all__ = ["SPLITS", "make_scene", "scene_seed", "write_demo"]

# Raise it with every edit that changes a pixel, so that folders written before are written anew.
VERSION = 1
SPLITS = ("train", "val", "test")


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of one scene; no two of (seed, split, index) share one (`index` below 2**32)."""
    return ((seed * len(SPLITS) + SPLITS.index(split)) << 32) + index


def write_demo(
    root: Path,
    *,
    train: int = 96,
    val: int = 24,
    test: int = 24,
    size: tuple[int, int] = (128, 256),
    seed: int = 0,
) -> Path:
    """Write a small data set in the layout of Cityscapes, its one city called `demo`, and `root/demo.json`.

    The folder appears complete or not at all; see `anban.data.generated.write_generated`.

    Args:
        root: the folder to write; its parents are made.
        train, val, test: scenes in each split, 0 or more.
        size: height and width of the pictures in px.
        seed: from 0 on; the splits never share a scene, nor do two seeds.

    Returns:
        `root`.

    Raises:
        InputError: `root` is a file, or a folder with anything else in it; a count or the seed is below 0.
    """
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    for name, value in (*counts.items(), ("seed", seed)):
        if value < 0:
            raise InputError(f"{name} is {value}", where=f"write_demo, {name}", expected="0 or more")

    def files(job: tuple[str, int]) -> list[str]:
        split, stem = job[0], f"demo_{job[1]:06d}_000000"
        return [
            f"leftImg8bit/{split}/demo/{stem}_leftImg8bit.png",
            f"gtFine/{split}/demo/{stem}_gtFine_labelIds.png",
        ]

    def write(job: tuple[str, int], paths: Sequence[Path]) -> None:
        for pixels, path in zip(make_scene(scene_seed(seed, *job), size), paths, strict=True):
            Image.fromarray(pixels).save(path, compress_level=4)

    return write_generated(
        Path(root),
        {"task": "segment", "version": VERSION, "seed": seed, "splits": counts, "size": list(size)},
        [f"{kind}/{split}/demo" for kind in ("leftImg8bit", "gtFine") for split in SPLITS],
        [(split, index) for split in SPLITS for index in range(counts[split])],
        files,
        write,
    )
