"""ChangeFormer: a hierarchical transformer on each date, learned differences at four scales, one fused decoder.

Source: Bandara, Patel, "A transformer-based Siamese network for change detection", IGARSS 2022, section 2; numerically
equal to the final version of the authors' release (github.com/wgcban/ChangeFormer, ChangeFormerV6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from anban.official import rename
from anban.recipe.schema import Share
from anban.tasks.change.models.common import SideOutputs, check_sides, supervised

WIDTHS = (64, 128, 320, 512)
"""Channels of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the resolution."""
DEPTHS = (3, 3, 4, 3)
HEADS = (1, 2, 4, 8)
REDUCTIONS = (8, 4, 2, 1)
"""Keys and values are taken from maps reduced this often per side: 1/32 of the resolution in every stage."""


class _Attention(nn.Module):
    """Self-attention of the pixels of a map (B, H, W, C); keys and values come from a reduced map."""

    def __init__(self, width: int, heads: int, reduction: int, dropout: float, attention_dropout: float):
        super().__init__()
        self.heads, self.reduction, self.attention_dropout = heads, reduction, attention_dropout
        if reduction > 1:
            self.reduce = nn.Conv2d(width, width, kernel_size=reduction, stride=reduction)
            self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.to_out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.norm(self.reduce(x.movedim(-1, 1)).movedim(1, -1)) if self.reduction > 1 else x
        q, k, v = (
            part.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), *self.to_kv(memory).chunk(2, dim=-1))
        )
        dropped = self.attention_dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(q, k, v, dropout_p=dropped).transpose(1, 2).reshape(x.shape)
        out: Tensor = self.dropout(self.to_out(read))
        return out


class _FeedForward(nn.Module):
    """The perceptron of a block, (B, H, W, C) -> same; a depth-wise convolution in it tells pixels where they are."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        hidden = 4 * width
        self.widen = nn.Linear(width, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.narrow = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.widen(x).movedim(-1, 1)).movedim(1, -1)
        out: Tensor = self.dropout(self.narrow(self.dropout(F.gelu(x))))
        return out


class _Block(nn.Module):
    """Pre-norm transformer block on a map (B, H, W, C)."""

    def __init__(
        self,
        width: int,
        heads: int,
        reduction: int,
        dropout: float,
        attention_dropout: float,
        drop_path: float,
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = _Attention(width, heads, reduction, dropout, attention_dropout)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _FeedForward(width, dropout)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.attention_norm(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.mlp_norm(x)))
        return out


class _Stage(nn.Module):
    """Overlapping patches of a map (B, C, H, W) through transformer blocks -> (B, width, H/stride, W/stride)."""

    def __init__(self, inputs: int, width: int, stride: int, blocks: list[_Block]):
        super().__init__()
        self.embed = nn.Conv2d(inputs, width, kernel_size=7, stride=stride, padding=3)
        self.embed_norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed_norm(self.embed(x).movedim(1, -1))
        out: Tensor = self.norm(self.blocks(x))
        return out.movedim(-1, 1).contiguous()


class _Difference(nn.Module):
    """Features of both dates at one scale -> their difference (B, width, H, W), to which the coarser one is added."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.compare = nn.Sequential(
            nn.Conv2d(2 * width, width, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.ReLU(),
        )

    def forward(self, a: Tensor, b: Tensor, coarser: Tensor | None) -> Tensor:
        embedded = [self.embed(features.movedim(1, -1)).movedim(-1, 1) for features in (a, b)]
        difference: Tensor = self.compare(torch.cat(embedded, dim=1))
        if coarser is not None:
            difference = difference + F.interpolate(coarser, scale_factor=2, mode="bilinear")
        return difference


class _Residual(nn.Module):
    """A tenth of two convolutions, added to what they were given: (B, C, H, W) -> same."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        refined: Tensor = x + 0.1 * self.conv2(F.relu(self.conv1(x)))
        return refined


class ChangeFormer(nn.Module):
    """ChangeFormer: (B, C, H, W) twice -> class scores (B, classes, H, W); in training also those of the four scales.

    Args:
        in_channels: bands of one date.
        classes: 2 (class 1 = change) or 1 (logit of change); any number of classes may be asked for.
        width: channels of the decoder (the released LEVIR-CD weights have 256).
        dropout: share of values dropped after the attention and inside the perceptron of every block.
        attention_dropout: share of attention weights dropped.
        drop_path: share of samples that skip the last block; it grows evenly from 0 at the first.
        side_outputs: "training" adds the scores of the four scales in training mode; "always" also in evaluation mode.
        output: "logits" are raw scores; "probability" is their sigmoid, the release's `decoder_softmax`.

    Raises:
        InputError: in `forward`, a side of the images is not a multiple of 32.
    """

    multiple_of = 32
    backbone: ClassVar[tuple[str, ...]] = ("encoder",)

    def __init__(
        self,
        in_channels: Annotated[int, Ge(1)] = 3,
        classes: Annotated[int, Ge(1)] = 2,
        width: Annotated[int, Ge(1)] = 256,
        dropout: Share = 0.1,
        attention_dropout: Share = 0.1,
        drop_path: Share = 0.1,
        side_outputs: SideOutputs = "training",
        output: Literal["logits", "probability"] = "logits",
    ):
        super().__init__()
        self.side_outputs, self.output = side_outputs, output
        skips = iter(torch.linspace(0, drop_path, sum(DEPTHS)).tolist())
        self.encoder = nn.ModuleList()
        inputs, stride = in_channels, 4
        for outputs, depth, heads, reduction in zip(WIDTHS, DEPTHS, HEADS, REDUCTIONS, strict=True):
            blocks = [
                _Block(outputs, heads, reduction, dropout, attention_dropout, next(skips))
                for _ in range(depth)
            ]
            self.encoder.append(_Stage(inputs, outputs, stride, blocks))
            inputs, stride = outputs, 2
        self.differences = nn.ModuleList(_Difference(inputs, width) for inputs in WIDTHS)
        self.side = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, classes, kernel_size=3, padding=1),
                nn.ReLU(),
                nn.BatchNorm2d(classes),
                nn.Conv2d(classes, classes, kernel_size=3, padding=1),
            )
            for _ in WIDTHS
        )
        self.fuse = nn.Sequential(nn.Conv2d(len(WIDTHS) * width, width, kernel_size=1), nn.BatchNorm2d(width))
        self.head = nn.Sequential(
            nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1),
            _Residual(width),
            nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1),
            _Residual(width),
            nn.Conv2d(width, classes, kernel_size=3, padding=1),
        )
        self.encoder.apply(_initialise)

    def forward(self, a: Tensor, b: Tensor) -> Tensor | list[Tensor]:
        """Class scores of the earlier image `a` and the later image `b`, (B, in_channels, H, W) each.

        Returns:
            (B, classes, H, W); with side outputs a list of it and the scores at 1/4, 1/8, 1/16 and 1/32 of the resolution.
        """
        check_sides(self, a)
        differences: list[Tensor] = []  # coarse to fine
        scales = list(zip(self.differences, self._features(a), self._features(b), strict=True))
        for compare, features_a, features_b in reversed(scales):
            coarser = differences[-1] if differences else None
            differences.append(compare(features_a, features_b, coarser))
        *coarse, finest = differences
        raised = [F.interpolate(difference, finest.shape[-2:], mode="bilinear") for difference in coarse]
        scores = [self.head(self.fuse(torch.cat([*raised, finest], dim=1)))]
        scores += [predict(scale) for predict, scale in zip(self.side, reversed(differences), strict=True)]
        if self.output == "probability":
            scores = [each.sigmoid() for each in scores]
        return supervised(self, scores, self.side_outputs)

    def _features(self, x: Tensor) -> list[Tensor]:
        """One image -> its features at 1/4, 1/8, 1/16 and 1/32 of the resolution."""
        features = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        return features

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters."""
        return rename(
            state_dict,
            [
                # The release counts scales from 1.
                (
                    r"^Tenc_x2\.(patch_embed|block|norm)(\d)\.",
                    lambda match: f"encoder.{int(match[2]) - 1}.{match[1]}.",
                ),
                (
                    r"^TDec_x2\.(linear|diff|make_pred)_c(\d)\.",
                    lambda match: f"{match[1]}.{int(match[2]) - 1}.",
                ),
                (r"\.patch_embed\.proj\.", ".embed."),
                (r"\.patch_embed\.norm\.", ".embed_norm."),
                (r"\.block\.(\d+)\.norm1\.", r".blocks.\1.attention_norm."),
                (r"\.block\.(\d+)\.norm2\.", r".blocks.\1.mlp_norm."),
                (r"\.block\.", ".blocks."),
                (r"\.attn\.sr\.", ".attention.reduce."),
                (r"\.attn\.(q|kv)\.", r".attention.to_\1."),
                (r"\.attn\.proj\.", ".attention.to_out."),
                (r"\.attn\.norm\.", ".attention.norm."),
                (r"\.mlp\.fc1\.", ".mlp.widen."),
                (r"\.mlp\.dwconv\.dwconv\.", ".mlp.depthwise."),
                (r"\.mlp\.fc2\.", ".mlp.narrow."),
                (r"^linear\.(\d)\.proj\.", r"differences.\1.embed."),
                (r"^diff\.(\d)\.", r"differences.\1.compare."),
                (r"^make_pred\.", "side."),
                (r"^TDec_x2\.linear_fuse\.", "fuse."),
                (r"^TDec_x2\.convd2x\.conv2d\.", "head.0."),
                (r"^TDec_x2\.dense_2x\.0\.(conv\d)\.conv2d\.", r"head.1.\1."),
                (r"^TDec_x2\.convd1x\.conv2d\.", "head.2."),
                (r"^TDec_x2\.dense_1x\.0\.(conv\d)\.conv2d\.", r"head.3.\1."),
                (r"^TDec_x2\.change_probability\.conv2d\.", "head.4."),
            ],
        )


def _initialise(module: nn.Module) -> None:
    """First weights of an encoder's layer: truncated normal where it is linear, by its fan-out where it is a convolution."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
