"""A2Net: a MobileNetV2, features joined with their neighbours in scale, and change maps that attend to the next finer one.

Source: Li et al., "Lightweight remote sensing change detection with progressive feature aggregation and supervised
attention", IEEE TGRS 2023, section III; numerically equal to the authors' release (github.com/guanyuezhen/A2Net).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from anban.official import rename
from anban.tasks.change.models.common import SideOutputs, check_sides, conv_norm_relu, supervised

STAGES = (4, 7, 14, 18)
"""Where the stages of the MobileNetV2 end that are used: 1/4, 1/8, 1/16 and 1/32 of the resolution."""
FEATURES = (24, 32, 96, 320)
"""Their channels."""
DILATIONS = (7, 5, 3, 1)


def _enlarge(x: Tensor, scale: int = 2) -> Tensor:
    return F.interpolate(x, scale_factor=scale, mode="bilinear")


class _NeighbourAggregation(nn.Module):
    """Features of one scale, joined with those of the next finer and the next coarser one, where there is one.

    Args:
        features: channels of the finer (or None), own and coarser (or None) features.
        width: channels of the result.
    """

    def __init__(self, features: tuple[int | None, int, int | None], width: int):
        super().__init__()
        finer, own, coarser = features
        part = width // 2
        self.finer = conv_norm_relu(finer, part) if finer else None
        self.own = conv_norm_relu(own, part)
        self.coarser = conv_norm_relu(coarser, part) if coarser else None
        parts = sum(bool(channels) for channels in features)
        self.fuse = nn.Sequential(
            conv_norm_relu(parts * part, width),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
        )
        self.identity = nn.Conv2d(own, width, kernel_size=1)

    def forward(self, finer: Tensor | None, own: Tensor, coarser: Tensor | None) -> Tensor:
        parts = [self.own(own)]
        if self.finer is not None and finer is not None:
            parts.insert(0, self.finer(F.max_pool2d(finer, kernel_size=2)))
        if self.coarser is not None:
            parts.append(_enlarge(self.coarser(coarser)))
        return F.relu(self.fuse(torch.cat(parts, dim=1)) + self.identity(own))


class _ProgressiveChange(nn.Module):
    """The difference of the dates, read by convolutions of ever smaller dilation: (B, width, H, W) twice -> once."""

    def __init__(self, width: int):
        super().__init__()
        self.dilated = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel_size=3, padding=dilation, dilation=dilation),
                nn.BatchNorm2d(width),
            )
            for dilation in DILATIONS
        )
        self.project = nn.ModuleList(nn.Conv2d(width, width, kernel_size=1) for _ in DILATIONS)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        difference = (a - b).abs()
        x = difference
        for dilated, project in zip(self.dilated, self.project, strict=True):
            x = F.relu(project(difference) + dilated(x))
        return x


class _SupervisedAttention(nn.Module):
    """Features weighed by a change map of their own, which is a side output -> features (B, width, H, W), its logit."""

    def __init__(self, width: int):
        super().__init__()
        self.classifier = nn.Conv2d(width, 1, kernel_size=1)
        self.context = conv_norm_relu(2, width, kernel=1)
        self.refine = conv_norm_relu(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logit = self.classifier(x)
        change = logit.sigmoid()
        return self.refine(x * self.context(torch.cat((change, 1 - change), dim=1))), logit


class A2Net(nn.Module):
    """A2Net: (B, 3, H, W) twice -> the logit of change (B, 1, H, W), at 1/4 of the resolution and enlarged.

    The release reads its pictures blue, green, red: give its weights the bands in this order, normalised by ImageNet's
    mean and deviation in the same order.

    Args:
        width: channels of the features that are compared and decoded (published: 64).
        pretrained: start the MobileNetV2 from torchvision's ImageNet weights (downloaded where they are not cached).
        unused_layers: keep the last layer of the MobileNetV2, which the release runs without using what it gives: its
            weights count as parameters, take no gradient and change no result.
        side_outputs: "training" adds the side outputs in training mode; "always" also in evaluation mode.
        output: "logits" are raw scores; "probability" is what the release returns, their sigmoid.

    Raises:
        InputError: in `forward`, a side of the images is not a multiple of 32.
    """

    multiple_of = 32
    backbone: ClassVar[tuple[str, ...]] = ("encoder",)

    def __init__(
        self,
        width: Annotated[int, Ge(2)] = 64,
        pretrained: bool = False,
        unused_layers: bool = False,
        side_outputs: SideOutputs = "training",
        output: Literal["logits", "probability"] = "logits",
    ):
        super().__init__()
        self.side_outputs, self.output = side_outputs, output
        layers = mobilenet_v2(weights="IMAGENET1K_V1" if pretrained else None).features
        self.encoder = layers if unused_layers else layers[: STAGES[-1]]
        neighbours = zip((None, *FEATURES), FEATURES, (*FEATURES[1:], None), strict=False)
        self.aggregate = nn.ModuleList(_NeighbourAggregation(features, width) for features in neighbours)
        self.change = nn.ModuleList(_ProgressiveChange(width) for _ in FEATURES)
        self.attend = nn.ModuleList(_SupervisedAttention(width) for _ in FEATURES[1:])
        self.refine = nn.ModuleList(conv_norm_relu(width, width) for _ in FEATURES[1:])
        self.classifier = nn.Conv2d(width, 1, kernel_size=1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor | list[Tensor]:
        """Logit of change (B, 1, H, W) of the earlier image `a` and the later image `b`, (B, 3, H, W) each.

        With side outputs a list of four, all of that shape: that one, then those of 1/8, 1/16 and 1/32, enlarged.
        """
        check_sides(self, a)
        changes = [
            change(f, g)
            for change, f, g in zip(self.change, self._features(a), self._features(b), strict=True)
        ]
        x = changes.pop()
        logits = []
        for attend, refine, finer in zip(self.attend, self.refine, reversed(changes), strict=True):
            x, logit = attend(x)
            logits.append(logit)
            x = refine(finer + _enlarge(x))
        logits.append(self.classifier(x))
        scores = [
            _enlarge(logit, scale) for logit, scale in zip(reversed(logits), (4, 8, 16, 32), strict=True)
        ]
        if self.output == "probability":
            scores = [score.sigmoid() for score in scores]
        return supervised(self, scores, self.side_outputs)

    def _features(self, x: Tensor) -> list[Tensor]:
        """One image (B, 3, H, W) -> features (B, width, H / 4, W / 4), and so on to 1/32, joined with their neighbours."""
        features: list[Tensor] = []
        for start, end in zip((0, *STAGES), STAGES, strict=False):
            x = self.encoder[start:end](x)
            features.append(x)
        neighbours = zip((None, *features), features, (*features[1:], None), strict=False)
        return [aggregate(*scales) for aggregate, scales in zip(self.aggregate, neighbours, strict=True)]

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters and leave out the layer that this network does not keep."""
        state = rename(
            state_dict,
            [
                (r"^backbone\.features\.", "encoder."),
                (r"^swa\.conv_scale(\d)_c(\d)\.(\d)\.", _neighbour),
                (r"^swa\.conv_aggregation_s(\d)\.", lambda match: f"aggregate.{int(match[1]) - 2}."),
                (r"\.conv_identity\.", ".identity."),
                # The release numbers the layers of the two convolutions that fuse in a row: 0, 1, 2 and 3, 4.
                (r"\.conv_fuse\.([01])\.", r".fuse.0.\1."),
                (r"\.conv_fuse\.([34])\.", lambda match: f".fuse.{int(match[1]) - 2}."),
                (r"^tfm\.tffm_x(\d)\.", lambda match: f"change.{int(match[1]) - 2}."),
                (
                    r"^(change\.\d)\.conv_branch(\d)(?:_f)?\.(?=\d)",
                    lambda m: f"{m[1]}.dilated.{int(m[2]) - 1}.",
                ),
                (
                    r"^(change\.\d)\.conv_branch(\d)\.",
                    lambda match: f"{match[1]}.project.{int(match[2]) - 2}.",
                ),
                (r"^decoder\.sam_p(\d)\.", lambda match: f"attend.{5 - int(match[1])}."),
                (r"\.cls\.", ".classifier."),
                (r"\.conv_context\.", ".context."),
                (r"^(attend\.\d)\.conv2\.", r"\1.refine."),
                (r"^decoder\.conv_p(\d)\.", lambda match: f"refine.{4 - int(match[1])}."),
                (r"^decoder\.", ""),
            ],
        )
        unused = f"encoder.{STAGES[-1]}."
        if len(self.encoder) == STAGES[-1]:
            state = {name: tensor for name, tensor in state.items() if not name.startswith(unused)}
        return state


def _neighbour(match: re.Match[str]) -> str:
    """The release's `conv_scale3_c2.1`: a layer of scale 3 (level 1 here) that reads scale 2, the finer one."""
    scale, read, layer = (int(number) for number in match.groups())
    part = {-1: "finer", 0: "own", 1: "coarser"}[read - scale]
    # There the pooling of the finer features is the first layer.
    return f"aggregate.{scale - 2}.{part}.{layer - (part == 'finer')}."
