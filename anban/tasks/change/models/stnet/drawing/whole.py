"""Panel (a): the whole U."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from anban.tasks.change.models.stnet.decoder import DecoderLevel, Head, Skip
from anban.tasks.change.models.stnet.drawing import levels
from anban.tasks.change.models.stnet.drawing.canvas import (
    LANE,
    LINES,
    MUTED,
    PAPER,
    SISS,
    SISS_GROUND,
    TILES,
    Canvas,
    Point,
)
from anban.tasks.change.models.stnet.drawing.levels import DATES, ORDERS, SIGNS, Block, Part, orders, taken
from anban.tasks.change.models.stnet.encoder import Level
from anban.tasks.change.models.stnet.enhancement import EDSS
from anban.tasks.change.models.stnet.network import STNet


@dataclass(frozen=True)
class Place:
    """Where a level's parts stand: y of its upper end; x of the dates' lanes, of their middle and of the trunk."""

    top: float
    a: float
    b: float
    trunk: float

    @property
    def middle(self) -> float:
        return (self.a + self.b) / 2

    @property
    def skip(self) -> float:
        """y of the lines from the encoder to the decoder."""
        return self.top + 0.8


class Whole:
    """Panel (a): down the encoder on the left, across, and up the decoder on the right."""

    row, first, lean = 1.1, 0.95, 0.12
    fusion_x = 3.74  # of the differences of all levels

    def __init__(self, model: STNet, parts: dict[str, Part], table: list[levels.Row]):
        self.model, self.parts, self.table = model, parts, table
        self.encoder: list[Level] = list(model.encoder.levels)  # type: ignore[arg-type]
        self.decoder: list[DecoderLevel] = list(model.decoder)  # type: ignore[arg-type]
        self.height = self.first + self.row * len(self.encoder) - 0.1
        self.used: set[str] = set()

    def place(self, level: int) -> Place:
        lean = self.lean * level
        return Place(self.first + self.row * level, 1.56 + lean, 2.38 + lean, 5.72 - lean)

    def draw(self, canvas: Canvas) -> None:
        self.canvas = canvas
        every = self.table[-1].whole
        canvas.text(0.05, 0.1, f"(a) {type(self.model).__name__}", ha="left", size=7.5, weight="bold")
        words = f"{every.parameters / 1e6:.2f} M parameters, {every.macs / 1e9:.2f} G multiply-adds"
        canvas.text(0.72, 0.1, words, ha="left", color=MUTED)
        right = self.place(len(self.encoder) - 1).b + 0.42
        canvas.area(1.14, 0.5, right - 1.14, self.height - 0.5, SISS_GROUND, "siss-ground")
        canvas.text(1.2, 0.61, "SISS", ha="left", weight="bold", size=7, color=SISS)
        self._images()
        for number in range(len(self.encoder)):
            self._size(number)
            self._encoder(number)
            self._skip(number)
            self._decoder(number)
        if self.model.difference_fusion is not None:
            self._difference_fusion()
        self._output()

    def box(
        self, x: float, y: float, width: float, height: float, block: Block, name: str, **words: Any
    ) -> None:
        self.used.add(block.kind)
        self.canvas.box(x, y, width, height, block.kind, block.text, name, **words)

    # ---- down ----

    def _images(self) -> None:
        place, canvas = self.place(0), self.canvas
        canvas.text(0.06, 0.3, _times((levels.bands(self.model), *self.parts[""].size[1:])), ha="left")
        for date in DATES:
            x = getattr(place, date)
            canvas.area(
                x - 0.35, 0.2, 0.7, 0.2, TILES[date], f"image-{date}", edgecolor=LINES[date], linewidth=0.9
            )
            canvas.text(x, 0.3, f"image {date}")
            canvas.line([(x, 0.4), (x, place.top + 0.1)], date, f"date-{date}-image", width=LANE, halo=None)
        canvas.text(place.middle, 0.72, "separation", size=5.8, style="italic", color=SISS)

    def _size(self, number: int) -> None:
        """Size and cost of the level: of the encoder as a solid and in words, of the decoder in words."""
        row, place, canvas = self.table[number], self.place(number), self.canvas
        largest, deepest = self.table[0].size[1], self.table[len(self.encoder) - 1].size[0]
        side, depth = 0.36 * row.size[1] / largest, row.size[0] * min(1 / 1280, 0.4 / deepest)
        canvas.block(0.06 + side / 2, place.top + 0.54 - side / 2, side, depth, f"level-{number + 1}-size")
        up = self.parts[f"decoder.{number}"].size
        for x, y, words in (
            (0.06, place.top + 0.66, [f"level {number + 1}", _times(row.size), _cost(row.encoder)]),
            (6.34, place.top + 0.5, [_times(up), _cost(row.decoder)]),
        ):
            for step, text in enumerate(words):
                look: dict[str, Any] = {"weight": "bold"} if text.startswith("level") else {}
                look |= {"color": MUTED, "size": 5.8} if text is words[-1] else {}
                canvas.text(x, y + 0.125 * step, text, ha="left", **look)

    def _encoder(self, number: int) -> None:
        level, place = self.encoder[number], self.place(number)
        name, canvas = f"level-{number + 1}", self.canvas
        top, joined = place.top, levels.integration(level)
        for block, y, height in zip(
            levels.way(level, number), (top + 0.12, top + 0.34), (0.15, 0.2), strict=False
        ):
            if block.columns == 1:
                shared = replace(block, text=f"{block.text}, shared")
                self.box(place.middle, y, 1.52, height, shared, f"{name}-way-shared-{block.kind}")
            else:
                for date in DATES:
                    self.box(getattr(place, date), y, 0.72, height, block, f"{name}-way-{date}-{block.kind}")
        deepest = number == len(self.encoder) - 1
        below = self.place(number + 1)
        for date, sign in zip(DATES, (-1, 1), strict=True):
            x, there = getattr(place, date), getattr(below, date)
            canvas.line(
                [(x, top + 0.1), (x, top + 0.46)], date, f"{name}-date-{date}-way", width=LANE, halo=None
            )
            if joined is None:
                leave = (x, self._bundle(number)[date] + 0.01 if deepest else place.skip + 0.04)
                canvas.line(
                    [(x, top + 0.45), leave], date, f"{name}-date-{date}-apart", width=LANE, halo=SISS_GROUND
                )
            else:
                leave = (place.middle + 0.05 * sign, place.skip + 0.1)
                canvas.bend(
                    (x, top + 0.45),
                    (leave[0], place.skip - 0.1),
                    date,
                    f"{name}-date-{date}-integration",
                    LANE,
                )
            if not deepest:
                canvas.bend(leave, (there, below.top + 0.06), date, f"{name}-date-{date}-separation", LANE)
        if joined is not None:
            text = f"integration, {joined.text}"
            self.box(
                place.middle,
                place.skip,
                1.0,
                0.22,
                replace(joined, text=text),
                f"{name}-integration",
                weight="bold",
            )
            if not deepest:
                canvas.text(
                    1.2, below.top - 0.07, "separation", ha="left", size=5.8, style="italic", color=SISS
                )

    # ---- across ----

    def _bundle(self, number: int) -> dict[str, float]:
        """y of the lines that go across."""
        y = self.place(number).skip
        lines = {"a": y - 0.09, "b": y - 0.02}
        return lines | ({"difference": y + 0.09} if self._difference(number) else {})

    def _difference(self, number: int) -> Block | None:
        """What takes the difference: the encoder's block, or nothing but |a - b| for the enhancement alone."""
        branch = self.decoder[number].enhancement
        if self.encoder[number].difference is not None:
            return Block("difference", "DDB")
        return Block("difference", "|a − b|") if branch is not None and branch.needs("difference") else None

    def _skip(self, number: int) -> None:
        """The lines from the encoder to the decoder, with the difference block and the enhancement on their way."""
        level, decoded = self.encoder[number], self.decoder[number]
        place, canvas = self.place(number), self.canvas
        name, lines, branch = f"level-{number + 1}", self._bundle(number), decoded.enhancement
        needed = taken(branch) if branch is not None else []
        taps = self._taps(number, needed)
        ddb = place.b + 0.66
        for kind, y in lines.items():
            start = ddb if kind == "difference" else place.middle + 0.5
            if kind in DATES and level.integration is None:
                start = getattr(place, kind)
                canvas.dot(start, y, kind, f"{name}-{kind}-branch")
            first, *others = self._into_trunk(number, kind, y) or [[]]
            points = [(start, y), *(first or [(self._last(number, kind, taps, start), y)])]
            halo = SISS_GROUND if level.integration is None else PAPER if len(points) > 2 else None
            canvas.line(points, kind, f"{name}-date-{kind}-across", halo=halo, arrow=bool(first))
            for points in others:
                canvas.line(points, kind, f"{name}-date-{kind}-again", arrow=True)
                canvas.dot(*points[0], kind, f"{name}-date-{kind}-again-branch")
        if difference := self._difference(number):
            for kind, x in (("a", ddb - 0.07), ("b", ddb + 0.07)):
                canvas.line(
                    [(x, lines[kind]), (x, lines["difference"])],
                    kind,
                    f"{name}-{kind}-ddb",
                    width=1.1,
                    halo=None,
                )
                canvas.dot(x, lines[kind], kind, f"{name}-{kind}-ddb-branch", 0.022)
            self.box(ddb, lines["difference"], 0.34, 0.14, difference, f"{name}-ddb", size=6)
        if branch is not None:
            self._enhancement(number, branch, taps, "fused" in needed)

    def _taps(self, number: int, needed: Sequence[str]) -> dict[str, float]:
        """x of the lines that rise into the enhancement."""
        kinds = [kind for kind in self._bundle(number) if kind in needed]
        middle = self.place(number).trunk - 1.2
        return {kind: middle + 0.16 * (i - (len(kinds) - 1) / 2) for i, kind in enumerate(kinds)}

    def _into_trunk(self, number: int, kind: str, y: float) -> list[list[Point]]:
        """The ends of a line at the blocks of the trunk that take it, each straight or with a turn."""
        place, ends = self.place(number), []
        for block, at in zip(levels.stack(self.decoder[number]), self._heights(number), strict=True):
            if kind in block.takes:
                x, turn = place.trunk - 0.42, place.trunk - 0.5 - (0.07 if kind == "a" else 0)
                if block.columns > 1 and kind == "b":  # round the block of date a
                    turn, under, own = place.trunk - 0.57, place.skip + 0.16, place.trunk + 0.215
                    ends.append([(turn, y), (turn, under), (own, under), (own, at + 0.07)])
                elif abs(at - place.skip) < 0.01:
                    ends.append([(x, y)])
                else:
                    ends.append([(turn, y), (turn, y + at - place.skip), (x, y + at - place.skip)])
        return ends

    def _enhancement(self, number: int, branch: EDSS, taps: dict[str, float], fused: bool) -> None:
        place, canvas = self.place(number), self.canvas
        name, lines = f"level-{number + 1}", self._bundle(number)
        x, y = place.trunk - 1.2, place.top + 0.11
        for kind, at in taps.items():
            canvas.line([(at, lines[kind]), (at, y + 0.17)], kind, f"{name}-{kind}-edss", arrow=True)
            canvas.dot(at, lines[kind], kind, f"{name}-{kind}-edss-branch")
        if fused:
            self._fused(number, x + 0.4, y + 0.17)
        self.box(x, y, 1.06, 0.34, Block("enhancement", ""), f"{name}-edss")
        for operator, sources in orders(branch):
            self.used |= {ORDERS[type(operator)], *(SIGNS[source] for source in sources)}
        canvas.text(x, y - 0.075, "EDSS", weight="bold", color="white")
        canvas.text(x, y + 0.08, _derivatives(branch), color="white", size=5.8)
        canvas.line(
            [(x + 0.53, y), (place.trunk - 0.42, y)], "joined", f"{name}-edss-out", arrow=True, halo=None
        )

    def _fused(self, number: int, x: float, end: float) -> None:
        """The trunk's input to the enhancement: out of the trunk, or out of a fusion of the dates beside it."""
        canvas, place, name = self.canvas, self.place(number), f"level-{number + 1}"
        lines = self._bundle(number)
        if self.decoder[number].ab_fuse is not None:
            y = place.skip - 0.28
            for step, (kind, own) in enumerate(lines.items()):
                at = x + 0.1 * (step - (len(lines) - 1) / 2)
                canvas.line(
                    [(place.b + 0.86, own), (at, own), (at, y)], kind, f"{name}-{kind}-fusion", arrow=True
                )
            self.box(x, y - 0.06, 0.42, 0.13, Block("fusion", "fusion"), f"{name}-ab-fusion", size=5.8)
            start = [(x, y - 0.12)]
        else:
            heights, joined = self._heights(number), self._joined(number)
            y = place.skip + 0.13 if joined is None else (heights[joined] + heights[joined + 1]) / 2
            start = [(place.trunk, y), (x, y)]
        canvas.line([*start, (x, end)], "joined", f"{name}-fused-edss", arrow=True, width=1.2)

    def _last(self, number: int, kind: str, taps: dict[str, float], start: float) -> float:
        """x of the last place that looks at a line which does not reach the trunk."""
        ddb, ends = self.place(number).b + 0.66, [start, taps.get(kind, start)]
        if self.decoder[number].ab_fuse is not None:
            ends.append(ddb + 0.2)
        if kind == "difference":
            if self.model.difference_fusion is not None:
                ends.append(self.fusion_x + (-0.08 if number == len(self.encoder) - 1 else 0.08))
        elif self._difference(number):
            ends.append(ddb + (-0.07 if kind == "a" else 0.07))
        return max(ends)

    def _difference_fusion(self) -> None:
        """The differences of all levels, fused from the deepest up and added to the last level."""
        canvas, x, last = self.canvas, self.fusion_x, len(self.encoder) - 1
        y = self._bundle(last)["difference"]
        for number in range(last - 1, -1, -1):
            name, own = f"level-{number + 1}-difference", self._bundle(number)["difference"]
            up = self.place(number).skip - 0.26
            for at, start in ((x - 0.08, y), (x + 0.08, own)):
                canvas.line([(at, start), (at, up)], "difference", f"{name}-{at:.2f}-up", arrow=True)
                if start in (own, self._bundle(last)["difference"]):
                    canvas.dot(at, start, "difference", f"{name}-{at:.2f}-branch")
            self.box(x, up - 0.07, 0.38, 0.15, Block("aff", "AFF"), f"{name}-fusion")
            y = up - 0.14
        place = self.place(0)
        canvas.line([(x, y), (x, place.top - 0.12), (place.trunk - 0.07, place.top - 0.12)], "difference",
                    "difference-fusion", arrow=True)  # fmt: skip

    # ---- up ----

    def _decoder(self, number: int) -> None:
        decoded, place = self.decoder[number], self.place(number)
        name, canvas = f"level-{number + 1}", self.canvas
        blocks, x = levels.stack(decoded), place.trunk
        heights = self._heights(number)
        start = next((y for block, y in zip(blocks, heights, strict=True) if block.columns == 1), place.skip)
        canvas.line(
            [(x, start), (x, place.top if number else 0.4)],
            "joined",
            f"{name}-trunk",
            arrow=not number,
            halo=None,
        )
        if number:
            above = self.place(number - 1)
            near, end = above.skip + 0.17, above.skip + 0.07
            canvas.bend((x, place.top + 0.01), (above.trunk, near), "joined", f"{name}-up", 1.5)
            canvas.line(
                [(above.trunk, near), (above.trunk, end)], "joined", f"{name}-into", arrow=True, halo=None
            )
            canvas.text(above.trunk + 0.08, near, "upsampling", ha="left", size=5.8, color=MUTED)
        for block, y in zip(blocks, heights, strict=True):
            width = 0.84 / block.columns - (0.02 if block.columns > 1 else 0)
            block = replace(block, text=block.text.removeprefix("VSS, ")) if block.columns > 1 else block
            for column in range(block.columns):
                at = x + (column - (block.columns - 1) / 2) * 0.43
                if block.columns > 1:
                    canvas.line(
                        [(at, y), (at, start)], DATES[column], f"{name}-trunk-{DATES[column]}", halo=None
                    )
                self.box(
                    at,
                    y,
                    width,
                    min(0.15, self._step(number) - 0.02),
                    block,
                    f"{name}-trunk-{block.kind}-{column}",
                )
        if len(self.model.supervised) and number:
            canvas.line([(x + 0.42, place.top + 0.11), (6.36, place.top + 0.11)], "joined", f"{name}-scores-line",
                        arrow=True, halo=None, width=1.0)  # fmt: skip
            self.box(6.62, place.top + 0.11, 0.5, 0.15, Block("convolution", "scores"), f"{name}-scores")

    def _heights(self, number: int) -> list[float]:
        """y of the trunk's blocks, from below: the first at the lines of the dates, AFF beside the EDSS."""
        blocks, place = levels.stack(self.decoder[number]), self.place(number)
        joined = self._joined(number)
        first = [
            place.skip
            - self._step(number) * i
            - (self._gap(number) if joined is not None and i > joined else 0)
            for i in range(len(blocks))
        ]
        return [*first[:-1], place.top + 0.11] if blocks and blocks[-1].text == "AFF" else first

    def _step(self, number: int) -> float:
        """From a block of the trunk to the next."""
        return min(0.2, (0.69 - self._gap(number)) / max(1, len(levels.stack(self.decoder[number])) - 1))

    def _gap(self, number: int) -> float:
        """Room behind the joined features for their line to the enhancement."""
        branch = self.decoder[number].enhancement
        return 0.1 if branch is not None and branch.needs("fused") else 0.0

    def _joined(self, number: int) -> int | None:
        """Which block of the trunk gives its joined features; None where they come from below."""
        core, blocks = self.decoder[number].core, levels.stack(self.decoder[number])
        if isinstance(core, Skip):
            return 0 if blocks and blocks[0].takes else None
        assert isinstance(core, Head)
        return 0 if core.kind in ("fused", "difference") else [block.kind for block in blocks].index("fusion")

    def _output(self) -> None:
        place, canvas = self.place(0), self.canvas
        if self.model.difference_fusion is not None:
            canvas.sign(place.trunk, place.top - 0.12, "+", "difference-sum")
        if self.model.extra_level is not None:
            self.box(place.trunk, 0.69, 0.84, 0.13, Block("convolution", "extra level"), "extra-level")
        self.box(place.trunk, 0.53, 0.84, 0.13, Block("convolution", "classifier"), "classifier")
        canvas.area(
            place.trunk - 0.42, 0.2, 0.84, 0.2, "#f4f6f8", "change-map", edgecolor=MUTED, linewidth=0.9
        )
        canvas.text(place.trunk, 0.3, "change map")
        canvas.text(6.34, 0.3, _times(self.parts[""].size), ha="left")


def _times(size: Sequence[int]) -> str:
    return " × ".join(map(str, size))


def _cost(arm: levels.Arm) -> str:
    return f"{arm.parameters / 1e6:.2f} M, {arm.macs / 1e9:.2f} G"


def _derivatives(branch: EDSS) -> str:
    """What a branch takes, in signs: "∇ a, b   ∇² a, b   D"."""
    return "   ".join(
        f"{ORDERS[type(operator)]} {', '.join(SIGNS[source] for source in sources)}".strip()
        for operator, sources in orders(branch)
    )
