"""Change maps: two dates, the truth, and the probability of change that a method gives, coloured by its outcome.

A scene's folder holds a.png and b.png (RGB), label.png (0 no change, 255 change) and probability.png (0..255); index.json
has the `threshold` above which a pixel counts as change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anban.errors import InputError
from anban.report.sheets import Colour, Scene, Sheet, Shown, Swatch, Tile, read_picture
from anban.study.records import Run


@dataclass(frozen=True)
class Convention:
    """The colours (8-bit RGB) of the four outcomes in a change map."""

    tp: Colour
    tn: Colour
    fp: Colour
    fn: Colour
    words: dict[str, str]


def _convention(
    tp: tuple[str, Colour], tn: tuple[str, Colour], fp: tuple[str, Colour], fn: tuple[str, Colour]
) -> Convention:
    return Convention(tp[1], tn[1], fp[1], fn[1], {"tp": tp[0], "tn": tn[0], "fp": fp[0], "fn": fn[0]})


_WHITE, _BLACK = ("white", (255, 255, 255)), ("black", (0, 0, 0))
_RED, _GREEN, _BLUE = ("red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (0, 0, 255))

# The conventions seen in papers and tools; a map never goes without its legend, as they contradict each other.
# colour-blind: the Okabe-Ito orange and blue between white and black, so the four also differ in lightness
# (L* about 100, 70, 46 and 0) and stay apart in grey print.
CONVENTIONS: dict[str, Convention] = {
    "fp-red-fn-green": _convention(_WHITE, _BLACK, _RED, _GREEN),
    "fp-green-fn-red": _convention(_WHITE, _BLACK, _GREEN, _RED),
    "opencd": _convention(_GREEN, _BLACK, ("yellow", (255, 255, 0)), _RED),
    "fp-red-fn-blue": _convention(_WHITE, _BLACK, _RED, _BLUE),
    "fp-red-fn-cyan": _convention(_WHITE, _BLACK, _RED, ("cyan", (0, 255, 255))),
    "colour-blind": _convention(_WHITE, _BLACK, ("orange", (230, 159, 0)), ("blue", (0, 114, 178))),
}
DEFAULT_CONVENTION = "fp-red-fn-green"
OUTCOMES = {"tp": "true positive", "tn": "true negative", "fp": "false positive", "fn": "false negative"}


def convention_named(name: str) -> Convention:
    """The convention called `name`.

    Raises:
        InputError: no convention has that name.
    """
    if name not in CONVENTIONS:
        raise InputError(
            f"There is no colour convention called {name!r}.",
            where="--convention",
            expected=", ".join(CONVENTIONS),
        )
    return CONVENTIONS[name]


def change_map(
    prediction: ArrayLike, label: ArrayLike, convention: str = DEFAULT_CONVENTION, *, threshold: float = 0.5
) -> NDArray[np.uint8]:
    """Colours each pixel by its outcome.

    Args:
        prediction: (H, W); floats are probabilities 0..1 and are change above `threshold`; booleans and integers
            (0/1 or 0/255) are decisions already.
        label: (H, W), 0 no change, anything else change.
        convention: a name in CONVENTIONS.
        threshold: 0..1, used for probabilities only.

    Returns:
        (H, W, 3) 8-bit RGB.

    Raises:
        InputError: the shapes differ, the convention is unknown, or an integer prediction is neither 0/1 nor 0/255.
    """
    colours = convention_named(convention)
    predicted, truth = np.asarray(prediction), np.asarray(label) != 0
    if predicted.shape != truth.shape or truth.ndim != 2:
        raise InputError(
            f"The prediction has shape {predicted.shape} and the label {truth.shape}.",
            expected="one (H, W) for both",
        )
    if np.issubdtype(predicted.dtype, np.floating):
        change = predicted > threshold
    else:
        values = set(np.unique(predicted).tolist())
        if not (values <= {0, 1} or values <= {0, 255}):
            # An 8-bit probability map would otherwise pass as "change wherever it is not exactly 0".
            raise InputError(
                f"An integer prediction holds the values {sorted(values)[:8]}.",
                expected="0/1 or 0/255",
                do="Divide stored probabilities by 255 first.",
            )
        change = predicted != 0
    drawn = np.empty((*truth.shape, 3), dtype=np.uint8)
    drawn[change & truth] = colours.tp
    drawn[~change & ~truth] = colours.tn
    drawn[change & ~truth] = colours.fp
    drawn[~change & truth] = colours.fn
    return drawn


def sheet(
    shown: Sequence[Shown], names: Sequence[str], score: Callable[[Run, str], str], convention: str | None
) -> Sheet:
    """Both dates and the truth beside the change map of each method."""
    convention = convention or DEFAULT_CONVENTION
    colours = convention_named(convention)
    scenes = []
    for name in names:
        data = shown[0].folder(name)
        label = read_picture(data / "label.png", "L")
        tiles = [
            Tile("T1", read_picture(data / "a.png", "RGB")),
            Tile("T2", read_picture(data / "b.png", "RGB")),
            Tile("Ground truth", np.repeat(label[..., None], 3, axis=2)),
        ]
        for each in shown:
            probability = read_picture(each.folder(name) / "probability.png", "L") / 255
            threshold = float(each.run.pictured.get("threshold", 0.5))
            drawn = change_map(probability, label, convention, threshold=threshold)
            tiles.append(Tile(each.arm.title, drawn, score(each.run, name), each.run.id, recolours=True))
        scenes.append(Scene(name, (tuple(tiles),)))
    return Sheet(
        tuple(scenes),
        columns=("T1", "T2", "Ground truth", *(each.arm.title for each in shown)),
        legend=tuple(
            Swatch(getattr(colours, key), f"{key.upper()} {text}", key, colours.words[key])
            for key, text in OUTCOMES.items()
        ),
        noun="change maps",
        caption="A score is undefined (–) where the image has no change and none was predicted.",
        conventions={
            name: {key: (getattr(each, key), each.words[key]) for key in OUTCOMES}
            for name, each in CONVENTIONS.items()
        },
        convention=convention,
    )
