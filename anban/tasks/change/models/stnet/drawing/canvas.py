"""A sheet for block diagrams: boxes, lines and words in inches, y downwards, as one vector figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline

INK, MUTED, RULE, PAPER = "#1b1f24", "#5f6873", "#c3cad2", "#ffffff"

#: One colour per kind of block: (fill, edge, words). Pale is what is known, strong is what is new; yellow is Mamba alone.
KINDS: dict[str, tuple[str, str, str]] = {
    "vss": ("#fbf0b4", "#d8c355", INK),
    "convolution": ("#f1f3f5", "#a9b2bc", INK),
    "fusion": ("#cdc3ec", "#9a8bcb", INK),
    "aff": ("#b3dfe8", "#74b2be", INK),
    "difference": ("#c4bab3", "#7d736d", INK),
    "integration": ("#007a5a", "#005c44", PAPER),
    "enhancement": ("#8a2f7b", "#65205a", PAPER),
}
#: Lines: the two dates, their difference, and what is joined.
LINES = {"a": "#0072b2", "b": "#d55e00", "difference": "#7d736d", "joined": INK}

SISS, SISS_GROUND = KINDS["integration"][0], "#eff6f2"
EDSS_INK, EDSS_GROUND = KINDS["enhancement"][0], "#f8f0f6"
TILES = {"a": "#cfe3f0", "b": "#f9dcc8"}

PAGE = 7.16  # inches: two columns of a paper
LANE = 2.4  # points: the dates' own lines

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "svg.fonttype": "none",  # words stay words
    "svg.hashsalt": "anban",  # and the same drawing is the same file
    "pdf.fonttype": 42,
}

Point = tuple[float, float]


class Canvas:
    """A sheet of `width` x `height` inches. Everything drawn has a name, which is its id in the SVG."""

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()
        self._names: Counter[str] = Counter()

    def _own(self, name: str) -> str:
        """The name, with a number where it is not the first of its name."""
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}-{self._names[name]}"

    def box(
        self, x: float, y: float, width: float, height: float, kind: str, text: str, name: str, **words: Any
    ) -> None:
        """A block around (x, y)."""
        fill, edge, ink = KINDS[kind]
        name = self._own(name)
        corner = (x - width / 2, y - height / 2)
        style = "round,pad=0,rounding_size=0.035"
        patch = FancyBboxPatch(
            corner, width, height, style, facecolor=fill, edgecolor=edge, linewidth=0.7, zorder=4, gid=name
        )
        self.axes.add_patch(patch)
        if text:
            self.text(x, y, text, **{"color": ink, "name": f"{name}-text", **words})

    def text(
        self, x: float, y: float, text: str, *, name: str | None = None, size: float = 6.3, **words: Any
    ) -> None:
        """Words around (x, y); `ha` and `va` as in matplotlib."""
        look = {"ha": "center", "va": "center", "color": INK, "zorder": 6, "linespacing": 1.2, **words}
        self.axes.text(x, y, text, fontsize=size, gid=name, **look)

    def line(
        self,
        points: Sequence[Point],
        kind: str,
        name: str,
        *,
        arrow: bool = False,
        width: float = 1.5,
        halo: str | None = PAPER,
        **look: Any,
    ) -> None:
        """A line with rounded corners; what it crosses is parted by a halo of the ground's colour."""
        path = _rounded(points)
        style = {"facecolor": "none", "capstyle": "butt", "joinstyle": "round", "zorder": 3, **look}
        head = f"-|>,head_length={2 + width},head_width={0.6 + 0.75 * width}" if arrow else "-"
        if halo is not None:
            under = FancyArrowPatch(path=path, arrowstyle="-", color=halo, linewidth=width + 2, zorder=3)
            under.set(facecolor="none", capstyle="butt")
            self.axes.add_patch(under)
        patch = FancyArrowPatch(
            path=path,
            arrowstyle=head,
            color=LINES[kind],
            linewidth=width,
            zorder=3,
            gid=self._own(name),
            mutation_scale=1,
        )
        patch.set(**style)
        if arrow:
            patch.set_facecolor(LINES[kind])
        self.axes.add_patch(patch)

    def bend(self, start: Point, end: Point, kind: str, name: str, width: float) -> None:
        """A line that changes its place: down, across, down."""
        half = (start[1] + end[1]) / 2
        outline = Outline(
            [start, (start[0], half), (end[0], half), end], [Outline.MOVETO, *[Outline.CURVE4] * 3]
        )
        patch = PathPatch(
            outline, facecolor="none", edgecolor=LINES[kind], linewidth=width, zorder=3, gid=self._own(name)
        )
        patch.set_capstyle("butt")
        self.axes.add_patch(patch)

    def dot(self, x: float, y: float, kind: str, name: str, radius: float = 0.028) -> None:
        """Where a line branches."""
        patch = Circle((x, y), radius, facecolor=LINES[kind], edgecolor="none", zorder=5, gid=self._own(name))
        self.axes.add_patch(patch)

    def sign(self, x: float, y: float, text: str, name: str, radius: float = 0.07) -> None:
        """An operation between lines: + or ×."""
        patch = Circle(
            (x, y), radius, facecolor=PAPER, edgecolor=INK, linewidth=0.7, zorder=5, gid=self._own(name)
        )
        self.axes.add_patch(patch)
        for across, down in ((1, 0), (0, 1)) if text == "+" else ((0.7, 0.7), (0.7, -0.7)):
            reach = 0.6 * radius
            xs, ys = (x - across * reach, x + across * reach), (y - down * reach, y + down * reach)
            self.axes.plot(xs, ys, color=INK, linewidth=0.8, zorder=6, solid_capstyle="round")

    def area(
        self, x: float, y: float, width: float, height: float, fill: str, name: str, **look: Any
    ) -> None:
        """A plain rectangle from its upper left corner."""
        look = {"edgecolor": "none", "linewidth": 0.5, "zorder": 1, **look}
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, gid=self._own(name), **look))

    def block(self, x: float, y: float, side: float, depth: float, name: str) -> None:
        """A feature map as a solid: a face of `side` whose centre is (x, y), and how deep it goes to the right."""
        over, up = 0.8 * depth, 0.4 * depth
        left, right, top, bottom = x - side / 2, x + side / 2, y - side / 2, y + side / 2
        faces = {
            "front": ("#dfe4e9", [(left, top), (right, top), (right, bottom), (left, bottom)]),
            "top": (
                "#f1f4f6",
                [(left, top), (left + over, top - up), (right + over, top - up), (right, top)],
            ),
            "side": (
                "#c3cad2",
                [(right, top), (right + over, top - up), (right + over, bottom - up), (right, bottom)],
            ),
        }
        for face, (fill, corners) in faces.items():
            polygon = Polygon(corners, facecolor=fill, edgecolor="#8b95a0", linewidth=0.5, zorder=4)
            polygon.set(gid=f"{name}-{face}", joinstyle="round")
            self.axes.add_patch(polygon)

    def save(self, folder: Path, name: str) -> list[Path]:
        """`name.svg`, `name.pdf` and, for pages that show no vectors, `name.png`: the same bytes for the same drawing."""
        stamps = {"svg": "Date", "pdf": "CreationDate", "png": "Software"}
        files = [folder / f"{name}.{kind}" for kind in stamps]
        with matplotlib.rc_context(STYLE):
            for file, stamp in zip(files, stamps.values(), strict=True):
                self.figure.savefig(file, metadata={stamp: None}, dpi=170)
        return files


def _rounded(points: Sequence[Point], radius: float = 0.06) -> Outline:
    """The polygon line through the points, each corner rounded as far as its sides allow."""
    vertices, codes = [points[0]], [Outline.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        near = []
        for end in (before, after):
            length = max(abs(end[0] - corner[0]), abs(end[1] - corner[1]), 1e-9)
            share = min(radius, length / 2) / length
            near.append((corner[0] + share * (end[0] - corner[0]), corner[1] + share * (end[1] - corner[1])))
        vertices += [near[0], corner, near[1]]
        codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
    return Outline([*vertices, points[-1]], [*codes, Outline.LINETO])
