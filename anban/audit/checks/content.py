"""What kind of picture it is: mostly text, line art, comic panels, a sheet of figures.

* Text: how many letters were read, and how much of what is drawn they are. Lettering of a comic is told with its panels.
* Line art: thin dark strokes on an even bright ground, no colour, and a share of the strokes is neither text nor ruled.
* Panels: the picture is cut along empty bands, again and again (Nagy and Seth's XY cut, 1984). What is left over has an
  edge all round, because panels are framed or bled to their borders; paragraphs and figures are ragged.
* Figures: on an even ground many separate shapes, coloured, upright and of one height, or one alone that was cut out.

Only panels are looked for where the check `language` has not read the picture: without that text cannot be told from
drawings, nor letters from figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.draw import polygon

from anban.audit.checks.language import Line, lines_of
from anban.audit.finding import Finding, Shape
from anban.audit.picture import Picture
from anban.recipe.schema import Count, Positive, Share

#: Longest side of the picture in which shapes are looked at; the widths in pixels below are at this size.
_SIDE = 768

Plane = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
#: Top, left, bottom, right.
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Limits:
    """See limits.yaml."""

    confidence: Share
    letters: Count
    few_letters: Count
    ink_in_text: Share
    saturation: Share
    coloured: Share
    bright: Share
    plain: Share
    least_ink: Share
    thick: Share
    drawn: Share
    panels: Count
    panel_area: Share
    panel_cover: Share
    gutters: Share
    gutter: Share
    framed: Share
    figures: Count
    figure_height: Share
    figure_taller: Positive
    cut_out: Share


def check(picture: Picture, limits: Limits) -> list[Finding]:
    """text_heavy, line_art, manga_panel, character_sheet."""
    view = _view(picture, limits)
    panels = _panels(view, limits)
    found = [panels]
    if "lines" in picture.memo:
        found += [_line_art(view, limits), _character_sheet(picture, view, limits)]
        if panels is None:
            found.append(_text_heavy(view, limits))
    return [finding for finding in found if finding]


@dataclass(frozen=True)
class _View:
    """The picture at `_SIDE`.

    Attributes:
        colour: (H, W, 3), 0 to 1.
        gray: (H, W), 0 to 1.
        coloured: (H, W), where there is a colour.
        ground: gray value of most pixels.
        plain: share of the pixels that have it.
        text: (H, W), within the lines that were read with confidence.
        written: (H, W), within any lines, whatever their script.
        letters: of these lines.
        scale: pixels here per own pixel.
    """

    colour: Plane
    gray: Plane
    coloured: Mask
    ground: float
    plain: float
    text: Mask
    written: Mask
    letters: int
    scale: float

    def shape(self, box: Box, label: str = "") -> Shape:
        top, left, bottom, right = (side / self.scale for side in box)
        return Shape("box", ((left, top), (right, bottom)), label)


def _view(picture: Picture, limits: Limits) -> _View:
    image = Image.fromarray(picture.rgb)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    colour = np.asarray(image, np.float32) / 255
    gray = colour @ np.array([0.299, 0.587, 0.114], np.float32)
    counts = np.histogram(gray, 64, (0, 1))[0]
    ground = (int(counts.argmax()) + 0.5) / 64
    scale = image.width / picture.size[0]
    lines = lines_of(picture)
    sure = [line for line in lines if line.confidence >= limits.confidence]
    lines = [line for line in lines if line in sure or _is_long(line)]
    text, written = _covered(sure, gray.shape, scale), _covered(lines, gray.shape, scale)
    plain = float((np.abs(gray - ground) < 0.06).mean())
    channels = [colour[..., k] for k in range(3)]
    coloured = np.maximum.reduce(channels) - np.minimum.reduce(channels) > limits.saturation
    return _View(
        colour, gray, coloured, ground, plain, text, written, sum(line.letters for line in sure), scale
    )


def _is_long(line: Line) -> bool:
    """Unlike the box around a whole drawing, which the reader takes for a letter it does not know."""
    corners = np.array(line.box)
    across, down = np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(corners[2] - corners[1])
    return bool(max(across, down) > 2 * min(across, down))


def _covered(lines: Iterable[Line], shape: tuple[int, ...], scale: float) -> Mask:
    covered = np.zeros(shape, bool)
    for line in lines:
        x, y = np.array(line.box).T * scale
        covered[polygon(y, x, shape)] = True  # type: ignore[no-untyped-call]
    return covered


def _text_heavy(view: _View, limits: Limits) -> Finding | None:
    steep = np.hypot(np.diff(view.gray, axis=0)[:, :-1], np.diff(view.gray, axis=1)[:-1])
    inside = float(steep[view.text[:-1, :-1]].sum() / max(float(steep.sum()), 1e-6))
    nothing_else = view.letters >= limits.few_letters and inside >= limits.ink_in_text
    if view.letters < limits.letters and not nothing_else:
        return None
    area = float(view.text.mean())
    what = f"{view.letters} letters; lines of text cover {area:.0%} and have {inside:.0%} of all contrast"
    data = {"letters": view.letters, "area": round(area, 4), "contrast": round(inside, 4)}
    return Finding(
        "text_heavy", what, round(max(inside, min(1, view.letters / (2 * limits.letters))), 3), (), data
    )


def _line_art(view: _View, limits: Limits) -> Finding | None:
    if view.ground < limits.bright or view.plain < limits.plain or view.coloured.mean() > limits.coloured:
        return None
    ink = view.gray < view.ground - 0.25
    if not limits.least_ink <= ink.mean():
        return None
    thick = float(ndimage.binary_opening(ink, np.ones((7, 7))).sum() / ink.sum())
    rule = max(view.gray.shape) // 12
    rules = ndimage.binary_opening(ink, np.ones((1, rule))) | ndimage.binary_opening(ink, np.ones((rule, 1)))
    strokes = ink & ~ndimage.binary_dilation(rules, np.ones((3, 3)))
    drawn = float((strokes & ~view.written).sum() / max(int(strokes.sum()), 1))
    if thick > limits.thick or drawn < limits.drawn:
        return None
    what = f"black strokes on {view.plain:.0%} even ground; {drawn:.0%} of them are no text"
    data = {"drawn": round(drawn, 4), "ink": round(float(ink.mean()), 4), "thick": round(thick, 4)}
    return Finding("line_art", what, round(drawn, 3), (), data)


def _panels(view: _View, limits: Limits) -> Finding | None:
    """The gutters are white, black, or as most of the border."""
    area = view.gray.size
    gap = max(2, round(limits.gutter * max(view.gray.shape)))
    best: list[Box] = []
    for ground in ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), _border(view.colour)):
        content = np.maximum.reduce([np.abs(view.colour[..., k] - ground[k]) for k in range(3)]) > 0.15
        boxes = [box for box in cut(content, gap) if _area(box) > limits.panel_area * area]
        panels = [box for box in boxes if _framed_sides(content, box, limits) >= 3]
        if len(panels) >= limits.panels:
            best = max(best, panels, key=lambda boxes: sum(map(_area, boxes)))
    cover = sum(map(_area, best)) / area
    if not best or not limits.panel_cover <= cover <= 1 - limits.gutters:
        return None
    what = f"{len(best)} panels with empty bands between them cover {cover:.0%}"
    shapes = tuple(view.shape(box, str(number)) for number, box in enumerate(best, 1))
    return Finding(
        "manga_panel", what, round(cover, 3), shapes, {"panels": len(best), "cover": round(cover, 4)}
    )


def _border(colour: Plane) -> tuple[float, ...]:
    ring = np.concatenate([colour[0], colour[-1], colour[:, 0], colour[:, -1]])
    return tuple(np.median(ring, 0))


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def cut(content: Mask, gap: int, top: int = 0, left: int = 0) -> list[Box]:
    """The boxes that are left when a picture is cut along its empty rows, then columns, until there are none.

    Args:
        content: (H, W), what is not ground.
        gap: rows or columns that make an empty band.
        top, left: where it lies in the whole picture.
    """
    rows, columns = np.flatnonzero(content.any(1)), np.flatnonzero(content.any(0))
    if not len(rows):
        return []
    content = content[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, left = top + int(rows[0]), left + int(columns[0])
    for axis in (0, 1):
        parts = _parts(np.any(content, 1 - axis), gap)
        if len(parts) > 1:
            pieces = (
                (content[a:b], top + a, left) if axis == 0 else (content[:, a:b], top, left + a)
                for a, b in parts
            )
            return [box for piece, y, x in pieces for box in cut(piece, gap, y, x)]
    return [(top, left, top + content.shape[0], left + content.shape[1])]


def _parts(filled: NDArray[Any], gap: int) -> list[tuple[int, int]]:
    """Begin and end of the stretches between empty ones of at least `gap`; the first and the last place are filled."""
    places = np.flatnonzero(filled)
    breaks = np.flatnonzero(np.diff(places) > gap)
    begins = [places[0], *places[breaks + 1]]
    ends = [*places[breaks], places[-1]]
    return [(int(begin), int(end) + 1) for begin, end in zip(begins, ends, strict=True)]


def _framed_sides(content: Mask, box: Box, limits: Limits) -> int:
    """How many sides of the box have content along nearly their whole length."""
    top, left, bottom, right = box
    inside = content[top:bottom, left:right]
    sides = (inside[:3].any(0), inside[-3:].any(0), inside[:, :3].any(1), inside[:, -3:].any(1))
    return sum(side.mean() > limits.framed for side in sides)


def _character_sheet(picture: Picture, view: _View, limits: Limits) -> Finding | None:
    if view.plain < limits.plain or view.ground < limits.bright:
        return None
    content = view.coloured | (np.abs(view.gray - view.ground) > 0.1)
    labels, _ = ndimage.label(ndimage.binary_dilation(content, np.ones((3, 3))), np.ones((3, 3)))
    boxes = [(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labels)]
    figures = [box for box in boxes if _is_figure(view, box, limits)]
    heights = np.array([box[2] - box[0] for box in figures])
    if len(figures):
        alike = np.abs(heights / np.median(heights) - 1) < 0.35
        figures = [box for box, same in zip(figures, alike, strict=True) if same]
    if len(figures) >= limits.figures:
        what = f"{len(figures)} separate figures of about one height on an even ground"
        shapes = tuple(view.shape(box) for box in figures)
        return Finding(
            "character_sheet", what, round(1 - 1 / len(figures), 3), shapes, {"figures": len(figures)}
        )
    largest = max(boxes, key=_area, default=None)
    if (
        largest
        and picture.has_alpha
        and picture.opaque < limits.cut_out
        and _is_figure(view, largest, limits)
    ):
        what = f"one figure, cut out: only {picture.opaque:.0%} of the picture is opaque"
        return Finding(
            "character_sheet", what, None, (view.shape(largest),), {"opaque": round(picture.opaque, 4)}
        )
    return None


def _is_figure(view: _View, box: Box, limits: Limits) -> bool:
    """Upright, coloured, large enough, and no text."""
    top, left, bottom, right = box
    height, width = bottom - top, right - left
    return bool(
        height > limits.figure_height * max(view.gray.shape)
        and height > limits.figure_taller * width
        and view.coloured[top:bottom, left:right].mean() > 0.1
        and view.text[top:bottom, left:right].mean() < 0.5
    )
