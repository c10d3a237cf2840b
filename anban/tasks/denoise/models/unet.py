"""The U-Net of one branch, which denoises by itself too.

Source: the branches of note 004's networks, after Ronneberger et al., "U-Net", MICCAI 2015, and Geng et al.,
"Content-Noise Complementary Learning for Medical Image Denoising", IEEE TMI 41 (2), 2022, section III.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.recipe.schema import Count
from anban.tasks.denoise.models import releases
from anban.tasks.denoise.models.attention import SelfAttentionBlock
from anban.tasks.denoise.models.layers import (
    FINAL_ACTIVATIONS,
    ChannelAttention,
    DoubleConv,
    check_smallest,
    initialise,
)
from anban.tasks.denoise.models.settings import Attention, FinalActivation, Initialisation, Levels, Places

LEVELS, ATTENTION, NOWHERE = Levels(), Attention(), Places()


class _EncoderLevel(nn.Module):
    """Halve the size, unless this is the first level; convolve; attend."""

    def __init__(self, conv: nn.Module, self_attention: nn.Module, *, halve: bool):
        super().__init__()
        self.halve, self.conv, self.self_attention = halve, conv, self_attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.max_pool2d(x, 2) if self.halve else x)
        y: Tensor = self.self_attention(x)
        return y


class _DecoderLevel(nn.Module):
    """Double the size, join with the encoder's features of this level, convolve, attend."""

    def __init__(
        self, up: nn.Module, conv: nn.Module, channel_attention: nn.Module, self_attention: nn.Module
    ):
        super().__init__()
        self.up, self.conv = up, conv
        self.channel_attention, self.self_attention = channel_attention, self_attention

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        x = self.up(below)
        # An odd side lost its last row or column to the pooling: zeros stand in.
        rows, columns = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        x = self.channel_attention(self.conv(torch.cat((skip, x), dim=1)))
        y: Tensor = self.self_attention(x)
        return y


class UNet(nn.Module):
    """A U-Net of five levels: (B, in_channels, H, W) -> (B, out_channels, H, W), sides of any length from 16.

    It can be run level by level, as a twin network does: `encoder[i](x)`, `decoder[i](below, skip)`, then
    `head(x)`; `encoder_widths` and `decoder_widths` are the channels of what each level gives.

    Args:
        in_channels: of the image.
        out_channels: of the result.
        levels: how they are made.
        attention: how attention blocks are made.
        self_attention: where they stand.
        final_activation: of the result.
        init: of all weights, see `layers.initialise`.

    Raises:
        InputError: the heads of an attention do not divide its channels; in `forward`, a side is below 16.
    """

    multiple_of = 1

    def __init__(
        self,
        in_channels: Count = 1,
        out_channels: Count = 1,
        levels: Levels = LEVELS,
        attention: Attention = ATTENTION,
        self_attention: Places = NOWHERE,
        final_activation: FinalActivation = "none",
        init: Initialisation = "xavier",
    ):
        super().__init__()
        transposed = levels.upsampling == "transposed"
        widths = [levels.width * factor for factor in (1, 2, 4, 8, 16 if transposed else 8)]

        def blocks(width: int, layers: int) -> nn.Sequential:
            return nn.Sequential(*(SelfAttentionBlock(width, attention) for _ in range(layers)))

        self.encoder = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(zip((in_channels, *widths), widths, strict=False), start=1):
            within = 2 * outputs if level == 5 and levels.deepest == "wide" else None
            attend = blocks(outputs, self_attention.in_encoder(level))
            double = DoubleConv(inputs, outputs, levels, within)
            self.encoder.append(_EncoderLevel(double, attend, halve=level > 1))

        self.decoder = nn.ModuleList()
        below, decoded = widths[-1], []
        for level in (4, 3, 2, 1):
            skip = widths[level - 1]
            # The channels are halved on the way up: by transposed convolutions, or at the end of the level
            # below.
            up: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            outputs = skip if level == 1 else skip // 2
            if transposed:
                up, below, outputs = nn.ConvTranspose2d(below, below // 2, 2, stride=2), below // 2, skip
            conv: nn.Module = DoubleConv(skip + below, outputs, levels, within=skip)
            weigh: nn.Module = nn.Identity()
            if level == 1:
                if levels.head == "linear":
                    outputs = levels.width // 2
                    conv = nn.Conv2d(skip + below, outputs, kernel_size=3, padding=1)
                if levels.channel_attention != "none":
                    weigh = ChannelAttention(outputs, simple=levels.channel_attention == "simple")
            attend = blocks(outputs, self_attention.in_decoder(level))
            self.decoder.append(_DecoderLevel(up, conv, weigh, attend))
            decoded.append(outputs)
            below = outputs
        self.encoder_widths, self.decoder_widths = widths, decoded
        margin = 1 if levels.head == "linear" else 0
        self.head = nn.Conv2d(below, out_channels, kernel_size=1 + 2 * margin, padding=margin)
        self.final_activation = FINAL_ACTIVATIONS[final_activation]()
        initialise(self, init)

    def forward(self, image: Tensor) -> Tensor:
        """The denoised image (B, out_channels, H, W)."""
        check_smallest(self, image, 16)
        x, skips = image, []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        skips.pop()
        for level in self.decoder:
            x = level(x, skips.pop())
        result: Tensor = self.final_activation(self.head(x))
        return result

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the parameters of CT_DIY's `UNet`."""
        return releases.unet(state_dict)
