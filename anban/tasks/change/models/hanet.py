"""HANet: the dates meet in dilated convolutions at four scales, each refined by channel, column and row attention.

Source: Han, Wu, Guo, Hu, Chen, "HANet: a hierarchical attention network for change detection with bitemporal
very-high-resolution remote sensing images", IEEE JSTARS 16, 2023; numerically equal to the authors' release
(github.com/ChengxiHAN/HANet-CD) at 256x256 pixels, the only size that the release takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from anban.official import rename
from anban.recipe.schema import Count
from anban.tasks.change.models.common import check_sides

SCALES = 4
"""Resolutions: 1, 1/2, 1/4 and 1/8 of the image's."""
DILATIONS = (1, 2, 3, 4)
ATTENDED = 32
"""Channels among which the channel attention chooses."""


class _Cell(nn.Module):
    """A 3x3 convolution and a residual 1x1 one on top of it: (B, C, H, W) -> (B, width, H, W)."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(x)))))


class _Fusion(nn.Module):
    """Features of both dates -> (B, width, H, W), by grouped convolutions of several dilations.

    As published, a group takes four neighbouring channels of one date; the dates meet in the 1x1 convolution.
    """

    def __init__(self, width: int):
        super().__init__()
        self.dilated = nn.ModuleList(
            nn.Conv2d(2 * width, width, kernel_size=3, padding=dilation, dilation=dilation, groups=width // 2)
            for dilation in DILATIONS
        )
        self.reduce = nn.Conv2d(len(DILATIONS) * width, width, kernel_size=1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        both = torch.cat((a, b), dim=1)
        fused: Tensor = self.reduce(torch.cat([conv(both) for conv in self.dilated], dim=1))
        return fused


class _ChannelAttention(nn.Module):
    """Every channel of (B, C, H, W) reads the channels least like it, by the share `gamma`, at first nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        # The products are sums over all pixels: half precision does not hold them.
        with torch.autocast(x.device.type, enabled=False):
            channels = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))
            weights = (-channels @ channels.mT).softmax(dim=-1)
            read = (weights @ channels).reshape(x.shape).to(x.dtype)
        return x + self.gamma * read


class _RowAttention(nn.Module):
    """Every pixel of (B, C, H, W) reads the pixels of its row, by the share `gamma`, at first nothing."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.to_q = nn.Conv2d(width, width, kernel_size=1)
        self.to_k = nn.Conv2d(width, width, kernel_size=1)
        self.to_v = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        # (B, H, W, C): rows stand where attention usually has its heads. The fused kernels take channels that lie side by
        # side in memory.
        q, k, v = (project(x).movedim(1, -1).contiguous() for project in (self.to_q, self.to_k, self.to_v))
        read = F.scaled_dot_product_attention(q, k, v, scale=1.0).movedim(-1, 1)
        return x + self.gamma * read


class _HierarchicalAttention(nn.Module):
    """Channel attention, and next to it column attention followed by row attention: (B, C, H, W) -> their sum."""

    def __init__(self, width: int):
        super().__init__()
        self.channel = nn.Sequential(
            nn.Conv2d(width, ATTENDED, kernel_size=3, padding=1),
            nn.BatchNorm2d(ATTENDED),
            nn.PReLU(),
            _ChannelAttention(),
            nn.Conv2d(ATTENDED, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.PReLU(),
        )
        self.column = _RowAttention(width)
        self.row = _RowAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.channel(x) + self.row(self.column(x.mT).mT)
        return attended


class HANet(nn.Module):
    """HANet: (B, C, H, W) twice -> class scores (B, classes, H, W).

    Args:
        in_channels: bands of one date (the release has an argument for it and ignores it).
        classes: 2 (class 1 = change) or 1 (logit of change); any number of classes may be asked for.
        width: channels at full resolution, even, doubled at each of the three coarser scales.
        unused_layers: keep four convolutions that are never run, as published: they count as parameters, take no
            gradient and change no result.

    Raises:
        InputError: in `forward`, a side of the images is not a multiple of 8.
    """

    multiple_of = 2 ** (SCALES - 1)
    backbone: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        in_channels: Count = 3,
        classes: Count = 2,
        width: Annotated[int, Ge(2), MultipleOf(2)] = 40,
        unused_layers: bool = False,
    ):
        super().__init__()
        widths = [width * 2**scale for scale in range(SCALES)]
        self.stem = nn.Conv2d(in_channels, width, kernel_size=5, padding=2)
        self.encoder = nn.ModuleList(map(_Cell, [width, *widths], widths))
        self.fusion = nn.ModuleList(map(_Fusion, widths))
        self.attention = nn.ModuleList(map(_HierarchicalAttention, widths))
        self.classify = nn.Sequential(
            nn.Conv2d(sum(widths), 2 * width, kernel_size=1),
            nn.Conv2d(2 * width, classes, kernel_size=3, padding=1, bias=False),
        )
        self.unused = nn.ModuleList()
        if unused_layers:
            outputs = [width, 2 * width, 2 * width, 2 * width]
            self.unused.extend(map(partial(nn.Conv2d, kernel_size=3, padding=1), widths, outputs))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Class scores (B, classes, H, W) of the earlier image `a` and the later image `b`, (B, in_channels, H, W) each."""
        check_sides(self, a)
        attended = [
            attend(fuse(features_a, features_b))
            for attend, fuse, features_a, features_b in zip(
                self.attention, self.fusion, self._features(a), self._features(b), strict=True
            )
        ]
        *finer, x = attended
        for features in reversed(finer):
            x = torch.cat((features, F.interpolate(x, scale_factor=2, mode="bilinear")), dim=1)
        scores: Tensor = self.classify(x)
        return scores

    def _features(self, x: Tensor) -> list[Tensor]:
        """One image -> its features at the four scales, fine to coarse."""
        features: list[Tensor] = []
        x = self.stem(x)
        for scale, cell in enumerate(self.encoder):
            x = cell(F.avg_pool2d(x, kernel_size=2) if scale else x)
            features.append(x)
        return features

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters and leave out layers that this network does not keep."""
        cells = {"0": 0, "2": 1, "4": 2, "5": 3}
        state = rename(
            state_dict,
            [
                (r"^conv0_0\.", "stem."),
                # Scales and dilations are counted from 1.
                (
                    r"^conv6_(\d)_(\d)\.",
                    lambda match: f"fusion.{int(match[1]) - 1}.dilated.{int(match[2]) - 1}.",
                ),
                (r"^conv(\d)_1\.", lambda match: f"fusion.{int(match[1]) - 1}.reduce."),
                (
                    r"^(cam|row|col)_attention_(\d)\.",
                    lambda match: f"attention.{int(match[2]) - 1}.{match[1]}.",
                ),
                (r"^c(\d)_conv\.", lambda match: f"unused.{int(match[1]) - 1}."),
                (r"^conv([0245])\.", lambda match: f"encoder.{cells[match[1]]}."),
                (r"^(encoder\.\d)\.bn(\d)\.", r"\1.norm\2."),
                (r"^conv6\.", "classify.0."),
                (r"^conv7\.", "classify.1."),
                (r"\.cam\.attn\.", ".channel."),
                (r"\.col\.", ".column."),
                (r"\.(q|k|v)\w+_conv\.", r".to_\1."),
            ],
        )
        return {name: t for name, t in state.items() if len(self.unused) or not name.startswith("unused.")}
