"""Boxes: a picture, its objects, and for each method the boxes that it found.

A scene's folder holds image.png, truth.png and prediction.png (RGB), the last two with the boxes drawn in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from anban.errors import InputError
from anban.report.sheets import Scene, Sheet, Shown, Swatch, Tile, read_picture
from anban.study.records import Run


def sheet(
    shown: Sequence[Shown], names: Sequence[str], score: Callable[[Run, str], str], convention: str | None
) -> Sheet:
    """The picture, its objects, and the boxes of each method."""
    if convention is not None:
        raise InputError("Boxes have the colours of their classes.", where="--convention", do="leave it out")
    index = shown[0].run.pictured
    scenes = []
    for name in names:
        data = shown[0].folder(name)
        tiles = [
            Tile("Picture", read_picture(data / "image.png", "RGB")),
            Tile("Ground truth", read_picture(data / "truth.png", "RGB")),
        ]
        for each in shown:
            drawn = read_picture(each.folder(name) / "prediction.png", "RGB")
            tiles.append(Tile(each.arm.title, drawn, score(each.run, name), each.run.id))
        scenes.append(Scene(name, (tuple(tiles),)))
    return Sheet(
        tuple(scenes),
        columns=("Picture", "Ground truth", *(each.arm.title for each in shown)),
        legend=tuple(
            Swatch((int(r), int(g), int(b)), str(label))
            for (r, g, b), label in zip(index["palette"], index["classes"], strict=True)
        ),
        noun="boxes",
        caption=f"Boxes with a score of at least {index['score']:g}.",
    )
