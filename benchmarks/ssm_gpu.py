"""The selective scan of an image on a GPU: our Triton kernels beside plain torch and VMamba's CUDA kernels.

What is timed is VMamba's cross-scan, selective scan and cross-merge on 56 x 56 pixels and 192 channels, without projections, in
Mamba's initial ranges. Peers: our own composition of torch operations (`chunked`); VMamba's compiled `selective_scan_cuda_oflex`,
where it is installed, between cross-scan and cross-merge as copies by torch (its own are Triton kernels, which are not part of that
package); and, for the forward pass, a copy that moves as many bytes as the scan must read and write, the least a scan that is
bound by memory can take. "kept" is what stays allocated between forward and backward, y aside. A contender that does not agree
with `chunked` is not compared. Ratios to goals that were derived on paper, and bytes per element by a profiler, are not here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anban.ssm.backends import triton
from anban.ssm.scan import selective_scan_2d
from benchmarks.ssm_anchors import sequences, ss2d
from benchmarks.ssm_cells import Shape, inputs
from benchmarks.timing import Clock, Measure, Row, Taken, Unavailable, interleave, row

CASES = ((torch.bfloat16, 1), (torch.bfloat16, 16), (torch.float32, 1), (torch.float32, 16))
BATCHES = (1, 8, 32)
REPEAT = 20  # calls in a row, then one wait for the device
ERROR = {
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
}  # of a contender against `chunked`, relative to the largest value
OURS, PLAIN, VMAMBA, COPY = "triton", "chunked", "VMamba oflex", "copy of as many bytes"


def run(rounds: int) -> list[Row]:
    """Rows per batch size, data type and number of states: forward, both passes, and what is kept for the backward pass."""
    if not torch.cuda.is_available():
        raise Unavailable("there is no CUDA device")
    if fault := triton.unusable(torch.device("cuda"), torch.float32):
        raise Unavailable(fault)
    rows: list[Row] = []
    for dtype, states in CASES:
        for batch in BATCHES:
            rows += _case(Shape(batch, 192, 56, 56, states), dtype, rounds)
    return rows


def _case(shape: Shape, dtype: torch.dtype, rounds: int) -> Iterator[Row]:
    given = {name: tensor.cuda() for name, tensor in inputs(shape).items()}
    ways = _agreeing(_ways(given, dtype), ERROR[dtype])
    title = f"batch {shape.batch}, N = {shape.states}, {str(dtype).removeprefix('torch.')}"
    forward = {name: _seconds(way.forward) for name, way in ways.items()}
    forward[COPY] = _seconds(_copy(given, dtype))
    both = {name: _seconds(way.both) for name, way in ways.items()}
    for what, measures in (("forward", forward), ("forward+backward", both)):
        values = interleave(measures, rounds)
        yield from (row(values, f"{title}, {what}", OURS, name) for name in measures if name != OURS)
    values = interleave({name: _kept(way) for name, way in ways.items()}, 1)
    yield from (row(values, f"{title}, kept", OURS, name, "MB") for name in ways if name != OURS)


@dataclass
class _Way:
    """A way to compute the scan, with its inputs in the layout it likes."""

    call: Callable[..., Tensor]
    leaves: list[Tensor]
    dy: Tensor

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.call(*self.leaves)

    def both(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.call(*self.leaves), self.leaves, self.dy)


def _ways(given: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, _Way]:
    """Ours and the peers; rates, skips and biases stay in float32."""
    x, delta, A, B, C, D, bias = (
        tensor.to(dtype) if name in ("x", "delta", "B", "C") else tensor for name, tensor in given.items()
    )
    dy = torch.randn_like(given["x"])

    def leaves(*tensors: Tensor) -> list[Tensor]:
        return [tensor.detach().contiguous().requires_grad_() for tensor in tensors]

    pixels = leaves(x, delta, A, B, C, D, bias)
    found = {name: _Way(partial(selective_scan_2d, backend=name), pixels, dy) for name in (PLAIN, OURS)}
    if importlib.util.find_spec("selective_scan_cuda_oflex"):
        steps, B, C = (sequences(m) for m in (delta, B, C))
        paths = leaves(
            x.permute(0, 3, 1, 2), steps.flatten(1, 2), A.flatten(0, 1), B, C, D.flatten(), bias.flatten()
        )
        found[VMAMBA] = _Way(partial(ss2d, _Oflex.apply), paths, dy.permute(0, 3, 1, 2).contiguous())
    return found


def _agreeing(ways: dict[str, _Way], allowed: float) -> dict[str, _Way]:
    """Those whose y, and gradients of x and A, are those of plain torch."""
    want = _results(ways[PLAIN])
    wrong = {
        name
        for name, way in ways.items()
        if any(not _close(a, b, allowed) for a, b in zip(_results(way), want, strict=True))
    }
    if OURS in wrong:
        raise Unavailable("our kernels do not agree with plain torch")
    return {name: way for name, way in ways.items() if name not in wrong}


def _results(way: _Way) -> list[Tensor]:
    y, dx, _, dA, *_ = (way.forward(), *way.both())
    images = [y, dx] if dA.dim() == 3 else [image.permute(0, 2, 3, 1) for image in (y, dx)]
    return [*images, dA.flatten(0, -2)]


def _close(have: Tensor, want: Tensor, allowed: float) -> bool:
    return bool((have - want).abs().max() <= allowed * want.abs().max())  # False where NaN


class _Oflex(torch.autograd.Function):
    """VMamba's binding: inputs of any type, y in float32."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Any:
        import selective_scan_cuda_oflex  # type: ignore[import-not-found]

        y, states, *_ = selective_scan_cuda_oflex.fwd(*tensors, True, 1, True)
        ctx.save_for_backward(*tensors, states)
        return y

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor, ...]:
        import selective_scan_cuda_oflex

        *tensors, states = ctx.saved_tensors
        found = selective_scan_cuda_oflex.bwd(*tensors, dys[0].contiguous(), states, True, 1)
        return tuple(found[:7])


def _copy(given: Mapping[str, Tensor], dtype: torch.dtype) -> Callable[[], object]:
    """Moves the bytes of x, delta, B and C in `dtype` and of y in float32: a copy reads one half of them and writes the other."""
    read = sum(given[name].numel() for name in ("x", "delta", "B", "C")) * dtype.itemsize
    half = torch.empty((read + 4 * given["x"].numel()) // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(half)
    return lambda: target.copy_(half)


def _seconds(work: Callable[[], object]) -> Measure:
    """Seconds of one call out of `REPEAT` queued ones, until the device has done them all."""

    def measure() -> Taken:
        torch.cuda.synchronize()
        clock = Clock()
        for _ in range(REPEAT):
            work()
        torch.cuda.synchronize()
        return clock.taken(REPEAT)

    return measure


def _kept(way: _Way) -> Measure:
    """MB allocated after the forward pass over those before, y aside."""

    def measure() -> Taken:
        before = torch.cuda.memory_allocated()
        y = way.call(*way.leaves)
        return Taken((torch.cuda.memory_allocated() - before - y.nbytes) / 1e6)

    return measure
