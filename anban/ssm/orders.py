"""The orders in which the pixels of an image can be read as one sequence.

Every order that keeps neighbours together is one `Walk`: a start, a step from pixel to pixel, and a jump from one line to the
next. Scanning along a walk needs no flipped or transposed copy of the image (cross-scan of VMamba, arXiv 2401.10166,
section 4.2): four directions are four walks over the same memory.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from anban.errors import InputError


class Walk(NamedTuple):
    """Position t of the sequence stands on pixel `start + (t // count) * jump + (t % count) * step` (row-major index)."""

    start: int
    step: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    jump: int

    def pixel(self, t: int) -> int:
        line, place = divmod(t, self.count)
        return self.start + line * self.jump + place * self.step


ORDERS = (
    "row",  # left to right, lines from top to bottom
    "row-reversed",  # the same backwards
    "row-leftward",  # every line from right to left, lines from top to bottom
    "row-upward",  # left to right, lines from bottom to top
    "column",  # top to bottom, columns from left to right
    "column-reversed",  # the same backwards
    "column-leftward",  # top to bottom, columns from right to left: the image turned by 90 degrees counter-clockwise
    "column-upward",  # bottom to top, columns from left to right: the image turned by 90 degrees clockwise
)

CROSS = ("row", "column", "row-reversed", "column-reversed")
"""VMamba's cross-scan."""
UNIDIRECTIONAL = ("row",) * 4
"""VMamba's `v051d`: the same order four times, with four sets of weights."""
BIDIRECTIONAL = ("row", "row", "row-reversed", "row-reversed")
"""VMamba's `v052d`."""
ROTATED = ("row", "column-leftward", "row-reversed", "column-upward")
"""VMamba's `v052d3`: the image turned by 0, 90, 180 and 270 degrees."""

OBLIQUE = {
    "diagonal": ("column", 1),  # down and to the right; on the right border it goes on at the left one
    "diagonal-reversed": ("column-reversed", 1),  # the same backwards
    "antidiagonal": ("column", -1),  # down and to the left; on the left border it goes on at the right one
    "antidiagonal-reversed": ("column-reversed", -1),  # the same backwards
}
"""Orders that are no walk, but one over a sheared image: order -> (that walk, how far to shear)."""
OMNIDIRECTIONAL = (*CROSS, "diagonal", "antidiagonal", "diagonal-reversed", "antidiagonal-reversed")
"""RS-Mamba's omnidirectional scan (arXiv 2404.02668, section III-C)."""


def walk(order: str, height: int, width: int) -> Walk:
    """The walk of one of `ORDERS` over an image of `height` x `width` pixels.

    Raises:
        InputError: no such order.
    """
    last, corner = height * width - 1, (height - 1) * width
    walks = {
        "row": Walk(0, 1, width, width),
        "row-reversed": Walk(last, -1, width, -width),
        "row-leftward": Walk(width - 1, -1, width, width),
        "row-upward": Walk(corner, 1, width, -width),
        "column": Walk(0, width, height, 1),
        "column-reversed": Walk(last, -width, height, -1),
        "column-leftward": Walk(width - 1, width, height, -1),
        "column-upward": Walk(corner, -width, height, 1),
    }
    if order not in walks:
        raise unknown(order)
    return walks[order]


def unknown(order: str) -> InputError:
    """What to raise for an order that is none."""
    return InputError(f"no scan order is called {order!r}", expected=f"one of {', '.join(ORDERS)}")


@functools.lru_cache(1024)
def walks(orders: tuple[str, ...], height: int, width: int) -> tuple[Walk, ...]:
    """The walks of several orders."""
    return tuple(walk(order, height, width) for order in orders)


class Sheared(NamedTuple):
    """Orders that are walks over one sheared image.

    Attributes:
        columns: how far to shear it; 0 leaves it as it is.
        members: which of the orders these are, to index parameters with.
        walks: their names over the sheared image.
    """

    columns: int
    members: slice | list[int]
    walks: tuple[str, ...]


@functools.lru_cache(64)
def by_shear(orders: tuple[str, ...]) -> tuple[Sheared, ...]:
    """Several orders, oblique ones among them, in groups that share a sheared image."""
    straight = [OBLIQUE.get(order, (order, 0)) for order in orders]
    groups = []
    for shear in dict.fromkeys(columns for _, columns in straight):
        members = [k for k, (_, columns) in enumerate(straight) if columns == shear]
        own = tuple(straight[k][0] for k in members)
        groups.append(Sheared(shear, slice(None) if own == orders else members, own))
    return tuple(groups)


def sheared(image: Tensor, columns: int) -> Tensor:
    """Move every line `columns` further to the left than the line above; what leaves comes in again on the other side.

    Args:
        image: (batch, H, W, C).
    """
    if columns == 0:
        return image
    height, width = image.shape[1:3]
    line, column = torch.arange(height, device=image.device), torch.arange(width, device=image.device)
    pixels = line[:, None] * width + (column + columns * line[:, None]) % width
    return image.flatten(1, 2).index_select(1, pixels.flatten()).view(image.shape)
