"""AERNet: ResNet-34 features of both dates, decoded under coordinate attention; at edges the neighbours decide.

Source: Zhang et al., "AERNet: an attention-guided edge refinement network and a dataset for remote sensing building
change detection", IEEE TGRS 61, 2023, section III; numerically equal to the authors' release
(github.com/zjd1836/AERNet).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from anban.official import rename
from anban.tasks.change.models.common import SideOutputs, check_sides, conv_norm_relu, supervised

FEATURES = (64, 64, 128, 256, 512)
"""Channels of the ResNet at 1/2, 1/4, ... 1/32 of the resolution."""
DECODER = (512, 256, 128, 64, 32)
"""Channels that the decoder gives at 1/16, 1/8, ... 1 of the resolution."""
WINDOW = 8
"""Side of the windows that are one token of the global attention."""


class _GlobalContext(nn.Module):
    """Self-attention among windows of 8x8 pixels, added to the pixels of each: (B, C, H, W) -> (B, C, H, W).

    Windows at the right and lower border may be smaller.
    """

    def __init__(self, width: int, *, unused_layers: bool):
        super().__init__()
        self.to_q = nn.Conv2d(width, width // 8, kernel_size=1)
        self.to_k = nn.Conv2d(width, width // 8, kernel_size=1)
        self.to_v = nn.Conv2d(width, width, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1)) if unused_layers else None

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        windows = F.avg_pool2d(x, WINDOW, ceil_mode=True)
        q, k, v = (project(windows).flatten(2).mT for project in (self.to_q, self.to_k, self.to_v))
        read = F.scaled_dot_product_attention(q, k, v).mT.reshape(windows.shape)
        read = F.interpolate(read, scale_factor=WINDOW)
        added: Tensor = read[..., :height, :width] + x
        return added


class _CoordinateAttention(nn.Module):
    """Weigh every channel by its row and by its column: (B, C, H, W) -> (B, C, H, W).

    Source: Hou, Zhou, Feng, "Coordinate attention for efficient mobile network design", CVPR 2021, section 3.
    """

    def __init__(self, width: int):
        super().__init__()
        hidden = max(8, width // 32)
        self.squeeze = nn.Sequential(
            nn.Conv2d(width, hidden, kernel_size=1), nn.BatchNorm2d(hidden), nn.Hardswish()
        )
        self.rows = nn.Conv2d(hidden, width, kernel_size=1)
        self.columns = nn.Conv2d(hidden, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        lines = torch.cat((x.mean(dim=3), x.mean(dim=2)), dim=2).unsqueeze(3)
        rows, columns = self.squeeze(lines).split(x.shape[-2:], dim=2)
        weighed: Tensor = x * self.columns(columns.mT).sigmoid() * self.rows(rows).sigmoid()
        return weighed


def _separable(width: int) -> nn.Sequential:
    """A depth-wise 3x3 convolution and a point-wise one: (B, width, H, W) -> (B, width, H, W)."""
    return nn.Sequential(
        nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width),
        nn.Conv2d(width, width, kernel_size=1),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
    )


class _Stage(nn.Module):
    """Fuse what comes from below with the features of both dates -> twice the resolution, and a logit of change before."""

    def __init__(self, below: int, features: int, width: int):
        super().__init__()
        self.reduce = conv_norm_relu(below + 2 * features, width, kernel=1)
        self.attend = nn.Sequential(_separable(width), _CoordinateAttention(width), _separable(width))
        self.classifier = nn.Conv2d(width, 1, kernel_size=1)
        self.up = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)

    def forward(self, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = self.reduce(torch.cat((a, x, b), dim=1))
        x = x + self.attend(x)
        return self.up(x), self.classifier(x)


def _head(inputs: int, width: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        conv_norm_relu(inputs, width, kernel=kernel), nn.Conv2d(width, outputs, kernel_size=1)
    )


class _EdgeRefinement(nn.Module):
    """Where there is an edge, the logit of change is a mean of the eight neighbours' logits, weighed by the features.

    The eight kernels that fetch the neighbours start as shifts and are trained.
    """

    def __init__(self, width: int):
        super().__init__()
        self.directions = _head(width, width, 8, kernel=1)
        self.neighbours = nn.Conv2d(1, 8, kernel_size=3, padding=1, bias=False)

    def reset_shifts(self) -> None:
        """Kernel k takes neighbour k: left, upper left, and so on clockwise."""
        with torch.no_grad():
            self.neighbours.weight.zero_()
            for kernel, place in enumerate((3, 0, 1, 2, 5, 8, 7, 6)):
                self.neighbours.weight[kernel].view(-1)[place] = 1

    def forward(self, x: Tensor, logit: Tensor, edge: Tensor) -> Tensor:
        """`x` (B, width, H, W); `logit` and `edge`, in [0, 1], (B, 1, H, W)."""
        weights = self.directions(x).softmax(dim=1)
        refined: Tensor = (self.neighbours(logit) * weights).sum(dim=1, keepdim=True)
        return refined * edge + logit * (1 - edge)


class AERNet(nn.Module):
    """AERNet: (B, 3, H, W) twice -> the logit of change (B, 1, H, W).

    The release takes sides that are multiples of 256 pixels; there this network computes the same.

    Args:
        pretrained: start the ResNet-34 from torchvision's ImageNet weights (downloaded where they are not cached).
        edge: "soft" mixes the coarse and the refined logit by the probability of an edge. "hard" is published: one or
            the other, whichever side of 0.5 the probability lies on. No gradient passes such a switch, and nothing else
            teaches where edges are: the layers that say so stay as they were drawn.
        redraw_shifts: draw the kernels of the edge refinement at random like other convolutions, as the release does
            after it has made shifts of them.
        unused_layers: keep the factor on the attention that the release has and does not use: it counts as a
            parameter, takes no gradient and changes no result.
        side_outputs: "training" adds the side outputs in training mode; "always" also in evaluation mode.

    Raises:
        InputError: in `forward`, a side of the images is not a multiple of 32.
    """

    multiple_of = 32
    backbone: ClassVar[tuple[str, ...]] = ("encoder",)

    def __init__(
        self,
        pretrained: bool = False,
        edge: Literal["soft", "hard"] = "soft",
        redraw_shifts: bool = False,
        unused_layers: bool = False,
        side_outputs: SideOutputs = "training",
    ):
        super().__init__()
        self.edge, self.side_outputs = edge, side_outputs
        self.encoder = torchvision.models.resnet34(weights="IMAGENET1K_V1" if pretrained else None)
        del self.encoder.fc
        self.context = _GlobalContext(2 * FEATURES[-1], unused_layers=unused_layers)
        coarsest = DECODER[0]
        self.bridge = nn.Sequential(
            conv_norm_relu(2 * FEATURES[-1], coarsest, kernel=1),
            _separable(coarsest),
            nn.ConvTranspose2d(coarsest, coarsest, kernel_size=2, stride=2),
        )
        skips = reversed(FEATURES[:-1])
        self.stages = nn.ModuleList(
            _Stage(*widths) for widths in zip(DECODER, skips, DECODER[1:], strict=False)
        )
        width = DECODER[-1]
        self.edge_head = _head(width, width, 1, kernel=3)
        self.head = _head(width + 1, width, 1, kernel=3)
        self.refine = _EdgeRefinement(width)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("encoder."):
                nn.init.kaiming_normal_(module.weight)
        if not redraw_shifts:
            self.refine.reset_shifts()

    def forward(self, a: Tensor, b: Tensor) -> Tensor | list[Tensor]:
        """Logit of change (B, 1, H, W) of the earlier image `a` and the later image `b`, (B, 3, H, W) each.

        With side outputs a list of six: that one, the one before refinement, then (B, 1, H / 2, W / 2) and so on to
        1/16.
        """
        check_sides(self, a)
        features_a, features_b = self._features(a), self._features(b)
        x = self.bridge(self.context(torch.cat((features_a.pop(), features_b.pop()), dim=1)))
        sides: list[Tensor] = []
        for stage, f, g in zip(self.stages, reversed(features_a), reversed(features_b), strict=True):
            x, side = stage(x, f, g)
            sides.insert(0, side)
        finest = F.interpolate(sides[0], scale_factor=2, mode="bilinear", align_corners=True)
        coarse = self.head(torch.cat((x, finest), dim=1))
        edge = self.edge_head(x).sigmoid()
        if self.edge == "hard":
            edge = (edge > 0.5).to(edge.dtype)
        refined = self.refine(x, coarse, edge)
        return supervised(self, [refined, coarse, *sides], self.side_outputs)

    def _features(self, x: Tensor) -> list[Tensor]:
        """One image (B, 3, H, W) -> the ResNet's features, from 1/2 to 1/32 of the resolution."""
        e = self.encoder
        features = [e.relu(e.bn1(e.conv1(x)))]
        x = e.maxpool(features[0])
        for stage in (e.layer1, e.layer2, e.layer3, e.layer4):
            x = stage(x)
            features.append(x)
        return features

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters and leave out the factor where this network does not keep it."""
        state = rename(
            state_dict,
            [
                (r"^decoder\.bam\.", "context."),
                (r"^context\.([qkv])\w+_conv\.", r"context.to_\1."),
                (r"^decoder\.db1\.([01])\.", r"bridge.0.\1."),
                (r"^decoder\.db1\.3\.", "bridge.1."),
                (r"^decoder\.db1\.4\.", "bridge.2."),
                (r"^decoder\.db(\d)\.", lambda match: f"stages.{int(match[1]) - 2}."),
                (r"\.de_block1\.", ".reduce."),
                (r"\.de_block2\.", ".attend.0."),
                (r"\.att\.conv1\.", ".attend.1.squeeze.0."),
                (r"\.att\.bn1\.", ".attend.1.squeeze.1."),
                (r"\.att\.conv_h\.", ".attend.1.rows."),
                (r"\.att\.conv_w\.", ".attend.1.columns."),
                (r"\.de_block3\.", ".attend.2."),
                (r"\.de_block4\.", ".classifier."),
                (r"\.de_block5\.", ".up."),
                (r"\.depth_conv\.", ".0."),
                (r"\.point_conv\.(\d)\.", lambda match: f".{int(match[1]) + 1}."),
                (r"^decoder\.(classifier\d|refine\.dir_head)\.([01])\.", r"decoder.\1.0.\2."),
                (r"^decoder\.(classifier\d|refine\.dir_head)\.3\.", r"decoder.\1.1."),
                (r"^decoder\.classifier1\.", "edge_head."),
                (r"^decoder\.classifier2\.", "head."),
                (r"^decoder\.refine\.dir_head\.", "refine.directions."),
                (r"^decoder\.refine\.conv0\.", "refine.neighbours."),
            ],
        )
        if self.context.gamma is None:
            state.pop("context.gamma", None)
        return state
