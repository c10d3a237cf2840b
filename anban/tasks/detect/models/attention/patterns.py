"""Which token of a map sees which: each pattern by its definition, a mask, and by the groups in which it is computed.

Tokens are the pixels of a map, row by row. Nothing is causal: an image has no earlier and later, so patterns of the sources that
look back look both ways here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from anban.tasks.detect.models.attention.grouped import Part

Rule = Callable[[Tensor, Tensor], Tensor]


class Pattern(Protocol):
    """A rule for maps of any size."""

    def mask(self, height: int, width: int) -> Tensor:
        """(N, N) bool: token i sees token j. This is the definition."""

    def parts(self, height: int, width: int) -> list[Part]:
        """The same, as `grouped.attend` computes it."""


@dataclass(frozen=True)
class Lines:
    """A token sees its row, or its column: one half of axial attention.

    Source: Ho et al., "Axial attention in multidimensional transformers", 2019, section 3; as in VideoGPT
    (github.com/wilson1yan/VideoGPT, `AxialAttention`).
    """

    along: Literal["row", "column"]

    def mask(self, height: int, width: int) -> Tensor:
        """Same row, or same column."""
        tokens = torch.arange(height * width)
        line = tokens // width if self.along == "row" else tokens % width
        return _each(line, torch.eq)

    def parts(self, height: int, width: int) -> list[Part]:
        """A group is a line."""
        tokens = torch.arange(height * width).view(height, width)
        lines = tokens if self.along == "row" else tokens.T.contiguous()
        return [Part(lines, lines, None)]


@dataclass(frozen=True)
class Atrous:
    """A token sees those at distances that are multiples of a rate, the attention counterpart of a dilated convolution.

    Source: Su, github.com/bojone/attention, `AtrousSelfAttention`, for a sequence of tokens; with `axes` 2 the rate holds along
    rows and along columns.
    """

    rate: int
    axes: Literal[1, 2] = 1

    def mask(self, height: int, width: int) -> Tensor:
        """Distances that are multiples of the rate, in the sequence or along both axes."""
        tokens = torch.arange(height * width)
        if self.axes == 1:
            return _each(tokens, lambda i, j: (i - j) % self.rate == 0)
        rows, columns = tokens // width, tokens % width
        return _each(rows, lambda i, j: (i - j) % self.rate == 0) & _each(
            columns, lambda i, j: (i - j) % self.rate == 0
        )

    def parts(self, height: int, width: int) -> list[Part]:
        """A group is the tokens of one residue."""
        tokens = height * width
        if self.axes == 1:
            groups = _rows(tokens, self.rate).T
        else:
            rows, columns = _rows(height, self.rate).T, _rows(width, self.rate).T
            grid = rows[:, None, :, None] * width + columns[None, :, None, :]
            outside = (rows[:, None, :, None] >= height) | (columns[None, :, None, :] >= width)
            groups = grid.masked_fill(outside, tokens).flatten(2).flatten(0, 1)
        return [_part(groups, groups, tokens)]


@dataclass(frozen=True)
class Strided:
    """A token sees a window around it and every stride-th token.

    Source: Child et al., "Generating long sequences with sparse transformers", 2019, section 4.3, "strided"; in blocks of
    tokens as in VideoGPT (`StridedSparsityConfig`), where a stride is one row of the map. Both heads of the paper's pattern are
    merged into one ("merged head", section 4.2).

    Attributes:
        stride: in blocks; None: as many as make a row of the map.
        window: blocks nearer than this are seen, on both sides; None: one stride.
        block: tokens of a block.
    """

    stride: int | None = None
    window: int | None = None
    block: int = 1

    def mask(self, height: int, width: int) -> Tensor:
        """Blocks nearer than the window, or at a multiple of the stride."""
        stride, window = self._steps(width)
        blocks = torch.arange(height * width) // self.block
        return _each(blocks, lambda i, j: ((i - j).abs() < window) | ((i - j) % stride == 0))

    def parts(self, height: int, width: int) -> list[Part]:
        """Blocks of one residue; then blocks in rows of a window's length, which see their row and both neighbours."""
        tokens = height * width
        stride, window = self._steps(width)
        blocks = math.ceil(tokens / self.block)
        columns = _rows(blocks, stride).T
        parts = [_part(columns, columns, tokens, self.block)]
        if window > 1:
            starts = torch.arange(0, blocks, window)[:, None]
            around = starts + torch.arange(-window, 2 * window)
            around = around.masked_fill((around < 0) | (around > blocks), blocks)
            rows = around[:, window : 2 * window]
            parts.append(
                _part(
                    rows,
                    around,
                    tokens,
                    self.block,
                    lambda i, j: ((i - j).abs() < window) & ((i - j) % stride != 0),
                )
            )
        return parts

    def _steps(self, width: int) -> tuple[int, int]:
        stride = self.stride or math.ceil(width / self.block)
        return stride, self.window or stride


@dataclass(frozen=True)
class Fixed:
    """A token sees its own stretch of a stride's length, and the last blocks of every stretch, which sum it up.

    Source: Child et al., 2019, section 4.3, "fixed"; in blocks of tokens as in torch-blocksparse
    (github.com/ptillet/torch-blocksparse, `DeepSpeedSparseSelfAttention`, mode "fixed", both directions).

    Attributes:
        stride: in blocks; None: as many as make a row of the map.
        summary: last blocks of a stretch that all see (c of the paper).
        block: tokens of a block.
    """

    stride: int | None = None
    summary: int = 1
    block: int = 1

    def mask(self, height: int, width: int) -> Tensor:
        """Blocks of the same stretch, or among the last of any."""
        stride = self.stride or math.ceil(width / self.block)
        blocks = torch.arange(height * width) // self.block
        return _each(
            blocks, lambda i, j: (i // stride == j // stride) | (j % stride >= stride - self.summary)
        )

    def parts(self, height: int, width: int) -> list[Part]:
        """Stretches; then one group of all tokens, with the last blocks of the stretches that are not their own."""
        tokens = height * width
        stride = self.stride or math.ceil(width / self.block)
        blocks = torch.arange(math.ceil(tokens / self.block))
        stretches = _rows(len(blocks), stride)
        parts = [_part(stretches, stretches, tokens, self.block)]
        last = blocks[blocks % stride >= stride - self.summary]
        if len(last):
            parts.append(
                _part(blocks[None], last[None], tokens, self.block, lambda i, j: i // stride != j // stride)
            )
        return parts


def log_mask(tokens: int, stretch: int) -> Tensor:
    """The log-sparse mask of the AtrousLSHTransformer's release, (tokens, tokens) bool, row i for what token i sees.

    Near tokens are seen all, far ones at distances that grow, again in every stretch: Li et al., "Enhancing the locality and
    breaking the memory bottleneck of transformer on time series forecasting", NeurIPS 2019, section 4.2, as the release reads it.
    In places a row leaves its own token out.

    With l = ceil(log2(stretch)), the first (tokens // stretch) * 2 * l rows see all up to themselves. A later row sees, from its
    own token downwards in steps of a stretch, the l tokens that end there and those 1, 2, 4, ... further back that are within a
    stretch; a step that would begin before the first token ends the row with all tokens before its own.
    """
    length = math.ceil(math.log2(stretch))
    seen = torch.zeros(stretch + 1, dtype=torch.bool)  # distances from where a step ends
    seen[:length] = True
    for power in range(length):
        if length - 1 + 2**power <= stretch:
            seen[length - 1 + 2**power] = True
    # In the first columns a step may begin before the first token. Behind them the distance alone counts: every column is the
    # one before, moved down. That is far quicker than the rule for all pairs.
    edge = min(max(length - 1, 0), tokens - 1)
    i, j = torch.arange(tokens)[:, None], torch.arange(edge + 1)[None, :]
    distance, start = i - j, i % stretch
    first = seen[distance % stretch] & (j + distance % stretch >= length - 1)
    first |= seen[stretch] & (distance % stretch == 0) & (distance >= stretch)
    first |= (start < length - 1) & (j < start)
    first &= distance >= 0
    column = first[edge:, edge]
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    mask[:, :edge] = first[:, :edge]
    mask[edge:, edge:] = (
        torch.cat((column.flip(0), torch.zeros_like(column[1:]))).unfold(0, len(column), 1).flip(0)
    )
    dense = (tokens // stretch) * 2 * length
    mask[:dense] = torch.ones_like(mask[:dense]).tril()
    return mask


def _each(numbers: Tensor, rule: Rule) -> Tensor:
    """The rule for all pairs of `numbers` (N) -> (N, N)."""
    return rule(numbers[:, None], numbers[None, :])


def _rows(count: int, length: int) -> Tensor:
    """0..count-1 in rows of `length`; `count` itself fills the last row up."""
    numbers = torch.arange(math.ceil(count / length) * length).clamp(max=count)
    return numbers.view(-1, length)


def _part(queries: Tensor, keys: Tensor, tokens: int, block: int = 1, rule: Rule | None = None) -> Part:
    """Groups of blocks (groups, n) as a part of tokens; `rule` says which block sees which, all if there is none."""
    full = torch.arange(block)
    queries, keys = (
        (blocks.unsqueeze(-1) * block + full).flatten(-2).clamp(max=tokens) for blocks in (queries, keys)
    )
    if rule is None and keys.numel() == queries.numel() == tokens:
        return Part(queries, keys, None)
    allowed = (keys < tokens).unsqueeze(-2).expand(-1, queries.shape[-1], -1)
    if rule is not None:
        allowed = allowed & rule(queries.unsqueeze(-1) // block, keys.unsqueeze(-2) // block)
    return Part(queries, keys, allowed)
