"""How a scene becomes a prediction, by name, so that every number can say how it was measured.

| name | what it does |
| --- | --- |
| `whole` | the whole scene at once (the task pads to what the network needs) |
| `tiles-N` | windows of N pixels side by side |
| `sliding-N-S` | windows of N pixels every S pixels, overlaps averaged; `sliding` is `sliding-256-128` |
| any of them `+flip` | mean over the scene as it is, flipped left-right, top-bottom, and both |
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anban.data.tiles import Predict, predict_tiled
from anban.errors import InputError

_KNOWN = ("whole", "tiles-256", "sliding", "sliding-256-128")
_DEFAULT_SLIDING = (256, 128)
_FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


@dataclass(frozen=True)
class Protocol:
    """A way to predict a scene. `size` and `stride` are in pixels and None for `whole`."""

    name: str
    tiling: str
    size: int | None = None
    stride: int | None = None
    flips: bool = False

    def to_dict(self, split: str, size: str | None = None, threshold: float = 0.5) -> dict[str, Any]:
        """The stamp that a run's record keeps with its numbers.

        Args:
            split: the split that was evaluated.
            size: for `whole`, the scenes' size such as "256x256" or "mixed"; windows know their own.
            threshold: probability above which a pixel counts as change.
        """
        return {
            "name": self.name,
            "split": split,
            "size": size if self.size is None else f"{self.size}x{self.size}",
            "tiling": self.tiling,
            "stride": self.stride,
            "flips": "none, horizontal, vertical, both" if self.flips else "none",
            "scales": [1.0],
            "classes": ["no change", "change"],
            "ignore": None,
            "threshold": threshold,
            "data_range": "uint8 0..255",
            "averaging": "micro",
        }


def parse_protocol(name: str) -> Protocol:
    """The protocol of that name, called as its numbers are filed (`sliding` is `sliding-256-128`).

    Raises:
        InputError: an unknown name (with the nearest known one), or a stride that would leave pixels out.
    """
    base, plus, suffix = name.partition("+")
    found = re.fullmatch(r"(whole)|tiles-(\d+)|(sliding)(?:-(\d+)-(\d+))?", base)
    if found is None or (plus and suffix != "flip"):
        near = difflib.get_close_matches(base, _KNOWN, n=1, cutoff=0)[0]
        raise InputError(
            f"unknown protocol '{name}'",
            expected="whole, tiles-N, sliding or sliding-N-S, each also with +flip",
            do=f"did you mean '{near}{'+flip' if plus else ''}'?",
        )
    if found[1]:
        tiling, size, stride = "whole", None, None
    elif found[2]:
        tiling, size, stride = "tiles", int(found[2]), int(found[2])
    else:
        tiling = "sliding"
        size, stride = (int(found[4]), int(found[5])) if found[4] else _DEFAULT_SLIDING
    if size is not None and stride is not None and not 1 <= stride <= size:
        raise InputError(
            f"protocol '{name}' would leave pixels without a prediction",
            expected="a window of at least 1 pixel and a stride from 1 to the window",
            do="for example sliding-256-128",
        )
    canonical = {"whole": "whole", "tiles": f"tiles-{size}", "sliding": f"sliding-{size}-{stride}"}[tiling]
    return Protocol(canonical + ("+flip" if plus else ""), tiling, size, stride, bool(plus))


def apply_protocol(
    protocol: Protocol, predict: Predict, a: Tensor, b: Tensor, windows_per_batch: int | None = None
) -> Tensor:
    """Predict two dates the way the protocol says.

    Args:
        predict: two (N, C, h, w) -> probability of change (N, 1, h, w); it pads to what its network needs.
        a, b: the two dates, (B, C, H, W).

    Returns:
        float32 probability (B, 1, H, W).
    """

    def once(a: Tensor, b: Tensor) -> Tensor:
        if protocol.size is None or protocol.stride is None:
            return predict(a, b).float()
        return predict_tiled(predict, a, b, protocol.size, protocol.stride, windows_per_batch)

    flips = _FLIPS if protocol.flips else _FLIPS[:1]
    turned = [torch.flip(once(torch.flip(a, f), torch.flip(b, f)), f) for f in flips]
    return torch.stack(turned).mean(dim=0)
