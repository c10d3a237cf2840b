"""Dilated convolutions between the stages of a pyramid, or between them and the neck.

Source: note 003, 2022-08-15 to 2022-08-29; `Shrinking` is numerically equal to the AtrousLSHTransformer's release
(github.com/iredawen/AtrousLSHTransformer, `DilationConvModule`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from anban.official import rename


class Halving(nn.Sequential):
    """A dilated convolution of stride 2, batch norm, ReLU: (B, C, H, W) -> (B, C, H/2, W/2), sides rounded up.

    Args:
        channels: C.
        rate: of dilation.
    """

    def __init__(self, channels: int, rate: int = 2):
        super().__init__(
            nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=rate, dilation=rate, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )


class Shrinking(nn.Module):
    """Three dilated convolutions, C -> 2C -> 4C -> C channels, each left out where the map is too small for its kernel.

    Unpadded, they take 2, 4 and 10 pixels off each side's length: the map does not shrink by a factor but loses its border, and
    how many of them run depends on its size. Where the last one does not run, a 1x1 convolution brings back C channels.

    Args:
        channels: C.
        kernel: side of the kernels.
        stride: of all convolutions, the 1x1 ones too.
        padding: of all convolutions.
        rates: of dilation.
    """

    def __init__(
        self,
        channels: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 0,
        rates: Sequence[int] = (1, 2, 5),
    ):
        super().__init__()
        self.channels = channels
        widths = (channels, 2 * channels, 4 * channels, channels)
        self.extents = [(kernel - 1) * rate + 1 for rate in rates]
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation=rate),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            )
            for inputs, outputs, rate in zip(widths, widths[1:], rates, strict=False)
        )
        self.narrow = nn.ModuleList(
            nn.Conv2d(width, channels, kernel_size=1, stride=stride, padding=padding) for width in widths[1:3]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, smaller H, smaller W)."""
        for conv, extent in zip(self.convs, self.extents, strict=True):
            if min(x.shape[-2:]) > extent:
                x = conv(x)
        if x.shape[1] != self.channels:
            x = self.narrow[0 if x.shape[1] == 2 * self.channels else 1](x)
        return x

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters."""
        return rename(state_dict, SHRINKING_NAMES)


SHRINKING_NAMES = [
    (r"(^|\.)conv([123])\.", lambda match: f"{match[1]}convs.{int(match[2]) - 1}."),
    (r"(^|\.)decent_([12])\.", lambda match: f"{match[1]}narrow.{int(match[2]) - 1}."),
]
"""Rules from the release's parameter names of this module, wherever it stands, to ours."""
