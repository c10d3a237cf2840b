"""Anchors, what they are matched with, and boxes as differences to them. Boxes are (x1, y1, x2, y2), in pixels.

Two implementations have set how RetinaNet keeps its books, and their numbers differ: torchvision's and MMDetection's. Where they
do, `convention` says whose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from anban.tasks.detect.models.settings import Convention

BACKGROUND, IGNORED = -1, -2
_LARGEST = math.log(1000 / 16)
"""A box is at most this much (as a logarithm) wider than its anchor."""


def cell_anchors(
    size: float, octaves: int, ratios: Sequence[float], convention: Convention = "torchvision"
) -> Tensor:
    """The anchors of one cell, (len(ratios) * octaves, 4), around the origin: for each ratio, all octaves.

    Args:
        size: side of the smallest square one.
        octaves: sizes between `size` and its double, evenly on a logarithmic scale.
        ratios: heights over widths.
        convention: torchvision's sizes and corners are whole numbers.
    """
    sizes = [size * 2 ** (octave / octaves) for octave in range(octaves)]
    whole = convention == "torchvision"
    scales = torch.tensor([float(int(each)) if whole else each for each in sizes])
    heights = torch.tensor(ratios).sqrt()
    widths = 1 / heights
    half = torch.stack(
        [(side[:, None] * scales[None, :]).flatten() / 2 for side in (widths, heights)], dim=-1
    )
    corners = torch.cat((-half, half), dim=-1)
    return corners.round() if whole else corners


def grid_anchors(cell: Tensor, size: tuple[int, int], strides: tuple[int, int]) -> Tensor:
    """The anchors of a map of `size` (H, W), (H * W * A, 4): cell by cell, row by row; the first cell is around (0, 0)."""
    y, x = (
        torch.arange(count, device=cell.device) * stride for count, stride in zip(size, strides, strict=True)
    )
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4)


def inside(size: tuple[int, int], strides: tuple[int, int], image: tuple[int, int], anchors: int) -> Tensor:
    """Whether the cell of each anchor of a map lies on the image, (H * W * A) bool; all do unless the strides are not the map's."""
    y, x = (
        torch.arange(count) < math.ceil(side / stride)
        for count, side, stride in zip(size, image, strides, strict=True)
    )
    return (y[:, None] & x[None, :]).flatten().repeat_interleave(anchors)


def match(
    boxes: Tensor,
    anchors: Tensor,
    positive: float = 0.5,
    negative: float = 0.4,
    claim: float = 0.0,
    convention: Convention = "torchvision",
) -> Tensor:
    """The box (n, 4) that each anchor (A, 4) is to find: (A) numbers of boxes, `BACKGROUND` or `IGNORED`.

    An anchor takes the box it overlaps most if their intersection over union is at least `positive`; it is background below
    `negative` and is ignored in between. Besides, every box that overlaps some anchor by at least `claim` gets those anchors that
    overlap it most: to find this box (mmdetection; of two boxes the later one), or the one they overlap most (torchvision).
    """
    if not len(boxes):
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    overlaps = box_iou(boxes, anchors)
    best, nearest = overlaps.max(dim=0)
    found = torch.where(best >= positive, nearest, IGNORED)
    found[best < negative] = BACKGROUND
    most = overlaps.max(dim=1, keepdim=True).values
    claims = (overlaps == most) & (most >= claim)
    claimed = claims.any(dim=0)
    if convention == "torchvision":
        return torch.where(claimed, nearest, found)
    last = len(boxes) - 1 - claims.flip(0).to(torch.uint8).argmax(dim=0)
    return torch.where(claimed, last, found)


def encode(boxes: Tensor, anchors: Tensor, deviations: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes (..., 4) as differences to anchors (..., 4): of centres, over the anchor's sides, and logarithms of sides."""
    centre, side = _centre(anchors)
    box_centre, box_side = _centre(boxes)
    found = torch.cat(((box_centre - centre) / side, (box_side / side).log()), dim=-1)
    return found / found.new_tensor(deviations)


def decode(
    differences: Tensor,
    anchors: Tensor,
    deviations: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    convention: Convention = "torchvision",
) -> Tensor:
    """The boxes (..., 4) that `encode` would have made these differences from; sides are at most 62.5 times the anchor's.

    With the convention of mmdetection they are at least 1/62.5 of the anchor's, too.
    """
    centre, side = _centre(anchors)
    differences = differences * differences.new_tensor(deviations)
    smallest = -_LARGEST if convention == "mmdetection" else -math.inf
    half = side * differences[..., 2:].clamp(smallest, _LARGEST).exp() / 2
    centre = centre + side * differences[..., :2]
    return torch.cat((centre - half, centre + half), dim=-1)


def _centre(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low
