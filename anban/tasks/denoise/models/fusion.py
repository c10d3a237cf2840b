"""Two branches become one image."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from anban.errors import InputError
from anban.tasks.denoise.models.attention import CrossAttentionBlocks, SelfAttentionBlock
from anban.tasks.denoise.models.settings import Attention, Fusion

RESTORMER_EXPANSION = 2.66


class FusionLayer(nn.Module):
    """Two images of the same content, or the features of the two branches -> the image (B, channels, H, W).

    Attention blocks have a norm and a skip connection here, whatever those of the branches have.

    Args:
        channels: of an image.
        features: channels of the branches' features.
        settings: see `Fusion`.
        attention: heads and kind of the attention blocks.

    Raises:
        InputError: the heads do not divide the channels, or what is to begin as a mean has no maps to average.
    """

    def __init__(self, channels: int, features: int, settings: Fusion, attention: Attention):
        super().__init__()
        attentive = settings.method != "conv"
        if settings.init == "mean" and (attentive or settings.of == "features"):
            raise InputError(
                "Only a convolution of the two maps can begin as their mean.",
                where="fusion.init with fusion.method or fusion.of",
                do='set fusion.init to "drawn"',
            )
        self.of, self.lift = settings.of, None
        width = features if settings.of == "features" else channels
        if attentive and settings.of == "maps":
            width = settings.width
            self.lift = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1) for _ in range(2))
        made = replace(attention, norm=True, skip=True, expansion=RESTORMER_EXPANSION)
        self.cross = CrossAttentionBlocks(
            width, made, settings.layers if settings.method == "cross-attention" else 0
        )
        self.body = nn.Sequential()
        joined, kernel = 2 * width, settings.kernel
        if settings.method == "restormer":
            self.body.extend(SelfAttentionBlock(joined, made) for _ in range(settings.layers))
        elif settings.method == "conv" and settings.of == "features":
            # Alone, the convolution would only weigh again what the two heads weigh already.
            self.body.extend([nn.Conv2d(joined, width, kernel, padding=kernel // 2), nn.ReLU()])
            joined = width
        last = kernel if settings.method == "conv" and settings.of == "maps" else 1
        self.predict = nn.Conv2d(joined, channels, last, padding=last // 2)

    def average(self) -> None:
        """Set the weights such that the image is the mean of the two maps."""
        last, channels = self.predict, self.predict.out_channels
        nn.init.zeros_(last.weight)
        centre = last.kernel_size[0] // 2
        both = torch.eye(channels).repeat(1, 2) / 2
        with torch.no_grad():
            last.weight[:, :, centre, centre] = both
            assert last.bias is not None
            last.bias.zero_()

    def forward(
        self, content: Tensor, stripped: Tensor, features: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The image of the content and of the noisy image less its noise, all (B, channels, H, W).

        Args:
            features: of the content and the noise branch; needed if these are to be fused.
        """
        pair = (content, stripped)
        if self.of == "features":
            if features is None:
                raise ValueError("the features of both branches are to be fused, and none were given")
            pair = features
        elif self.lift is not None:
            pair = (self.lift[0](content), self.lift[1](stripped))
        image: Tensor = self.predict(self.body(torch.cat(self.cross(*pair), dim=1)))
        return image
