"""SNUNet-CD: a Siamese nested U-Net, whose dense grid of nodes keeps full-resolution features on every path.

Source: Fang, Li, Shao, Li, "SNUNet-CD: a densely connected Siamese network for change detection of VHR images", IEEE
GRSL 2021, section II; numerically equal to the authors' release (github.com/likyoo/Siam-NestedUNet).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from anban.official import rename
from anban.tasks.change.models.common import ChannelAttention, SideOutputs, check_sides, supervised

LEVELS = 5
"""Resolutions of the grid: 1, 1/2, ... 1/16 of the image's."""


class _Node(nn.Module):
    """Two 3x3 convolutions with a residual connection that starts after the first: (B, C, H, W) -> (B, width, H, W)."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, kernel_size=3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(x)))))


class _EnsembleAttention(nn.Module):
    """ECAM: the full-resolution nodes (B, C, H, W), weighed channel by channel -> class scores."""

    def __init__(self, width: int, nodes: int, classes: int):
        super().__init__()
        self.inter = ChannelAttention(nodes * width, width // 4)
        self.intra = ChannelAttention(width, width // 4)
        self.classifier = nn.Conv2d(nodes * width, classes, kernel_size=1)

    def forward(self, nodes: list[Tensor]) -> list[Tensor]:
        ensemble = torch.cat(nodes, dim=1)
        intra = self.intra(torch.stack(nodes).sum(dim=0)).repeat(1, len(nodes), 1, 1)
        return [self.classifier(self.inter(ensemble) * (ensemble + intra))]


class _SideHeads(nn.Module):
    """Every full-resolution node gives class scores; a 1x1 convolution fuses them -> fused scores, then the nodes'."""

    def __init__(self, width: int, nodes: int, classes: int):
        super().__init__()
        self.sides = nn.ModuleList(nn.Conv2d(width, classes, kernel_size=1) for _ in range(nodes))
        self.classifier = nn.Conv2d(nodes * classes, classes, kernel_size=1)

    def forward(self, nodes: list[Tensor]) -> list[Tensor]:
        sides = [side(node) for side, node in zip(self.sides, nodes, strict=True)]
        return [self.classifier(torch.cat(sides, dim=1)), *sides]


class SNUNet(nn.Module):
    """SNUNet-CD: (B, C, H, W) twice -> class scores (B, classes, H, W).

    Node (i, j) lies at level i of the resolution and column j. Column 0 is the encoder, shared by the dates; a node of
    a later column reads everything to its left and the enlarged node (i + 1, j - 1) below it. As published, what the
    encoder sends upwards comes from the later date alone, so the earlier date does without the deepest level.

    Args:
        in_channels: bands of one date.
        classes: 2 (class 1 = change) or 1 (logit of change); any number of classes may be asked for.
        width: channels at full resolution, doubled at each level (published: 16, 32 and more; the release has 32).
        head: "ecam" weighs the nodes at full resolution by channel attention; "sides" is the network without
            attention, `Siam-NestedUNet-Conc`, which classifies each of them and gives four side outputs.
        side_outputs: "training" adds the side outputs, where the head has them, in training mode; "always" also in
            evaluation mode.

    Raises:
        InputError: in `forward`, a side of the images is not a multiple of 16.
    """

    multiple_of = 2 ** (LEVELS - 1)
    backbone: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        in_channels: Annotated[int, Ge(1)] = 3,
        classes: Annotated[int, Ge(1)] = 2,
        width: Annotated[int, Ge(4)] = 32,
        head: Literal["ecam", "sides"] = "ecam",
        side_outputs: SideOutputs = "training",
    ):
        super().__init__()
        self.side_outputs = side_outputs
        widths = [width * 2**level for level in range(LEVELS)]
        self.nodes = nn.ModuleDict()
        self.up = nn.ModuleDict()
        for column in range(LEVELS):
            for level in range(LEVELS - column):
                if column:
                    # both dates' features, the columns in between, and the node below
                    inputs = (column + 1) * widths[level] + widths[level + 1]
                else:
                    inputs = widths[level - 1] if level else in_channels
                self.nodes[f"{level}_{column}"] = _Node(inputs, widths[level])
                if level:
                    self.up[f"{level}_{column}"] = nn.ConvTranspose2d(
                        widths[level], widths[level], kernel_size=2, stride=2
                    )
        make_head = {"ecam": _EnsembleAttention, "sides": _SideHeads}[head]
        self.head = make_head(width, LEVELS - 1, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, a: Tensor, b: Tensor) -> Tensor | list[Tensor]:
        """Class scores (B, classes, H, W) of the earlier image `a` and the later image `b`, (B, in_channels, H, W) each.

        With side outputs a list of five, all of that shape: the fused scores, then those of the columns 1 to 4.
        """
        check_sides(self, a)
        features_a, features_b = self._encode(a, LEVELS - 1), self._encode(b, LEVELS)
        rows = [list(dates) for dates in zip(features_a, features_b, strict=False)] + [[features_b[-1]]]
        for column in range(1, LEVELS):
            for level in range(LEVELS - column):
                below = self.up[f"{level + 1}_{column - 1}"](rows[level + 1][-1])
                node = self.nodes[f"{level}_{column}"](torch.cat([*rows[level], below], dim=1))
                rows[level].append(node)
        return supervised(self, self.head(rows[0][2:]), self.side_outputs)

    def _encode(self, x: Tensor, levels: int) -> list[Tensor]:
        features: list[Tensor] = []
        for level in range(levels):
            x = self.nodes[f"{level}_0"](F.max_pool2d(x, kernel_size=2) if level else x)
            features.append(x)
        return features

    @staticmethod
    def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters."""
        return rename(
            state_dict,
            [
                (r"^conv(\d_\d)\.", r"nodes.\1."),
                (r"^Up(\d_\d)\.up\.", r"up.\1."),
                (r"\.bn(\d)\.", r".norm\1."),
                (r"^ca\.", "head.inter."),
                (r"^ca1\.", "head.intra."),
                (r"\.fc1\.", ".squeeze."),
                (r"\.fc2\.", ".excite."),
                (r"^final(\d)\.", lambda match: f"head.sides.{int(match[1]) - 1}."),
                (r"^conv_final\.", "head.classifier."),
            ],
        )
