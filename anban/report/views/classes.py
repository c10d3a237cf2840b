"""Class maps: a picture, its labels and what each method predicts, laid over the picture in the classes' colours.

A scene's folder holds image.png (RGB), label.png and prediction.png (mode P, class numbers, `ignore` where a pixel does
not count); index.json has the names of the `classes` and their `palette`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from anban.errors import InputError
from anban.report.sheets import Pixels, Scene, Sheet, Shown, Swatch, Tile, read_picture
from anban.study.records import Run

WRONG, IGNORED, RIGHT = (214, 39, 40), (150, 150, 150), (255, 255, 255)
OPACITY = 0.65  # of the classes' colours over the picture
LARGEST = 640  # pixels; larger pictures are shrunk by a whole number


def sheet(
    shown: Sequence[Shown], names: Sequence[str], score: Callable[[Run, str], str], convention: str | None
) -> Sheet:
    """The picture over its labels, and for each method its prediction over its errors."""
    if convention is not None:
        raise InputError(
            "Class maps have the colours of their classes.", where="--convention", do="leave it out"
        )
    index = shown[0].run.pictured
    classes, ignore = [str(name) for name in index["classes"]], index["ignore"]
    palette = np.asarray(index["palette"], dtype=np.uint8).reshape(-1, 3)
    if len(palette) != len(classes):
        raise InputError(
            f"There are {len(classes)} classes and {len(palette)} colours.",
            where=shown[0].run.path / "figures" / "samples" / "index.json",
        )
    scenes, factors, seen = [], set(), set()
    for name in names:
        data = shown[0].folder(name)
        image, label = read_picture(data / "image.png", "RGB"), read_picture(data / "label.png", "P")
        factor = -(-max(label.shape) // LARGEST)
        factors.add(factor)
        seen |= set(np.unique(label).tolist())
        upper = [Tile("Picture", _shrunk(image, factor))]
        lower = [Tile("Ground truth", _shrunk(overlay(image, label, palette), factor))]
        for each in shown:
            prediction = read_picture(each.folder(name) / "prediction.png", "P")
            if prediction.shape != label.shape:
                raise InputError("Label and prediction differ in size.", where=each.folder(name))
            seen |= set(np.unique(prediction).tolist())
            title, drawn = each.arm.title, overlay(image, prediction, palette)
            upper.append(Tile(f"Prediction, {title}", _shrunk(drawn, factor), run=each.run.id))
            wrong = _shrunk(errors(prediction, label, ignore), factor)
            lower.append(Tile(f"Errors, {title}", wrong, score(each.run, name), each.run.id))
        scenes.append(Scene(name, (tuple(upper), tuple(lower))))
    shown_classes = [(palette[number], name) for number, name in enumerate(classes) if number in seen]
    caption = "Above the picture and the predictions, below the truth and the errors."
    if max(factors) > 1:
        caption += " Large pictures are shrunk: a pixel there is the mean of several."
    return Sheet(
        tuple(scenes),
        columns=("Picture, ground truth", *(each.arm.title for each in shown)),
        legend=(
            *(Swatch((int(r), int(g), int(b)), name) for (r, g, b), name in shown_classes),
            Swatch(RIGHT, "right"),
            Swatch(WRONG, "wrong"),
            Swatch(IGNORED, "ignored"),
        ),
        noun="class maps",
        caption=caption,
    )


def overlay(image: Pixels, numbers: Pixels, palette: Pixels) -> Pixels:
    """The colours of class numbers (H, W) over a picture (H, W, 3); numbers that are no class leave it as it is.

    Raises:
        InputError: picture and numbers differ in size.
    """
    if image.shape[:2] != numbers.shape:
        raise InputError(f"A picture has {image.shape[:2]} pixels and its class map {numbers.shape}.")
    drawn = image.astype(np.float64)
    known = numbers < len(palette)
    drawn[known] += OPACITY * (palette[numbers[known]] - drawn[known])
    return drawn.round().astype(np.uint8)


def errors(prediction: Pixels, label: Pixels, ignore: int | None) -> Pixels:
    """Wrong, right and ignored pixels (H, W) as colours (H, W, 3)."""
    drawn = np.full((*label.shape, 3), RIGHT, dtype=np.uint8)
    drawn[prediction != label] = WRONG
    if ignore is not None:
        drawn[label == ignore] = IGNORED
    return drawn


def _shrunk(pixels: Pixels, factor: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).reduce(factor))
