"""SISS, the encoder: two dates separate and integrate at every level, and their difference is taken there.

Sources: note 001 (its problems 5 and 6, CSSM, "what can be adjusted") and note 000 (v6.2, v16, ablation of the encoder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from anban.ssm.parameters import undecayed
from anban.ssm.rscama import SDSSM, TTSSM
from anban.ssm.vmamba.layers import Mlp, downsample, patch_embed
from anban.tasks.change.models.stnet.layers import ResidualBlock, Style
from anban.tasks.change.models.stnet.settings import Encoder, Norm

Features = tuple[Tensor, Tensor, Tensor | None]
"""Date a, date b and their difference (None without DDB) of one level, (batch, C, H, W) each."""


class CSSM(nn.Module):
    """Integration: both dates lie side by side in one field, so that each scan passes through both.

    a, b (batch, C, H, W) -> the same. The field's scan is parted again; a convolution joins what the two dates have at the same
    place (the scan brings together what lies W tokens apart, the convolution what lies on top of each other); each date takes
    that as a residual with a scale of its own; a feed-forward part follows.

    The author's three objections (note 001): ChangeMamba extracts in the encoder and fuses in the decoder, and with both in the
    encoder the decoder seems to have nothing left to do; ChangeMamba takes in both dates without a changed scan, and does it
    better; and this does not seem to be where remote-sensing change detection hurts. Code 2-0-0 against 0-0-0 measures it.

    Args:
        scale: "learned", "squeeze-excitation" or "none".
        merging: "depth-wise", "ordinary" or "none"; see `Encoder`.
    """

    def __init__(self, width: int, style: Style, scale: str, merging: str):
        super().__init__()
        self.norm = style.normalisation(width)
        self.scan = style.scan(width)
        self.merging: nn.Module | None = None
        if merging == "depth-wise":
            self.merging = nn.Conv2d(2 * width, width, 3, padding=1, groups=width)
        elif merging == "ordinary":
            self.merging = style.convolution(2 * width, width, 3, norm="bn")
        make_scale: dict[str, Callable[[], nn.Module]] = {
            "none": nn.Identity,
            "learned": lambda: LearnedScale(width),
            "squeeze-excitation": lambda: SqueezeExcitation(width, max(1, width // 4)),
        }
        self.scales = nn.ModuleList(make_scale[scale]() for _ in range(2))
        self.norm2 = style.normalisation(width)
        self.mlp = Mlp(width, int(style.vss.mlp_ratio * width), channel_first=True)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        field = torch.cat((a, b), dim=3)
        residuals = self.scan(self.norm(field)).chunk(2, dim=3)
        if self.merging is not None:
            # Channel c of both dates stand next to each other, as groups of the depth-wise form want them.
            merged = self.merging(torch.stack(residuals, dim=2).flatten(1, 2))
            residuals = [residual + merged for residual in residuals]
        dates = [x + scale(r) for x, scale, r in zip((a, b), self.scales, residuals, strict=True)]
        both = torch.cat(dates)
        a, b = (both + self.mlp(self.norm2(both))).chunk(2)
        return a, b


class LearnedScale(nn.Module):
    """Channels times a learned number each, 1 at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = undecayed(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class CaMaIntegration(nn.Module):
    """Integration by RSCaMa's pair of blocks: each date gated by the difference, then both in one interleaved sequence.

    Chen et al. 2024 (arXiv 2404.18895), section III; the note calls the blocks ST-SSM and TT-RSM.
    """

    def __init__(self, width: int):
        super().__init__()
        self.spatial, self.temporal = SDSSM(width), TTSSM(width)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        tokens = (x.flatten(2).transpose(1, 2) for x in (a, b))
        scanned = self.temporal(*self.spatial(*tokens))
        a, b = (t.transpose(1, 2).reshape(a.shape) for t in scanned)
        return a, b


class DifferenceBlock(nn.Module):
    """DDB (DDM in note 001): |a - b| through a 3x3 convolution and one over the channels, (batch, C, H, W) twice -> once.

    Args:
        convolution: the first one is "depth-wise" or "ordinary".
        norms: 2, one behind each convolution, or 1, behind the last only.
    """

    def __init__(self, width: int, style: Style, convolution: str, norm: Norm, norms: int):
        super().__init__()
        groups = width if convolution == "depth-wise" else 1
        spatial = style.convolution(width, width, 3, groups=groups, norm=norm)
        if norms == 1:
            spatial = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=groups), nn.ReLU())
        self.refine = nn.Sequential(spatial, style.convolution(width, width, norm=norm))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        difference: Tensor = self.refine((a - b).abs())
        return difference


class Level(nn.Module):
    """One level: the dates' own ways in (one shared, or two), their integration, their difference."""

    def __init__(self, ways: list[nn.Module], integration: nn.Module | None, difference: nn.Module | None):
        super().__init__()
        self.ways = nn.ModuleList(ways)
        self.integration, self.difference = integration, difference

    def forward(self, a: Tensor, b: Tensor) -> Features:
        if len(self.ways) == 1:
            a, b = self.ways[0](torch.cat((a, b))).chunk(2)
        else:
            a, b = self.ways[0](a), self.ways[1](b)
        if self.integration is not None:
            a, b = self.integration(a, b)
        return a, b, None if self.difference is None else self.difference(a, b)


class SISS(nn.Module):
    """The encoder: images (batch, in_chans, H, W) twice -> `Features` of levels at 1/4, 1/8, 1/16 and 1/32 of the size.

    Args:
        widths: channels of the levels.
        depths: blocks per level of a date's way.
        differences: per level, whether the decoder looks at the difference.
    """

    def __init__(
        self,
        in_chans: int,
        widths: list[int],
        depths: list[int],
        differences: list[bool],
        settings: Encoder,
        style: Style,
    ):
        super().__init__()
        drops = [style.vss.drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
        layout = "bn" if style.norm == "bn" else "ln2d"

        def way(level: int) -> nn.Module:
            width, before = widths[level], sum(depths[:level])
            entrance = (
                downsample("v3", widths[level - 1], width, norm_layer=layout)
                if level
                else patch_embed(settings.stem, in_chans, width, norm_layer=layout)
            )
            blocks: list[nn.Module] = [
                style.block(width, drop_path=drop)
                if settings.branch == "vss"
                else ResidualBlock(width, style, depth_wise=settings.branch == "depth-wise-cnn")
                for drop in drops[before : before + depths[level]]
            ]
            return nn.Sequential(entrance, *blocks)

        def integration(width: int) -> nn.Module | None:
            if settings.integration == "cssm":
                return CSSM(width, style, settings.scale, settings.merging)
            return CaMaIntegration(width) if settings.integration == "cama" else None

        def difference(width: int, wanted: bool) -> nn.Module | None:
            if settings.difference == "none" or not wanted:
                return None
            return DifferenceBlock(
                width, style, settings.difference, settings.difference_norm, settings.difference_norms
            )

        shared = {"all": len(widths), "low": settings.low_levels, "none": 0}[settings.sharing]
        self.levels = nn.ModuleList(
            Level(
                [way(level) for _ in range(1 if level < shared else 2)],
                integration(width),
                difference(width, differences[level]),
            )
            for level, width in enumerate(widths)
        )

    def forward(self, a: Tensor, b: Tensor) -> Iterator[Features]:
        """The levels, from the shallowest to the deepest."""
        for level in self.levels:
            a, b, difference = level(a, b)
            yield a, b, difference
