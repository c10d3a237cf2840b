"""The selective scan on processors: vector code written for the machine at hand by LLVM, no compiler needed.

`kernels` holds the algorithm, `functions` the exponential and the softplus, `emit` the small language they are written in,
`build` compiles and keeps, `launch` runs on torch's threads. This file prepares memory: channels next to each other and as many
as fill whole vectors, everything in float32.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anban.ssm.backends import Gradients, Problem
from anban.ssm.orders import Walk

STEPS = 32
"""Steps in a chunk; the states before every chunk are kept for the backward pass."""
LOG2E = 1.4426950408889634


def unusable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it cannot run, or None."""
    if device.type != "cpu":
        return f"the tensors are on {device.type}"
    if dtype == torch.float64:
        return "its states are float32, the input is float64"
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed (pip install llvmlite)"
    return None


def padded(channels: int) -> int:
    """Channels rounded up to whole vectors."""
    from anban.ssm.backends.cpu.build import target

    lanes = target().lanes
    return -(-channels // lanes) * lanes


def forward(problem: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    p = _Prepared(problem)
    y = p.like_x()
    last = _empty(p.batch, p.directions, p.states, p.channels)
    saved = _empty(*((p.batch, p.directions, p.chunks, p.states, p.channels) if save else (0,)))
    width = p.width()
    units = p.batch * p.groups * p.blocks // width
    kernel = _kernel("forward", *p.variant, width)
    _run(kernel, p, (units, p.blocks // width, int(save)), (y, last, saved))
    d = problem.delta.shape[-1]
    return _laid_out(_cut(y, d), problem.x), _cut(last, d).transpose(2, 3), saved


def backward(problem: Problem, saved: Tensor, dy: Tensor, dlast: Tensor) -> Gradients:
    p = _Prepared(problem)
    d, tensors = problem.delta.shape[-1], problem.tensors()
    dy = dy.float().permute(0, 2, 3, 1) if p.turned else _rows(dy, p.channels)
    dlast = _rows(dlast.transpose(2, 3), p.channels)
    blocks = _slice(p.blocks, p.batch * p.groups)
    slices = p.blocks // blocks
    sequences = p.batch, p.directions
    dx = p.like_x()
    ddelta = p.like_delta()
    dA = _zeros(*sequences, p.states, p.channels)
    per_pixel = (slices, p.batch, p.pixels, p.directions, p.states)
    dB, dC = (_zeros(*dA.shape) if m.dim() == 3 else _empty(*per_pixel) for m in (problem.B, problem.C))
    dD, dbias = (_zeros(*sequences, p.channels) for _ in range(2))
    units = p.batch * p.groups * slices
    results = (dx, ddelta, dA, dB, dC, dD, dbias)
    kernel = _kernel("backward", *p.variant, _fills_lines(ddelta))
    _run(kernel, p, (units, p.blocks, blocks), (saved, dy.contiguous(), dlast.contiguous(), *results), ddelta)

    def matrix(parts: Tensor) -> Tensor:
        """(K, d, N) from a constant matrix's parts; (batch, P, K, N) from a pixel's."""
        return _total(parts) if parts.dim() == 5 else _cut(_total(parts), d).transpose(1, 2)

    vectors = ((dD, problem.D), (dbias, problem.bias))
    found = (
        _laid_out(_cut(dx, d), problem.x),
        _laid_out(_cut(ddelta, d), problem.delta),
        *(matrix(m) for m in (dA, dB, dC)),
        *(None if given is None else _cut(_total(parts), d) for parts, given in vectors),
    )
    cast = (None if g is None or t is None else g.to(t.dtype) for g, t in zip(found, tensors, strict=True))
    return Gradients(*cast)  # type: ignore[arg-type]


def _cut(tensor: Tensor, channels: int) -> Tensor:
    """Without the channels that only fill vectors."""
    return tensor if tensor.shape[-1] == channels else tensor[..., :channels]


def _total(parts: Tensor) -> Tensor:
    """The sum over the first dimension; a view where it has one entry."""
    return parts[0] if len(parts) == 1 else parts.sum(0)


class _Prepared:
    """A problem as the kernels read it: sizes, inputs in the kernels' order, and what kernel it needs.

    `turned` sequences, whose steps lie next to each other, are turned by the kernel itself, in its cache, if they are long and
    wide enough for whole tiles; else here.
    """

    def __init__(self, problem: Problem):
        self.batch, self.pixels, self.directions, channels = problem.delta.shape
        self.states = problem.A.shape[-1]
        self.groups = problem.x.shape[2]
        self.channels = padded(channels)
        self.chunks = -(-self.pixels // STEPS)
        self.lanes = padded(1)
        self.blocks = self.channels // self.lanes
        x, delta = problem.x.float(), problem.delta.float()
        self.turned = (
            channels == self.channels
            and self.pixels >= self.lanes
            and self.groups == self.directions
            and all(m.stride(1) == 1 and m.stride(3) != 1 for m in (x, delta))
            and all(walk == (0, 1, self.pixels, self.pixels) for walk in problem.walks)
        )
        if not self.turned:
            x, delta = _rows(x, self.channels), _rows(delta, self.channels)
        B, C = (
            _states_first(m, self.channels) if m.dim() == 3 else _rows(m, self.states)
            for m in (problem.B, problem.C)
        )
        A = _states_first(problem.A.float() * LOG2E, self.channels)
        vectors = self.vector(problem.D), self.vector(problem.bias)
        self.inputs = (x, delta, A, B, C, *vectors, _walks(problem.walks))
        self.variant = (
            self.states,
            problem.softplus,
            (problem.B.dim() == 3, problem.C.dim() == 3),
            self.turned,
        )

    def vector(self, given: Tensor | None) -> Tensor:
        """D or bias, (K, channels), zero where there is none."""
        if given is None:
            return _zeros(self.directions, self.channels)
        return _rows(given, self.channels).contiguous()

    def width(self) -> int:
        """Blocks that the forward pass takes along together: with few states, the more of a pixel's row the better. But threads that
        share an image take two: the processor fetches a long row on into the neighbour's. Results do not depend on it."""
        if self.turned:
            return 1
        threads, entries = torch.get_num_threads(), self.batch * self.groups
        alone = entries % threads == 0 or entries >= 4 * threads
        for width in (6, 4, 3, 2) if alone else (2,):
            if width * self.states <= 6 and self.blocks % width == 0:
                return width
        return 1

    def like_x(self) -> Tensor:
        """Memory for y or the gradient of x, (batch, P, Kx, channels)."""
        if self.turned:
            return _empty(self.batch, self.groups, self.channels, self.pixels).permute(0, 3, 1, 2)
        return _empty(self.batch, self.pixels, self.groups, self.channels)

    def like_delta(self) -> Tensor:
        """Memory for the gradient of delta, (batch, P, K, channels), in its order of dimensions: turned, by direction or by pixel.

        Not `empty_like`: of an expanded delta that puts the steps or the directions where the kernel has channels.
        """
        batch, pixels, directions, channels = self.batch, self.pixels, self.directions, self.channels
        if self.turned:
            return _empty(batch, directions, channels, pixels).permute(0, 3, 1, 2)
        of_batch, of_pixel, of_direction, _ = self.inputs[1].stride()
        if of_direction <= of_pixel:
            return _empty(batch, pixels, directions, channels)
        if of_direction < of_batch:
            return _empty(batch, directions, pixels, channels).permute(0, 2, 1, 3)
        return _empty(directions, batch, pixels, channels).permute(1, 2, 0, 3)


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def _rows(tensor: Tensor, channels: int) -> Tensor:
    """In float32, channels (the last dimension) next to each other and zeros up to `channels`."""
    tensor = tensor.float()
    if (
        tensor.stride(-1) != 1
        and tensor.dim() == 4
        and tensor.stride(1) == 1
        and min(tensor.shape[1::2]) >= padded(1)
    ):
        return _turned(tensor, channels)
    if tensor.shape[-1] != channels:
        tensor = F.pad(tensor, (0, channels - tensor.shape[-1]))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _turned(tensor: Tensor, width: int) -> Tensor:
    """(batch, p, K, q) whose p lie next to each other -> the same with q next to each other, and zeros up to `width`."""
    from anban.ssm.backends.cpu import launch

    batch, p, groups, q = tensor.shape
    # (batch K, q, p); a copy only if batch and K cannot be one dimension
    planes = tensor.permute(0, 2, 3, 1).flatten(0, 1)
    turned = (_empty if q == width else _zeros)(batch * groups, p, width)
    blocks = -(-q // padded(1))
    sizes = [0, batch * groups * blocks, blocks, q, p, planes.data_ptr(), turned.data_ptr()]
    strides = [4 * m.stride(dim) for m in (planes, turned) for dim in (1, 0)]
    launch.run(_kernel("transpose"), [*sizes, *strides], batch * groups * blocks)
    return turned.view(batch, groups, p, width).transpose(1, 2)


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A result (batch, P, K, d) with its steps next to each other if those of the input are."""
    steps, channels = tensor.shape[1], tensor.shape[3]
    if (
        like.stride(3) == 1
        or like.stride(1) != 1
        or tensor.stride(1) == 1
        or min(steps, channels) < padded(1)
    ):
        return tensor
    return _turned(tensor.transpose(1, 3), steps).transpose(1, 3)


def _states_first(matrix: Tensor, channels: int) -> Tensor:
    """(K, d, N) -> (K, N, channels)."""
    return _rows(matrix.transpose(1, 2), channels).contiguous()


@functools.lru_cache(256)
def _walks(walks: tuple[Walk, ...]) -> Tensor:
    return torch.tensor(walks, dtype=torch.int64, device="cpu")


def _strides(tensor: Tensor, turned: bool) -> tuple[int, int, int, int]:
    """In bytes, of the batch, the pixel, the direction and what comes last.

    A constant matrix (K, N, channels) has one per direction alone; the "pixel" of turned sequences is their channel.
    """
    if tensor.dim() == 3:
        return 0, 0, 4 * tensor.stride(0), 0
    batch, pixel, direction, last = tensor.stride()
    return 4 * batch, 4 * (last if turned else pixel), 4 * direction, 4 * last


def _fills_lines(tensor: Tensor) -> bool:
    """Whether a tensor is too large to be found in the cache by its reader, and made of whole aligned vectors."""
    line = 4 * padded(1)
    aligned = tensor.data_ptr() % line == 0 and all(4 * stride % line == 0 for stride in tensor.stride()[:3])
    return aligned and tensor.nbytes > 4 << 20


def _slice(blocks: int, sequences: int) -> int:
    """Blocks in a unit of the backward pass. dB and dC are reduced once per unit, which costs a third of a unit of one block and
    little from three on; beyond that, units for several threads matter more. The number of threads itself must not matter, or
    sums would depend on it."""
    from anban.ssm.backends.cpu import kernels

    divisors = [n for n in range(1, kernels.LARGEST_SLICE + 1) if blocks % n == 0]
    cheap = [n for n in divisors if n >= 3] or divisors[-1:]
    return max((n for n in cheap if sequences * blocks // n >= 4), default=cheap[0])


def _run(
    kernel: int, p: _Prepared, work: tuple[int, int, int], own: tuple[Tensor, ...], *strided: Tensor
) -> None:
    """Run a kernel on a prepared problem: `work` is its units, blocks and last size, `own` the tensors after the inputs."""
    from anban.ssm.backends.cpu import launch

    units, blocks, size = work
    x, delta, _, B, C, *_ = p.inputs
    strides = [_strides(m, p.turned) for m in (x, delta)] + [_strides(m, False) for m in (B, C)]
    strides += [_strides(m, p.turned) for m in strided]
    arguments = [0, units, blocks, p.pixels, p.directions // p.groups, p.groups, size]
    arguments += [tensor.data_ptr() for tensor in (*p.inputs, *own)]
    launch.run(kernel, [*arguments, *itertools.chain(*strides)], units)


@functools.cache
def _kernel(kind: str, *variant: Any) -> int:
    """The address of the kernel for these; compiled, or read from the cache, when first asked for."""
    from anban.ssm.backends.cpu import build, kernels
    from anban.ssm.backends.cpu.emit import Emitter

    target = build.target()
    return build.address(getattr(kernels, kind)(Emitter(target.lanes, avx512=target.avx512), *variant))
