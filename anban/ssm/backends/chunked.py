"""The selective scan in plain torch for any device: few calls, each on as much as fits into the processor's caches.

A sequence is cut into segments of `STEPS` steps. Those of a chunk are scanned side by side, one `addcmul` per step, twice: first
from zero, to learn where each ends, then from the states that follow from it. A segment carries a state on by the exponential
of A times the sum of its steps, at most 1 where states decay; where they grow, the segments of the chunk are scanned one after
the other instead, so that nothing overflows that is finite by definition. Nothing is divided by a decay. The backward pass
recomputes the states of all segments from those saved before each.

Rows are (steps, segments, batch, K, d), states (steps, segments, batch, K, N, d): what one step touches is one block of memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anban.ssm.backends import Gradients, Problem, accumulator

STEPS = 16
_WIDTH = 2**15 - 1
"""Elements of one step of a chunk on a CPU: enough to hide what a call costs, few enough for the caches, and so few that torch
takes one thread for a step, which is too short to wait for a second one (and on a busy machine that wait is long)."""
_WIDTH_ELSEWHERE = 2**20
_GROWTH = 256.0
"""No segment may multiply a state by more if segments are to be scanned side by side."""


def unusable(device: torch.device, dtype: torch.dtype) -> str | None:
    """It runs everywhere."""
    return None


@torch.no_grad()
def forward(problem: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    reader = _Reader(problem)
    batch, pixels = problem.delta.shape[:2]
    directions, states, channels = reader.A.shape
    y, last = reader.empty(problem.delta.shape), reader.zeros((batch, *reader.A.shape))
    saved = reader.empty((batch, directions, -(-pixels // STEPS), states, channels) if save else (0,))
    for samples in reader.samples:
        entry = last[samples]
        for chunk in reader.chunks:
            rows = reader.read(samples, chunk)
            decays, h = reader.decays(rows), reader.inputs(rows)
            starts = _scan(h, decays, rows.products, entry)
            entry = h[-1, -1].clone()
            if save:
                saved[samples, :, chunk.segments] = starts.permute(1, 2, 0, 3, 4)
            out = _over_states(h.mul_(rows.C))
            rows.place.put(y, out if reader.D is None else out.addcmul_(rows.x, reader.D))
        last[samples] = entry
    return _merged(y, problem.x), last.mT.contiguous(), saved


@torch.no_grad()
def backward(problem: Problem, saved: Tensor, dy: Tensor, dlast: Tensor) -> Gradients:
    reader = _Reader(problem)
    dx, ddelta = reader.empty(problem.delta.shape), reader.empty(problem.delta.shape)
    dA, dB, dC = (reader.zeros(weight.shape) for weight in (reader.A, reader.B, reader.C))
    dD, dbias = (None if row is None else torch.zeros_like(row) for row in (reader.D, reader.bias))
    dy, dlast = dy.contiguous(), dlast.mT.to(reader.dtype)
    for samples in reader.samples:
        entry = dlast[samples]
        for chunk in reversed(reader.chunks):
            rows = reader.read(samples, chunk)
            decays, h = reader.decays(rows), reader.inputs(rows)
            starts = saved[samples, :, chunk.segments].permute(2, 0, 1, 3, 4)
            _chain(h.unbind(), decays.unbind(), starts)
            out = rows.place.take(dy)
            dout = out.unsqueeze(-2)

            # what a step hands to the state before it follows the same recurrence, backwards
            handed = torch.mul(dout, rows.C, out=reader.buffer(2, rows)).mul_(decays)
            ends = _scan(handed, decays, rows.products, entry, backwards=True)
            entry = handed[0, 0].clone()

            exponents = decays  # from here on the gradient of step * A
            torch.mul(handed[0], starts, out=exponents[0])
            torch.mul(handed[1:], h[:-1], out=exponents[1:])
            _collect(dC, h.mul_(dout), rows.place)

            torch.mul(dout, rows.C, out=h)  # from here on the gradient of the states
            h[:-1] += handed[1:]
            h[-1] += ends
            dinput = _over_states(torch.mul(h, rows.B, out=handed))
            _collect(dB, h.mul_(rows.input.unsqueeze(-2)), rows.place)

            dstep = _over_states(torch.mul(exponents, reader.A, out=h)).addcmul_(dinput, rows.x)
            _collect(dA, exponents.mul_(rows.step.unsqueeze(-2)), rows.place)
            if problem.softplus:
                dstep.mul_(rows.raw.sigmoid())
            rows.place.put(ddelta, dstep)
            if dbias is not None:
                dbias += dstep.sum((0, 1, 2))
            dinput.mul_(rows.step)
            if reader.D is not None and dD is not None:
                dinput.addcmul_(out, reader.D)
                dD += out.mul_(rows.x).sum((0, 1, 2))
            rows.place.put(dx, dinput)
    dA, dB, dC = (total.mT.contiguous() if total.dim() == 3 else total for total in (dA, dB, dC))
    found = (_merged(dx, problem.x), ddelta, dA, dB, dC, dD, dbias)
    pairs = zip(found, problem.tensors(), strict=True)
    return Gradients(*(None if g is None or t is None else g.to(t.dtype) for g, t in pairs))  # type: ignore[arg-type]


# The recurrence ------------------------------------------------------------------------------------------------------


def _scan(
    values: Tensor, decays: Tensor, products: Tensor, entry: Tensor, *, backwards: bool = False
) -> Tensor:
    """Turn inputs into states, in place: value_t += decay_t * value_{t-1} (t+1 if backwards).

    Args:
        values, decays: (steps, segments, batch, K, N, d).
        products: (segments, batch, K, N, d), of the decays of each segment.
        entry: (batch, K, N, d), the state before the first segment (after the last if backwards).

    Returns:
        the state before (after) each segment, in the shape of `products`.
    """
    way = slice(None, None, -1 if backwards else 1)
    inputs, factors, order = values.unbind()[way], decays.unbind()[way], range(len(products))[way]
    starts = torch.empty_like(products)
    if len(order) == 1 or products.max() > _GROWTH:
        for s in order:
            starts[s] = entry
            entry = _chain([value[s] for value in inputs], [factor[s] for factor in factors], entry)
        return starts
    ends = inputs[0].clone()
    for value, factor in zip(inputs[1:], factors[1:], strict=True):
        torch.addcmul(value, factor, ends, out=ends)
    before = starts.unbind()[way]
    before[0].copy_(entry)
    for end, product, start, following in zip(
        ends.unbind()[way], products.unbind()[way], before, before[1:], strict=False
    ):
        torch.addcmul(end, product, start, out=following)
    _chain(inputs, factors, starts)
    return starts


def _chain(inputs: Sequence[Tensor], decays: Sequence[Tensor], state: Tensor) -> Tensor:
    """The same step by step from the `state` before; the state after."""
    for value, decay in zip(inputs, decays, strict=True):
        state = value.addcmul_(decay, state)
    return state


def _over_states(product: Tensor) -> Tensor:
    """The sum over the states; of one state, the same memory."""
    return product.squeeze(-2) if product.shape[-2] == 1 else product.sum(-2)


def _merged(rows: Tensor, x: Tensor) -> Tensor:
    """The sum over the directions where they share one x."""
    return rows.sum(2, keepdim=True) if x.shape[2] == 1 else rows


def _collect(total: Tensor, product: Tensor, place: tuple[Tensor, ...]) -> None:
    """Add up what every state contributes to the gradient of a weight: one for all steps, or one per step for all channels."""
    if total.dim() == 3:
        total += product.sum((0, 1, 2))
    else:
        total[place] = product.sum(-1)


# Reading -------------------------------------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    """Segments `first` to `end`, without it, of `steps` steps each."""

    first: int
    end: int
    steps: int

    @property
    def segments(self) -> slice:
        return slice(self.first, self.end)


class _Place(NamedTuple):
    """Where the rows of a chunk stand in (batch, P, K, ...): indices of sample, pixel and direction."""

    sample: Tensor
    pixel: Tensor
    direction: Tensor

    def numbers(self, tensor: Tensor) -> Tensor:
        """The same in a tensor (batch, P, K or 1, d) seen as rows of d."""
        _, pixels, directions, _ = tensor.shape
        number = (self.sample * pixels + self.pixel) * directions
        return number + self.direction if directions > 1 else number.expand(-1, -1, -1, len(self.direction))

    def take(self, tensor: Tensor) -> Tensor:
        """Rows of a contiguous tensor (batch, P, K or 1, d); `index_select` takes a fifth of the time of an indexing."""
        numbers = self.numbers(tensor)
        rows = tensor.view(-1, tensor.shape[-1]).index_select(0, numbers.flatten())
        return rows.view(*numbers.shape, -1)

    def put(self, tensor: Tensor, rows: Tensor) -> None:
        """Rows into a contiguous tensor (batch, P, K, d)."""
        numbers = self.numbers(tensor).flatten()
        tensor.view(-1, tensor.shape[-1]).index_copy_(0, numbers, rows.flatten(0, -2))


class _Rows(NamedTuple):
    """A chunk's rows; B and C are broadcastable to states, products are (segments, batch, K, N, d)."""

    place: _Place
    x: Tensor
    raw: Tensor
    step: Tensor
    input: Tensor
    B: Tensor
    C: Tensor
    products: Tensor


class _Reader:
    """A problem's tensors by chunks of its sequences, and the memory for what is computed of them."""

    def __init__(self, problem: Problem):
        batch, pixels, directions, _ = problem.delta.shape
        self.dtype, self.device = accumulator(problem.x.dtype), problem.x.device
        self.softplus = problem.softplus
        self.x, self.delta = problem.x.contiguous(), problem.delta.contiguous()
        self.A, self.B, self.C = (
            m.mT.to(self.dtype).contiguous() if m.dim() == 3 else m for m in (problem.A, problem.B, problem.C)
        )
        self.D, self.bias = (None if v is None else v.to(self.dtype) for v in (problem.D, problem.bias))
        self.rates = self.A * math.log2(math.e)  # torch.exp2 takes less than half the time of torch.exp

        t = torch.arange(pixels, device=self.device)
        paths = [w.start + t // w.count * w.jump + t % w.count * w.step for w in problem.walks]
        self.pixels, self.directions = torch.stack(paths, 1), torch.arange(directions, device=self.device)

        width = _WIDTH if self.device.type == "cpu" else _WIDTH_ELSEWHERE
        together = min(batch, max(1, width // self.A.numel()))
        self.samples = [range(first, min(first + together, batch)) for first in range(0, batch, together)]
        whole, rest = divmod(pixels, STEPS)
        beside = min(max(1, width // (together * self.A.numel())), max(1, whole))
        self.chunks = [_Chunk(first, min(first + beside, whole), STEPS) for first in range(0, whole, beside)]
        self.chunks += [_Chunk(whole, whole + 1, rest)] * (rest > 0)
        self.buffers = self.empty((3, STEPS * beside * together * self.A.numel()))

    def empty(self, shape: Sequence[int]) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def zeros(self, shape: Sequence[int]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def read(self, samples: range, chunk: _Chunk) -> _Rows:
        first, beside = chunk.first * STEPS, chunk.end - chunk.first
        pixels = self.pixels[first : first + beside * chunk.steps].view(beside, chunk.steps, 1, -1)
        sample = torch.arange(samples.start, samples.stop, device=self.device)[:, None]
        place = _Place(sample, pixels.transpose(0, 1), self.directions)
        x, raw = place.take(self.x).to(self.dtype), place.take(self.delta).to(self.dtype)
        if self.bias is not None:
            raw = raw + self.bias
        step = F.softplus(raw, threshold=40) if self.softplus else raw
        B, C = (m if m.dim() == 3 else m[place].to(self.dtype).unsqueeze(-1) for m in (self.B, self.C))
        products = torch.exp2(step.sum(0).unsqueeze(-2) * self.rates)
        return _Rows(place, x, raw, step, step * x, B, C, products)

    def decays(self, rows: _Rows) -> Tensor:
        """In the first buffer."""
        return torch.mul(rows.step.unsqueeze(-2), self.rates, out=self.buffer(0, rows)).exp2_()

    def inputs(self, rows: _Rows) -> Tensor:
        """In the second buffer."""
        return torch.mul(rows.input.unsqueeze(-2), rows.B, out=self.buffer(1, rows))

    def buffer(self, number: int, rows: _Rows) -> Tensor:
        """Memory for one value per state."""
        shape = (len(rows.x), *rows.products.shape)
        return self.buffers[number, : math.prod(shape)].view(shape)
