"""Attention within a map and between two maps, over channels or over positions, and the blocks around it.

Sources: Zamir et al., "Restormer: efficient transformer for high-resolution image restoration", CVPR 2022,
sections 3.1 and 3.2, for attention over channels and the gated feed-forward part; the forms between two
branches are those of the diary's code.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError
from anban.ssm.vmamba.layers import LayerNorm2d
from anban.tasks.denoise.models.settings import Attention


class _Heads(nn.Module):
    """Queries, keys and values of a map, (B, heads, C / heads, H W) each; queries and keys have length 1."""

    def __init__(self, width: int, heads: int, *, bias: bool):
        super().__init__()
        if width % heads:
            raise InputError(f"{width} channels cannot be shared by {heads} heads", where="attention.heads")
        self.heads = heads
        self.qkv = nn.Conv2d(width, 3 * width, kernel_size=1, bias=bias)
        self.local = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width, bias=bias)
        self.out = nn.Conv2d(width, width, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            part.reshape(x.shape[0], self.heads, -1, x.shape[2] * x.shape[3])
            for part in self.local(self.qkv(x)).chunk(3, dim=1)
        )
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v


def _over_channels(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, shape: torch.Size) -> Tensor:
    """Every channel of a head as a mean of the values' channels, as a map of the given shape."""
    return (((q @ k.mT) * temperature).softmax(dim=-1) @ v).reshape(shape)


class MDTA(nn.Module):
    """Restormer's multi-head transposed attention: a channel attends to the channels of its head.

    Args:
        width: channels, in and out.
        heads: must divide `width`.
        bias: of the convolutions.

    Raises:
        InputError: the heads do not divide the channels.
    """

    def __init__(self, width: int, heads: int = 4, *, bias: bool = False):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.heads = _Heads(width, heads, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        attended: Tensor = self.heads.out(_over_channels(q, k, v, self.temperature, x.shape))
        return attended


class CrossChannelAttention(nn.Module):
    """The same between two maps `a` and `b` of equal shape, in both directions: -> what becomes of a, what
    becomes of b.

    Args:
        width, heads, bias: as in `MDTA`.
        values: "other": a's queries look at b's keys and a gets b's values; "own": b's queries look at a's
            keys and a gets its own values, as the diary's code has it.
    """

    def __init__(
        self, width: int, heads: int = 4, *, bias: bool = False, values: Literal["other", "own"] = "other"
    ):
        super().__init__()
        self.values = values
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.a = _Heads(width, heads, bias=bias)
        self.b = _Heads(width, heads, bias=bias)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        (q_a, k_a, v_a), (q_b, k_b, v_b) = self.a(a), self.b(b)
        of_a = _over_channels(q_b, k_a, v_a, self.temperature, a.shape)
        of_b = _over_channels(q_a, k_b, v_b, self.temperature, b.shape)
        to_a, to_b = (of_a, of_b) if self.values == "own" else (of_b, of_a)
        return self.a.out(to_a), self.b.out(to_b)


class PositionAttention(nn.Module):
    """Plain multi-head self-attention of tokens: (B, L, width) -> the same.

    Args:
        width: of a token.
        hidden: of the queries, keys and values together; None for `width`.
        heads: must divide `hidden`.

    Raises:
        InputError: the heads do not divide the channels.
    """

    def __init__(self, width: int, heads: int, hidden: int | None = None):
        super().__init__()
        hidden = hidden or width
        if hidden % heads:
            raise InputError(f"{hidden} channels cannot be shared by {heads} heads", where="attention.heads")
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, hidden) for _ in range(3))
        self.out = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (_split(layer(tokens), self.heads) for layer in (self.q, self.k, self.v))
        attended: Tensor = self.out(_joined(F.scaled_dot_product_attention(q, k, v)))
        return attended


class CrossPositionAttention(nn.Module):
    """Two sequences attend to each other by one matrix of similarities: (B, L, width), (B, M, context) -> the
    same.

    Each has one projection that is query and key at once; the softmax runs along the other sequence for each
    of them.

    Args:
        width: of a token of the first sequence.
        context: of a token of the second one; None for `width`.
        heads, head_width: their product is the width of the projections.
        dropout: of the weights, in training.
        talking_heads: mix the weights of the heads before they are used.
        norm: a layer norm before it all.
    """

    def __init__(
        self,
        width: int,
        context: int | None = None,
        heads: int = 8,
        head_width: int = 64,
        *,
        dropout: float = 0.0,
        talking_heads: bool = False,
        norm: bool = False,
    ):
        super().__init__()
        self.heads, self.scale = heads, head_width**-0.5
        widths, hidden = (width, context or width), heads * head_width
        self.norm = nn.ModuleList(nn.LayerNorm(w) if norm else nn.Identity() for w in widths)
        self.qk = nn.ModuleList(nn.Linear(w, hidden, bias=False) for w in widths)
        self.v = nn.ModuleList(nn.Linear(w, hidden, bias=False) for w in widths)
        self.talk = nn.ModuleList(
            nn.Conv2d(heads, heads, kernel_size=1, bias=False) if talking_heads else nn.Identity()
            for _ in widths
        )
        self.out = nn.ModuleList(nn.Linear(hidden, w) for w in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        tokens = [norm(x) for norm, x in zip(self.norm, (a, b), strict=True)]
        qk_a, qk_b = (_split(layer(x), self.heads) for layer, x in zip(self.qk, tokens, strict=True))
        v_a, v_b = (_split(layer(x), self.heads) for layer, x in zip(self.v, tokens, strict=True))
        similarity = (qk_a @ qk_b.mT) * self.scale
        weights_a, weights_b = (
            talk(self.dropout(s.softmax(dim=-1)))
            for talk, s in zip(self.talk, (similarity, similarity.mT), strict=True)
        )
        return self.out[0](_joined(weights_a @ v_b)), self.out[1](_joined(weights_b @ v_a))


def _split(tokens: Tensor, heads: int) -> Tensor:
    """(B, L, heads d) -> (B, heads, L, d)."""
    return tokens.reshape(*tokens.shape[:2], heads, -1).transpose(1, 2)


def _joined(tokens: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, heads d)."""
    return tokens.transpose(1, 2).flatten(2)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).mT


def _map(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.mT.reshape(like.shape)


class FeedForward(nn.Module):
    """Restormer's gated feed-forward part: one half of the channels, behind a GELU, times the other half.

    Args:
        width: channels, in and out.
        hidden: of either half.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.expand = nn.Conv2d(width, 2 * hidden, kernel_size=1, bias=False)
        self.local = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.reduce = nn.Conv2d(hidden, width, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.local(self.expand(x)).chunk(2, dim=1)
        y: Tensor = self.reduce(F.gelu(gate) * value)
        return y


def _norm(width: int, settings: Attention) -> nn.Module:
    return LayerNorm2d(width, eps=1e-6) if settings.norm else nn.Identity()


class SelfAttentionBlock(nn.Module):
    """Self-attention of a map (B, width, H, W), with norm, skip and feed-forward part as the settings say.

    Raises:
        InputError: the heads do not divide the channels.
    """

    def __init__(self, width: int, settings: Attention):
        super().__init__()
        self.over, self.skip = settings.over, settings.skip
        self.norm = _norm(width, settings)
        kind = {"channels": MDTA, "positions": PositionAttention}[settings.over]
        self.attention = kind(width, settings.heads)
        hidden = int(width * settings.expansion)
        self.feed_forward = (
            nn.Sequential(_norm(width, settings), FeedForward(width, hidden)) if hidden else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self._add(x, self._attend(self.norm(x)))
        return x if self.feed_forward is None else self._add(x, self.feed_forward(x))

    def _attend(self, x: Tensor) -> Tensor:
        attended: Tensor = (
            self.attention(x) if self.over == "channels" else _map(self.attention(_tokens(x)), like=x)
        )
        return attended

    def _add(self, x: Tensor, change: Tensor) -> Tensor:
        return x + change if self.skip else change


class CrossAttentionBlock(nn.Module):
    """Cross-attention of two maps (B, width, H, W), with norm and skip as the settings say: -> both, changed.

    Raises:
        InputError: the heads do not divide the channels.
    """

    def __init__(self, width: int, settings: Attention):
        super().__init__()
        self.skip = settings.skip
        self.norm_a, self.norm_b = _norm(width, settings), _norm(width, settings)
        self.attention: CrossChannelAttention | CrossPositionAttention
        if settings.over == "channels":
            self.attention = CrossChannelAttention(width, settings.heads, values=settings.values)
        else:
            self.attention = CrossPositionAttention(
                width, heads=settings.heads, head_width=max(1, width // settings.heads)
            )

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm_a(a), self.norm_b(b)
        if isinstance(self.attention, CrossChannelAttention):
            to_a, to_b = self.attention(*normed)
        else:
            to_a, to_b = (_map(x, like=a) for x in self.attention(*map(_tokens, normed)))
        return (a + to_a, b + to_b) if self.skip else (to_a, to_b)


class CrossAttentionBlocks(nn.ModuleList):
    """Cross-attention blocks in a row; without any, both maps pass."""

    def __init__(self, width: int, settings: Attention, layers: int):
        super().__init__(CrossAttentionBlock(width, settings) for _ in range(layers))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        for block in self:
            a, b = block(a, b)
        return a, b
