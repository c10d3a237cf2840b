"""FC-EF, FC-Siam-conc and FC-Siam-diff: three fully convolutional networks that differ in where the dates meet.

Source: Caye Daudt, Le Saux, Boulch, "Fully convolutional siamese networks for change detection", ICIP 2018, section 3;
numerically equal to the authors' release (github.com/rcdaudt/fully_convolutional_change_detection).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Interval
from torch import Tensor, nn

DEPTHS = (2, 2, 3, 3)
"""Convolutions per encoder stage; the decoder mirrors them."""


def _unit(
    convolution: type[nn.Conv2d] | type[nn.ConvTranspose2d], inputs: int, outputs: int, dropout: float
) -> nn.Sequential:
    """One 3x3 convolution (same size) with its normalisation, activation and channel dropout."""
    return nn.Sequential(
        OrderedDict(
            conv=convolution(inputs, outputs, kernel_size=3, padding=1),
            norm=nn.BatchNorm2d(outputs),
            relu=nn.ReLU(),
            drop=nn.Dropout2d(dropout),
        )
    )


class _DecoderStage(nn.Module):
    """Upsample by 2, fit to the skip connection's size, concatenate it, refine."""

    def __init__(self, width: int, skip_width: int, refined: list[int], dropout: float):
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, kernel_size=3, stride=2, padding=1, output_padding=1)
        widths = [width + skip_width, *refined]
        self.units = nn.Sequential(
            *(
                _unit(nn.ConvTranspose2d, before, after, dropout)
                for before, after in zip(widths, refined, strict=False)
            )
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        # Pooling rounds odd sides down; the lost row or column is repeated at the right and bottom edge.
        x = F.pad(x, (0, skip.shape[-1] - x.shape[-1], 0, skip.shape[-2] - x.shape[-2]), mode="replicate")
        refined: Tensor = self.units(torch.cat((x, skip), dim=1))
        return refined


class FullyConvolutional(nn.Module):
    """The network the three have in common: a four-stage encoder, a mirrored decoder and skip connections.

    Images may have any sides from 16 pixels on; the scores have the same sides.

    Args:
        in_channels: bands of one date.
        classes: 2 (class 1 = change) or 1 (logit of change); any number of classes may be asked for.
        width: channels of the first stage, doubled at each next one (published: 16).
        dropout: share of channels dropped after each activation, in training.
        output: "logits" are raw scores; "log_softmax" is what the release returns, for a loss that takes
            log-probabilities.
    """

    multiple_of = 1
    backbone: ClassVar[tuple[str, ...]] = ()
    fusion: ClassVar[Literal["early", "concatenation", "difference"]]

    def __init__(
        self,
        in_channels: Annotated[int, Ge(1)] = 3,
        classes: Annotated[int, Ge(1)] = 2,
        width: Annotated[int, Ge(1)] = 16,
        dropout: Annotated[float, Interval(ge=0, le=1)] = 0.2,
        output: Literal["logits", "log_softmax"] = "logits",
    ):
        super().__init__()
        self.output = output
        widths = [width * 2**stage for stage in range(len(DEPTHS))]
        dates = 2 if self.fusion == "early" else 1
        skips = 2 if self.fusion == "concatenation" else 1
        inputs = [in_channels * dates, *widths]
        self.encoder = nn.ModuleList(
            nn.Sequential(
                *(_unit(nn.Conv2d, before if i == 0 else after, after, dropout) for i in range(depth))
            )
            for before, after, depth in zip(inputs, widths, DEPTHS, strict=False)
        )
        # The last convolution of a decoder stage goes down to the next stage's width, or to the classes.
        self.decoder = nn.ModuleList(
            _DecoderStage(
                widths[stage],
                skips * widths[stage],
                [widths[stage]] * (DEPTHS[stage] - 1) + ([widths[stage - 1]] if stage else []),
                dropout,
            )
            for stage in reversed(range(len(DEPTHS)))
        )
        self.classifier = nn.ConvTranspose2d(widths[0], classes, kernel_size=3, padding=1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Scores (B, classes, H, W) of the earlier image `a` and the later image `b`, (B, in_channels, H, W) each."""
        if self.fusion == "early":
            skips, x = self._encode(torch.cat((a, b), dim=1))
        else:
            skips_a, _ = self._encode(a)
            # As published, the decoder starts from the pooled features of the later date alone.
            skips_b, x = self._encode(b)
            skips = [self._fuse(f, g) for f, g in zip(skips_a, skips_b, strict=True)]
        for stage, skip in zip(self.decoder, reversed(skips), strict=True):
            x = stage(x, skip)
        scores: Tensor = self.classifier(x)
        return scores.log_softmax(dim=1) if self.output == "log_softmax" else scores

    def _encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
            x = F.max_pool2d(x, kernel_size=2)
        return skips, x

    def _fuse(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((a, b), dim=1) if self.fusion == "concatenation" else (a - b).abs()

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters: `conv32` -> `encoder.2.1.conv`, `bn32d` -> `decoder.1.units.1.norm`, ..."""
        return {cls._own_name(name): tensor for name, tensor in state_dict.items()}

    @staticmethod
    def _own_name(name: str) -> str:
        if match := re.fullmatch(r"upconv(\d)\.(\w+)", name):
            return f"decoder.{len(DEPTHS) - int(match[1])}.up.{match[2]}"
        if match := re.fullmatch(r"conv11d\.(\w+)", name):
            return f"classifier.{match[1]}"
        if match := re.fullmatch(r"(conv|bn)([1-4])([1-3])(d?)\.(\w+)", name):
            kind = "conv" if match[1] == "conv" else "norm"
            stage, place = int(match[2]), int(match[3])
            if match[4]:
                return f"decoder.{len(DEPTHS) - stage}.units.{DEPTHS[stage - 1] - place}.{kind}.{match[5]}"
            return f"encoder.{stage - 1}.{place - 1}.{kind}.{match[5]}"
        return name


class FCEF(FullyConvolutional):
    """Early fusion: the two dates are concatenated before the first convolution. Arguments: `FullyConvolutional`."""

    fusion = "early"


class FCSiamConc(FullyConvolutional):
    """Siamese encoder; the skip connections carry the features of both dates, concatenated.

    Arguments: `FullyConvolutional`.
    """

    fusion = "concatenation"


class FCSiamDiff(FullyConvolutional):
    """Siamese encoder; the skip connections carry the absolute difference of the two dates' features.

    Arguments: `FullyConvolutional`.
    """

    fusion = "difference"
