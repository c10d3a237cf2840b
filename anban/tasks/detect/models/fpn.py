"""Feature pyramid network: maps of a backbone -> maps of one width, with what is coarse added to what is fine.

Source: Lin et al., "Feature pyramid networks for object detection", CVPR 2017; the extra levels as in RetinaNet (Lin et al.,
"Focal loss for dense object detection", ICCV 2017). Numerically equal to torchvision's and to MMDetection's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from anban.official import rename
from anban.tasks.detect.models.settings import Source


class FPN(nn.Module):
    """Maps (B, channels[i], H_i, W_i), fine to coarse -> as many maps (B, width, H_i, W_i) and `extra` coarser ones.

    Args:
        channels: of the maps that come in.
        width: channels of the maps that go out.
        extra: coarser levels, each made by a convolution of stride 2.
        source: what the first of them is made from: the coarsest map that comes in ("input", MMDetection's RetinaNet), its
            1x1 convolution ("lateral"), or the coarsest map that goes out ("output", torchvision's); "pool": no convolutions,
            every second pixel of the map before.
        relu: put a ReLU between the extra levels (torchvision's).
        top_down: add what is coarse to what is fine; without it the levels do not know of each other.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int = 256,
        *,
        extra: int = 2,
        source: Source = "output",
        relu: bool = True,
        top_down: bool = True,
    ):
        super().__init__()
        self.source, self.relu, self.top_down, self.levels = source, relu, top_down, len(channels) + extra
        self.lateral = nn.ModuleList(nn.Conv2d(inputs, width, kernel_size=1) for inputs in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, kernel_size=3, padding=1) for _ in channels)
        inputs = [channels[-1] if source == "input" else width, *[width] * extra][:extra]
        self.extra = nn.ModuleList(
            nn.Conv2d(each, width, kernel_size=3, stride=2, padding=1)
            for each in (inputs if source != "pool" else [])
        )
        for conv in (*self.lateral, *self.output, *self.extra):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Fine to coarse, both ways."""
        lateral = [convert(x) for convert, x in zip(self.lateral, maps, strict=True)]
        if self.top_down:
            for level in range(len(lateral) - 1, 0, -1):
                finer = lateral[level - 1]
                lateral[level - 1] = finer + F.interpolate(lateral[level], finer.shape[-2:], mode="nearest")
        found = [convert(x) for convert, x in zip(self.output, lateral, strict=True)]
        coarsest = {"input": maps[-1], "lateral": lateral[-1]}.get(self.source, found[-1])
        for level, convert in enumerate(self.extra):
            coarsest = convert(F.relu(coarsest) if self.relu and level else coarsest)
            found.append(coarsest)
        while len(found) < self.levels:
            found.append(F.max_pool2d(found[-1], kernel_size=1, stride=2))
        return found

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the parameters of torchvision's network or of MMDetection's, which counts its extra levels on."""
        own = len(self.output)
        return rename(
            state_dict,
            [
                (r"^(?:inner_blocks\.(\d+)\.0|lateral_convs\.(\d+)\.conv)\.", _numbered("lateral", 0)),
                (r"^layer_blocks\.(\d+)\.0()\.", _numbered("output", 0)),
                (r"^extra_blocks\.p(\d+)()\.", _numbered("extra", -6)),
                (
                    r"^fpn_convs\.(\d+)\.conv\.",
                    lambda match: (
                        f"output.{match[1]}." if int(match[1]) < own else f"extra.{int(match[1]) - own}."
                    ),
                ),
            ],
        )


def _numbered(name: str, offset: int) -> Callable[[re.Match[str]], str]:
    return lambda match: f"{name}.{int(match[1] or match[2]) + offset}."
