"""What the parts of STNet are built from. Tensors are (batch, C, H, W) throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from anban.ssm.vmamba import SS2D, VSSBlock
from anban.ssm.vmamba.layers import LayerNorm2d
from anban.tasks.change.models.stnet.settings import VSS, Norm


@dataclass(frozen=True)
class Style:
    """How all layers outside the scan are made, so that one word changes them everywhere.

    Attributes:
        norm: "ln" or "bn".
        bias: "where-no-bn": a convolution has a bias unless batch norm follows, which would remove it; or "always".
        reduction: channels are lowered "direct", by one 1x1 convolution, or with a "quarter": to half of what is wanted (a quarter,
            where the width is halved), then doubled.
        vss: the state-space blocks.
    """

    norm: Norm
    bias: Literal["where-no-bn", "always"]
    reduction: Literal["direct", "quarter"]
    vss: VSS

    def normalisation(self, width: int, norm: Norm | None = None) -> nn.Module:
        return nn.BatchNorm2d(width) if (norm or self.norm) == "bn" else LayerNorm2d(width)

    def convolution(
        self, inputs: int, outputs: int, kernel: int = 1, *, groups: int = 1, norm: Norm | None = None
    ) -> nn.Sequential:
        """Convolution, norm (the style's own unless another is named), ReLU; the size stays."""
        bias = self.bias == "always" or (norm or self.norm) != "bn"
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)
        return nn.Sequential(convolution, self.normalisation(outputs, norm), nn.ReLU())

    def separable(self, width: int, kernel: int) -> nn.Sequential:
        """A depth-wise convolution, then one over the channels: large kernels with few parameters."""
        return nn.Sequential(
            self.convolution(width, width, kernel, groups=width), self.convolution(width, width)
        )

    def lower(self, inputs: int, outputs: int) -> nn.Sequential:
        """Fewer channels, the way the style lowers them."""
        if self.reduction == "direct":
            return self.convolution(inputs, outputs)
        return nn.Sequential(
            self.convolution(inputs, max(1, outputs // 2)), self.convolution(max(1, outputs // 2), outputs)
        )

    def scan(self, width: int, ratio: float | None = None) -> SS2D:
        """SS2D by itself: in four directions, or as the forward type says."""
        return SS2D(
            width,
            self.vss.d_state,
            self.vss.ssm_ratio if ratio is None else ratio,
            act_layer=self.vss.activation,
            conv_bias=False,
            forward_type=self.vss.forward_type,
            channel_first=True,
        )

    def block(
        self,
        width: int,
        *,
        over: Literal["spatial", "channel"] = "spatial",
        mlp: bool = True,
        drop_path: float = 0.0,
    ) -> VSSBlock:
        """A VSS block whose scan runs over space, or over channels."""
        return {"spatial": VSSBlock, "channel": ChannelVSSBlock}[over](
            hidden_dim=width,
            drop_path=drop_path,
            norm_layer="bn" if self.norm == "bn" else "ln2d",
            ssm_d_state=self.vss.d_state,
            ssm_ratio=self.vss.ssm_ratio,
            ssm_act_layer=self.vss.activation,
            ssm_conv_bias=False,
            forward_type=self.vss.forward_type,
            mlp_ratio=self.vss.mlp_ratio if mlp else 0.0,
        )


class ChannelScan(nn.Module):
    """Attention over channels: the channels are the sequence, and the scan's result weighs each of them.

    The picture is pooled to a grid; a channel's 16 means are one token. SS2D reads the tokens as a picture of one row, so its
    four directions are two, each with two sets of weights. Takes SS2D's arguments.
    """

    grid = 4

    def __init__(self, d_model: int, channel_first: bool = True, **scan: Any):
        super().__init__()
        self.scan = SS2D(self.grid**2, channel_first=False, **scan)
        self.weigh = nn.Linear(self.grid**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, C, H, W) -> the same, each channel times a weight in (0, 1)."""
        tokens = F.adaptive_avg_pool2d(x, self.grid).flatten(2).unsqueeze(1)
        weights = self.weigh(self.scan(tokens)).sigmoid()
        weighed: Tensor = x * weights.permute(0, 2, 3, 1)
        return weighed


class ChannelVSSBlock(VSSBlock):
    """The VSS block with `ChannelScan` in the place of SS2D."""

    scan = ChannelScan


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity: ordinary 3x3 ones, or a depth-wise 7x7 one and one over the channels."""

    def __init__(self, width: int, style: Style, *, depth_wise: bool = False, norm: Norm | None = None):
        super().__init__()
        first = (
            style.convolution(width, width, 7, groups=width, norm=norm)
            if depth_wise
            else style.convolution(width, width, 3, norm=norm)
        )
        convolution, normalisation, self.activation = style.convolution(
            width, width, 1 if depth_wise else 3, norm=norm
        )
        self.branch = nn.Sequential(first, convolution, normalisation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(x + self.branch(x))
        return y


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """x at the size of `like`, bilinear; untouched where it has that size."""
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)
