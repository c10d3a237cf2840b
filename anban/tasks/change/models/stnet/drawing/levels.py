"""STNet level by level: which blocks it has, what they put out, what they cost. Everything is read from a model.

Source: note 000, line 14: levels, and the size of every level, are what makes "light" and "U-shaped" visible.
"""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import SqueezeExcitation

from anban.ssm import VSSBlock
from anban.tasks.change.models.stnet.decoder import DecoderLevel, Head
from anban.tasks.change.models.stnet.encoder import CSSM, Level
from anban.tasks.change.models.stnet.enhancement import EDSS, FirstOrder, SecondOrder
from anban.tasks.change.models.stnet.fusion import AttentionalFusion, Fusion, PairScan
from anban.tasks.change.models.stnet.layers import ChannelVSSBlock, ResidualBlock
from anban.tasks.change.models.stnet.network import STNet

Kind = Literal["vss", "convolution", "fusion", "aff", "integration", "difference", "enhancement"]


@dataclass(frozen=True)
class Block:
    """One box of the drawing, one word of the table.

    Attributes:
        columns: how many of it stand side by side, one per date.
        takes: what comes in here from the encoder: "a", "b", "difference".
    """

    kind: Kind
    text: str
    columns: int = 1
    takes: tuple[str, ...] = ()


DATES = ("a", "b")
ALL = (*DATES, "difference")


def way(level: Level, number: int) -> list[Block]:
    """What a date passes through on its way into a level of the encoder; columns: one shared way, or two."""
    _, *blocks = level.ways[0].children()
    columns = len(level.ways)
    found = [Block("convolution", "downsampling" if number else "stem", columns)]
    if blocks:
        vss = isinstance(blocks[0], VSSBlock)
        found.append(
            Block("vss" if vss else "convolution", f"{'VSS' if vss else 'residual'} × {len(blocks)}", columns)
        )
    return found


def integration(level: Level) -> Block | None:
    """Where the dates of a level are integrated, if they are."""
    if level.integration is None:
        return None
    return Block("integration", "CSSM" if isinstance(level.integration, CSSM) else "CaMa", takes=DATES)


def stack(level: DecoderLevel) -> list[Block]:
    """The trunk of a level of the decoder, in the order of the computation, with what joins the dates to it."""
    core, own = level.core, ALL[: len(level.laterals)]
    if isinstance(core, Head):
        columns = len(core.trunks)
        trunk = _trunk(core.trunks[0], columns)
        if core.kind == "difference":
            found = [Block("difference", "|a − b|", takes=DATES), *trunk]
        elif core.kind == "fused" or not trunk:
            found = [Block("fusion", "fusion", takes=own), *trunk]
        else:
            found = [replace(trunk[0], takes=DATES), *trunk[1:], Block("fusion", "fusion", takes=own[2:])]
    else:
        trunk, join = _trunk(core.trunk), _join(core.join, own)
        found = [*trunk, *join] if core.scan_first else [*join, *trunk]
        if core.again is not None:
            found.append(Block("fusion", "fusion", takes=DATES))
    if level.aff is not None:
        found.append(Block("aff", "AFF"))
    if isinstance(level.residual, ResidualBlock):
        found.append(Block("convolution", "residual"))
    return found


def _trunk(blocks: nn.Module, columns: int = 1) -> list[Block]:
    return [
        Block("vss", "VSS, channel" if isinstance(block, ChannelVSSBlock) else "VSS, spatial", columns)
        for block in blocks.children()
    ]


def _join(join: nn.Module, own: tuple[str, ...]) -> list[Block]:
    """What joins the dates with what comes from below; nothing where there is no skip."""
    for part in join.modules():
        if isinstance(part, PairScan):
            return [Block("vss", "VSS × 3", takes=DATES)]
        if isinstance(part, AttentionalFusion):
            return [Block("aff", "AFF of three", takes=DATES)]
        if isinstance(part, Fusion):
            weighed = isinstance(part.weigh, SqueezeExcitation)
            return [Block("fusion", "fusion, weighed" if weighed else "fusion", takes=own)]
    return []


def bands(model: STNet) -> int:
    """Channels of the images."""
    return next(part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d))


def taken(branch: EDSS) -> list[str]:
    """The lines that an enhancement takes: both dates for a pair."""
    sources = [*branch.sources, *branch.plain]
    return [*(DATES if "pair" in sources else ()), *sources]


#: In the box of an enhancement.
ORDERS: dict[type, str] = {FirstOrder: "∇", SecondOrder: "∇²", type(None): ""}
SIGNS = {"a": "a", "b": "b", "pair": "a b", "difference": "D", "fused": "F"}


def orders(branch: EDSS) -> list[tuple[nn.Module | None, Sequence[str]]]:
    """The operators of a branch, one of a kind, each with its sources; None with what is taken as it is."""
    pairs = list(zip(branch.operators, branch.sources, strict=True))
    found: list[tuple[nn.Module | None, Sequence[str]]] = []
    for kind in (FirstOrder, SecondOrder):
        own = [(operator, source) for operator, source in pairs if isinstance(operator, kind)]
        if own:
            found.append((own[0][0], [source for _, source in own]))
    return [*found, (None, branch.plain)] if branch.plain else found


# ---- measured --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What a module put out, (channels, height, width) of its first tensor, and what it costs in evaluation."""

    size: tuple[int, ...]
    parameters: int
    macs: int


def measure(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Part]:
    """Name of a module -> `Part`, from one forward pass on the "meta" device; the model itself has the name "".

    Multiply-adds are those of `torch.utils.flop_counter`. A module that the pass does not call has the size ().
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    sizes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            if isinstance(first, Tensor):
                sizes[name] = tuple(first.shape[1:])

        return hook

    for name, module in shadow.named_modules():
        module.register_forward_hook(note(name))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        shadow(*(x.to("meta") for x in example))
    flops = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    root = type(shadow).__name__
    return {
        name: Part(
            sizes.get(name, ()),
            sum(parameter.numel() for parameter in module.parameters()),
            flops.get(f"{root}.{name}" if name else "Global", 0) // 2,
        )
        for name, module in shadow.named_modules()
    }


# ---- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A level's part on one arm of the U: its blocks as words, parameters and multiply-adds."""

    blocks: str = ""
    parameters: int = 0
    macs: int = 0

    def __add__(self, other: Arm) -> Arm:
        return Arm("", self.parameters + other.parameters, self.macs + other.macs)


@dataclass(frozen=True)
class Row:
    """One line of the level table; `size` is (channels, height, width) on the way down, () where there is none."""

    name: str
    size: tuple[int, ...]
    encoder: Arm
    decoder: Arm

    @property
    def whole(self) -> Arm:
        return self.encoder + self.decoder


def rows(model: STNet, parts: dict[str, Part]) -> list[Row]:
    """The levels from the shallowest, then what stands behind the last level, then the total.

    Args:
        parts: of `measure(model, example)`.
    """

    def arm(name: str, blocks: str) -> Arm:
        return Arm(blocks, parts[name].parameters, parts[name].macs)

    found = []
    for i, (encoded, decoded) in enumerate(zip(model.encoder.levels, model.decoder, strict=True)):
        assert isinstance(encoded, Level)
        assert isinstance(decoded, DecoderLevel)
        down, up = f"encoder.levels.{i}", f"decoder.{i}"
        found.append(
            Row(
                f"level {i + 1}",
                parts[down].size,
                arm(down, _encoder_words(encoded, i)),
                arm(up, _decoder_words(decoded)),
            )
        )
    others = {
        "difference_fusion": "AFF of the differences",
        "extra_level": "3×3 convolution at 1/2",
        "classifier": "convolutions",
        "supervised": "1×1 convolutions, in training",
    }
    for name, blocks in others.items():
        if name in parts and parts[name].parameters:
            found.append(Row(name.replace("_", " "), parts[name].size, Arm(), arm(name, blocks)))
    total = [sum((getattr(row, side) for row in found), Arm()) for side in ("encoder", "decoder")]
    return [*found, Row("total", (), *total)]


def _encoder_words(level: Level, number: int) -> str:
    columns = len(level.ways)
    words = [block.text for block in way(level, number)]
    words[-1] += " (two ways)" if columns == 2 else " (shared)"
    if joined := integration(level):
        words.append(joined.text)
    return "; ".join([*words, *(["DDB"] if level.difference is not None else [])])


def _decoder_words(level: DecoderLevel) -> str:
    words = [block.text for block in stack(level)]
    if level.enhancement is not None:
        words.insert(words.index("AFF"), "EDSS")
    return "; ".join(words)


HEADER = ("part", "size", "encoder", "M", "G", "decoder", "M", "G", "share of parameters")  # fmt: skip


def write(rows: list[Row], folder: Path) -> list[Path]:
    """`levels.md`, `levels.tex` and `levels.csv`: million parameters (M) and giga multiply-adds (G); exact in the CSV."""
    texts = {"levels.md": _markdown(rows), "levels.tex": _latex(rows), "levels.csv": _csv(rows)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _cells(rows: list[Row]) -> Iterator[list[str]]:
    every = rows[-1].whole.parameters
    for row in rows:
        arms = [
            [arm.blocks, f"{arm.parameters / 1e6:.3f}", f"{arm.macs / 1e9:.3f}"]
            if arm.parameters
            else [""] * 3
            for arm in (row.encoder, row.decoder)
        ]
        share = f"{100 * row.whole.parameters / max(1, every):.1f} %"
        yield [row.name, " × ".join(map(str, row.size)), *arms[0], *arms[1], share]


def _markdown(rows: list[Row]) -> str:
    rule = ["---", "---", "---", "---:", "---:", "---", "---:", "---:", "---:"]
    lines = [HEADER, rule, *_cells(rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(rows: list[Row]) -> str:
    """For the package booktabs."""

    def line(cells: list[str]) -> str:
        text = " & ".join(cells).replace("|a − b|", "$|a - b|$").replace("%", r"\%").replace("×", r"$\times$")
        return text + r" \\"

    *levels, total = (line(cells) for cells in _cells(rows))
    return "\n".join(
        [r"\begin{tabular}{lllrrlrrr}", r"\toprule", line(list(HEADER)), r"\midrule",
         *levels, r"\midrule", total, r"\bottomrule", r"\end{tabular}", ""]
    )  # fmt: skip


def _csv(rows: list[Row]) -> str:
    names = ["part", "channels", "height", "width"]
    names += [f"{arm} {what}" for arm in ("encoder", "decoder") for what in ("blocks", "parameters", "macs")]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    for row in rows:
        arms = [v for arm in (row.encoder, row.decoder) for v in (arm.blocks, arm.parameters, arm.macs)]
        table.writerow([row.name, *(row.size or ("", "", "")), *arms])
    return text.getvalue()
