"""The decoder: level by level from 1/32 to 1/4, a trunk of VSS blocks, the enhancement beside it, AFF between the two.

Sources: note 000 (lines 175-187 on trunk, branch and skip; versions 3, 7, 8, 9; ablation of the decoder and of the head).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.tasks.change.models.stnet.enhancement import EDSS
from anban.tasks.change.models.stnet.fusion import AttentionalFusion, Fusion, PairScan
from anban.tasks.change.models.stnet.layers import ResidualBlock, Style, enlarge
from anban.tasks.change.models.stnet.settings import AFF, Decoder, Enhancement


def takes_difference(level: int, deepest: int, settings: Decoder, enhancement: Enhancement) -> bool:
    """Whether anything at a level looks at the encoder's difference D; where nothing does, none is made."""
    joined = (
        settings.head != "difference"
        if level == deepest
        else settings.skip in ("cat", "squeeze-excitation", "aernet")
    )
    sources = (*enhancement.first_order, *enhancement.second_order)
    branch = level < enhancement.levels and (enhancement.with_difference or "difference" in sources)
    return joined or branch or settings.difference_fusion


def trunk(width: int, settings: Decoder, style: Style) -> nn.Module:
    """The VSS blocks of one level, one after the other; without any, the identity."""
    return nn.Sequential(*(style.block(width, over=over, mlp=settings.mlp) for over in settings.trunk))


class Head(nn.Module):
    """The trunk of the deepest level, where nothing comes from below; see `Decoder.head`.

    A, B and, where there is one, D, (batch, C, H, W) each -> the trunk's input and its output.
    """

    def __init__(self, width: int, dates: int, settings: Decoder, style: Style):
        super().__init__()
        self.kind = settings.head
        count = 2 if self.kind == "separate-trunk" else 1
        self.trunks = nn.ModuleList(trunk(width, settings, style) for _ in range(count))
        self.fusion = (
            Fusion([width] * dates, width, style, settings.conv_small) if self.kind != "difference" else None
        )

    def forward(self, *dates: Tensor) -> tuple[Tensor, Tensor]:
        if self.fusion is None:
            joined = (dates[0] - dates[1]).abs()
        elif self.kind == "fused":
            joined = self.fusion(*dates)
        else:
            a, b, *difference = dates
            joined = self.fusion(self.trunks[0](a), self.trunks[-1](b), *difference)
            return joined, joined
        return joined, self.trunks[0](joined)


class Skip(nn.Module):
    """The trunk of another level, with its skip; see `Decoder.skip` and `Decoder.order`.

    What comes from below, A, B and, where there is one, D, all (batch, C, H, W) -> the trunk's input and its output.
    """

    def __init__(self, width: int, dates: int, settings: Decoder, aff: AFF, style: Style):
        super().__init__()
        self.scan_first = settings.order == "scan-first"
        self.trunk = trunk(width, settings, style)
        small, joined = settings.conv_small, [width] * (1 + dates)
        joins: dict[str, Callable[[], nn.Module]] = {
            "cat": lambda: Fusion(joined, width, style, small),
            "squeeze-excitation": lambda: Fusion(joined, width, style, small, weighed=True),
            "aff": lambda: _Attentional(width, small, aff, style),
            "aernet": lambda: Fusion(joined, width, style, small),
            "change-mamba": lambda: _Pair(width, small, settings, style),
            "none": _Below,
        }
        self.join = joins[settings.skip]()
        self.again = style.lower(3 * width, width) if settings.skip == "aernet" else None

    def forward(self, below: Tensor, *dates: Tensor) -> tuple[Tensor, Tensor]:
        if self.scan_first:
            joined = below
            out = self.join(self.trunk(below), *dates)
        else:
            joined = self.join(below, *dates)
            out = self.trunk(joined)
        if self.again is not None:
            out = self.again(torch.cat((out, *dates[:2]), dim=1))
        return joined, out


class _Attentional(nn.Module):
    """AFF over three: what comes from below as the trunk, A and B as branches."""

    def __init__(self, width: int, conv_small: int, aff: AFF, style: Style):
        super().__init__()
        self.fusion = AttentionalFusion(width, style, aff, branches=2)
        self.conv_small = style.separable(width, conv_small)

    def forward(self, below: Tensor, a: Tensor, b: Tensor, *_: Tensor) -> Tensor:
        fused: Tensor = self.conv_small(self.fusion(below, a, b))
        return fused


class _Pair(nn.Module):
    """A and B through ChangeMamba's three VSS blocks, added to what comes from below."""

    def __init__(self, width: int, conv_small: int, settings: Decoder, style: Style):
        super().__init__()
        self.pair = PairScan(width, style, mlp=settings.mlp)
        self.conv_small = style.separable(width, conv_small)

    def forward(self, below: Tensor, a: Tensor, b: Tensor, *_: Tensor) -> Tensor:
        fused: Tensor = self.conv_small(self.pair(a, b) + below)
        return fused


class _Below(nn.Module):
    """No skip."""

    def forward(self, below: Tensor, *_: Tensor) -> Tensor:
        return below


class DecoderLevel(nn.Module):
    """One level of the way up: -> (batch, width, H, W), or twice that size where AFF resizes.

    Args:
        level: from 0, the shallowest.
        inputs: channels of A, B and D.
        width: channels within and of the result.
        below: channels of what comes from below; None at the deepest level.
        has_difference: whether the encoder gives a difference D.
        in_chans: channels of the images.
    """

    def __init__(
        self,
        level: int,
        inputs: int,
        width: int,
        below: int | None,
        has_difference: bool,
        in_chans: int,
        settings: Decoder,
        enhancement: Enhancement,
        aff: AFF,
        style: Style,
    ):
        super().__init__()
        dates = 2 + has_difference
        self.laterals = nn.ModuleList(
            style.lower(inputs, width) if inputs != width else nn.Identity() for _ in range(dates)
        )
        self.lower = style.lower(below, width) if below is not None and below != width else nn.Identity()
        self.core = (
            Head(width, dates, settings, style) if below is None else Skip(width, dates, settings, aff, style)
        )
        self.add_input = settings.add_input
        self.enhancement, self.aff, self.ab_fuse = None, None, None
        self.of_images, self.resizes = enhancement.of == "images", aff.resize and level > 0
        if level < enhancement.levels:
            self.enhancement = EDSS(width, level, in_chans, enhancement, style)
            self.aff = AttentionalFusion(width, style, aff)
            if below is not None and settings.skip == "none" and self.enhancement.needs("fused"):
                # The trunk goes on with what comes from below; the branch takes A and B fused (note 000, line 177).
                self.ab_fuse = Fusion([width] * dates, width, style, settings.conv_small)
        norm = None if settings.residual == "none" else settings.residual
        self.residual = ResidualBlock(width, style, norm=norm) if norm else nn.Identity()

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        difference: Tensor | None,
        below: Tensor | None,
        images: tuple[Tensor, Tensor],
    ) -> Tensor:
        features = (a, b) if difference is None else (a, b, difference)
        dates = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        before = () if below is None else (enlarge(self.lower(below), a),)
        joined, out = self.core(*before, *dates)
        # Where no block lies between the two there is nothing to add.
        if self.add_input and out is not joined:
            out = out + joined
        if self.enhancement is not None and self.aff is not None:
            fused = joined if self.ab_fuse is None else self.ab_fuse(*dates)
            out = self.aff(out, self.enhancement(self._sources(dates, fused, images), out))
        out = self.residual(out)
        return F.interpolate(out, scale_factor=2, mode="bilinear") if self.resizes else out

    def _sources(
        self, dates: list[Tensor], fused: Tensor, images: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """What the enhancement can take derivatives of; see `Source`."""
        a, b = dates[:2]
        difference = dates[2] if len(dates) == 3 else (a - b).abs()
        if self.of_images:
            size = (a.shape[-2], a.shape[-1])
            a, b = (F.adaptive_avg_pool2d(image, size) for image in images)
        return {"a": a, "b": b, "pair": torch.cat((a, b), dim=1), "difference": difference, "fused": fused}
