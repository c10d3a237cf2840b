"""EDSS, the enhancement: derivative operators supply what is local, with few parameters, as a branch beside the trunk.

Sources: note 000, versions 3, 5, 8 and 11 to 14, and the ablation of the enhancement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.ssm.vmamba.layers import Mlp
from anban.tasks.change.models.stnet.layers import Style
from anban.tasks.change.models.stnet.settings import Enhancement, Source


class FixedFilter(nn.Module):
    """Every channel through the same fixed kernels: (batch, C, H, W) -> (batch, C * kernels, H, W), borders repeated.

    Args:
        kernels: (n, k, k), k odd.
    """

    kernels: Tensor

    def __init__(self, kernels: Tensor):
        super().__init__()
        self.register_buffer("kernels", kernels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, margin = x.shape[1], self.kernels.shape[-1] // 2
        weight = self.kernels.to(x.dtype).unsqueeze(1).repeat(channels, 1, 1, 1)
        return F.conv2d(F.pad(x, [margin] * 4, mode="replicate"), weight, groups=channels)


class FirstOrder(FixedFilter):
    """The first-order derivative operator: Sobel's horizontal and vertical slopes, 2 C channels.

    A ramp of 1 per pixel has the slope 1.
    """

    outputs = 2

    def __init__(self) -> None:
        across = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])) / 8
        super().__init__(torch.stack((across, across.T)))


class Gaussian(FixedFilter):
    """A Gaussian of a standard deviation in pixels, cut off at two of them; its weights sum to 1."""

    def __init__(self, deviation: float):
        reach = math.ceil(2 * deviation)
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
        weights = weights / weights.sum()
        super().__init__(torch.outer(weights, weights)[None])


class SecondOrder(nn.Module):
    """The second-order derivative operator, C channels.

    "laplacian": the four neighbours minus four times the pixel, behind a Gaussian of 1 pixel, as a second derivative magnifies
    noise. "dog": the Gaussian of 1 pixel from that of 1.6 pixels, Marr and Hildreth's (1980) approximation of it.

    Args:
        channels: C; needed for the bias only.
        bias: give the Gaussian convolution a learned bias, as until version 6. The operator removes it again but for "dog".
    """

    outputs = 1

    def __init__(self, kind: Literal["laplacian", "dog"], channels: int, bias: bool):
        super().__init__()
        self.narrow = Gaussian(1.0)
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1)) if bias else None
        kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
        self.wide = Gaussian(1.6) if kind == "dog" else None
        self.laplacian = FixedFilter(kernel[None]) if kind == "laplacian" else None

    def forward(self, x: Tensor) -> Tensor:
        smooth = self.narrow(x)
        if self.bias is not None:
            smooth = smooth + self.bias
        curved: Tensor = self.laplacian(smooth) if self.laplacian is not None else self.wide(x) - smooth  # type: ignore[misc]
        return curved


class EDSS(nn.Module):
    """The branch of one level: derivatives of its sources, their fusion, a small scan; (batch, width, H, W).

    Args:
        width: channels of the trunk.
        level: from 0, the shallowest.
        in_chans: channels of the images.
    """

    def __init__(self, width: int, level: int, in_chans: int, settings: Enhancement, style: Style):
        super().__init__()
        self.width, self.settings = width, settings
        light = level < settings.light_levels
        edge = settings.width if light else max(settings.width, width // 8)
        date = width if settings.of == "features" else in_chans
        channels = {"a": date, "b": date, "pair": 2 * date, "difference": width, "fused": width}

        def squeezed(inputs: int) -> nn.Module:
            return style.convolution(inputs, edge, 1 if light else 3)

        first: list[tuple[Source, FirstOrder | SecondOrder]] = [
            (s, FirstOrder()) for s in settings.first_order
        ]
        second: list[tuple[Source, FirstOrder | SecondOrder]] = [
            (s, SecondOrder(settings.operator, channels[s], settings.gaussian_bias))
            for s in settings.second_order
        ]
        self.sources = [source for source, _ in first + second]
        self.operators = nn.ModuleList(operator for _, operator in first + second)
        self.squeezes = nn.ModuleList(
            squeezed(operator.outputs * channels[source]) for source, operator in first + second
        )
        # With neither operator nor difference the small scan still has the trunk's input to work on.
        plain: list[Source] = (
            ["difference"] if settings.with_difference else [] if self.sources else ["fused"]
        )
        self.plain = plain
        self.plain_squeezes = nn.ModuleList(squeezed(width) for _ in plain)
        joined = len(self.sources) + len(plain)
        scans = joined if settings.scan == "before" else 0
        self.scans_before = nn.ModuleList(self._small_scan(edge, style) for _ in range(scans))
        self.fuse = style.convolution(joined * edge, edge, 1 if light else 3)
        self.scan_after = self._small_scan(width, style) if settings.scan == "after" else None
        self.mlp = (
            nn.Sequential(style.normalisation(width), Mlp(width, 2 * width, channel_first=True))
            if settings.mlp
            else None
        )

    def _small_scan(self, width: int, style: Style) -> nn.Module:
        """LSSM: a residual scan no wider than its input, or blocks as the trunk has them."""
        if self.settings.block == "trunk":
            return nn.Sequential(
                *(style.block(width, over=over, mlp=False) for over in ("channel", "spatial"))
            )
        return SmallScan(width, style)

    def needs(self, source: Source) -> bool:
        """Whether the branch looks at a source."""
        return source in (*self.sources, *self.plain)

    def derivatives(self, sources: Mapping[str, Tensor]) -> list[Tensor]:
        """What each operator gives, before anything is learned: (batch, C or 2 C, H, W) per source."""
        return [
            operator(sources[source]) for source, operator in zip(self.sources, self.operators, strict=True)
        ]

    def forward(self, sources: Mapping[str, Tensor], trunk: Tensor) -> Tensor:
        """The branch.

        Args:
            sources: by name, every `Source`.
            trunk: output of the trunk, (batch, width, H, W).
        """
        edges = [squeeze(x) for squeeze, x in zip(self.squeezes, self.derivatives(sources), strict=True)]
        edges += [
            squeeze(sources[name]) for squeeze, name in zip(self.plain_squeezes, self.plain, strict=True)
        ]
        if self.scans_before:
            edges = [scan(edge) for scan, edge in zip(self.scans_before, edges, strict=True)]
        fused = self.fuse(torch.cat(edges, dim=1))
        # Repeated, not expanded: fewer channels than the trunk has cannot be multiplied with it otherwise (note 000, v5).
        branch: Tensor = fused.repeat(1, -(-self.width // fused.shape[1]), 1, 1)[:, : self.width]
        if self.scan_after is not None:
            branch = self.scan_after(branch)
        if self.mlp is not None:
            branch = branch + self.mlp(branch)
        return branch + branch * trunk if self.settings.product else branch


class SmallScan(nn.Module):
    """x + SS2D(norm(x)), SS2D no wider than x."""

    def __init__(self, width: int, style: Style):
        super().__init__()
        self.norm, self.scan = style.normalisation(width), style.scan(width, ratio=1.0)

    def forward(self, x: Tensor) -> Tensor:
        scanned: Tensor = x + self.scan(self.norm(x))
        return scanned
