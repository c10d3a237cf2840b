"""BiSeNetV2: a detail branch and a light semantic branch, aggregated under each other's guidance.

Source: Yu et al., "BiSeNet V2: bilateral network with guided aggregation for real-time semantic segmentation", IJCV 2021; where
the paper and the release differ (ReLU behind the depth-wise convolutions, norm and ReLU in the context embedding) as the release
has it (github.com/CoinCheung/BiSeNet), to which it is numerically equal at both its ages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.official import rename
from anban.recipe.schema import Count, Share
from anban.tasks.segment.models.common import ConvNormAct, Enlarge, Output, SideOutputs, answer, size_of


def _detail_branch() -> nn.Sequential:
    """Images (B, 3, H, W) -> (B, 128, H / 8, W / 8), wide and shallow."""
    return nn.Sequential(
        ConvNormAct(3, 64, stride=2),
        ConvNormAct(64, 64),
        ConvNormAct(64, 64, stride=2),
        ConvNormAct(64, 64),
        ConvNormAct(64, 64),
        ConvNormAct(64, 128, stride=2),
        ConvNormAct(128, 128),
        ConvNormAct(128, 128),
    )


class _Stem(nn.Module):
    """Images (B, 3, H, W) -> (B, 16, H / 4, W / 4): halved by a convolution and by pooling side by side, then joined."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ConvNormAct(3, 16, stride=2)
        self.left = nn.Sequential(ConvNormAct(16, 8, 1), ConvNormAct(8, 16, stride=2))
        self.right = nn.MaxPool2d(3, 2, 1)
        self.fuse = ConvNormAct(32, 16)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image)
        fused: Tensor = self.fuse(torch.cat((self.left(x), self.right(x)), dim=1))
        return fused


def _depthwise(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution of each channel by itself into outputs / inputs channels, and a norm."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=inputs, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]


class _GatherExpand(nn.Module):
    """A gather-and-expansion layer: 3x3 convolution, depth-wise expansion by 6, projection, shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        hidden = 6 * inputs
        halving = _depthwise(inputs, hidden, stride)
        if stride > 1:
            halving += _depthwise(hidden, hidden)
        self.expand = nn.Sequential(ConvNormAct(inputs, inputs), *halving, nn.ReLU(inplace=True))
        self.project = nn.Sequential(*_pointwise(hidden, outputs))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(*_depthwise(inputs, inputs, stride), *_pointwise(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.project(self.expand(x)) + self.shortcut(x)
        return projected.relu()


def _stage(inputs: int, outputs: int, layers: int) -> nn.Sequential:
    first = _GatherExpand(inputs, outputs, 2)
    return nn.Sequential(first, *(_GatherExpand(outputs, outputs, 1) for _ in range(layers - 1)))


class _ContextEmbedding(nn.Module):
    """The mean over the image, added to the map: (B, 128, h, w) -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(128)
        self.embed = ConvNormAct(128, 128, 1)
        self.conv = ConvNormAct(128, 128)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        embedded: Tensor = self.conv(x + self.embed(self.norm(mean)))
        return embedded


class _SemanticBranch(nn.Module):
    """Images -> features at 1/4, 1/8, 1/16 and 1/32 (16, 32, 64 and 128 channels), and the last one with its context."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Stem()
        self.stage3 = _stage(16, 32, 2)
        self.stage4 = _stage(32, 64, 2)
        self.stage5 = _stage(64, 128, 4)
        self.context = _ContextEmbedding()

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [self.stem(image)]
        for stage in (self.stage3, self.stage4, self.stage5, self.context):
            features.append(stage(features[-1]))
        return features


class _GuidedAggregation(nn.Module):
    """Each branch gated by the other, at the size of the detail and at that of the semantics: (B, 128, H / 8, W / 8)."""

    def __init__(self, enlarging: Literal["nearest", "bilinear"], align_corners: bool):
        super().__init__()
        self.detail_keep = nn.Sequential(*_depthwise(128, 128), nn.Conv2d(128, 128, 1, bias=False))
        self.detail_down = nn.Sequential(
            nn.Conv2d(128, 128, 3, 2, 1, bias=False), nn.BatchNorm2d(128), nn.AvgPool2d(3, 2, 1)
        )
        self.semantic_up = nn.Sequential(nn.Conv2d(128, 128, 3, 1, 1, bias=False), nn.BatchNorm2d(128))
        self.semantic_keep = nn.Sequential(*_depthwise(128, 128), nn.Conv2d(128, 128, 1, bias=False))
        self.up = Enlarge(enlarging, 128, 4, align_corners)
        self.conv = ConvNormAct(128, 128)

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        size = size_of(detail)
        fine = self.detail_keep(detail) * self.up(self.semantic_up(semantic), size).sigmoid()
        coarse = self.detail_down(detail) * self.semantic_keep(semantic).sigmoid()
        aggregated: Tensor = self.conv(fine + self.up(coarse, size))
        return aggregated


class _Head(nn.Module):
    """(B, inputs, h, w) at 1 / stride -> scores (B, K, H, W); if `expanded`, doubled and brought to stride^2 channels first."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        classes: int,
        stride: int,
        *,
        expanded: bool,
        dropout: float,
        align_corners: bool,
    ):
        super().__init__()
        self.conv = ConvNormAct(inputs, hidden)
        self.dropout = nn.Dropout(dropout)
        self.expanded = expanded
        if expanded:
            self.expand = ConvNormAct(hidden, stride**2)
            hidden, stride = stride**2, stride // 2
        self.classify = nn.Conv2d(hidden, classes, 1)
        self.up = Enlarge("bilinear", classes, stride, align_corners)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.dropout(self.conv(x))
        if self.expanded:
            x = self.expand(F.interpolate(x, scale_factor=2, mode="nearest"))
        scores: Tensor = self.up(self.classify(x), size)
        return scores


class BiSeNetV2(nn.Module):
    """BiSeNetV2: images (B, 3, H, W) -> scores of the classes (B, K, H, W).

    The defaults are the release's current network; its first one is `auxiliary` "plain", `guidance` "bilinear" with
    `align_corners`. In training a list: the scores, then those of the auxiliary heads at 1/4, 1/8, 1/16 and 1/32. Sides of any
    length are taken.

    Args:
        classes: K.
        auxiliary: heads for deep supervision: "expanded" (doubled, then as many channels as the square of the stride),
            "plain", or "none".
        guidance: how the aggregation enlarges.
        align_corners: of every bilinear enlarging.
        dropout: of every head.
        side_outputs: when the scores of the auxiliary heads are returned too.
        output: "logits", or "classes": the number of the best class (B, H, W), int32.
    """

    multiple_of = 32
    backbone: ClassVar[tuple[str, ...]] = ("detail", "semantic", "aggregation")

    def __init__(
        self,
        classes: Count = 19,
        auxiliary: Literal["expanded", "plain", "none"] = "expanded",
        guidance: Literal["nearest", "bilinear"] = "nearest",
        align_corners: bool = False,
        dropout: Share = 0.1,
        side_outputs: SideOutputs = "training",
        output: Output = "logits",
    ):
        super().__init__()
        self.side_outputs, self.output = side_outputs, output
        self.detail = _detail_branch()
        self.semantic = _SemanticBranch()
        self.aggregation = _GuidedAggregation(guidance, align_corners)
        self.head = _Head(128, 1024, classes, 8, expanded=False, dropout=dropout, align_corners=align_corners)
        levels = [] if auxiliary == "none" else [(16, 4), (32, 8), (64, 16), (128, 32)]
        self.auxiliary = nn.ModuleList(
            _Head(
                inputs,
                128,
                classes,
                stride,
                expanded=auxiliary == "expanded",
                dropout=dropout,
                align_corners=align_corners,
            )
            for inputs, stride in levels
        )
        _start(self)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Scores (B, K, H, W) of the images (B, 3, H, W); in training a list with those of the auxiliary heads."""
        size = size_of(image)
        *features, semantic = self.semantic(image)
        scores = self.head(self.aggregation(self.detail(image), semantic), size)
        return answer(
            self,
            scores,
            lambda: [head(x, size) for head, x in zip(self.auxiliary, features, strict=False)],
            self.output,
            self.side_outputs,
        )

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters, of both ages."""
        first = {"1": 0, "2": 2, "3": 5}
        expansion = {"": (1, 2), "1": (1, 2), "2": (3, 4)}  # places of a depth-wise convolution and its norm
        heads = {"2": 0, "3": 1, "4": 2, "5_4": 3}
        return rename(
            state_dict,
            [
                (r"^detail\.S(\d)\.(\d)\.", lambda m: f"detail.{first[m[1]] + int(m[2])}."),
                (r"^segment\.S1S2\.", "semantic.stem."),
                (r"^segment\.S5_5\.bn\.", "semantic.context.norm."),
                (r"^segment\.S5_5\.conv_gap\.", "semantic.context.embed."),
                (r"^segment\.S5_5\.conv_last\.", "semantic.context.conv."),
                (r"^segment\.S(\d)(?:_4)?\.", r"semantic.stage\1."),
                (r"^(semantic\.stage\d\.\d)\.conv1\.", r"\1.expand.0."),
                (
                    r"^(semantic\.stage\d\.\d)\.dwconv(\d?)\.([01])\.",
                    lambda m: f"{m[1]}.expand.{expansion[m[2]][int(m[3])]}.",
                ),
                (r"^(semantic\.stage\d\.\d)\.conv2\.", r"\1.project."),
                (r"^bga\.left1\.", "aggregation.detail_keep."),
                (r"^bga\.left2\.", "aggregation.detail_down."),
                (r"^bga\.right1\.", "aggregation.semantic_up."),
                (r"^bga\.right2\.", "aggregation.semantic_keep."),
                (r"^bga\.conv\.0\.", "aggregation.conv.conv."),
                (r"^bga\.conv\.1\.", "aggregation.conv.norm."),
                (r"^aux([\d_]+)\.", lambda m: f"auxiliary.{heads[m[1]]}."),
                (r"\.conv_out\.0\.1\.", ".expand."),
                (r"\.conv_out\.(1\.)?(?=weight|bias)", ".classify."),
                (r"\.bn\.", ".norm."),
            ],
        )


def _start(network: BiSeNetV2) -> None:
    """kaiming_normal over the outputs; the norm at the end of each gather-and-expansion layer starts at 0, so as an identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _GatherExpand):
            nn.init.zeros_(module.project.get_parameter("1.weight"))
