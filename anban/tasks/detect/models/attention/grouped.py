"""Attention over sets of keys: the definition with a dense mask, and the same in groups without the N x N matrix.

Tokens are numbered 0..N-1. A sparse attention is given to `attend` as *parts*. In every part each token asks once, in one group,
and a group of queries shares its keys; the keys that a token has in different parts are different ones. The parts are computed
one by one and joined by the sums of their exponentials, as Rabe and Staats do ("Self-attention does not need O(n^2) memory",
2021, section 3): the result is one softmax over the union of the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Part(NamedTuple):
    """Groups of queries with the keys they share.

    Leading dimensions are absent, or (batch, heads) where the groups follow from the data. The token number N stands for
    nobody: it fills groups up.

    Attributes:
        queries: token numbers (..., groups, q); every token exactly once.
        keys: token numbers (..., groups, k).
        allowed: (..., groups, q, k), false where a query does not see a key; None: all see all, and nobody fills up.
    """

    queries: Tensor
    keys: Tensor
    allowed: Tensor | None

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that are computed, per image and head; those that are masked count."""
        return self.queries.shape[-2] * self.queries.shape[-1] * self.keys.shape[-1]


def weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The attention matrix (B, heads, N, M) by its definition: softmax over the keys that `mask` (..., N, M) lets through.

    Args:
        mask: of bool; one of floats is added to the logits.
    """
    logits = scale * q @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, parts: Sequence[Part], scale: float, dropout: float = 0.0
) -> Tensor:
    """What the tokens read, (B, heads, N, d), from the keys and values (B, heads, N, d) that the parts give them.

    Args:
        dropout: share of attention weights that is dropped.
    """
    q, k, v = (F.pad(x, (0, 0, 0, 1)) for x in (q, k, v))  # token N, nobody
    if len(parts) == 1:
        read, _ = _one(q, k, v, parts[0], scale, dropout, fused=True)
        return read
    reads, sums = zip(*(_one(q, k, v, part, scale, dropout) for part in parts), strict=True)
    shares = torch.stack(sums).softmax(dim=0)
    return (shares.unsqueeze(-1) * torch.stack(reads)).sum(dim=0)


def _one(
    q: Tensor, k: Tensor, v: Tensor, part: Part, scale: float, dropout: float, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """Reads (B, heads, N, d) of one part and the logarithms (B, heads, N) of their sums; the latter are empty if `fused`."""
    queries, keys, values = _take(q, part.queries), _take(k, part.keys), _take(v, part.keys)
    # A finite floor: groups may have queries without any key, and infinities would make them NaN.
    floor, allowed = torch.finfo(q.dtype).min, part.allowed
    sums = q.new_empty(0)
    if fused:
        bias = None
        if allowed is not None:
            allowed = allowed.flatten(0, 1) if allowed.ndim == 5 else allowed
            bias = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device).masked_fill(~allowed, floor)
        queries, keys, values = (x.flatten(0, 1) for x in (queries, keys, values))
        read = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias, dropout_p=dropout, scale=scale
        )
        read = read.reshape(*q.shape[:2], *read.shape[1:])
    else:
        logits = scale * queries @ keys.transpose(-2, -1)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, floor)
        read = F.dropout(logits.softmax(dim=-1), dropout) @ values
        sums = logits.logsumexp(dim=-1).flatten(2)
    where = part.queries.flatten(-2).argsort(dim=-1)[..., : q.shape[2] - 1]
    read = _take(read.flatten(2, 3), where)
    return read, sums if fused else _take(sums.unsqueeze(-1), where).squeeze(-1)


def _take(x: Tensor, numbers: Tensor) -> Tensor:
    """Rows of x (B, heads, N, d) by number: (groups, n), or with leading (B, heads) -> (B, heads, groups, n, d)."""
    if numbers.ndim <= 2:
        return x[:, :, numbers]
    rows = numbers.flatten(2).unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, rows).reshape(*numbers.shape, x.shape[-1])
