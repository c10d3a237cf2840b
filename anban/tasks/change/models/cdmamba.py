"""CDMamba: Mamba reads the pixels both ways, a convolution beside it sees the neighbours; each date guides the other.

Source: Zhang et al., "CDMamba: incorporating local clues into Mamba for remote sensing image binary change detection", IEEE
TGRS 2025 (arXiv 2406.04207), section III; numerically equal to the authors' release (github.com/zmoka-zht/CDMamba).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from anban.errors import InputError
from anban.official import rename
from anban.recipe.schema import Count, Share
from anban.ssm.mamba import Mamba
from anban.tasks.change.models.common import check_sides

Local = Literal["dense", "dense-1.5", "dense-wide", "separable", "separable-wide"]
"""The two convolutions of a local branch, from C channels to Mamba's inner width 2 C: dense or depth-wise separable, with
C, 1.5 C or (wide) 2 C channels between them."""
LocalImage = Literal["actual", "square"]
Norm = Literal["group", "batch", "instance"]
Activation = Literal["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "sigmoid", "hardswish"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
}


class Part(nn.Module):
    """A part of CDMamba that takes the release's parameters by itself."""

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters."""
        return rename(
            state_dict,
            [
                (r"(^|\.)conv([12])\.", r"\1layer\2."),
                (r"\.depthwise_conv\.", ".0."),
                (r"\.pointwise_conv\.", ".1."),
                (r"(^|\.)convmamba\.local_relation\.", r"\1local.convolutions."),
                (r"(^|\.)convmamba\.", r"\1mamba."),
                (r"(^|\.)fusionencoder\.lcoal_relation\.", r"\1guide.convolutions."),
                (r"(^|\.)fusionencoder\.in_proj_global\.", r"\1guide.mamba.in_proj."),
                (r"(^|\.)fusionencoder\.(conv1d|x_proj|dt_proj)_g\.", r"\1guide.mamba.\2."),
                (r"(^|\.)fusionencoder\.A_g_log$", r"\1guide.mamba.A_log"),
                (r"(^|\.)fusionencoder\.D_g$", r"\1guide.mamba.D"),
                (r"(^|\.)fusionencoder\.", r"\1mamba."),
            ],
        )


# ---- what looks at tokens (B, H * W, C) and widens them to Mamba's inner width ------------------------------------------


class LocalBranch(nn.Module):
    """Two 3x3 convolutions: tokens (B, H * W, C) -> (B, H * W, inner).

    Args:
        image: how the tokens are laid out as an image: as the "actual" one that they come from, or as a "square" with as
            many pixels whatever its shape was, as released.
    """

    def __init__(self, channels: int, inner: int, kind: Local, image: LocalImage = "actual"):
        super().__init__()
        self.image = image
        hidden = inner if kind.endswith("wide") else int(1.5 * channels) if kind == "dense-1.5" else channels
        convolution = _separable if kind.startswith("separable") else _dense
        self.convolutions = nn.Sequential(
            convolution(channels, hidden), nn.SiLU(), convolution(hidden, inner)
        )

    def forward(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        if self.image == "square":
            side = math.isqrt(tokens.shape[1])
            if side * side != tokens.shape[1]:
                raise InputError(
                    f"{tokens.shape[1]} tokens are no square",
                    where="CDMamba with local_image='square'",
                    expected="square images",
                    do="set local_image: actual",
                )
            size = (side, side)
        seen: Tensor = self.convolutions(_image(tokens, size))
        return _tokens(seen)


class GlobalBranch(nn.Module):
    """A Mamba mixer in one direction, up to its last projection: tokens (B, H * W, C) -> (B, H * W, 2 C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.mamba = Mamba(channels)
        self.mamba.register_module("out_proj", None)  # the guided mixer's own follows

    def forward(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        return self.mamba.mixed(tokens)


def _dense(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


def _separable(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, kernel_size=3, padding=1, groups=inputs),
        nn.Conv2d(inputs, outputs, kernel_size=1),
    )


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _image(tokens: Tensor, size: Sequence[int]) -> Tensor:
    return tokens.transpose(1, 2).view(*tokens.shape[::2], *size)


# ---- layers --------------------------------------------------------------------------------------------------------------


class SRCMLayer(Part):
    """Scaled residual ConvMamba (paper, section III-B): (B, inputs, H, W) -> (B, outputs, H, W).

    Mamba in two directions and a local branch are added up; so is the input, times a learned number. One layer norm stands
    in front of all this and, the same once more, in front of the last projection.

    Args:
        local, image: of the local branch, see `LocalBranch`.
        d_state, d_conv, expand: of Mamba.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        local: Local = "separable",
        image: LocalImage = "actual",
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        self.mamba = Mamba(inputs, d_state, d_conv, expand, bimamba_type="v2")
        self.local = LocalBranch(inputs, int(expand * inputs), local, image)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens, size = _tokens(x), x.shape[2:]
        normed = self.norm(tokens)
        mixed = self.mamba.out_proj(self.mamba.mixed(normed) + self.local(normed, size))
        return _image(self.proj(self.norm(mixed + self.skip_scale * tokens)), size)


class SRCMBlock(Part):
    """x + two times norm, activation and an `SRCMLayer`: (B, C, H, W) -> the same shape.

    Args:
        norm, norm_groups, norm_affine: a group norm of so many groups, a batch norm or an instance norm, and whether it has
            parameters.
        layer: further arguments of `SRCMLayer`.
    """

    def __init__(
        self,
        channels: int,
        norm: Norm = "group",
        norm_groups: int = 8,
        norm_affine: bool = True,
        act: Activation = "relu",
        **layer: object,
    ):
        super().__init__()
        self.norm1 = _norm(norm, channels, norm_groups, norm_affine)
        self.norm2 = _norm(norm, channels, norm_groups, norm_affine)
        self.act = _ACTIVATIONS[act]()
        self.layer1 = SRCMLayer(channels, channels, **layer)  # type: ignore[arg-type]
        self.layer2 = SRCMLayer(channels, channels, **layer)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer1(self.act(self.norm1(x)))
        refined: Tensor = x + self.layer2(self.act(self.norm2(y)))
        return refined


def _norm(kind: Norm, channels: int, groups: int, affine: bool) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(groups, channels, affine=affine)
    return (nn.BatchNorm2d if kind == "batch" else nn.InstanceNorm2d)(channels, affine=affine)


class GuidedFusion(Part):
    """Mamba in two directions over each date, multiplied by what a branch sees in the other: (B, C, H, W) twice -> twice.

    Both dates go through the same mixer and the same guide; their norms are their own.

    Args:
        guide: a `LocalBranch` from C to 2 C channels (the paper's LGF) or a `GlobalBranch` (GGF).
        act: what the guide's output goes through.
        residual: add the input, times a learned number.
        unused_layers: have that number without `residual` too.
    """

    def __init__(
        self,
        channels: int,
        guide: LocalBranch | GlobalBranch,
        act: Activation = "relu",
        residual: bool = False,
        unused_layers: bool = False,
    ):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.mamba = Mamba(channels, bimamba_type="v2")
        self.guide, self.act, self.residual = guide, _ACTIVATIONS[act](), residual
        if residual or unused_layers:
            self.skip_scale = nn.Parameter(torch.ones(1))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        size = a.shape[2:]
        tokens_a, tokens_b = self.norm1(_tokens(a)), self.norm2(_tokens(b))
        guided_a = _image(self._guided(tokens_a, self.guide(tokens_b, size)), size)
        guided_b = _image(self._guided(tokens_b, self.guide(tokens_a, size)), size)
        if self.residual:
            return guided_a + self.skip_scale * a, guided_b + self.skip_scale * b
        return guided_a, guided_b

    def _guided(self, tokens: Tensor, seen: Tensor) -> Tensor:
        out: Tensor = self.mamba.out_proj(self.mamba.mixed(tokens) * self.act(seen))
        return out


class _AdaptiveFusion(nn.Module):
    """Local and global guidance, weighed for every image of either date (AGLGF; paper, section III-C)."""

    def __init__(
        self, channels: int, local: Local, image: LocalImage, act: Activation, residual: bool, unused: bool
    ):
        super().__init__()
        branch = LocalBranch(channels, 2 * channels, local, image)
        self.local = GuidedFusion(channels, branch, act, residual, unused)
        self.glob = GuidedFusion(channels, GlobalBranch(channels), act, residual, unused)
        self.gate = nn.Linear(2 * channels, 2, bias=False)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        (local_a, local_b), (glob_a, glob_b) = self.local(a, b), self.glob(a, b)
        return self._weighed(local_a, glob_a), self._weighed(local_b, glob_b)

    def _weighed(self, local: Tensor, glob: Tensor) -> Tensor:
        means = torch.cat((local.mean((2, 3)), glob.mean((2, 3))), dim=1)
        weights = self.gate(means).softmax(dim=1)[:, :, None, None, None]
        mixed: Tensor = weights[:, 0] * local + weights[:, 1] * glob
        return mixed


# ---- the network ---------------------------------------------------------------------------------------------------------


class CDMamba(Part):
    """CDMamba: (B, in_channels, H, W) twice -> scores (B, classes, H, W).

    A stem at full resolution, then levels of SRCM blocks, each with twice the channels and half the size of the one before;
    the dates guide each other at the finest levels. The decoder adds up the absolute differences of the levels, from the
    coarsest to the finest. The defaults are the release's configuration for LEVIR-CD.

    Args:
        in_channels: bands of one date.
        classes: 2 (class 1 = change) or 1 (logit of change).
        width: channels of the finest level.
        depths: SRCM blocks of every level of the encoder.
        decoder_depths: SRCM blocks of every level of the decoder, the coarsest first: one level less than the encoder has.
        local, decoder_local, guide_local: the local branches of encoder, decoder and guidance, see `Local`.
        guided_levels: at how many levels, from the finest, the dates guide each other.
        guide_act: what a guide goes through before it is multiplied.
        guide_residual: add what is guided, times a learned number.
        norm, norm_groups, norm_affine, act: of the SRCM blocks and in front of the classifier, see `SRCMBlock`.
        dropout: probability that a channel of the stem is dropped.
        upsample: enlarge by 2 "bilinear"ly, or by a transposed convolution ("deconv").
        local_image: local branches see the "actual" image, or a "square" with as many pixels whatever its shape is, as
            released.
        unused_layers: keep layers that the chosen options never run (guidance of four levels), as published: they count
            as parameters, take no gradient and change no result.

    Raises:
        InputError: the depths do not fit each other; in `forward`, a side of the images is not a multiple of the network's
            `multiple_of`, or (with local_image "square") a level is no square.
    """

    multiple_of = 8
    backbone = ()

    def __init__(
        self,
        in_channels: Count = 3,
        classes: Count = 2,
        width: Count = 16,
        depths: Annotated[tuple[Count, ...], MinLen(1)] = (1, 2, 2, 4),
        decoder_depths: tuple[Count, ...] = (1, 1, 1),
        local: Local = "dense-wide",
        decoder_local: Local = "separable",
        guide_local: Local = "dense-wide",
        guided_levels: Annotated[int, Ge(0)] = 2,
        guide_act: Activation = "relu",
        guide_residual: bool = False,
        norm: Norm = "group",
        norm_groups: Count = 8,
        norm_affine: bool = True,
        act: Activation = "relu",
        dropout: Share = 0.0,
        upsample: Literal["bilinear", "deconv"] = "bilinear",
        local_image: LocalImage = "actual",
        unused_layers: bool = False,
    ):
        super().__init__()
        levels = len(depths)
        if len(decoder_depths) != levels - 1 or guided_levels > levels:
            raise InputError(
                f"{levels} levels in the encoder, {len(decoder_depths)} in the decoder, {guided_levels} guided",
                where="CDMamba",
                expected="one level less in the decoder than in the encoder, and no more guided ones than there are",
            )
        self.multiple_of = 2 ** (levels - 1)
        self.guided_levels, self.unused_layers = guided_levels, unused_layers
        widths = [width * 2**level for level in range(max(levels, 4))]

        def blocks(channels: int, count: int, local: Local) -> list[nn.Module]:
            return [
                SRCMBlock(channels, norm, norm_groups, norm_affine, act, local=local, image=local_image)
                for _ in range(count)
            ]

        downs = [nn.Identity()] + [
            nn.Sequential(SRCMLayer(finer, coarser, local, local_image), nn.MaxPool2d(2))
            for finer, coarser in pairwise(widths[:levels])
        ]
        self.stem = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)
        self.dropout = nn.Dropout2d(dropout)
        self.encoder = nn.ModuleList(
            nn.Sequential(down, *blocks(channels, count, local))
            for down, channels, count in zip(downs, widths, depths, strict=False)
        )
        self.fusion = nn.ModuleList(
            _AdaptiveFusion(channels, guide_local, local_image, guide_act, guide_residual, unused_layers)
            for channels in widths[: 4 if unused_layers else guided_levels]
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(coarser, finer, kernel_size=1, bias=False), _enlarge(upsample, finer))
            for coarser, finer in pairwise(reversed(widths[:levels]))
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(*blocks(channels, count, decoder_local))
            for channels, count in zip(reversed(widths[: levels - 1]), decoder_depths, strict=True)
        )
        self.classify = nn.Sequential(
            _norm(norm, width, norm_groups, norm_affine),
            _ACTIVATIONS[act](),
            nn.Conv2d(width, classes, kernel_size=1),
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Scores (B, classes, H, W) of the earlier image `a` and the later image `b`, (B, in_channels, H, W) each."""
        check_sides(self, a)
        changes = []
        for level, (x, y) in enumerate(zip(self._levels(a), self._levels(b), strict=True)):
            if level < self.guided_levels:
                x, y = self.fusion[level](x, y)
            changes.append((x - y).abs())
        *finer, x = changes
        for up, blocks, change in zip(self.up, self.decoder, reversed(finer), strict=True):
            x = blocks(up(x) + change)
        scores: Tensor = self.classify(x)
        return scores

    def _levels(self, image: Tensor) -> list[Tensor]:
        x, levels = self.dropout(self.stem(image)), []
        for stage in self.encoder:
            x = stage(x)
            levels.append(x)
        return levels

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters, and leave out what this network does not have of the guidance.

        The release lists every guidance twice; the second entry is the one that counts when both are loaded.
        """
        branches = {"l": "local", "g": "glob"}
        own = rename(
            super().from_official(state_dict),
            [
                (r"^convInit\.conv\.", "stem."),
                (r"^srcm_encoder_layers\.", "encoder."),
                (r"^srcm_decoder_layers\.", "decoder."),
                (r"^up_samples\.(\d+)\.0\.conv\.", r"up.\1.0."),
                (r"^up_samples\.(\d+)\.1\.deconv\.", r"up.\1.1."),
                (r"^conv_final\.2\.conv\.", "classify.2."),
                (r"^conv_final\.", "classify."),
                (r"^([lg])_gf(\d)\.", lambda m: f"fusion.{int(m[2]) - 1}.{branches[m[1]]}."),
                (r"^([lg])_gf\.(\d)\.", lambda m: f"fusion.{m[2]}.{branches[m[1]]}."),
                (r"^ag(\d)\.", lambda m: f"fusion.{int(m[1]) - 1}."),
                (r"^ag\.(\d)\.", r"fusion.\1."),
            ],
        )
        names = self.state_dict().keys()
        return {name: t for name, t in own.items() if name in names or not name.startswith("fusion.")}


def _enlarge(kind: Literal["bilinear", "deconv"], channels: int) -> nn.Module:
    if kind == "deconv":
        return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
