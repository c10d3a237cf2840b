"""What the segmentation networks have in common: norms with their activations, convolutions, enlarging, what is returned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["bn", "inplace-abn", "gn"]
"""Every norm with its activation: batch norm and ReLU; what InPlace-ABN computes, batch norm with the weight |w| + eps and
leaky ReLU 0.01; or group norm (up to 32 groups) and ReLU."""

SideOutputs = Literal["training", "always"]
"""When the scores of the auxiliary heads are returned too: while the network trains, or whenever it is called."""

Output = Literal["logits", "classes"]
"""What a network returns: raw scores (B, K, H, W), or the number of the best class (B, H, W), int32."""


class PositiveBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose weight acts as |weight| + eps, as in InPlace-ABN, which must be able to invert itself.

    Source: Rota Bulò, Porzi, Kontschieder, "In-place activated BatchNorm for memory-optimized training of DNNs", CVPR 2018;
    the release of its first version. Memory is not saved here.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight.abs() + self.eps,
            self.bias,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


@dataclass(frozen=True)
class Style:
    """The norm of a network and the activation that goes with it."""

    norm: Norm = "bn"

    def normalisation(self, channels: int) -> nn.Module:
        """A norm of (B, channels, H, W)."""
        if self.norm == "gn":
            return nn.GroupNorm(gcd(32, channels), channels)
        return nn.BatchNorm2d(channels) if self.norm == "bn" else PositiveBatchNorm2d(channels)

    def activation(self, *, inplace: bool = True) -> nn.Module:
        """ReLU, or its leaky form; in place, as behind a norm or an addition: no gradient needs what is overwritten."""
        return nn.LeakyReLU(0.01, inplace) if self.norm == "inplace-abn" else nn.ReLU(inplace)


class ConvNormAct(nn.Module):
    """A convolution without bias, norm, activation: (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, style: Style = Style()):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = style.normalisation(outputs)
        self.act = style.activation()

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(self.norm(self.conv(x)))
        return activated


class Enlarge(nn.Module):
    """Enlarge a map to a given size, about `factor` times its own: (B, C, h, w) -> (B, C, H, W).

    Args:
        how: "nearest"; "bilinear"; "deconvolution", one of kernel 2 * factor and stride factor; or "deconvolutions", several of
            kernel 4 and stride 2, nothing in between. Both cut what exceeds the size.
        channels: C.
        factor: a power of two; with 1 a deconvolution is left out.
        align_corners: of the bilinear one.
    """

    def __init__(
        self,
        how: Literal["nearest", "bilinear", "deconvolution", "deconvolutions"],
        channels: int,
        factor: int,
        align_corners: bool = False,
    ):
        super().__init__()
        self.interpolation = how if how in ("nearest", "bilinear") else None
        self.align_corners = align_corners if how == "bilinear" else None
        single = how == "deconvolution"
        steps = (
            []
            if self.interpolation or factor == 1
            else [factor]
            if single
            else [2] * (factor.bit_length() - 1)
        )
        self.deconvolutions = nn.Sequential(
            *(nn.ConvTranspose2d(channels, channels, 2 * step, step, step // 2) for step in steps)
        )

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The map `x` at (H, W) = `size`."""
        if self.interpolation:
            return F.interpolate(x, size, mode=self.interpolation, align_corners=self.align_corners)
        enlarged: Tensor = self.deconvolutions(x)
        return enlarged[..., : size[0], : size[1]]


def size_of(x: Tensor) -> tuple[int, int]:
    """Height and width of a map (B, C, H, W)."""
    return x.shape[-2], x.shape[-1]


def answer(
    network: nn.Module, main: Tensor, auxiliary: Callable[[], list[Tensor]], output: Output, when: SideOutputs
) -> Tensor | list[Tensor]:
    """What `forward` returns: classes, or the scores `main`, in a list with the `auxiliary` ones where these are wanted."""
    if output == "classes":
        return main.argmax(dim=1).int()
    if network.training or when == "always":
        return [main, *auxiliary()]
    return main
