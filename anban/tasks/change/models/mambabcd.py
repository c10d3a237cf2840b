"""MambaBCD, ChangeMamba's binary network: VMamba reads each date, VSS blocks read both dates together at every level.

Source: Chen et al., "ChangeMamba: Remote sensing change detection with spatiotemporal state space model", IEEE TGRS 2024
(arXiv 2404.03425), section III; numerically equal to the authors' release (github.com/ChenHongruixuan/ChangeMamba), whose
four sizes are listed in `SIZES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from anban.official import rename
from anban.recipe.schema import Count, Share
from anban.ssm.vmamba import VSSBlock, VSSMBackbone
from anban.ssm.vmamba.layers import Official, ToFirst, ToLast
from anban.tasks.change.models.vss import Blocks

_BLOCKS = Blocks()

SIZES: dict[str, dict[str, Any]] = {
    "mini": {"blocks": Blocks(forward_type="v2", mlp_ratio=0.0)},
    "tiny": {},
    "small": {"depths": (2, 2, 15, 2), "drop_path_rate": 0.3},
    "base": {"depths": (2, 2, 15, 2), "dims": 128, "drop_path_rate": 0.6},
}
"""Size -> the arguments in which the release's configuration of that name differs from the defaults."""

_ARRANGEMENTS = {"cat": "parallel", "interleave": "cross", "split": "sequential"}
"""The release's names of the arrangements, in the order of its older ones (1, 2, 3) -> the paper's."""


class _Level(nn.Module):
    """Features of both dates at one level, (B, C, H, W) twice -> features of the change (B, width, H, W).

    Three VSS blocks see the dates, each in an arrangement of its own (paper, section III-C): "parallel", a token has the
    channels of both dates; "cross", columns of the two dates take turns; "sequential", the later date stands to the right
    of the earlier one.

    Args:
        block: number of channels -> a block from these to `width` channels.
    """

    def __init__(self, channels: int, width: int, block: Callable[[int], nn.Module]):
        super().__init__()
        self.parallel = block(2 * channels)
        self.cross = block(channels)
        self.sequential = block(channels)
        self.fuse = nn.Sequential(
            nn.Conv2d(5 * width, width, kernel_size=1), nn.BatchNorm2d(width), nn.ReLU()
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        parallel = self.parallel(torch.cat((a, b), dim=1))
        cross = self.cross(torch.stack((a, b), dim=-1).flatten(-2))
        sequential = self.sequential(torch.cat((a, b), dim=-1))
        views = (parallel, cross[..., ::2], cross[..., 1::2], *sequential.chunk(2, dim=-1))
        fused: Tensor = self.fuse(torch.cat(views, dim=1))
        return fused


class _Smooth(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class MambaBCD(Official):
    """MambaBCD: (B, in_channels, H, W) twice -> class scores (B, 2, H, W).

    The decoder adds up the levels from the deepest to the finest, at 1/4 of the resolution, where the scores are computed;
    they are enlarged to the images' size. Any size is taken; sides that are no multiple of 32 are rounded up at some level,
    and what comes from there is stretched a little. The defaults are the release's size "tiny", the others are sets of
    these arguments: `SIZES`.

    Args:
        in_channels: bands of one date.
        depths: VSS blocks of every stage of the encoder.
        dims: channels of every stage; one number is the width of the first, doubled from stage to stage.
        decoder_dim: channels of the decoder.
        patch_size, patch_norm, patchembed_version, downsample_version, drop_path_rate: of the encoder, see `VSSMTrunk`.
        decoder_drop_path: drop path of all blocks of the decoder.
        blocks: of encoder and decoder.

    Raises:
        InputError: an unknown name, or widths that do not fit the depths.
    """

    multiple_of = 32
    backbone: ClassVar[tuple[str, ...]] = ("encoder",)

    def __init__(
        self,
        in_channels: Count = 3,
        depths: Annotated[tuple[Count, ...], MinLen(1)] = (2, 2, 4, 2),
        dims: Count | tuple[Count, ...] = 96,
        decoder_dim: Count = 128,
        patch_size: Annotated[int, Ge(2)] = 4,
        patch_norm: bool = True,
        patchembed_version: Literal["v1", "v2"] = "v2",
        downsample_version: Literal["v1", "v2", "v3"] = "v3",
        drop_path_rate: Share = 0.2,
        decoder_drop_path: Share = 0.1,
        blocks: Blocks = _BLOCKS,
    ):
        super().__init__()
        shared = asdict(blocks)
        self.encoder = VSSMBackbone(
            out_indices=range(len(depths)),
            patch_size=patch_size,
            in_chans=in_channels,
            depths=depths,
            dims=dims,
            drop_path_rate=drop_path_rate,
            patch_norm=patch_norm,
            downsample_version=downsample_version,
            patchembed_version=patchembed_version,
            **shared,
        )

        def narrowed(channels: int) -> nn.Module:
            block = VSSBlock(decoder_dim, drop_path=decoder_drop_path, **shared)
            turns = (nn.Identity(), nn.Identity()) if block.channel_first else (ToLast(), ToFirst())
            return nn.Sequential(nn.Conv2d(channels, decoder_dim, kernel_size=1), turns[0], block, turns[1])

        widths = reversed(self.encoder.widths)
        self.levels = nn.ModuleList(_Level(width, decoder_dim, narrowed) for width in widths)
        self.smooth = nn.ModuleList(_Smooth(decoder_dim) for _ in self.levels[1:])
        self.classify = nn.Conv2d(decoder_dim, 2, kernel_size=1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Class scores (B, 2, H, W) of the earlier image `a` and the later image `b`, (B, in_channels, H, W) each."""
        features = zip(reversed(self.encoder(a)), reversed(self.encoder(b)), strict=True)
        x, *finer = (level(*dates) for level, dates in zip(self.levels, features, strict=True))
        for smooth, change in zip(self.smooth, finer, strict=True):
            x = smooth(_resized(x, change) + change)
        return _resized(self.classify(x), a)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters, those of its published checkpoints (class STMambaBCD) included."""
        arrangements, count = list(_ARRANGEMENTS.values()), len(self.levels)
        renamed = rename(
            state_dict,
            [
                # The older names count levels from the finest, which is 1.
                (
                    r"^decoder\.st_block_(\d)(\d)\.",
                    lambda m: f"levels.{count - int(m[1])}.{arrangements[int(m[2]) - 1]}.",
                ),
                (r"^decoder\.fuse_layer_(\d)\.", lambda m: f"levels.{count - int(m[1])}.fuse."),
                (r"^decoder\.smooth_layer_(\d)\.", lambda m: f"smooth.{count - 1 - int(m[1])}."),
                (
                    r"^decoder\.stage_blocks\.(\d+)\.(\w+)\.",
                    lambda m: f"levels.{m[1]}.{_ARRANGEMENTS[m[2]]}.",
                ),
                (r"^decoder\.fuse_layers\.(\d+)\.", r"levels.\1.fuse."),
                (r"^decoder\.smooth_layers\.", "smooth."),
                (r"^main_clf\.", "classify."),
            ],
        )
        return super().from_official(renamed)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
