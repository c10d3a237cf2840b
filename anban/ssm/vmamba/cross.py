"""Cross-scan and cross-merge as separate steps: what `selective_scan_2d` does without writing the sequences to memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anban.errors import InputError
from anban.ssm.orders import CROSS, walks


def cross_scan(
    x: Tensor,
    orders: Sequence[str] = CROSS,
    *,
    channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
) -> Tensor:
    """Read the pixels of an image as K sequences.

    Args:
        x: (batch, C, H, W), or (batch, H, W, C) without `channel_first`; with `one_by_one` an image for every direction,
            (batch, K, C, H, W) or (batch, H, W, K, C).
        orders: K names of `anban.ssm.orders.ORDERS`.

    Returns:
        (batch, K, C, H * W), or (batch, H * W, K, C) without `out_channel_first`.

    Raises:
        InputError: x has another number of dimensions or of directions, or an order is unknown.
    """
    if not one_by_one:
        x = x.unsqueeze(1 if channel_first else 3) if x.dim() == 4 else x
    x = _directions_first(x, channel_first, len(orders), one_by_one)
    batch, _, channels, height, width = x.shape
    at = _pixels(orders, height, width, x.device)
    x = x.expand(batch, len(orders), channels, height, width).flatten(3)
    sequences = x.gather(3, at[None, :, None].expand(x.shape))
    return sequences if out_channel_first else sequences.permute(0, 3, 1, 2).contiguous()


def cross_merge(
    y: Tensor,
    orders: Sequence[str] = CROSS,
    *,
    channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
) -> Tensor:
    """Put K sequences back onto their pixels and add them up: the transpose of `cross_scan`, with the same arguments.

    Args:
        y: (batch, K, C, H, W), or (batch, H, W, K, C) without `out_channel_first`: sequences in scan order; H and W tell the
            size of the image.

    Returns:
        (batch, C, H * W), or (batch, H * W, C) without `channel_first`; with `one_by_one` not added up: (batch, K, C, H * W) or
        (batch, H * W, K, C).

    Raises:
        InputError: y has another number of dimensions or of directions, or an order is unknown.
    """
    y = _directions_first(y, out_channel_first, len(orders), True)
    *_, height, width = y.shape
    back = _pixels(orders, height, width, y.device).argsort(dim=1)
    y = y.flatten(3)
    images = y.gather(3, back[None, :, None].expand(y.shape))
    if one_by_one:
        return images if channel_first else images.permute(0, 3, 1, 2).contiguous()
    return images.sum(1) if channel_first else images.sum(1).transpose(1, 2).contiguous()


def _directions_first(x: Tensor, channel_first: bool, directions: int, own: bool) -> Tensor:
    """(batch, K or 1, C, H, W) from either layout."""
    turned = x if channel_first or x.dim() != 5 else x.permute(0, 3, 4, 1, 2)
    if turned.dim() != 5 or (own and turned.shape[1] != directions):
        layout = f"{directions}, C, H, W" if channel_first else f"H, W, {directions}, C"
        image = "C, H, W" if channel_first else "H, W, C"
        raise InputError(
            f"got {tuple(x.shape)} for {directions} directions",
            where="cross-scan and cross-merge",
            expected=f"(batch, {layout if own else image})",
        )
    return turned


def _pixels(orders: Sequence[str], height: int, width: int, device: torch.device) -> Tensor:
    """(K, H * W): the pixel at every place of every sequence."""
    t = torch.arange(height * width, device=device)
    return torch.stack(
        [w.start + t // w.count * w.jump + t % w.count * w.step for w in walks(tuple(orders), height, width)]
    )
