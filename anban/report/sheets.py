"""Sheets of pictured scenes: what was seen, what is true, and what each method made of it.

What a run's pictures are is said by `view` in the index.json beside them, and drawn by the module of that name in
`anban.report.views`, which has `sheet(shown, names, score, convention) -> Sheet`. A new kind of pictures is one new file
there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from anban.errors import InputError
from anban.report.figures import MUTED, PAGE, paper, wrapped
from anban.report.tables import UNDEFINED, number
from anban.study.records import Arm, Run, Study
from anban.study.scores import score_named

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]
UNNAMED = "change"  # the view of records from when there was one only


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        title: what it shows.
        pixels: (H, W, 3) 8-bit RGB.
        score: of the single image, as text; "" for none.
        run: id of the run that it comes from; "" for data.
        recolours: whether its colours are those of the sheet's convention, which a reader may exchange.
    """

    title: str
    pixels: Pixels
    score: str = ""
    run: str = ""
    recolours: bool = False


@dataclass(frozen=True)
class Scene:
    """One picture of the data with what was made of it: lines of tiles, one tile per column of the sheet."""

    name: str
    lines: tuple[tuple[Tile, ...], ...]


@dataclass(frozen=True)
class Swatch:
    """A colour of the legend with its meaning; `outcome` and `word` where conventions colour it differently."""

    colour: Colour
    text: str
    outcome: str = ""
    word: str = ""


@dataclass(frozen=True)
class Chart:
    """A figure that belongs to a sheet, under the `name` of its files."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Sheet:
    """Scenes with their legend.

    Attributes:
        columns: heading of each column.
        noun: what the pictures of the methods are, such as "change maps".
        caption: sentences that stand below.
        conventions: name -> outcome -> its colour and the colour's name, where there are several ways to colour; the one
            used is `convention`.
        charts: what else is worth seeing of these scenes.
    """

    scenes: tuple[Scene, ...]
    columns: tuple[str, ...]
    legend: tuple[Swatch, ...]
    noun: str
    caption: str
    conventions: dict[str, dict[str, tuple[Colour, str]]] = field(default_factory=dict)
    convention: str = ""
    charts: tuple[Chart, ...] = ()


class Shown(NamedTuple):
    """An arm and the run whose pictures stand for it, its first finished one that has any."""

    arm: Arm
    run: Run

    def folder(self, scene: str) -> Path:
        """Where the run keeps the pictures of a scene."""
        return self.run.pictures[scene]


def sheet_of(study: Study, convention: str | None = None) -> Sheet | None:
    """The scenes that every pictured run stored, with what each arm's first finished run made of them.

    Arms without pictures are left out. None where no run stored pictures.

    Args:
        convention: how right and wrong are coloured, where the kind of pictures has several ways; None takes its usual.

    Raises:
        InputError: the runs have pictures of different kinds, of a kind that is not known, or a picture is missing; or
            there is no such convention.
    """
    found = [(arm, next((run for run in arm.finished if run.pictures), None)) for arm in study.arms]
    shown = [Shown(arm, run) for arm, run in found if run is not None]
    if not shown:
        return None
    views = list(dict.fromkeys(str(each.run.pictured.get("view", UNNAMED)) for each in shown))
    known = sorted(path.stem for path in Path(__file__).with_name("views").glob("[!_]*.py"))
    if len(views) > 1 or views[0] not in known:
        raise InputError(
            f"The pictures of the runs are of the kind {', '.join(views)}.",
            where=shown[0].run.path / "figures" / "samples" / "index.json",
            expected=f"one kind, of {', '.join(known)}",
        )
    names = [name for name in shown[0].run.pictures if all(name in each.run.pictures for each in shown)]
    if not names:
        return None
    view = importlib.import_module(f"anban.report.views.{views[0]}")
    try:
        sheet: Sheet = view.sheet(shown, names, _scores_of(study), convention)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"The stored pictures do not fit their index: {type(error).__name__} {error}.",
            where=shown[0].run.picture_index,
            do="evaluate the runs again with anban eval",
        ) from error
    return sheet


def _scores_of(study: Study) -> Callable[[Run, str], str]:
    """(run, scene) -> the deciding score of the single image, as text."""
    score = score_named(study.metric)

    def text(run: Run, scene: str) -> str:
        value = run.image_score(study.split, study.protocol, scene, study.metric)
        digits = 1 if score.is_share else score.digits
        return f"{score.title} {UNDEFINED if value is None else number(score.scale * value, digits)}"

    return text


def read_picture(path: Path, mode: str) -> Pixels:
    """A stored picture in PIL's `mode` ("RGB", "L", "P").

    Raises:
        InputError: it is missing or damaged.
    """
    if not path.is_file():
        raise InputError(
            "A stored picture is missing.", where=path, do="Evaluate the run again with `anban eval`."
        )
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image if image.mode == mode else image.convert(mode))
    except Exception as error:  # the many ways a picture can be broken
        raise InputError(
            f"A stored picture is damaged: {str(error) or type(error).__name__}.",
            where=path,
            do="Evaluate the run again with `anban eval`.",
        ) from None


# --- the figure -------------------------------------------------------------------------------------------------


def draw(sheet: Sheet) -> Figure:
    """The classic sheet: scenes as rows, what they show and each method as columns, the legend at the foot.

    One pixel of a scene is a whole number of pixels of the PNG, so nothing is blurred; the page width is 7.16 inches
    for six columns or more. Columns are as wide as the widest scene.
    """
    columns = sheet.columns
    widest = max(_size(scene)[1] for scene in sheet.scenes)
    cell_w = widest * max(1, round(240 / widest))
    gap = max(2, cell_w // 40)
    # Everything is placed in pixels of the PNG; `point` is the size of one typographic point there.
    inches = min(PAGE, 0.25 + 1.15 * len(columns))
    pictures_w = len(columns) * (cell_w + gap) - gap
    side = round(pictures_w * 0.17 / (inches - 0.17))  # 0.17 inches for the names of the scenes
    total_w = side + pictures_w
    dpi = total_w / inches
    point = dpi / 72
    longest = max(len(line) for column in columns for line in wrapped(column))
    size = float(min(7.0, max(4.0, (cell_w / point) / (0.6 * longest))))
    lines = max(len(wrapped(column)) for column in columns)
    entries = [f"{swatch.text} ({swatch.word})" if swatch.word else swatch.text for swatch in sheet.legend]
    abreast = _abreast(entries, inches)
    legend_lines = -(-len(entries) // abreast)
    head, foot = round(point * (size * 1.25 * lines + 3)), round(point * (6 + 10 * legend_lines))
    under = round(point * 8.5)

    with paper():
        total_h = head + foot + sum(_height(scene, cell_w, gap) + under for scene in sheet.scenes)
        figure = Figure(figsize=(total_w / dpi, total_h / dpi), dpi=dpi)
        figure.set_label("pixels")
        for c, column in enumerate(columns):
            middle = (side + c * (cell_w + gap) + cell_w / 2) / total_w
            text = "\n".join(wrapped(column))
            y = 1 - (head - point * 2.5) / total_h
            figure.text(middle, y, text, ha="center", va="bottom", fontsize=size)
        top = head
        for scene in sheet.scenes:
            height, width = _size(scene)
            factor = cell_w // width
            tall = _height(scene, cell_w, gap)
            figure.text(
                (side - point * 3) / total_w,
                1 - (top + tall / 2) / total_h,
                stem := Path(scene.name).stem,
                rotation=90,
                ha="right",
                va="center",
                fontsize=min(6, 72 * tall / dpi / (0.7 * len(stem))),  # a long name stays within its row
                color=MUTED,
            )
            for r, line in enumerate(scene.lines):
                upper = top + r * (height * factor + gap)
                lower = upper + height * factor
                for c, tile in enumerate(line):
                    left = side + c * (cell_w + gap) + (cell_w - width * factor) // 2
                    size_of = (width * factor / total_w, height * factor / total_h)
                    axes = figure.add_axes((left / total_w, 1 - lower / total_h, *size_of))
                    axes.set_axis_off()
                    big = np.kron(tile.pixels, np.ones((factor, factor, 1), dtype=np.uint8))
                    axes.imshow(big, interpolation="none", resample=False, aspect="auto")
                    if tile.score:
                        x = (left + width * factor / 2) / total_w
                        y = 1 - (lower + point * 1.5) / total_h
                        figure.text(x, y, tile.score, ha="center", va="top", fontsize=5.5, color=MUTED)
            top += tall + under
        figure.legend(
            handles=[_patch(swatch, text) for swatch, text in zip(sheet.legend, entries, strict=True)],
            loc="lower center",
            ncols=abreast,
            fontsize=6,
            handlelength=1.2,
            handleheight=0.9,
            columnspacing=1.4,
            borderaxespad=0.2,
            bbox_to_anchor=(0.5, 0.0),
        )
    return figure


def _size(scene: Scene) -> tuple[int, int]:
    """Height and width of a scene's pictures, which are all of one size."""
    height, width = scene.lines[0][0].pixels.shape[:2]
    return height, width


def _height(scene: Scene, cell_w: int, gap: int) -> int:
    """Of a scene's lines, in pixels of the PNG."""
    height, width = _size(scene)
    return len(scene.lines) * (height * (cell_w // width) + gap) - gap


def _abreast(entries: Sequence[str], inches: float) -> int:
    """How many entries of a legend in 6 point type fit beside each other."""
    longest = max(len(entry) for entry in entries)
    return max(1, min(len(entries), int(inches * 72 / (3.4 * longest + 22))))


def _patch(swatch: Swatch, text: str) -> Patch:
    red, green, blue = (v / 255 for v in swatch.colour)
    return Patch(facecolor=(red, green, blue), edgecolor=MUTED, linewidth=0.5, label=text)
