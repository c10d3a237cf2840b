"""HCGMNet and CGNet: a first map of change guides self-attention over the features that give the final one.

Sources: Han, Wu, Du, "HCGMNet: a hierarchical change guiding map network for change detection", IGARSS 2023; Han, Wu,
Guo, Hu, Li, Chen, "Change guiding network: incorporating change prior to guide change detection in remote sensing
imagery", IEEE JSTARS 16, 2023. Numerically equal to the authors' release of both (github.com/ChengxiHAN/CGNet-CD).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.official import rename
from anban.tasks.change.models.common import SideOutputs, supervised
from anban.tasks.change.models.vgg import vgg16, vgg16_features

WIDTHS = (128, 256, 512, 512)
"""Channels of the features at 1/2, 1/4, 1/8 and 1/16 of the resolution."""


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


class _ChangeGuide(nn.Module):
    """Self-attention over all pixels of (B, C, H, W), in which those where the map sees change weigh up to twice.

    What is read is added by the share `gamma`, at first nothing.
    """

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.to_q = nn.Conv2d(width, width // 8, kernel_size=1)
        self.to_k = nn.Conv2d(width, width // 8, kernel_size=1)
        self.to_v = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        weight = 1 + _resize(guide, x).sigmoid()
        # (B, 1, H * W, C), one head; the fused kernels take channels that lie side by side in memory.
        q, k, v = (
            (project(x) * weight).flatten(2).mT.unsqueeze(1).contiguous()
            for project in (self.to_q, self.to_k, self.to_v)
        )
        read = F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1).mT.reshape(x.shape)
        return x + self.gamma * read


class _GuidedNetwork(nn.Module, ABC):
    """What both networks share: (B, 3, H, W) twice -> fused features -> the logit of change, guided by a first one.

    The VGG-16 ends before its last ReLU, as published: of the four scales only the deepest has negative features.
    """

    multiple_of = 16
    backbone: ClassVar[tuple[str, ...]] = ("encoder",)

    def __init__(self, *, pretrained: bool, refine: bool, side_outputs: SideOutputs):
        super().__init__()
        self.side_outputs = side_outputs
        self.encoder = vgg16(pretrained=pretrained, batch_norm=True)[:-1]
        self.fuse = nn.ModuleList(_conv(2 * width, width) for width in WIDTHS)
        self.refine = nn.ModuleList(_conv(width, width) for width in WIDTHS[1:] if refine)
        self.guides = nn.ModuleList(_ChangeGuide(width) for width in WIDTHS[1:])

    def forward(self, a: Tensor, b: Tensor) -> Tensor | list[Tensor]:
        """Logit of change (B, 1, H, W) of the earlier image `a` and the later image `b`, (B, 3, H, W) each.

        With side outputs a list of two of that shape: the final logit and the one that guided it.
        """
        dates = zip(*(vgg16_features(self.encoder, x)[1:] for x in (b, a)), strict=True)
        fused = [fuse(torch.cat(pair, dim=1)) for fuse, pair in zip(self.fuse, dates, strict=True)]
        scores = [_resize(logit, a) for logit in self._decode(fused)]
        return supervised(self, scores, self.side_outputs)

    @abstractmethod
    def _decode(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Features of the four scales -> the final logit and the guiding one, at 1/2 of the resolution."""

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters and leave out layers that this network does not keep."""
        state = rename(
            state_dict,
            [
                (r"^(inc|down\d)\.", "encoder."),  # slices of one VGG, which keep its numbers
                (r"^conv_reduce_(\d)\.", lambda match: f"fuse.{int(match[1]) - 1}."),
                (r"^up_layer(\d)\.", lambda match: f"refine.{int(match[1]) - 2}."),
                (r"^cgm_(\d)\.", lambda match: f"guides.{int(match[1]) - 2}."),
                (r"^decoder_module(\d)\.", lambda match: f"up.{4 - int(match[1])}."),
                (r"^(decoder|deocde)\.", "guide_head."),
                (r"^(decoder|deocde)_final\.", "final_head."),
                (r"\.conv\.", ".0."),
                (r"\.bn\.", ".1."),
                (r"\.(q|k|v)\w+_conv\.", r".to_\1."),
            ],
        )
        return {name: t for name, t in state.items() if len(self.refine) or not name.startswith("refine.")}


class HCGMNet(_GuidedNetwork):
    """HCGMNet: (B, 3, H, W) twice -> the logit of change (B, 1, H, W).

    All four scales together give the guiding map, and, once it has guided them, the final one. Sides may be any of at
    least 16; those that are no multiple of 16 lose their last pixels in the poolings.

    Args:
        pretrained: start the VGG-16 from torchvision's ImageNet weights (downloaded where they are not cached).
        side_outputs: "training" adds the guiding logit in training mode; "always" also in evaluation mode.
    """

    def __init__(self, pretrained: bool = False, side_outputs: SideOutputs = "training"):
        super().__init__(pretrained=pretrained, refine=True, side_outputs=side_outputs)
        self.guide_head, self.final_head = (
            nn.Sequential(
                _conv(sum(WIDTHS), 512),
                _conv(512, 256),
                _conv(256, 64),
                nn.Conv2d(64, 1, kernel_size=3, padding=1),
            )
            for _ in range(2)
        )

    def _decode(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        finest, *coarser = features
        coarser = [refine(x) for refine, x in zip(self.refine, coarser, strict=True)]
        guiding = self.guide_head(torch.cat([finest, *(_resize(x, finest) for x in coarser)], dim=1))
        guided = [guide(x, guiding) for guide, x in zip(self.guides, coarser, strict=True)]
        final = self.final_head(torch.cat([finest, *(_resize(x, finest) for x in guided)], dim=1))
        return final, guiding


class CGNet(_GuidedNetwork):
    """CGNet: (B, 3, H, W) twice -> the logit of change (B, 1, H, W).

    The deepest scale alone gives the guiding map, which guides every step of a decoder from coarse to fine. Sides may
    be any of at least 16; those that are no multiple of 16 lose their last pixels in the poolings.

    Args:
        pretrained: start the VGG-16 from torchvision's ImageNet weights (downloaded where they are not cached).
        unused_layers: keep HCGMNet's refining convolutions, which are never run, as published: they count as
            parameters, take no gradient and change no result.
        side_outputs: "training" adds the guiding logit in training mode; "always" also in evaluation mode.
    """

    def __init__(
        self,
        pretrained: bool = False,
        unused_layers: bool = False,
        side_outputs: SideOutputs = "training",
    ):
        super().__init__(pretrained=pretrained, refine=unused_layers, side_outputs=side_outputs)
        self.guide_head = nn.Sequential(_conv(512, 64), nn.Conv2d(64, 1, kernel_size=3, padding=1))
        self.up = nn.ModuleList([_conv(512 + 512, 512), _conv(512 + 256, 256), _conv(256 + 128, 128)])
        self.final_head = nn.Sequential(_conv(128, 64), nn.Conv2d(64, 1, kernel_size=1))

    def _decode(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        *skips, x = features
        guiding = self.guide_head(_resize(x, skips[0]))
        for guide, up, skip in zip(reversed(self.guides), self.up, reversed(skips), strict=True):
            x = up(torch.cat((_resize(guide(x, guiding), skip), skip), dim=1))
        return self.final_head(x), guiding
