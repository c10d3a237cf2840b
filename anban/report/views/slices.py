"""Denoised slices: low and full dose beside what each method makes of them, all in one window of Hounsfield units.

A slice's folder holds low.png, truth.png and image.png (16 bits, Hounsfield units plus the `offset` of index.json, whose
`range` is the window); its entry has the `inset` (top, left, height, width) that is worth a closer look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anban.errors import InputError
from anban.report.sheets import Pixels, Scene, Sheet, Shown, Swatch, Tile, read_picture
from anban.study.records import Run

Floats = NDArray[np.float64]


def sheet(
    shown: Sequence[Shown], names: Sequence[str], score: Callable[[Run, str], str], convention: str | None
) -> Sheet:
    """The slices above, a part of each enlarged below, and then what remains between each and the full dose."""
    if convention is not None:
        raise InputError("Slices are shown in grey.", where="--convention", do="leave it out")
    index = shown[0].run.pictured
    low, high = (float(end) for end in index["range"])
    half = (high - low) / 2
    insets = {entry["name"]: entry["inset"] for entry in index["samples"]}
    scenes = []
    for name in names:
        data = shown[0].folder(name)
        truth = _hounsfield(data / "truth.png", index)
        slices = [("Low dose", _hounsfield(data / "low.png", index), "", ""), ("Full dose", truth, "", "")]
        slices += [
            (
                each.arm.title,
                _hounsfield(each.folder(name) / "image.png", index),
                score(each.run, name),
                each.run.id,
            )
            for each in shown
        ]
        lines: list[list[Tile]] = [[], [], []]
        for title, pixels, told, run in slices:
            whole = shaded(pixels, low, high)
            lines[0].append(Tile(title, whole, run=run))
            lines[1].append(Tile(f"Part, {title}", enlarged(whole, insets[name]), run=run))
            lines[2].append(Tile(f"Residual, {title}", shaded(pixels - truth, -half, half), told, run))
        scenes.append(Scene(name, tuple(map(tuple, lines))))
    return Sheet(
        tuple(scenes),
        columns=("Low dose", "Full dose", *(each.arm.title for each in shown)),
        legend=(
            Swatch((0, 0, 0), f"{low:g} HU and below; residual -{half:g} HU"),
            Swatch((128, 128, 128), "residual 0 HU"),
            Swatch((255, 255, 255), f"{high:g} HU and above; residual {half:g} HU"),
        ),
        noun="slices",
        caption=f"In the window '{index['window']}', {low:g} to {high:g} HU: the slice, a part of it, and its difference "
        "to the full dose.",
    )


def shaded(hounsfield: Floats, low: float, high: float) -> Pixels:
    """Hounsfield units (H, W) as grey (H, W, 3), black at `low` and white at `high`."""
    grey = np.rint(255 * np.clip((hounsfield - low) / (high - low), 0, 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def enlarged(picture: Pixels, inset: Sequence[int]) -> Pixels:
    """A part (top, left, height, width) of a picture at the size of the whole, pixel by pixel."""
    top, left, height, width = inset
    part = Image.fromarray(picture[top : top + height, left : left + width])
    return np.asarray(part.resize((picture.shape[1], picture.shape[0]), Image.Resampling.NEAREST))


def _hounsfield(path: Path, index: dict[str, Any]) -> Floats:
    return read_picture(path, "I;16").astype(np.float64) - float(index["offset"])
