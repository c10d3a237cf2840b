"""What several change networks have in common: the check of the images' sides, side outputs, small layers."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError

SideOutputs = Literal["training", "always"]
"""When a network with deep supervision gives its side outputs too: while it trains, or whenever it is called."""


def check_sides(network: nn.Module, image: Tensor) -> None:
    """Refuse images (B, C, H, W) whose sides are not multiples of the network's `multiple_of`.

    Raises:
        InputError: a side is not.
    """
    height, width = image.shape[-2:]
    multiple = network.multiple_of
    assert isinstance(multiple, int)
    if height % multiple or width % multiple:
        raise InputError(
            f"{type(network).__name__} was given images of {height}x{width}",
            expected=f"sides that are multiples of {multiple}",
            do="pad the images, as the change task does, or resize them",
        )


def supervised(network: nn.Module, scores: list[Tensor], when: SideOutputs) -> Tensor | list[Tensor]:
    """All of `scores`, the main one first, if deep supervision asks for several; otherwise the main one alone."""
    wanted = network.training or when == "always"
    return scores if wanted and len(scores) > 1 else scores[0]


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """A convolution that keeps the sides, batch normalisation, ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class ChannelAttention(nn.Module):
    """A weight in (0, 1) for every channel, from its mean and its maximum: (B, C, H, W) -> (B, C, 1, 1).

    Source: Woo et al., "CBAM: convolutional block attention module", ECCV 2018, section 3.

    Args:
        channels: C.
        hidden: channels between the two layers.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, hidden, kernel_size=1, bias=False)
        self.excite = nn.Conv2d(hidden, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))
        mean, maximum = (self.excite(F.relu(self.squeeze(p))) for p in pooled)
        weights: Tensor = (mean + maximum).sigmoid()
        return weights
