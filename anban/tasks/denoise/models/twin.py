"""Two branches side by side: one learns the content of a noisy image, the other its noise; both are fused.

Sources: Geng et al., "Content-Noise Complementary Learning for Medical Image Denoising", IEEE TMI 41 (2),
2022 (CNCL), and note 004 of the project's notebooks, which lets the branches attend to each other.
Numerically equal to the authors' releases (github.com/gengmufeng/CNCL-denoising,
github.com/imabackstabber/CT_DIY) with the arguments in `PRESETS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from anban.errors import InputError
from anban.recipe.schema import Count
from anban.tasks.denoise.models import releases
from anban.tasks.denoise.models.attention import CrossAttentionBlocks
from anban.tasks.denoise.models.fusion import FusionLayer
from anban.tasks.denoise.models.layers import FINAL_ACTIVATIONS, check_smallest, initialise
from anban.tasks.denoise.models.redcnn import REDCNN
from anban.tasks.denoise.models.settings import (
    Attention,
    FinalActivation,
    Fusion,
    Initialisation,
    Levels,
    Places,
)
from anban.tasks.denoise.models.unet import ATTENTION, LEVELS, NOWHERE, UNet

FUSION = Fusion()


class Separated(NamedTuple):
    """What a twin network makes of a noisy image, each (B, C, H, W).

    Attributes:
        image: the denoised image, of both branches together.
        noise: what the noise branch takes for noise; the noisy image less this is its denoised image.
        content: the denoised image of the content branch alone.
    """

    image: Tensor
    noise: Tensor
    content: Tensor


class Twin(nn.Module):
    """A content branch and a noise branch: (B, channels, H, W) -> `Separated`, sides of any length from 16.

    The defaults are the diary's `cncl_unet`: two U-Nets that know nothing of each other until a 1x1
    convolution joins the content with the image less the noise.

    Args:
        channels: of an image.
        noise_network: the noise branch is a U-Net like the content branch, or RED-CNN with selective kernels,
            which has no levels to attend on.
        levels: how the levels of both U-Nets are made.
        attention: how attention blocks are made.
        self_attention: where the branches have such blocks of their own.
        self_attention_in: which branches have them.
        cross_attention: where the branches attend to each other, behind their own attention.
        fusion: how both become one image.
        final_activation: of the fused image.
        init: of all weights, see `layers.initialise`.

    Raises:
        InputError: the heads of an attention do not divide its channels, RED-CNN is to attend or to give features, or
            a fusion that is no convolution of maps is to begin as their mean; in `forward`, a side is below 16 (21
            with RED-CNN).
    """

    multiple_of = 1

    def __init__(
        self,
        channels: Count = 1,
        noise_network: Literal["unet", "red-cnn"] = "unet",
        levels: Levels = LEVELS,
        attention: Attention = ATTENTION,
        self_attention: Places = NOWHERE,
        self_attention_in: Literal["both", "content", "noise"] = "both",
        cross_attention: Places = NOWHERE,
        fusion: Fusion = FUSION,
        final_activation: FinalActivation = "none",
        init: Initialisation = "xavier",
    ):
        super().__init__()

        def unet(branch: str) -> UNet:
            places = self_attention if self_attention_in in ("both", branch) else NOWHERE
            return UNet(channels, channels, levels, attention, places, init=init)

        self.content = unet("content")
        self.noise: UNet | REDCNN
        if noise_network == "unet":
            self.noise = unet("noise")
        else:
            if cross_attention.encoder or cross_attention.decoder or fusion.of == "features":
                raise InputError(
                    "RED-CNN has no levels that the content branch could attend to, nor features to fuse.",
                    where="noise_network with cross_attention or fusion.of",
                    do='set noise_network to "unet", or join the maps of the two branches only',
                )
            self.noise = REDCNN(channels, selective=40, final_activation="none")  # noise has both signs
            initialise(self.noise, init)
        self.cross_encoder = nn.ModuleList(
            CrossAttentionBlocks(width, attention, cross_attention.in_encoder(level))
            for level, width in enumerate(self.content.encoder_widths, start=1)
        )
        self.cross_decoder = nn.ModuleList(
            CrossAttentionBlocks(width, attention, cross_attention.in_decoder(level))
            for level, width in zip((4, 3, 2, 1), self.content.decoder_widths, strict=True)
        )
        self.fusion = FusionLayer(channels, self.content.decoder_widths[-1], fusion, attention)
        self.final_activation = FINAL_ACTIVATIONS[final_activation]()
        for joint in (self.cross_encoder, self.cross_decoder, self.fusion):
            initialise(joint, init)
        if fusion.init == "mean":
            self.fusion.average()

    def forward(self, image: Tensor) -> Separated:
        """The denoised image, its noise and its content, (B, channels, H, W) each."""
        check_smallest(self, image, 16)
        if isinstance(self.noise, UNet):
            features = self._features(self.noise, image)
            content, noise = self.content.head(features[0]), self.noise.head(features[1])
        else:
            features, content, noise = None, self.content(image), self.noise(image)
        fused = self.fusion(content, image - noise, features)
        return Separated(self.final_activation(fused), noise, content)

    def _features(self, noise_network: UNet, image: Tensor) -> tuple[Tensor, Tensor]:
        """The last features of the content and of the noise branch, which go through their levels in step."""
        content, noise, skips = image, image, []
        for down, down_noise, attend in zip(
            self.content.encoder, noise_network.encoder, self.cross_encoder, strict=True
        ):
            content, noise = attend(down(content), down_noise(noise))
            skips.append((content, noise))
        skips.pop()
        for up, up_noise, attend in zip(
            self.content.decoder, noise_network.decoder, self.cross_decoder, strict=True
        ):
            skip, skip_noise = skips.pop()
            content, noise = attend(up(content, skip), up_noise(noise, skip_noise))
        return content, noise

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the parameters of CNCL's or one of CT_DIY's generators, see `releases.twin`."""
        return releases.twin(state_dict)


PRESETS: dict[str, dict[str, Any]] = {
    "cncl": {"levels": Levels(bias=True, deepest="wide", head="linear"), "init": "normal"},
    "cncl-unet": {},
    "cncl-attn-2022-12-16": {
        "attention": Attention(norm=False, skip=False, values="own"),
        "self_attention": Places(decoder=[1]),
        "cross_attention": Places(decoder=[1]),
    },
    "cncl-attn-2022-12-22": {
        "attention": Attention(values="own"),
        "self_attention": Places(decoder=[1]),
        "cross_attention": Places(decoder=[1]),
    },
    "cncl-attn": {
        "attention": Attention(norm=False, skip=False, values="own"),
        "cross_attention": Places(decoder=[1]),
    },
    "cncl-full-attn": {
        "attention": Attention(values="own"),
        "cross_attention": Places(decoder=[4, 3, 2, 1]),
    },
}
"""Arguments of `Twin` for the generators as published: CNCL's, and the diary's, of which `cncl-attn` changed
from the day of the result table (16 December) over 22 December to the last state of the code."""
