"""Self-attention of the tokens of a map: one frame, and the ways in which it is made cheaper.

A layer takes tokens (B, N, C), row by row, and the size (H, W) of their map. It computes them in the cheapest way it knows;
`reference` computes the same by the definition, with the attention matrix that `weights` returns.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError
from anban.tasks.detect.models.attention import grouped
from anban.tasks.detect.models.attention.grouped import Part
from anban.tasks.detect.models.attention.patterns import Lines, Pattern, log_mask

Size = tuple[int, int]


def to_map(x: Tensor, size: Size) -> Tensor:
    """Tokens (B, N, C) as the map (B, C, H, W) whose pixels they are."""
    return x.transpose(1, 2).reshape(len(x), -1, *size)


class SelfAttention(nn.Module):
    """Every token sees every token; the frame of all others.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.

    Args:
        width: channels C.
        heads: which share them.
        bias: whether queries, keys and values have one.
        scale: of the logits; None: one over the root of a head's width.
        dropout: share of the output that is dropped.
        attention_dropout: share of attention weights dropped; `weights` and `reference` drop none.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.width, self.heads = width, heads
        self.scale = scale or (width // heads) ** -0.5
        self.attention_dropout = attention_dropout
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(width, width, bias=bias)
        self.to_v = nn.Linear(width, width, bias=bias)
        self.to_out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Tokens (B, N, C) of a map of `size` (H, W) -> (B, N, C)."""
        return self._join(self._read(*self._project(x, size), size))

    def reference(self, x: Tensor, size: Size) -> Tensor:
        """What `forward` returns without dropout, computed by the definition: memory for N x N weights per head."""
        q, k, v = self._project(x, size)
        return self._join(grouped.weights(q, k, self._mask(q, size), self.scale) @ v)

    def weights(self, x: Tensor, size: Size) -> Tensor:
        """The attention matrix (B, heads, N, M); its rows add up to one."""
        q, k, _ = self._project(x, size)
        return grouped.weights(q, k, self._mask(q, size), self.scale)

    def seen(self, x: Tensor, size: Size) -> Tensor | None:
        """Which keys a token sees, (..., N, M); None: all."""
        mask = self._mask(self._project(x, size)[0], size)
        return mask if mask is not None and mask.dtype == torch.bool else None

    def origins(self, size: Size) -> Tensor | None:
        """The share that each token has in each key, (M, N), whose rows add up to one; None: a key is a token."""
        return None

    def macs(self, size: Size) -> int:
        """Multiply-adds of one image, matrix products and convolutions, as computed: what is masked in a group counts."""
        tokens, memory = size[0] * size[1], self._memory_tokens(size)
        projections = (2 * tokens + 2 * memory) * self.width**2
        return projections + 2 * self._pairs(size) * self.width + self._extra_macs(size)

    def _project(self, x: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, N or M, d)."""
        memory = self._memory(x, size)
        return self._split(self.to_q(x)), self._split(self.to_k(memory)), self._split(self.to_v(memory))

    def _read(self, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self._dropped(), scale=self.scale)

    def _memory(self, x: Tensor, size: Size) -> Tensor:
        """What keys and values are taken from, (B, M, C)."""
        return x

    def _memory_tokens(self, size: Size) -> int:
        return size[0] * size[1]

    def _mask(self, q: Tensor, size: Size) -> Tensor | None:
        """Which token sees which, (..., N, N) bool, or floats that are added to the logits; None: all."""
        return None

    def _pairs(self, size: Size) -> int:
        """Pairs of a query and a key that are computed, per head."""
        return size[0] * size[1] * self._memory_tokens(size)

    def _extra_macs(self, size: Size) -> int:
        return 0

    def _dropped(self) -> float:
        return self.attention_dropout if self.training else 0.0

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def _join(self, read: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.to_out(read.transpose(1, 2).flatten(2)))
        return out


class Reduced(SelfAttention):
    """Keys and values from a map that a strided convolution has made smaller: PVT's spatial-reduction attention.

    Source: Wang et al., "Pyramid vision transformer", ICCV 2021, section 3.3; `Pooled` is the linear one of PVT v2.

    Args:
        reduction: by which each side is divided; 1 leaves the map, and the attention full.
        eps: of the norm of the smaller map.

    Raises:
        InputError: in a call, a side of the map is smaller than the reduction.
    """

    def __init__(self, width: int, heads: int, *, reduction: int, eps: float = 1e-5, **options: float | None):
        super().__init__(width, heads, **options)  # type: ignore[arg-type]
        self.reduction = reduction
        if reduction > 1:
            self.reduce = nn.Conv2d(width, width, kernel_size=reduction, stride=reduction)
            self.norm = nn.LayerNorm(width, eps=eps)

    def _memory(self, x: Tensor, size: Size) -> Tensor:
        if self.reduction == 1:
            return x
        if min(size) < self.reduction:
            raise InputError(
                f"a map of {size[0]}x{size[1]} cannot be reduced by {self.reduction}",
                expected=f"sides of at least {self.reduction}",
                do="enlarge the images, or lower the reductions",
            )
        reduced = self.reduce(to_map(x, size))
        memory: Tensor = self.norm(reduced.flatten(2).transpose(1, 2))
        return memory

    def origins(self, size: Size) -> Tensor | None:
        """Tokens that the convolution joins share alike; those left over at the border are in no key."""
        if self.reduction == 1:
            return None
        rows, columns = (_joined(side, self.reduction) for side in size)
        return torch.kron(rows, columns)

    def _memory_tokens(self, size: Size) -> int:
        return (size[0] // self.reduction) * (size[1] // self.reduction)

    def _extra_macs(self, size: Size) -> int:
        if self.reduction == 1:
            return 0
        return self._memory_tokens(size) * self.reduction**2 * self.width**2


class Pooled(SelfAttention):
    """Keys and values from a map of fixed sides, made by mean pooling: cost grows linearly with the number of tokens.

    Source: Wang et al., "PVT v2: improved baselines with pyramid vision transformer", 2021, section 3.2, linear SRA.

    Args:
        pool: sides of the pooled map.
        eps: of its norm.
    """

    def __init__(self, width: int, heads: int, *, pool: int = 7, eps: float = 1e-5, **options: float | None):
        super().__init__(width, heads, **options)  # type: ignore[arg-type]
        self.pool = pool
        self.reduce = nn.Conv2d(width, width, kernel_size=1)
        self.norm = nn.LayerNorm(width, eps=eps)

    def _memory(self, x: Tensor, size: Size) -> Tensor:
        pooled = self.reduce(F.adaptive_avg_pool2d(to_map(x, size), self.pool))
        return F.gelu(self.norm(pooled.flatten(2).transpose(1, 2)))

    def origins(self, size: Size) -> Tensor | None:
        """Tokens that the mean joins share alike."""
        rows, columns = (_pooled(side, self.pool) for side in size)
        return torch.kron(rows, columns)

    def _memory_tokens(self, size: Size) -> int:
        return self.pool**2

    def _extra_macs(self, size: Size) -> int:
        return self.pool**2 * self.width**2


def _joined(side: int, reduction: int) -> Tensor:
    """The tokens of a side in the keys of a convolution of that kernel and stride, (side // reduction, side)."""
    keys = torch.eye(side // reduction).repeat_interleave(reduction, dim=1) / reduction
    return F.pad(keys, (0, side % reduction))


def _pooled(side: int, pool: int) -> Tensor:
    """The tokens of a side in its means, (pool, side): the matrix of the pooling."""
    return F.adaptive_avg_pool1d(torch.eye(side), pool).T.contiguous()


class Patterned(SelfAttention):
    """A token sees those that a pattern names.

    Args:
        pattern: of `anban.tasks.detect.models.attention.patterns`, where their sources are.
    """

    def __init__(self, width: int, heads: int, *, pattern: Pattern, **options: float | None):
        super().__init__(width, heads, **options)  # type: ignore[arg-type]
        self.pattern = pattern

    def _read(self, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
        parts = [_to(part, q.device) for part in self.pattern.parts(*size)]
        return grouped.attend(q, k, v, parts, self.scale, self._dropped())

    def _mask(self, q: Tensor, size: Size) -> Tensor | None:
        return self.pattern.mask(*size).to(q.device)

    def _pairs(self, size: Size) -> int:
        return sum(part.pairs for part in self.pattern.parts(*size))


class Axial(nn.Module):
    """The sum of two attentions with weights of their own: along the rows and along the columns.

    Source: Ho et al., "Axial attention in multidimensional transformers", 2019; summed as in VideoGPT
    (github.com/wilson1yan/VideoGPT, `AxialBlock`).

    Args:
        width: channels C.
        heads: of either.
        options: as of `SelfAttention`.
    """

    def __init__(self, width: int, heads: int, **options: float | None):
        super().__init__()
        self.row = Patterned(width, heads, pattern=Lines("row"), **options)
        self.column = Patterned(width, heads, pattern=Lines("column"), **options)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Tokens (B, N, C) of a map of `size` (H, W) -> (B, N, C)."""
        out: Tensor = self.row(x, size) + self.column(x, size)
        return out

    def reference(self, x: Tensor, size: Size) -> Tensor:
        """What `forward` returns without dropout, by the definition."""
        return self.row.reference(x, size) + self.column.reference(x, size)

    def weights(self, x: Tensor, size: Size) -> Tensor:
        """The mean of the two attention matrices, (B, heads, N, N)."""
        return (self.row.weights(x, size) + self.column.weights(x, size)) / 2

    def seen(self, x: Tensor, size: Size) -> Tensor | None:
        """The own row and the own column, (N, N)."""
        row, column = self.row.seen(x, size), self.column.seen(x, size)
        assert row is not None
        assert column is not None
        return row | column

    def origins(self, size: Size) -> Tensor | None:
        """A key is a token."""
        return None

    def macs(self, size: Size) -> int:
        """Multiply-adds of one image."""
        return self.row.macs(size) + self.column.macs(size)


class LogSparseAttention(SelfAttention):
    """Log-sparse attention whose queries and keys a causal convolution over the tokens prepares.

    Source: Li et al., NeurIPS 2019, sections 4.1 and 4.2; with the arrangement of the AtrousLSHTransformer's release
    (github.com/iredawen/AtrousLSHTransformer, `SpatialReductionAttention_ss`), where queries and keys are projected once more.

    Args:
        stretch: length after which the pattern repeats itself.
        taps: tokens that the convolution looks at: a token and those before it.
        mask: "masked", or "added" as in the release: a seen token's logit is raised by 1, and nothing is masked.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        stretch: int = 8,
        taps: int = 8,
        mask: Literal["masked", "added"] = "masked",
        **options: float | None,
    ):
        super().__init__(width, heads, **options)  # type: ignore[arg-type]
        self.stretch, self.taps, self.mask = stretch, taps, mask
        self.causal = nn.Conv1d(width, 2 * width, kernel_size=taps)

    def _project(self, x: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        before = F.pad(x.transpose(1, 2), (self.taps - 1, 0))
        q, k = self.causal(before).transpose(1, 2).chunk(2, dim=-1)
        return self._split(self.to_q(q)), self._split(self.to_k(k)), self._split(self.to_v(x))

    def _read(self, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=self._mask(q, size), dropout_p=self._dropped(), scale=self.scale
        )

    def _pairs(self, size: Size) -> int:
        return (size[0] * size[1]) ** 2

    def _mask(self, q: Tensor, size: Size) -> Tensor | None:
        tokens = size[0] * size[1]
        near = log_mask(tokens, self.stretch)
        if self.mask == "added":
            return near.to(q)
        return near.to(q.device) | torch.eye(tokens, dtype=torch.bool, device=q.device)

    def _extra_macs(self, size: Size) -> int:
        return size[0] * size[1] * self.taps * 2 * self.width**2


class LSH(SelfAttention):
    """A token sees those that a hash puts into the same bucket, near it when tokens are sorted by bucket.

    Source: Kitaev et al., "Reformer: the efficient transformer", ICLR 2020, section 2. Queries are keys (normalised). A hash
    takes the direction, of half as many random ones and their opposites as there are buckets, that a query is most like.
    Sorted by bucket, tokens are cut into chunks of twice a bucket's mean size; a token sees the tokens of its bucket in its own
    chunk and, there being no order in an image, in the chunk before and the one behind. Rounds of hashing are joined; itself a
    token sees only if there is nobody else. The directions are drawn once, with the layer's weights, and saved with them.

    Args:
        buckets: an even number.
        hashes: rounds.
    """

    directions: Tensor

    def __init__(
        self, width: int, heads: int, *, buckets: int = 16, hashes: int = 2, **options: float | None
    ):
        super().__init__(width, heads, **options)  # type: ignore[arg-type]
        del self.to_k
        self.buckets, self.hashes = buckets, hashes
        self.register_buffer("directions", torch.randn(hashes, width // heads, buckets // 2))

    def _project(self, x: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        q = self._split(self.to_q(x))
        return q, F.normalize(q, dim=-1), self._split(self.to_v(x))

    def _read(self, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
        return grouped.attend(q, k, v, self._parts(q), self.scale, self._dropped())

    def _mask(self, q: Tensor, size: Size) -> Tensor | None:
        buckets, chunks, _ = self._hash(q)
        same = (buckets.unsqueeze(-1) == buckets.unsqueeze(-2)) & _near(
            chunks.unsqueeze(-1), chunks.unsqueeze(-2)
        )
        itself = torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
        seen = same.any(dim=2) & ~itself
        return seen | (itself & ~seen.any(dim=-1, keepdim=True))

    def _parts(self, q: Tensor) -> list[Part]:
        """One part per round, without the pairs of rounds before it."""
        buckets, chunks, orders = self._hash(q)
        tokens = q.shape[2]
        length = self._chunk(tokens)
        # A column for token N, nobody: no bucket is -1, no chunk is near to -9.
        buckets = F.pad(buckets, (0, 1), value=-1)
        chunks = F.pad(chunks, (0, 1), value=-9)
        parts, others = [], torch.zeros(q.shape[:3], dtype=torch.bool, device=q.device)
        for turn, order in enumerate(orders.unbind(2)):
            filled = F.pad(order, (0, -tokens % length), value=tokens)
            filled = filled.reshape(*order.shape[:2], -1, length)
            wide = F.pad(filled, (0, 0, 1, 1), value=tokens)
            keys = torch.cat((wide[:, :, :-2], filled, wide[:, :, 2:]), dim=-1)
            allowed = self._same(buckets, chunks, turn, filled, keys)
            for earlier in range(turn):
                allowed &= ~self._same(buckets, chunks, earlier, filled, keys)
            allowed &= filled.unsqueeze(-1) != keys.unsqueeze(-2)
            back = filled.flatten(2).argsort(dim=-1)[..., :tokens]
            others |= allowed.any(dim=-1).flatten(2).gather(2, back)
            parts.append(Part(filled, keys, allowed))
        queries, keys, seen = parts[0]
        assert seen is not None
        alone = _of(F.pad(~others, (0, 1)), queries).unsqueeze(-1)
        itself = queries.unsqueeze(-1) == keys.unsqueeze(-2)
        return [Part(queries, keys, seen | (itself & alone)), *parts[1:]]

    @staticmethod
    def _same(buckets: Tensor, chunks: Tensor, turn: int, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether a round lets queries (B, heads, G, q) see keys (B, heads, G, k): (B, heads, G, q, k)."""
        buckets, chunks = buckets[:, :, turn], chunks[:, :, turn]
        same = _of(buckets, queries).unsqueeze(-1) == _of(buckets, keys).unsqueeze(-2)
        return same & _near(_of(chunks, queries).unsqueeze(-1), _of(chunks, keys).unsqueeze(-2))

    def _hash(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bucket and chunk of every token, and the tokens sorted by bucket: (B, heads, hashes, N) each."""
        likeness = q.detach().unsqueeze(2) @ self.directions.to(q.dtype)
        buckets = torch.cat((likeness, -likeness), dim=-1).argmax(dim=-1)
        orders = buckets.argsort(dim=-1, stable=True)
        return buckets, orders.argsort(dim=-1) // self._chunk(q.shape[2]), orders

    def _chunk(self, tokens: int) -> int:
        return 2 * -(-tokens // self.buckets)

    def _pairs(self, size: Size) -> int:
        tokens = size[0] * size[1]
        length = self._chunk(tokens)
        return self.hashes * -(-tokens // length) * length * 3 * length

    def _extra_macs(self, size: Size) -> int:
        tokens = size[0] * size[1]
        # queries are keys: one projection less
        return tokens * self.width * self.hashes * self.buckets // 2 - tokens * self.width**2


def _of(values: Tensor, numbers: Tensor) -> Tensor:
    """Values (B, heads, N) of the tokens of these numbers (B, heads, G, n)."""
    return values.gather(2, numbers.flatten(2)).reshape(numbers.shape)


def _near(a: Tensor, b: Tensor) -> Tensor:
    """The same chunk, or neighbours."""
    return (a - b).abs() <= 1


def _to(part: Part, device: torch.device) -> Part:
    queries, keys, allowed = part
    return Part(queries.to(device), keys.to(device), allowed if allowed is None else allowed.to(device))
