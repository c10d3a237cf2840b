"""How features are joined: AFF with a learned weight, and the fusion of A, B, D and what comes from below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from anban.tasks.change.models.stnet.layers import Style, enlarge
from anban.tasks.change.models.stnet.settings import AFF


class AttentionalFusion(nn.Module):
    """AFF: a trunk and one branch, or two, with weights w from their sum: (batch, C, H, W) each -> once.

    Dai et al. 2021, "Attentional Feature Fusion" (arXiv 2009.14082), section 3: w comes from a local path (every pixel) and a
    global one (the mean over the picture). The trunk matters more, so it is not weighed down: with tanh it is multiplied by
    1 + w and a branch by 2 - (1 + w), with sigmoid it is left as it is and a branch is multiplied by 1 - w. Of several
    branches each has its own weight, and the trunk's is their mean.
    """

    def __init__(self, width: int, style: Style, settings: AFF, branches: int = 1):
        super().__init__()
        self.kind, self.branches = settings.activation, branches
        hidden, kernel = max(1, width // settings.reduction), settings.kernel

        def last() -> nn.Module:
            return nn.Conv2d(hidden, branches * width, kernel, padding=kernel // 2)

        self.local = nn.Sequential(style.convolution(width, hidden, kernel), last())
        # Without a norm: over one pixel layer norm keeps nothing of the mean, and batch norm cannot train on a batch of one.
        self.overall = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, hidden, 1), nn.ReLU(), last())

    def forward(self, trunk: Tensor, *branches: Tensor) -> Tensor:
        together = torch.stack((trunk, *branches)).sum(0)
        context = (self.local(together) + self.overall(together)).chunk(self.branches, dim=1)
        fused = trunk
        if self.kind != "sigmoid":
            activation = torch.tanh if self.kind == "tanh" else F.gelu
            context = tuple(activation(w) for w in context)
            fused = trunk * (1 + torch.stack(context).mean(0))
        for branch, w in zip(branches, context, strict=True):
            fused = fused + branch * (1 - (w.sigmoid() if self.kind == "sigmoid" else w))
        return fused


class Fusion(nn.Module):
    """ABfuse: features joined by concatenation, lowered to `width`, then always the small convolution (v8).

    Args:
        inputs: channels of what is joined, one number each.
        conv_small: size of the small convolution.
        weighed: weigh the channels by squeeze and excitation (Hu et al. 2018) at the end.
    """

    def __init__(
        self, inputs: Sequence[int], width: int, style: Style, conv_small: int, *, weighed: bool = False
    ):
        super().__init__()
        self.lower = style.lower(sum(inputs), width)
        self.conv_small = style.separable(width, conv_small)
        self.weigh = SqueezeExcitation(width, max(1, width // 16)) if weighed else nn.Identity()

    def forward(self, *features: Tensor) -> Tensor:
        fused: Tensor = self.weigh(self.conv_small(self.lower(torch.cat(features, dim=1))))
        return fused


class PairScan(nn.Module):
    """A and B through three VSS blocks, as ChangeMamba's decoder joins them (Chen et al. 2024, arXiv 2404.03425, section III-C).

    The dates are stacked (on each other's channels), interleaved (column by column) and laid side by side; each arrangement
    passes a VSS block of its own, and the results are joined and lowered to `width`.
    """

    def __init__(self, width: int, style: Style, *, mlp: bool):
        super().__init__()
        self.stacked = nn.Sequential(style.lower(2 * width, width), style.block(width, mlp=mlp))
        self.interleaved, self.beside = style.block(width, mlp=mlp), style.block(width, mlp=mlp)
        self.lower = style.lower(5 * width, width)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        columns = self.interleaved(torch.stack((a, b), dim=4).flatten(3))
        halves = self.beside(torch.cat((a, b), dim=3)).chunk(2, dim=3)
        joined = (self.stacked(torch.cat((a, b), dim=1)), columns[..., ::2], columns[..., 1::2], *halves)
        fused: Tensor = self.lower(torch.cat(joined, dim=1))
        return fused


class DifferenceFusion(nn.Module):
    """The differences of all levels fused by AFF, from the deepest up (until version 3): -> (batch, widths[0], H/4, W/4)."""

    def __init__(self, widths: Sequence[int], style: Style, settings: AFF):
        super().__init__()
        self.lower = nn.ModuleList(style.lower(deep, width) for width, deep in pairwise(widths))
        self.fusions = nn.ModuleList(AttentionalFusion(width, style, settings) for width in widths[:-1])

    def forward(self, differences: Sequence[Tensor]) -> Tensor:
        fused = differences[-1]
        for difference, lower, fusion in reversed(
            list(zip(differences[:-1], self.lower, self.fusions, strict=True))
        ):
            fused = fusion(difference, lower(enlarge(fused, difference)))
        return fused
