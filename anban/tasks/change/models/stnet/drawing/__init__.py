"""STNet drawn, as a figure for a paper: the whole U, then one level with what is new in it, SISS and EDSS.

All of it comes from the model that is drawn: which blocks there are, where the dates separate and integrate, how large the
levels are. The notes that govern it: 000, lines 2-16 (what it has to show) and 29-41 (words and colours).
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

from anban.errors import InputError
from anban.tasks.change.models.stnet.drawing import levels
from anban.tasks.change.models.stnet.drawing.canvas import LANE, MUTED, PAGE, STYLE, Canvas
from anban.tasks.change.models.stnet.drawing.detail import Locality, Separation
from anban.tasks.change.models.stnet.drawing.levels import Part
from anban.tasks.change.models.stnet.drawing.whole import Whole
from anban.tasks.change.models.stnet.network import STNet


def draw(model: STNet, folder: Path, size: int = 256) -> list[Path]:
    """Write `network.svg`, `.pdf` and `.png`, and the level table as `levels.md`, `levels.tex` and `levels.csv`.

    Args:
        model: its weights are not looked at.
        folder: an existing one.
        size: side of the images, in pixels, that sizes and costs are told for.

    Returns:
        the files.

    Raises:
        InputError: the size is not a multiple of the model's `multiple_of`.
    """
    if size % model.multiple_of:
        raise InputError(f"The size is {size}.", where="size", expected=f"a multiple of {model.multiple_of}")
    images = torch.empty(2, 1, levels.bands(model), size, size, device="meta")
    parts = levels.measure(model, tuple(images))
    table = levels.rows(model, parts)
    with matplotlib.rc_context(STYLE):
        return [*sheet(model, parts, table).save(folder, "network"), *levels.write(table, folder)]


def sheet(model: STNet, parts: dict[str, Part], table: list[levels.Row]) -> Canvas:
    """The drawing itself: (a) the network, (b) a level's encoder, (c) its decoder where it has an enhancement.

    Args:
        parts, table: of `levels.measure` and `levels.rows`.
    """
    whole = Whole(model, parts, table)
    below = whole.height + 0.64
    canvas = Canvas(PAGE, below + 3.05)
    whole.draw(canvas)
    _legend(canvas, whole.height + 0.1, whole.used)
    shown = 0  # the shallowest level has whatever the network has
    encoded, decoded = whole.encoder[shown], whole.decoder[shown]
    size = parts[f"encoder.levels.{shown}"].size
    branch = decoded.enhancement
    Separation(canvas, 0.05 if branch is not None else 1.8, below, encoded, shown, size).draw()
    if branch is not None:
        Locality(canvas, 3.6, below, decoded, branch, shown).draw()
    return canvas


def _legend(canvas: Canvas, y: float, used: set[str]) -> None:
    """What the lines and the colours mean: those that occur."""
    lines = {"a": "date a", "b": "date b", "difference": "difference D", "joined": "joined features"}
    kinds = {
        "vss": "Mamba (VSS, SS2D)",
        "convolution": "convolution",
        "fusion": "fusion",
        "aff": "attentional fusion",
        "difference": "difference",
        "integration": "integration (SISS)",
        "enhancement": "enhancement (EDSS)",
    }
    if "difference" not in used:
        del lines["difference"]
    entries = [*lines.items(), *((kind, words) for kind, words in kinds.items() if kind in used)]
    columns = -(-len(entries) // 2)
    for i, (kind, words) in enumerate(entries):
        x, at = 0.08 + (PAGE - 0.1) / columns * (i % columns), y + 0.17 * (i // columns)
        if words in lines.values():
            canvas.line([(x, at), (x + 0.2, at)], kind, f"legend-{kind}-line", width=LANE, halo=None)
        else:
            canvas.box(x + 0.1, at, 0.2, 0.11, kind, "", f"legend-{kind}")
        canvas.text(x + 0.26, at, words, ha="left", size=6)
    signs = {
        "∇": "first-order derivative operator",
        "∇²": "second-order derivative operator",
        "a b": "both dates together",
        "D": "difference",
        "F": "joined features",
    }
    if meant := [f"{sign}  {meaning}" for sign, meaning in signs.items() if sign in used]:
        canvas.text(0.08, y + 0.34, f"EDSS:  {',  '.join(meant)}", ha="left", size=6, color=MUTED)
