"""IFNet, also called DSIFN: VGG-16 features of both dates, fused from coarse to fine under two kinds of attention.

Source: Zhang et al., "A deeply supervised image fusion network for change detection in high resolution bi-temporal
remote sensing images", ISPRS Journal 166, 2020, section 3; numerically equal to the authors' PyTorch release
(github.com/GeoZcx/A-deeply-supervised-image-fusion-network-for-change-detection-in-remote-sensing-images).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from anban.errors import InputError
from anban.official import rename
from anban.recipe.schema import Share
from anban.tasks.change.models.common import ChannelAttention, SideOutputs, check_sides, supervised
from anban.tasks.change.models.vgg import vgg16, vgg16_features

FEATURES = (512, 512, 256, 128, 64)
"""Channels of VGG-16 before each pooling and at its end, coarse to fine: 1/16, 1/8, ... 1 of the resolution."""
DECODER = ((512, 512), (512, 256, 256), (256, 128, 128), (128, 64, 64), (64, 32, 16))
"""Channels of the convolutions of each decoder stage, coarse to fine."""


class _SpatialAttention(nn.Module):
    """A weight in (0, 1) for every pixel, from the mean and the maximum of its channels: (B, C, H, W) -> (B, 1, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat((x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)), dim=1)
        weights: Tensor = self.conv(pooled).sigmoid()
        return weights


class _Stage(nn.Module):
    """Fuse what comes from below with the features of both dates -> fused features and their logit of change.

    `below` is the number of channels that come from the coarser stage, 0 for the coarsest.
    """

    def __init__(
        self, below: int, features: int, widths: tuple[int, ...], *, attention: bool, dropout: float
    ):
        super().__init__()
        inputs = below + 2 * features
        self.up = nn.ConvTranspose2d(below, below, kernel_size=2, stride=2) if below else None
        self.channel_attention = ChannelAttention(inputs, inputs // 8) if attention else None
        self.units = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, kernel_size=3, padding=1),
                    nn.PReLU(),
                    nn.BatchNorm2d(after),
                    nn.Dropout(dropout),
                )
                for before, after in pairwise((inputs, *widths))
            )
        )
        self.spatial_attention = _SpatialAttention()
        self.norm = nn.BatchNorm2d(widths[-1])
        self.classifier = nn.Conv2d(widths[-1], 1, kernel_size=1)

    def forward(self, x: Tensor | None, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        fused = torch.cat((a, b) if self.up is None else (self.up(x), a, b), dim=1)
        if self.channel_attention is not None:
            fused = self.channel_attention(fused) * fused
        fused = self.units(fused)
        fused = self.norm(self.spatial_attention(fused) * fused)
        return fused, self.classifier(fused)


class IFNet(nn.Module):
    """IFNet: (B, 3, H, W) twice -> the logit of change (B, 1, H, W).

    Args:
        shared_encoder: one VGG-16 for both dates. The release has two, which are one as long as they keep the weights
            of ImageNet: with false they can part in training.
        pretrained: start the VGG-16 from torchvision's ImageNet weights (downloaded where they are not cached).
        freeze_backbone: take no gradient for the VGG-16, as published (of use with `pretrained`).
        deepest_attention: weigh the channels of the deepest features too, which the release leaves open.
        dropout: share of activations dropped after each convolution of the decoder, in training.
        unused_layers: keep the layers that the release builds and does not run (without `deepest_attention` its channel
            attention, and two normalisations): they count as parameters, take no gradient and change no result.
        side_outputs: "training" adds the side outputs in training mode; "always" also in evaluation mode.
        output: "logits" are raw scores; "probability" is what the release returns, their sigmoid.

    Raises:
        InputError: in `forward`, a side of the images is not a multiple of 16.
    """

    multiple_of = 16
    backbone: ClassVar[tuple[str, ...]] = ("encoders",)

    def __init__(
        self,
        shared_encoder: bool = True,
        pretrained: bool = False,
        freeze_backbone: bool = False,
        deepest_attention: bool = False,
        dropout: Share = 0.6,
        unused_layers: bool = False,
        side_outputs: SideOutputs = "training",
        output: Literal["logits", "probability"] = "logits",
    ):
        super().__init__()
        self.side_outputs, self.output = side_outputs, output
        self.deepest_attention = deepest_attention
        self.encoders = nn.ModuleList(vgg16(pretrained=pretrained) for _ in range(1 if shared_encoder else 2))
        if freeze_backbone:
            self.encoders.requires_grad_(False)
        below = (0, *(widths[-1] for widths in DECODER))
        self.stages = nn.ModuleList(
            _Stage(coarser, features, widths, attention=bool(coarser) or deepest_attention, dropout=dropout)
            for coarser, features, widths in zip(below, FEATURES, DECODER, strict=False)
        )
        self.unused = nn.ModuleDict()
        if unused_layers:
            self.unused["norm_1"], self.unused["norm_2"] = nn.BatchNorm2d(1024), nn.BatchNorm2d(1536)
            if not deepest_attention:
                self.unused["channel_attention"] = ChannelAttention(1024, 128)

    def forward(self, a: Tensor, b: Tensor) -> Tensor | list[Tensor]:
        """Logit of change (B, 1, H, W) of the earlier image `a` and the later image `b`, (B, 3, H, W) each.

        With side outputs a list of five: that one, then (B, 1, H / 2, W / 2) and so on to 1/16.
        """
        check_sides(self, a)
        features_a, features_b = vgg16_features(self.encoders[0], a), vgg16_features(self.encoders[-1], b)
        x, scores = None, list[Tensor]()
        for stage, f, g in zip(self.stages, reversed(features_a), reversed(features_b), strict=True):
            x, score = stage(x, f, g)
            scores.insert(0, score.sigmoid() if self.output == "probability" else score)
        return supervised(self, scores, self.side_outputs)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters and leave out layers that this network does not keep.

        Raises:
            InputError: the encoder is shared and the release's two encoders have different weights.
        """
        deepest = "stages.0." if self.deepest_attention else "unused."
        state = rename(
            state_dict,
            [
                (r"^t(\d)_base\.features\.", lambda match: f"encoders.{int(match[1]) - 1}."),
                (r"^bn_ca(\d)\.", r"unused.norm_\1."),
                (r"^ca1\.", f"{deepest}channel_attention."),
                (r"^ca(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.channel_attention."),
                (r"\.fc1\.", ".squeeze."),
                (r"\.fc2\.", ".excite."),
                (r"^sa(\d)\.conv1\.", lambda match: f"stages.{int(match[1]) - 1}.spatial_attention.conv."),
                (r"^bn_sa(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.norm."),
                (r"^trans_conv(\d)\.", r"stages.\1.up."),
                # A unit's layers are numbered; the classifier, which comes last, is a single convolution.
                (
                    r"^o(\d)_conv(\d)\.(?=\d)",
                    lambda match: f"stages.{int(match[1]) - 1}.units.{int(match[2]) - 1}.",
                ),
                (r"^o(\d)_conv\d\.", lambda match: f"stages.{int(match[1]) - 1}.classifier."),
            ],
        )
        if len(self.encoders) == 1:
            for name in [name for name in state if name.startswith("encoders.1.")]:
                if not torch.equal(state.pop(name), state[name.replace("encoders.1.", "encoders.0.")]):
                    raise InputError(
                        "the weights hold a different encoder for each date",
                        expected="twice the same encoder, for a network with shared_encoder",
                        do="build the network with shared_encoder set to false",
                    )
        if not self.unused:
            state = {name: tensor for name, tensor in state.items() if not name.startswith("unused.")}
        return state
