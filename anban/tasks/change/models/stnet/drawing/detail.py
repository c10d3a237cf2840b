"""Panels (b) and (c): one level, with what is new in it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anban.tasks.change.models.stnet.decoder import DecoderLevel
from anban.tasks.change.models.stnet.drawing import levels
from anban.tasks.change.models.stnet.drawing.canvas import (
    EDSS_GROUND,
    EDSS_INK,
    LANE,
    LINES,
    MUTED,
    PAPER,
    SISS_GROUND,
    TILES,
    Canvas,
)
from anban.tasks.change.models.stnet.drawing.levels import DATES, Block, orders, taken
from anban.tasks.change.models.stnet.encoder import CSSM, Level
from anban.tasks.change.models.stnet.enhancement import EDSS, FirstOrder, SmallScan


class Separation:
    """Panel (b): how SISS enlarges what a scan sees: apart, then both dates in one field, then apart again."""

    def __init__(self, canvas: Canvas, x: float, y: float, level: Level, number: int, size: tuple[int, ...]):
        self.canvas, self.x, self.y, self.level, self.number, self.size = canvas, x, y, level, number, size
        self.lanes = {"a": x + 0.8, "b": x + 1.7}
        self.middle = x + 1.25

    def draw(self) -> None:
        canvas, level, y = self.canvas, self.level, self.y
        joined = levels.integration(level)
        what = "separation and integration" if joined else "separation"
        canvas.text(
            self.x,
            y + 0.08,
            f"(b) SISS at level {self.number + 1}: {what}",
            ha="left",
            size=7.5,
            weight="bold",
        )
        canvas.area(self.x, y + 0.2, 3.4, 2.82, SISS_GROUND, "siss-level-ground")
        for date, x in self.lanes.items():
            canvas.text(x, y + 0.27, f"date {date}", size=5.8, color=LINES[date], weight="bold")
            self._lane(date, 0.33, 0.88, "way")
        for block, at, height in zip(levels.way(level, self.number), (0.44, 0.65), (0.15, 0.2), strict=False):
            if block.columns == 1:
                canvas.box(
                    self.middle,
                    y + at,
                    1.6,
                    height,
                    block.kind,
                    f"{block.text}, shared",
                    f"detail-way-shared-{block.kind}",
                )
            else:
                for date, x in self.lanes.items():
                    canvas.box(
                        x, y + at, 0.72, height, block.kind, block.text, f"detail-way-{date}-{block.kind}"
                    )
        weights = "the same weights" if len(level.ways) == 1 else "weights of its own"
        self._note(0.56, f"separation: each date\nwith {weights}")
        if isinstance(level.integration, CSSM):
            self._cssm(level.integration)
        elif joined is not None:
            self._cama()
        else:
            self._apart()
        if level.difference is not None:
            self._difference()

    def _lane(self, date: str, start: float, end: float, what: str, arrow: bool = False) -> None:
        x = self.lanes[date]
        self.canvas.line([(x, self.y + start), (x, self.y + end)], date, f"detail-date-{date}-{what}", width=LANE,
                         halo=SISS_GROUND, arrow=arrow)  # fmt: skip

    def _note(self, at: float, text: str) -> None:
        self.canvas.text(self.x + 2.26, self.y + at, text, ha="left", size=5.8, color=MUTED)

    def _bends(self, start: float, end: float, offset: float, what: str, *, back: bool = False) -> None:
        """Both lanes to `offset` beside the middle, or back from there."""
        for (date, lane), sign in zip(self.lanes.items(), (-1, 1), strict=True):
            ends = (lane, self.middle + sign * offset)
            near, far = reversed(ends) if back else ends
            self.canvas.bend(
                (near, self.y + start), (far, self.y + end), date, f"detail-date-{date}-{what}", LANE
            )

    def _tile(self, x: float, date: str, width: float = 0.46) -> None:
        self.canvas.area(x - width / 2, self.y + 1.1, width, 0.4, TILES[date], f"detail-tile-{date}",
                         edgecolor=LINES[date], linewidth=0.9, zorder=4)  # fmt: skip

    def _scan(self, left: float, right: float, name: str) -> None:
        for row in range(4):
            at = self.y + 1.155 + 0.097 * row
            self.canvas.line(
                [(left, at), (right, at)],
                "joined",
                f"{name}-{row}",
                width=0.8,
                arrow=True,
                halo=None,
                zorder=5,
            )

    def _apart(self) -> None:
        for date, x in self.lanes.items():
            self._lane(date, 0.85, 3.0, "apart", arrow=True)
            self._tile(x, date)
            self._scan(x - 0.19, x + 0.19, f"detail-scan-{date}")
        height, width = self.size[1:]
        self._note(1.3, f"no integration: a scan\nstays in the field of\none date, {height} × {width}")

    def _cssm(self, cssm: CSSM) -> None:
        canvas, middle, y = self.canvas, self.middle, self.y
        height, width = self.size[1:]
        self._bends(0.87, 1.1, 0.23, "integration")
        for date, x in (("a", middle - 0.23), ("b", middle + 0.23)):
            self._tile(x, date)
            canvas.line([(x, y + 1.5), (x, y + 1.8)], date, f"detail-date-{date}-scan", width=LANE, halo=None)
        self._scan(middle - 0.4, middle + 0.4, "detail-scan")
        canvas.box(
            middle,
            y + 1.65,
            0.92,
            0.17,
            "vss",
            f"SS2D, {cssm.scan.directions} directions",
            "detail-scan-vss",
            size=5.8,
        )
        self._note(
            1.3, f"integration: one field of\n{height} × {2 * width}; a scan passes\nthrough both dates"
        )
        self._bends(1.78, 1.98, 0.23, "separation", back=True)
        for date in DATES:
            self._lane(date, 1.97, 3.0, "out", arrow=True)
        if cssm.merging is not None:
            self._merging(cssm.merging)
        for (date, x), sign, scale in zip(self.lanes.items(), (-1, 1), cssm.scales, strict=True):
            around = x + sign * 0.46
            points = [(x, y + 0.86), (around, y + 0.86), (around, y + 2.52), (x + sign * 0.08, y + 2.52)]
            canvas.line(points, date, f"detail-date-{date}-residual", arrow=True, width=1.1, halo=None)
            canvas.dot(x, y + 0.86, date, f"detail-date-{date}-residual-branch")
            if not isinstance(scale, nn.Identity):
                canvas.box(x, y + 2.36, 0.42, 0.13, "convolution", "scale", f"detail-scale-{date}", size=5.8)
            canvas.sign(x, y + 2.52, "+", f"detail-sum-{date}")
        canvas.box(middle, y + 2.69, 1.6, 0.15, "convolution", "feed-forward, shared", "detail-feed-forward")

    def _merging(self, merging: nn.Module) -> None:
        """Both residuals into the convolution that joins the dates at the same place; its result to both."""
        canvas, middle, y = self.canvas, self.middle, self.y
        convolution = next(part for part in merging.modules() if isinstance(part, nn.Conv2d))
        kernel = f"{convolution.kernel_size[0]}×{convolution.kernel_size[1]}"
        kind = "depth-wise " if convolution.groups > 1 else ""
        for (date, x), sign in zip(self.lanes.items(), (1, -1), strict=True):
            canvas.line([(x, y + 2.02), (middle - sign * 0.29, y + 2.02)], date, f"detail-{date}-merging", width=1.1,
                        arrow=True, halo=None)  # fmt: skip
            canvas.dot(x, y + 2.02, date, f"detail-{date}-merging-branch")
            canvas.line([(middle, y + 2.05), (middle, y + 2.22), (x + sign * 0.08, y + 2.22)], "joined",
                        f"detail-{date}-merged", width=1.1, arrow=True, halo=None)  # fmt: skip
            canvas.sign(x, y + 2.22, "+", f"detail-{date}-merged-sum")
        canvas.box(middle, y + 2.02, 0.58, 0.15, "convolution", "merging", "detail-merging")
        self._note(2.02, f"merging: {kind}{kernel},\nboth dates at one place")

    def _cama(self) -> None:
        canvas, middle, y = self.canvas, self.middle, self.y
        height, width = self.size[1:]
        self._bends(0.87, 1.1, 0.23, "integration")
        for step in range(8):
            date = DATES[step % 2]
            canvas.area(middle - 0.46 + 0.115 * step, y + 1.1, 0.115, 0.4, TILES[date], f"detail-token-{step}",
                        edgecolor=LINES[date], linewidth=0.5, zorder=4)  # fmt: skip
        self._scan(middle - 0.4, middle + 0.4, "detail-scan")
        for date, x in (("a", middle - 0.23), ("b", middle + 0.23)):
            canvas.line([(x, y + 1.5), (x, y + 2.1)], date, f"detail-date-{date}-scan", width=LANE, halo=None)
        for at, text in ((1.66, "SD-SSM"), (1.92, "TT-SSM")):
            canvas.box(middle, y + at, 0.92, 0.17, "vss", text, f"detail-{text.lower()}-vss")
        self._note(1.3, f"integration: one sequence\nof 2 × {height * width} tokens,\nthe dates in turn")
        self._bends(2.08, 2.3, 0.23, "separation", back=True)
        for date in DATES:
            self._lane(date, 2.29, 3.0, "out", arrow=True)

    def _difference(self) -> None:
        canvas, y, x = self.canvas, self.y, self.x + 2.65
        for date, at in (("a", 2.83), ("b", 2.89)):
            canvas.line([(self.lanes[date], y + at - 0.01), (x - 0.2, y + at - 0.01)], date, f"detail-{date}-ddb", width=1.1,
                        halo=SISS_GROUND)  # fmt: skip
            canvas.dot(self.lanes[date], y + at - 0.01, date, f"detail-{date}-ddb-branch", 0.022)
        canvas.line(
            [(x, y + 2.86), (x + 0.55, y + 2.86)], "difference", "detail-ddb-out", arrow=True, halo=None
        )
        canvas.box(x, y + 2.86, 0.42, 0.17, "difference", "DDB", "detail-ddb")
        canvas.text(x + 0.62, y + 2.86, "D", size=6, ha="left")


class Locality:
    """Panel (c): how EDSS supplies what is local, beside the trunk of the same level."""

    def __init__(
        self,
        canvas: Canvas,
        x: float,
        y: float,
        level: DecoderLevel,
        branch: EDSS,
        number: int,
    ):
        self.canvas, self.x, self.y = canvas, x, y
        self.level, self.branch, self.number = level, branch, number
        bundle = ["a", "b"]
        if len(level.laterals) == 3 or branch.needs("difference"):
            bundle.append("difference")
        self.base = y + 2.62
        self.lines = {kind: self.base + 0.07 * (i - (len(bundle) - 1) / 2) for i, kind in enumerate(bundle)}
        self.rows = orders(branch)
        self.buses = {kind: x + 0.03 + 0.09 * i for i, kind in enumerate(("a", "b", "difference", "fused"))}

    def draw(self) -> None:
        canvas, x, y = self.canvas, self.x, self.y
        canvas.text(
            x,
            y + 0.08,
            f"(c) EDSS beside the trunk of level {self.number + 1}",
            ha="left",
            size=7.5,
            weight="bold",
        )
        canvas.area(x + 0.36, y + 0.2, 3.14, 1.98, EDSS_GROUND, "edss-level-ground")
        canvas.text(x + 3.44, y + 0.3, "EDSS", ha="right", size=7, weight="bold", color=EDSS_INK)
        self._trunk()
        self._rows()
        self._behind()

    def _trunk(self) -> None:
        """What goes straight on, at the lower end: the dates and what comes from below joined, the VSS blocks, AFF."""
        canvas, x, base = self.canvas, self.x, self.base
        blocks = [block for block in levels.stack(self.level) if block.text not in ("AFF", "residual")]
        widths = [0.72 if block.kind == "vss" else 0.5 for block in blocks]
        narrow = min(1.0, 2.1 / max(0.1, sum(widths) + 0.08 * (len(widths) - 1)))
        widths = [narrow * width for width in widths]
        lefts = [x + 0.5 + sum(widths[:i]) + 0.08 * narrow * i for i in range(len(blocks))]
        entry = next((i for i, block in enumerate(blocks) if block.takes), None)
        begin = x + (0.48 if entry == 0 else 0.24)
        canvas.line([(begin, base), (x + 3.5, base)], "joined", "detail-trunk", arrow=True, halo=None)
        self._dates(blocks, [left + width / 2 for left, width in zip(lefts, widths, strict=True)])
        for i, (block, left, width) in enumerate(zip(blocks, lefts, widths, strict=True)):
            canvas.box(left + width / 2, base, width, 0.24, block.kind, block.text.replace(", w", ",\nw").replace("of t", "of\nt"),
                       f"detail-trunk-{block.kind}-{i}", size=5.8 if narrow == 1 else 5)  # fmt: skip
        if entry == 0:
            self.joined, below = lefts[0] + widths[0] + 0.04, lefts[0] + widths[0] / 2
            canvas.line(
                [(below, base + 0.36), (below, base + 0.12)], "joined", "detail-below", arrow=True, halo=None
            )
        else:
            self.joined = below = x + 0.4
        canvas.text(below - 0.06, base + 0.31, f"from level {self.number + 2}", ha="right" if entry == 0 else "center",
                    size=5.8, color=MUTED)  # fmt: skip
        if self.level.add_input and any(block.kind == "vss" and not block.takes for block in blocks):
            points = [
                (self.joined, base),
                (self.joined, base + 0.2),
                (x + 2.71, base + 0.2),
                (x + 2.71, base + 0.08),
            ]
            canvas.line(points, "joined", "detail-input", arrow=True, width=1.1, halo=None)
            canvas.dot(self.joined, base, "joined", "detail-input-branch")
            canvas.sign(x + 2.71, base, "+", "detail-input-sum")
        canvas.box(x + 3.2, base, 0.36, 0.2, "aff", "AFF", "detail-aff")

    def _dates(self, blocks: Sequence[Block], middles: Sequence[float]) -> None:
        """The lines from the encoder: into the first block, over others from above, or to the enhancement alone."""
        canvas, x, base = self.canvas, self.x, self.base
        fused = self.level.ab_fuse is not None
        lifted = 0.0 if blocks and blocks[0].takes else 0.3
        for kind, y in self.lines.items():
            self.lines[kind] = y - lifted
            ends = []
            for i, (block, middle) in enumerate(zip(blocks, middles, strict=True)):
                if kind in block.takes and i == 0:
                    ends.append([(x - 0.05, y), (x + 0.5, y)])
                elif kind in block.takes:
                    left, at = (x - 0.05 if lifted else x + 0.38), middle + 2 * (y - base)
                    ends.append(
                        [(left, y), (left, y - 0.3), (at, y - 0.3), (at, base - 0.12)][1 if lifted else 0 :]
                    )
            if not ends and (fused or kind in taken(self.branch)):
                ends.append([(x - 0.05, y - lifted), (x + 0.24 if fused else self.buses[kind], y - lifted)])
            for points in ends:
                canvas.line(points, kind, f"detail-date-{kind}", halo=None if len(points) == 2 else PAPER)

    def _rows(self) -> None:
        """The operators from below upwards, so that a line which goes higher passes over the others."""
        canvas, x = self.canvas, self.x
        if any("fused" in sources for _, sources in self.rows):
            if self.level.ab_fuse is not None:
                self.lines["fused"] = self.base - 0.4
                canvas.box(
                    x + 0.42, self.base - 0.3, 0.4, 0.2, "fusion", "fusion", "detail-ab-fusion", size=5.8
                )
            else:
                up = self.lines["fused"] = self.base - 0.18
                points = [(self.joined, self.base), (self.joined, up), (self.buses["fused"], up)]
                canvas.line(points, "joined", "detail-fused", width=1.1)
                canvas.dot(self.joined, self.base, "joined", "detail-fused-branch")
        heights = self._heights()
        for (operator, sources), row in reversed(list(zip(self.rows, heights, strict=True))):
            for source, y in zip(sources, row, strict=True):
                dates = DATES if source == "pair" else (source,)
                for step, date in enumerate(dates):
                    at = y + 0.05 * (step - (len(dates) - 1) / 2)
                    kind = "joined" if date == "fused" else date
                    bus, foot = self.buses[date], self.lines.get(date, self.base)
                    name, inside = f"detail-{date}-source", x + 0.36
                    canvas.line([(bus, foot), (bus, at), (inside, at)], kind, name)
                    canvas.line([(inside, at), (x + 2.06, at)], kind, f"{name}-inside", halo=None)
                    for y_dot in (foot, at):
                        canvas.dot(bus, y_dot, kind, f"{name}-branch", 0.026)
            self._operator(operator, row)
            self._squeezes(operator, row)

    def _heights(self) -> list[list[float]]:
        """y of the lines of every row."""
        gaps = [0.26 if operator is None else 0.58 for operator, _ in self.rows]
        top = self.y + 1.2 - sum(gaps) / 2
        centres = [top + sum(gaps[:i]) + gap / 2 for i, gap in enumerate(gaps)]
        return [
            [centre + 0.17 * (i - (len(sources) - 1) / 2) for i in range(len(sources))]
            for centre, (_, sources) in zip(centres, self.rows, strict=True)
        ]

    def _operator(self, operator: nn.Module | None, row: list[float]) -> None:
        canvas, x, y = self.canvas, self.x, (row[0] + row[-1]) / 2
        if operator is None:
            canvas.text(x + 0.46, y - 0.08, "as it is", ha="left", size=5.8, color=MUTED)
            return
        order = "first" if isinstance(operator, FirstOrder) else "second"
        name = f"detail-{order}-order"
        canvas.box(x + 1.0, y, 1.06, 0.5, "enhancement", "", name)
        canvas.text(
            x + 0.53, y - 0.1, f"{order}-order\nderivative operator", ha="left", color="white", size=5.8
        )
        kernels = response(operator)
        side = 0.17
        for i, kernel in enumerate(kernels):
            cell = side / len(kernel)
            for row_number, values in enumerate(kernel.tolist()):
                for column, value in enumerate(values):
                    left = x + 0.54 + i * (side + 0.05) + column * cell
                    canvas.area(left, y + 0.045 + row_number * cell, cell, cell, _tone(value),
                                f"{name}-kernel-{i}-{row_number}-{column}", edgecolor="white", linewidth=0.2, zorder=6)  # fmt: skip
        reach = len(kernels[0])
        canvas.text(x + 1.49, y + 0.13, f"{reach} × {reach}", ha="right", color="white", size=5.8)

    def _squeezes(self, operator: nn.Module | None, row: list[float]) -> None:
        """Every source lowered to few channels, and scanned where the scan comes before the fusion."""
        canvas, x, branch = self.canvas, self.x, self.branch
        squeeze = (branch.plain_squeezes if operator is None else branch.squeezes)[0]
        size = next(part.kernel_size[0] for part in squeeze.modules() if isinstance(part, nn.Conv2d))
        scan = _scan_words(branch.scans_before[0]).split()[0] if branch.scans_before else ""
        for y in row:
            canvas.box(x + (1.66 if scan else 1.8), y, 0.24, 0.13, "convolution", f"{size}×{size}", f"detail-squeeze-{y:.2f}",
                       size=5.3)  # fmt: skip
            if scan:
                canvas.box(x + 1.92, y, 0.25, 0.13, "vss", scan, f"detail-scan-{y:.2f}-vss", size=5)

    def _behind(self) -> None:
        """The fusion of all sources, the small scan, the feed-forward part, the product with the trunk, the way to AFF."""
        canvas, x, base, branch = self.canvas, self.x, self.base, self.branch
        every = [y for row in self._heights() for y in row]
        middle, height = (every[0] + every[-1]) / 2, max(1.2, every[-1] - every[0] + 0.2)
        few = next(part.out_channels for part in branch.fuse.modules() if isinstance(part, nn.Conv2d))
        canvas.line(
            [(x + 2.2, middle), (x + 3.2, middle), (x + 3.2, base - 0.1)],
            "joined",
            "detail-branch",
            arrow=True,
        )
        words = f"fusion to {few} channels" + (
            f",\nrepetition to {branch.width}" if few < branch.width else ""
        )
        canvas.box(x + 2.2, middle, 0.29, height, "fusion", words, "detail-fusion", rotation=90, size=5.8)
        if branch.scan_after is not None:
            canvas.box(
                x + 2.65,
                middle,
                0.42,
                0.2,
                "vss",
                _scan_words(branch.scan_after),
                "detail-scan-after-vss",
                size=6,
            )
        if branch.mlp is not None:
            canvas.box(
                x + 3.2,
                middle,
                0.46,
                0.26,
                "convolution",
                "feed-\nforward",
                "detail-branch-feed-forward",
                size=5.8,
            )
        if branch.settings.product:
            canvas.line([(x + 2.86, base), (x + 2.86, base - 0.28), (x + 3.12, base - 0.28)], "joined", "detail-product",
                        width=1.1, arrow=True, halo=None)  # fmt: skip
            canvas.dot(x + 2.86, base, "joined", "detail-product-branch")
            canvas.sign(x + 3.2, base - 0.28, "×", "detail-product-sign")
            canvas.text(x + 3.48, base + 0.31, "branch + branch × trunk", ha="right", size=5.8, color=MUTED)


def _scan_words(scan: nn.Module) -> str:
    return "SS2D" if isinstance(scan, SmallScan) else f"VSS × {len(list(scan.children()))}"


def response(operator: nn.Module) -> list[Tensor]:
    """The kernels of a derivative operator, (k, k) each with k odd, the largest weight being 1: what it answers to a point."""
    side = 15
    point = torch.zeros(1, 1, side, side)
    point[..., side // 2, side // 2] = 1
    with torch.no_grad():
        kernels = copy.deepcopy(operator).cpu()(point)[0].flip(1, 2)[: operator.outputs]
    reach = int((kernels.abs() > 1e-6).nonzero()[:, 1:].sub(side // 2).abs().max())
    inner = slice(side // 2 - reach, side // 2 + reach + 1)
    return [kernel[inner, inner] / kernel.abs().max() for kernel in kernels]


def _tone(value: float) -> str:
    """White at 0, towards purple above it, towards black below."""
    far = (0.54, 0.18, 0.48) if value > 0 else (0.11, 0.12, 0.14)
    red, green, blue = (round(255 * (1 + abs(value) * (channel - 1))) for channel in far)
    return f"#{red:02x}{green:02x}{blue:02x}"
