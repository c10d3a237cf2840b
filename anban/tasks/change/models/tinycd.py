"""TinyCD: the first stages of an EfficientNet, two dates mixed channel by channel, masks instead of skip features.

Source: Codegoni, Lombardi, Ferrari, "TINYCD: a (not so) deep learning model for change detection", 2022, section 3;
numerically equal to the authors' release (github.com/AndreaCodegoni/Tiny_model_4_CD).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
import torchvision
from annotated_types import Interval
from torch import Tensor, nn

from anban.official import rename
from anban.tasks.change.models.common import check_sides

EfficientNet = Literal[
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
]


class _Mixing(nn.Module):
    """Channel c of date a and channel c of date b are seen by one group of a 3x3 convolution: (B, C, H, W) twice -> once."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1, groups=channels)
        self.act = nn.PReLU()
        self.norm = nn.InstanceNorm2d(channels)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        interleaved = torch.stack((a, b), dim=2).flatten(1, 2)
        mixed: Tensor = self.norm(self.act(self.conv(interleaved)))
        return mixed


def _pixelwise(widths: list[int], *, last_activation: bool) -> nn.Sequential:
    """1x1 convolutions through `widths`, each followed by a PReLU, the last one only if asked."""
    layers = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers.append(nn.Sequential(nn.Conv2d(inputs, outputs, kernel_size=1)))
        if last_activation or i < len(widths) - 2:
            layers[-1].append(nn.PReLU())
    return nn.Sequential(*layers)


class _MixingMask(nn.Module):
    """One attention mask (B, 1, H, W) from the features of both dates."""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.mixing = _Mixing(widths[0])
        self.pixelwise = _pixelwise(widths, last_activation=True)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        mask: Tensor = self.pixelwise(self.mixing(a, b))
        return mask


class _UpMask(nn.Module):
    """Upsample, multiply by the mask, refine by a depth-wise separable convolution."""

    def __init__(self, scale: int, inputs: int, outputs: int):
        super().__init__()
        self.up = nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=True)
        self.refine = nn.Sequential(
            nn.Conv2d(inputs, inputs, kernel_size=3, padding=1, groups=inputs),
            nn.PReLU(),
            nn.InstanceNorm2d(inputs),
            nn.Conv2d(inputs, outputs, kernel_size=1),
            nn.PReLU(),
            nn.InstanceNorm2d(outputs),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        refined: Tensor = self.refine(self.up(x) * mask)
        return refined


class TinyCD(nn.Module):
    """TinyCD: (B, 3, H, W) twice -> the logit of change (B, 1, H, W).

    The deepest stage kept is mixed into features; every shallower one, and the images themselves, give a mask that the
    decoder multiplies with. The release fits `efficientnet_b4` up to stage 3 only; for any other choice the widths of the
    mixing and the number of decoder steps follow the stages by the same rule (masks c -> c/2 -> c/4 -> 1, decoder 64
    channels, 32 at full resolution).

    Args:
        encoder: the torchvision EfficientNet whose first stages are used.
        output_layer: the deepest stage used, 1 to 8 (published: 3, at 1/8 of the resolution).
        pretrained: start the stages from torchvision's ImageNet weights (downloaded where they are not cached).
        freeze_backbone: take no gradient for the stages; their batch statistics still follow the data, as published.
        output: "logits" is the raw score; "probability" is what the release returns, its sigmoid.

    Raises:
        InputError: in `forward`, a side of the images is not a multiple of the network's `multiple_of`.
    """

    multiple_of = 8
    backbone: ClassVar[tuple[str, ...]] = ("encoder",)

    def __init__(
        self,
        encoder: EfficientNet = "efficientnet_b4",
        output_layer: Annotated[int, Interval(ge=1, le=8)] = 3,
        pretrained: bool = False,
        freeze_backbone: bool = False,
        output: Literal["logits", "probability"] = "logits",
    ):
        super().__init__()
        self.output = output
        whole = torchvision.models.get_model(encoder, weights="IMAGENET1K_V1" if pretrained else None)
        stem, *stages = list(whole.features.children())[: output_layer + 1]
        self.encoder = nn.ModuleList([stem, *stages])
        if freeze_backbone:
            self.encoder.requires_grad_(False)
        widths = [_width(stage) for stage in stages]
        steps = [_stride(stage) for stage in stages]
        # The stem's own output is not used: the first stage answers for its stride too.
        steps[0] *= _stride(stem)
        self.multiple_of = 1
        for step in steps:
            self.multiple_of *= step
        self.masks = nn.ModuleList([_MixingMask([3, 10, 5, 1])])
        self.masks.extend(_MixingMask([width, width // 2, width // 4, 1]) for width in widths[:-1])
        self.mixing = _Mixing(widths[-1])
        decoded = [widths[-1], *[64] * (len(steps) - 1), 32]
        self.up = nn.ModuleList(
            _UpMask(step, inputs, outputs)
            for step, inputs, outputs in zip(reversed(steps), decoded, decoded[1:], strict=False)
        )
        self.classify = _pixelwise([32, 16, 8, 1], last_activation=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Logit of change (B, 1, H, W) of the earlier image `a` and the later image `b`, (B, 3, H, W) each."""
        check_sides(self, a)
        masks = [self.masks[0](a, b)]
        stem, *stages = self.encoder
        a, b = stem(a), stem(b)
        for stage, mask in zip(stages, self.masks[1:], strict=False):
            a, b = stage(a), stage(b)
            masks.append(mask(a, b))
        x = self.mixing(stages[-1](a), stages[-1](b))
        for up, mask in zip(self.up, reversed(masks), strict=True):
            x = up(x, mask)
        logits: Tensor = self.classify(x)
        return logits.sigmoid() if self.output == "probability" else logits

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters."""
        deepest = len(self.masks) - 1
        return rename(
            state_dict,
            [
                (r"^_backbone\.", "encoder."),
                (r"^_first_mix\.", "masks.0."),
                (rf"^_mixing_mask\.{deepest}\.", "mixing."),
                (r"^_mixing_mask\.(\d+)\.", lambda match: f"masks.{int(match[1]) + 1}."),
                (r"\._mixing\.", ".mixing."),
                (r"\._convmix\.0\.", ".conv."),
                (r"\._convmix\.1\.", ".act."),
                (r"\._linear\._linears\.", ".pixelwise."),
                (r"^_up\.(\d+)\._convolution\.", r"up.\1.refine."),
                (r"^_classify\._linears\.", "classify."),
            ],
        )


def _width(stage: nn.Module) -> int:
    """Output channels of an EfficientNet stage: a single convolution, or blocks of which the last one tells."""
    last = stage if hasattr(stage, "out_channels") else list(stage.children())[-1]
    width = last.out_channels
    assert isinstance(width, int)
    return width


def _stride(stage: nn.Module) -> int:
    """2 where one of the stage's convolutions has stride 2, otherwise 1; no stage of an EfficientNet has two of them."""
    return max(conv.stride[0] for conv in stage.modules() if isinstance(conv, nn.Conv2d))
