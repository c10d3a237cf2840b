"""The two paths of BiSeNetV1 and where they meet.

Source: Yu et al., "BiSeNet: bilateral segmentation network for real-time semantic segmentation", ECCV 2018, section 3; the FPN is
Lin et al., CVPR 2017, the U-shape Ronneberger et al., MICCAI 2015; which convolution stands where is told by the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from anban.errors import InputError
from anban.tasks.segment.models.bisenet.attention import (
    AttentionRefinement,
    ChannelAttention,
    mean_over_image,
)
from anban.tasks.segment.models.bisenet.settings import (
    ARM,
    ContextPath,
    Convolution,
    Fusion,
    GlobalContext,
    SpatialPath,
    Upsampling,
)
from anban.tasks.segment.models.common import ConvNormAct, Enlarge, Style, size_of


def convolution(kind: Convolution, inputs: int, outputs: int, style: Style) -> nn.Module:
    """The convolution that a setting names; "none" is the identity."""
    if kind == "none":
        return nn.Identity()
    kernel = int(kind[0])
    if kind.endswith("relu"):
        return ConvNormAct(inputs, outputs, kernel, style=style)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def spatial_path(settings: SpatialPath, style: Style) -> nn.Sequential:
    """Images (B, 3, H, W) -> detail (B, C, H / 8, W / 8)."""
    widths = [3, *settings.channels]
    layers = [
        ConvNormAct(inputs, outputs, kernel, stride, style)
        for (inputs, outputs), kernel, stride in zip(
            pairwise(widths), settings.kernels, settings.strides, strict=True
        )
    ]
    if settings.out_channels is not None:
        layers.append(ConvNormAct(widths[-1], settings.out_channels, 1, style=style))
    return nn.Sequential(*layers)


class _GlobalMean(nn.Module):
    """Brings the mean of feat32, (B, C, 1, 1), back into a map (B, `channels`, H, W) by addition or multiplication."""

    def __init__(self, settings: GlobalContext, inputs: int, channels: int, inner: Convolution, style: Style):
        super().__init__()
        self.multiply = settings.operation == "multiply"
        if settings.onto == "level":
            self.convert = convolution(inner, inputs, channels, style)
        elif settings.kind == "conv-bn-relu":
            self.convert = ConvNormAct(inputs, channels, 1, style=style)
        elif settings.kind == "avg":
            self.convert = nn.Identity()
        else:
            layers = [nn.Conv2d(inputs, channels, 1, bias=False), style.normalisation(channels)]
            self.convert = nn.Sequential(*layers, *[nn.Sigmoid()] * settings.kind.endswith("sigmoid"))
        if isinstance(self.convert, nn.Identity) and inputs != channels:
            raise InputError(
                f"The mean of feat32 has {inputs} channels, the map that it meets {channels}.",
                where="global_context.kind",
                expected='a map of as many channels, or a kind with a convolution, such as "conv-bn-relu"',
            )

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        context: Tensor = self.convert(mean)
        return x * context if self.multiply else x + context


def join(maps: list[Tensor], how: Literal["add", "sum", "concat"]) -> Tensor:
    """Maps of the same size in one."""
    return torch.cat(maps, dim=1) if how == "concat" else sum(maps[1:], maps[0])


def joined_channels(channels: list[int], how: Literal["add", "sum", "concat"], where: str) -> int:
    """Channels of what `join` gives.

    Raises:
        InputError: maps of different channels are to be added.
    """
    if how != "concat" and len(set(channels)) > 1:
        raise InputError(
            f"Maps of {' and '.join(map(str, channels))} channels cannot be added.",
            where=where,
            expected="the same number of channels everywhere",
            do='bring them to one width by convolutions, or set "concat"',
        )
    return sum(channels) if how == "concat" else channels[0]


class _TopDown(nn.Module):
    """From 1/32 up: enlarge, `refine`, join with the next finer feature, `outer`; gives the map at the finest stride.

    `arriving` says how many channels come up to each stride, before they are joined there.
    """

    def __init__(self, channels: Mapping[int, int], path: ContextPath, upsampling: Upsampling, style: Style):
        super().__init__()
        self.how = path.join
        self.up, self.refine, self.outer = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.arriving: dict[int, int] = {}
        coarser, self.channels = 32, channels[32]
        for stride in (stride for stride in channels if stride < 32):
            name = str(stride)
            self.up[name] = Enlarge(
                upsampling.levels, self.channels, coarser // stride, upsampling.align_corners
            )
            self.refine[name] = convolution(path.refine, self.channels, path.width, style)
            arriving = self.channels if path.refine == "none" else path.width
            joined = joined_channels([arriving, channels[stride]], self.how, "context_path.join")
            self.outer[name] = convolution(path.outer, joined, path.width, style)
            self.arriving[stride] = arriving
            coarser, self.channels = stride, joined if path.outer == "none" else path.width

    def forward(self, laterals: Mapping[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
        """The joined map, and what arrived at each stride on the way."""
        x, arrived = laterals[32], {}
        for name in self.up:
            lateral = laterals[int(name)]
            arrived[int(name)] = self.refine[name](self.up[name](x, size_of(lateral)))
            x = self.outer[name](join([arrived[int(name)], lateral], self.how))
        return x, arrived


class _AtOnce(nn.Module):
    """Every feature goes straight to the output's stride, where all are joined; then `outer`."""

    arriving: Mapping[int, int] = {}

    def __init__(self, channels: Mapping[int, int], path: ContextPath, upsampling: Upsampling, style: Style):
        super().__init__()
        self.how = path.join
        self.up = nn.ModuleDict(
            {
                str(stride): Enlarge(
                    upsampling.levels, width, stride // path.stride, upsampling.align_corners
                )
                for stride, width in channels.items()
            }
        )
        joined = joined_channels(list(channels.values()), self.how, "context_path.join")
        self.outer = convolution(path.outer, joined, path.width, style)
        self.channels = joined if path.outer == "none" else path.width

    def forward(self, laterals: Mapping[int, Tensor], size: tuple[int, int]) -> Tensor:
        enlarged = [self.up[str(stride)](lateral, size) for stride, lateral in laterals.items()]
        joined: Tensor = self.outer(join(enlarged, self.how))
        return joined


class ContextBranch(nn.Module):
    """The backbone's features refined, brought to one size and joined: {s: (B, C_s, h_s, w_s)} -> (B, `channels`, h, w).

    Beside the output it returns the maps that auxiliary heads may look at; `maps` tells their channels and strides.
    """

    def __init__(
        self,
        widths: Mapping[int, int],
        arm: ARM,
        global_context: GlobalContext,
        path: ContextPath,
        upsampling: Upsampling,
        style: Style,
    ):
        super().__init__()
        strides = [stride for stride in (32, 16, 8) if stride >= path.finest]
        refined = {stride: arm.width or widths[stride] for stride in strides}
        lateral = refined if path.inner == "none" else dict.fromkeys(strides, path.width)
        self.arm = nn.ModuleDict({str(s): AttentionRefinement(widths[s], arm, style) for s in strides})
        self.inner = nn.ModuleDict(
            {str(s): convolution(path.inner, refined[s], path.width, style) for s in strides}
        )
        self.joining: _TopDown | _AtOnce
        if path.order == "top-down":
            self.joining = _TopDown(lateral, path, upsampling, style)
            reached = path.finest
        else:
            self.joining = _AtOnce(lateral, path, upsampling, style)
            reached = path.stride
        channels = self.joining.channels

        self.onto = None if global_context.kind == "none" else global_context.onto
        if self.onto is not None:
            met = {"feat32": refined[32], "level": lateral[32], "joined": channels}[self.onto]
            self.global_context = _GlobalMean(global_context, widths[32], met, path.inner, style)
        self.stride: int = path.stride
        self.up = Enlarge(upsampling.last, channels, reached // path.stride, upsampling.align_corners)
        self.out = convolution(path.out, channels, path.width, style)
        self.channels = channels if path.out == "none" else path.width
        self.maps = {f"arm{s}": (refined[s], s) for s in strides} | {
            f"context{s}": (width, s) for s, width in self.joining.arriving.items()
        }
        self.maps["context8"] = (self.channels, path.stride)

    def forward(self, features: Mapping[int, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        mean = mean_over_image(features[32])
        refined = {int(name): arm(features[int(name)]) for name, arm in self.arm.items()}
        x = dict(refined)
        if self.onto == "feat32":
            x[32] = self.global_context(x[32], mean)
        x = {stride: self.inner[str(stride)](feature) for stride, feature in x.items()}
        if self.onto == "level":
            x[32] = self.global_context(x[32], mean)

        size = size_of(features[self.stride])
        arrived: dict[int, Tensor] = {}
        if isinstance(self.joining, _TopDown):
            joined, arrived = self.joining(x)
        else:
            joined = self.joining(x, size)
        if self.onto == "joined":
            joined = self.global_context(joined, mean)
        output = self.out(self.up(joined, size))

        maps = {f"arm{stride}": feature for stride, feature in refined.items()}
        maps |= {f"context{stride}": feature for stride, feature in arrived.items()}
        return output, maps | {"context8": output}


class FeatureFusion(nn.Module):
    """Detail and context in one map: (B, C, h, w) and (B, D, h, w) -> (B, `channels`, h, w), halved by a stride of 2."""

    def __init__(self, spatial: int, context: int, settings: Fusion, classes: int, style: Style):
        super().__init__()
        self.how: Literal["sum", "concat"] = "sum" if settings.join == "sum" else "concat"
        joined = joined_channels([spatial, context], self.how, "fusion.join")
        self.module = settings.join == "ffm"
        self.stride = settings.stride if self.module else 1
        self.channels = (settings.width or classes) if self.module else joined
        self.attention = None
        if self.module:
            self.conv = ConvNormAct(joined, self.channels, settings.kernel, settings.stride, style)
            if settings.attention != "none":
                self.attention = ChannelAttention(
                    settings.attention, self.channels, style, settings.reduction
                )

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = join([spatial, context], self.how)
        if self.module:
            x = self.conv(x)
        return x if self.attention is None else x + x * self.attention(x)
