"""RSM-CD, RS-Mamba's change network: VMamba with a scan in eight directions, and a plain U-shaped decoder.

Source: Zhao et al., "RS-Mamba for large remote sensing image dense prediction", IEEE TGRS 2024 (arXiv 2404.02668), section
III; numerically equal to the authors' release (github.com/walking-shadow/Official_Remote_Sensing_Mamba).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor, nn

from anban.official import rename
from anban.recipe.schema import Count, Share
from anban.ssm.orders import OMNIDIRECTIONAL
from anban.ssm.vmamba import VSSMBackbone, forward_type
from anban.ssm.vmamba.layers import Official
from anban.tasks.change.models.common import check_sides
from anban.tasks.change.models.vss import Blocks

_BLOCKS = Blocks(ssm_d_state=16, ssm_conv_bias=True, forward_type="v2")


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class RSMamba(Official):
    """RSM-CD: (B, in_channels, H, W) twice -> the logit of change (B, 1, H, W).

    The features of both dates are fused level by level; the decoder enlarges by 2 and joins the next finer level until it is
    at 1/4 of the resolution, where two further enlargements lead to the images' size.

    Args:
        in_channels: bands of one date.
        depths: VSS blocks of every stage of the encoder.
        dims: channels of every stage; one number is the width of the first, doubled from stage to stage.
        patch_norm: whether the patch embedding has norms.
        drop_path_rate: drop path of the last block; that of the first is 0, it grows linearly between them.
        blocks: of the encoder; the orders of its `forward_type` give way to `OMNIDIRECTIONAL`.

    Raises:
        InputError: an unknown name, or widths that do not fit the depths; in `forward`, a side of the images is not a multiple
            of the network's `multiple_of`.
    """

    multiple_of = 32
    backbone: ClassVar[tuple[str, ...]] = ("encoder",)

    def __init__(
        self,
        in_channels: Count = 3,
        depths: Annotated[tuple[Count, ...], MinLen(1)] = (2, 2, 9, 2),
        dims: Count | tuple[Count, ...] = 96,
        patch_norm: bool = True,
        drop_path_rate: Share = 0.2,
        blocks: Blocks = _BLOCKS,
    ):
        super().__init__()
        self.multiple_of = 2 ** (len(depths) + 1)
        scan = replace(forward_type(blocks.forward_type), orders=OMNIDIRECTIONAL)
        self.encoder = VSSMBackbone(
            out_indices=range(len(depths)),
            out_norm=False,
            in_chans=in_channels,
            depths=depths,
            dims=dims,
            patch_norm=patch_norm,
            drop_path_rate=drop_path_rate,
            downsample_version="v3",
            patchembed_version="v2",
            **{**asdict(blocks), "forward_type": scan},
        )
        widths = self.encoder.widths
        self.fuse = nn.ModuleList(_unit(2 * width, width) for width in widths)
        self.decode = nn.ModuleList(
            _unit(deeper + finer, finer) for deeper, finer in pairwise(reversed(widths))
        )
        self.head = nn.Sequential(
            nn.Conv2d(widths[0], widths[0] // 2, kernel_size=3, padding=1),
            nn.BatchNorm2d(widths[0] // 2),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(widths[0] // 2, 8, kernel_size=3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(8, 1, kernel_size=7, padding=3),
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Logit of change (B, 1, H, W) of the earlier image `a` and the later image `b`, (B, in_channels, H, W) each."""
        check_sides(self, a)
        dates = zip(self.encoder(a), self.encoder(b), strict=True)
        *finer, x = (fuse(torch.cat(pair, dim=1)) for fuse, pair in zip(self.fuse, dates, strict=True))
        for decode, level in zip(self.decode, reversed(finer), strict=True):
            x = decode(torch.cat((F.interpolate(x, scale_factor=2, mode="nearest"), level), dim=1))
        logits: Tensor = self.head(x)
        return logits

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters; there a stage begins with its downsampling, here it ends with that of the next."""
        deepest = len(self.decode)
        renamed = rename(
            state_dict,
            [
                (r"^patch_embed\.", "encoder.patch_embed."),
                (
                    r"^encoder_block(\d+)\.downsample\.",
                    lambda m: f"encoder.layers.{int(m[1]) - 2}.downsample.",
                ),
                (r"^encoder_block(\d+)\.", lambda m: f"encoder.layers.{int(m[1]) - 1}."),
                (r"^fuse_block(\d+)\.fuse\.", lambda m: f"fuse.{int(m[1]) - 1}."),
                (r"^deocder_block(\d+)\.fuse\.", lambda m: f"decode.{deepest - int(m[1])}."),
                (r"^upsample_x4\.", "head."),
                (r"^conv_out_change\.", "head.8."),
            ],
        )
        return super().from_official(renamed)
