"""Channel attention from a feature's mean, wherever BiSeNetV1 has it: in the ARM, in the FFM, in the backbone's blocks.

Sources: Yu et al., "BiSeNet", ECCV 2018, figure 2; Hu, Shen, Sun, "Squeeze-and-excitation networks", CVPR 2018, figure 2.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from anban.tasks.segment.models.bisenet.settings import ARM
from anban.tasks.segment.models.common import ConvNormAct, Style


def mean_over_image(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 1, 1)."""
    return x.mean(dim=(2, 3), keepdim=True)


Form = Literal["conv-sigmoid", "conv-bn-sigmoid", "conv-bn-relu", "conv-relu-conv-sigmoid"]
"""The layers of channel attention, in order; all convolutions are 1x1, without bias."""


class ChannelAttention(nn.Module):
    """A weight for every channel, from the mean of the map: (B, C, H, W) -> (B, C, 1, 1).

    Args:
        form: the layers.
        channels: C.
        style: norm, and the activation of "conv-bn-relu"; between two convolutions stands a plain ReLU.
        reduction: of two convolutions, the first gives C / reduction channels.
    """

    def __init__(self, form: Form, channels: int, style: Style, reduction: int = 1):
        super().__init__()
        hidden = max(1, channels // reduction)
        layers: dict[str, nn.Module]
        if form == "conv-relu-conv-sigmoid":
            layers = {
                "squeeze": nn.Conv2d(channels, hidden, 1, bias=False),
                "relu": nn.ReLU(inplace=True),
                "excite": nn.Conv2d(hidden, channels, 1, bias=False),
            }
        else:
            layers = {"conv": nn.Conv2d(channels, channels, 1, bias=False)}
            if "bn" in form:
                layers["norm"] = style.normalisation(channels)
        layers["act"] = style.activation() if form == "conv-bn-relu" else nn.Sigmoid()
        self.layers = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.layers(mean_over_image(x))
        return weights


class AttentionRefinement(nn.Module):
    """ARM: (B, `inputs`, H, W) -> (B, width, H, W), as many channels as came in where no width is set."""

    def __init__(self, inputs: int, settings: ARM, style: Style):
        super().__init__()
        self.residual = settings.learns == "residual"
        self.conv = ConvNormAct(inputs, settings.width, style=style) if settings.width else nn.Identity()
        self.attention = (
            None
            if settings.attention == "none"
            else ChannelAttention(settings.attention, settings.width or inputs, style)
        )

    def forward(self, x: Tensor) -> Tensor:
        feature: Tensor = self.conv(x)
        if self.attention is None:
            return feature
        refined: Tensor = feature * self.attention(feature)
        return feature + refined if self.residual else refined
