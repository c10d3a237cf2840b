"""The selective scan as fused Triton kernels: discretisation, scan, output, skip, and the sum over the directions of an image.

Images are read where they lie, channels last; neither the K sequences of an image nor its states are written to memory, but
one state every `STEPS` steps for the backward pass, which recomputes the rest. Work is cut into programs by batch entry, block
of channels and, where these are too few to fill the device, segment of the sequence: what a segment makes of a zero state is
found first, then what enters each segment, then everything else. Nothing is summed by atomics, so repeated runs agree bit by bit.

Directions that share pixels segment by segment, such as a walk and its reverse, are taken in turn by one program, which adds to
the output it has just written; further directions follow in a launch of their own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anban.ssm.backends import Gradients, Problem
from anban.ssm.orders import Walk

STEPS = 32

CAPABILITY = (8, 0)  # what Triton supports
WARPS = 16  # per multiprocessor; below that a sequence is cut into segments
LEAST = 64  # steps of a segment, at least
REACH = 2**31  # elements that offsets of 32 bits reach
LOG2E = 1.4426950408889634


def unusable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why it cannot run here; None if it can. On a CPU it runs in Triton's interpreter only (for tests)."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
        return f"its kernels run on a GPU, not on {device.type}"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it computes in float32, which is too little for {str(dtype).removeprefix('torch.')}"
    if device.type == "cuda" and torch.version.hip is None:
        found = torch.cuda.get_device_capability(device)
        if found < CAPABILITY:
            return f"Triton needs a GPU of compute capability {_dotted(CAPABILITY)}, this one has {_dotted(found)}"
    return None


def forward(problem: Problem, save: bool, segments: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """y (batch, P, Kx, d), the last states (batch, K, d, N), and states to be given to `backward` (empty without `save`).

    The saved states (batch, K, ceil(P / STEPS), N, d) stand before steps 0, STEPS, 2 STEPS, ..., but for directions that read the
    pixels of an earlier one backwards: of these it is not the last distance that may be shorter, but the first.

    Args:
        problem: see `Problem`; float32, float16 or bfloat16 in any mixture.
        save: whether there will be a backward pass.
        segments: into how many parts every sequence is cut; None: as many as the device needs.
    """
    p = _Prepared(problem, segments)
    y = p.new(p.batch, p.pixels, problem.x.shape[2], p.channels)
    last = p.new(p.batch, p.directions, p.states, p.channels)
    saved = p.new(p.batch, p.directions, p.slots, p.states, p.channels) if save else y.new_empty(0)
    with p.device():
        carries = p.carries(p.x, p.B, None, reverse=False) if p.segments > 1 else None
        for launch in p.launches():
            _kernels().forward[p.grid(launch)](
                *(p.x, p.delta, p.A, p.B, p.C, p.D, p.bias),
                *(_field(y), carries, saved, last),
                *(p.channels, p.directions, p.pixels, p.slots, p.segments, p.size),
                *(launch.walks, launch.add),
                N=p.states,
                SOFTPLUS=problem.softplus,
                CARRIED=carries is not None,
                SAVE=save,
                DIRECTIONS=launch.directions,
                MEMBERS=launch.members,
                STEPS=STEPS,
                **p.shape(forward=True),
            )
    return y, last.transpose(2, 3).contiguous(), saved


def backward(
    problem: Problem, saved: Tensor, dy: Tensor, dlast: Tensor, segments: int | None = None
) -> Gradients:
    """The gradients, in the dtypes and layouts of the inputs; `saved` is from `forward`, `segments` as there."""
    p = _Prepared(problem, segments)
    drive = _field(dy.float().contiguous())
    dlast = dlast.float().transpose(2, 3).contiguous()
    parts = (p.batch, p.directions, p.segments)
    dx = p.new(p.batch, p.pixels, problem.x.shape[2], p.channels)
    ddelta = p.delta[0].new_empty(problem.delta.shape)
    dA = p.new(*parts, p.states, p.channels)
    shape = p.shape(forward=False)
    blocks = -(-p.channels // shape["BLOCK"])
    inner = p.new(*parts, STEPS // shape["T"] - 1, p.states, p.channels)
    dB, dC = (
        torch.empty_like(dA) if m.dim() == 3 else p.new(blocks, p.batch, p.pixels, p.directions, p.states)
        for m in (problem.B, problem.C)
    )
    dD, dbias = (None if m is None else p.new(*parts, p.channels) for m in (problem.D, problem.bias))
    with p.device():
        q = p.carries(drive, p.C, dlast, reverse=True) if p.segments > 1 else dlast.clone()
        for launch in p.launches():
            _kernels().backward[p.grid(launch, shape["BLOCK"])](
                *(p.x, p.delta, p.A, p.B, p.C, p.D, p.bias),
                *(drive, saved, q, inner),
                *(_field(dx), _field(ddelta), dA, dB, dC, dD, dbias),
                *(p.channels, p.directions, p.pixels, p.slots, p.segments, p.size),
                *(launch.walks, launch.add),
                N=p.states,
                SOFTPLUS=problem.softplus,
                DIRECTIONS=launch.directions,
                MEMBERS=launch.members,
                STEPS=STEPS,
                **shape,
            )

    def over_segments(m: Tensor) -> Tensor:
        return m.sum((0, 2))

    def weights(m: Tensor, like: Tensor) -> Tensor:
        return over_segments(m).transpose(1, 2) if like.dim() == 3 else m.sum(0)

    return Gradients(
        _like(problem.x, dx),
        _like(problem.delta, ddelta),
        _like(problem.A, over_segments(dA).transpose(1, 2)),
        _like(problem.B, weights(dB, problem.B)),
        _like(problem.C, weights(dC, problem.C)),
        None if problem.D is None or dD is None else _like(problem.D, over_segments(dD)),
        None if problem.bias is None or dbias is None else _like(problem.bias, over_segments(dbias)),
    )


_Field = tuple[Tensor, int, int | None, int]
"""A tensor with its batch, pixel and direction strides; no pixel stride: it is constant."""
_Group = tuple[tuple[int, int], ...]
"""Directions, each with 1 if it is mirrored, else 0."""


class _Launch(NamedTuple):
    """Directions of one kernel launch: six integers each; `members` of them in a program; whether the output is added to."""

    walks: tuple[int, ...]
    directions: int
    members: int
    add: bool

    @classmethod
    def of(cls, group: _Group, walks: tuple[Walk, ...], members: int, *, add: bool = False) -> _Launch:
        numbers = (number for k, mirrored in group for number in (k, *walks[k], mirrored))
        return cls(tuple(4 * number + 2 for number in numbers), len(group), members, add)


class _Prepared:
    """A problem as the kernels take it, and how it is cut."""

    def __init__(self, problem: Problem, segments: int | None):
        self.problem = problem
        self.batch, self.pixels, self.directions, self.channels = problem.delta.shape
        self.states = problem.A.shape[2]
        self.shared = problem.x.shape[2] == 1 < self.directions
        self.x, self.delta = _field(_readable(problem.x)), _field(_readable(problem.delta))
        self.A = _constant(problem.A.float() * LOG2E)
        self.B, self.C = (
            (_constant(m), 0, None, m[0].numel()) if m.dim() == 3 else _field(_readable(m))
            for m in (problem.B, problem.C)
        )
        strides = [field[2] or 0 for field in (self.x, self.delta, self.B, self.C)]
        widest = max(*strides, self.directions * max(self.channels, self.states))  # of outputs: the last one
        self.wide = widest * self.pixels >= REACH  # offsets within a batch entry
        self.D, self.bias = (None if m is None else m.float().contiguous() for m in (problem.D, problem.bias))
        self.slots = -(-self.pixels // STEPS)
        wanted = self._wanted() if segments is None else segments
        self.size = -(-self.slots // min(wanted, self.slots)) * STEPS
        self.segments = -(-self.pixels // self.size)

    def _wanted(self) -> int:
        """As many segments as give every multiprocessor `WARPS` programs, but none shorter than `LEAST` steps."""
        groups = 1 if self.shared else self.directions
        programs = self.batch * groups * -(-self.channels // self.shape(forward=True)["BLOCK"])
        wanted = -(-_multiprocessors(self.delta[0].device) * WARPS // programs)
        return max(1, min(wanted, -(-self.pixels // LEAST)))

    def shape(self, *, forward: bool) -> dict[str, int]:
        """Lanes and steps of a tile, such that what a lane holds fits into its registers; and what the kernels may rely on."""
        states = 1 << (self.states - 1).bit_length()
        steps = 8 if states <= (2 if forward else 1) else 4
        block = 64 if self.channels > 32 and (states <= 16 or not forward) else 32
        straight = all(
            number % steps == 0 for number in (self.pixels, *(w.count for w in self.problem.walks))
        )
        flags = {"STRAIGHT": straight, "WIDE": self.wide}
        warps = max(1, states // 16) if forward else 1
        return {"STATES": states, "BLOCK": block, "T": steps, "num_warps": warps, **flags}

    def launches(self) -> Iterator[_Launch]:
        """Directions whose output lies apart go together; of the others, those that share pixels segment by segment."""
        walks, groups = self.problem.walks, self.groups()
        if not self.shared:
            yield _Launch.of(_joined(groups), walks, members=1)
            return
        if self.segments == 1:  # then a program owns all pixels of its channels: any directions may share it
            groups = (_joined(groups),)
        for i, group in enumerate(groups):
            yield _Launch.of(group, walks, members=len(group), add=i > 0)

    def groups(self) -> tuple[_Group, ...]:
        """The same whatever the number of segments is: the saved states of mirrored directions stand elsewhere."""
        if self.shared:
            return _together(self.problem.walks, self.pixels)
        return (tuple((k, 0) for k in range(self.directions)),)

    def grid(self, launch: _Launch, block: int | None = None) -> tuple[int]:
        block = block or self.shape(forward=True)["BLOCK"]
        programs = self.batch * self.segments * -(-self.channels // block)
        return (programs * (launch.directions // launch.members),)

    def carries(self, drive: _Field, weight: _Field, begin: Tensor | None, *, reverse: bool) -> Tensor:
        """What enters every segment, (batch, K, segments, N, d): states, or their gradients from behind."""
        ends = self.new(self.batch, self.directions, self.segments, self.states, self.channels)
        sums = self.new(self.batch, self.directions, self.segments, self.channels)
        every = _Launch.of(_joined(self.groups()), self.problem.walks, members=1)
        _kernels().summarise[self.grid(every)](
            *(drive, self.delta, self.A, weight, self.bias, ends, sums),
            *(self.channels, self.directions, self.pixels, self.segments, self.size, every.walks),
            N=self.states,
            SOFTPLUS=self.problem.softplus,
            REVERSE=reverse,
            DIRECTIONS=self.directions,
            **self.shape(forward=True),
        )
        block = 128
        _kernels().carry[(self.batch * self.directions * -(-self.states * self.channels // block),)](
            *(self.A, sums, ends, begin, self.channels, self.directions, self.segments),
            N=self.states,
            REVERSE=reverse,
            BLOCK=block,
        )
        return ends

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.delta[0].device)

    def device(self) -> Any:
        """Makes the tensors' GPU, if they are on one, that of the launches."""
        return torch.cuda.device_of(self.delta[0])  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=256)
def _together(walks: tuple[Walk, ...], pixels: int) -> tuple[_Group, ...]:
    """Directions with the same walk or, mirrored, its reverse."""
    groups: dict[Walk, list[tuple[int, int]]] = {}
    for k, walk in enumerate(walks):
        back = _reverse(walk, pixels)
        if back is not None and back in groups:
            groups[back].append((k, 1))
        else:
            groups.setdefault(walk, []).append((k, 0))
    return tuple(tuple(group) for group in groups.values())


def _joined(groups: tuple[_Group, ...]) -> _Group:
    return tuple(member for group in groups for member in group)


def _reverse(walk: Walk, pixels: int) -> Walk | None:
    """The walk from the last pixel to the first; None where it ends within a line."""
    if pixels % walk.count:
        return None
    return Walk(walk.pixel(pixels - 1), -walk.step, walk.count, -walk.jump)


def _readable(tensor: Tensor) -> Tensor:
    """The tensor with its last dimension contiguous, in a type that the kernels read: a copy where it was not."""
    tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _constant(tensor: Tensor) -> Tensor:
    """(K, d, N) as (K, N, d)."""
    return _readable(tensor.transpose(1, 2).contiguous())


def _field(tensor: Tensor) -> _Field:
    """A (batch, P, K, ...) tensor as the kernels take it; one that is shared by all directions has a direction stride of 0."""
    batch, pixel, direction, _ = tensor.stride()
    return tensor, batch, pixel, direction if tensor.shape[2] > 1 else 0


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """The value in the dtype and layout of the tensor."""
    result = torch.empty_like(tensor)
    same = value.dtype == result.dtype and value.stride() == result.stride()
    return value if same else result.copy_(value)


def _multiprocessors(device: torch.device) -> int:
    """Of a GPU; none where programs run one after the other."""
    return 0 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _kernels() -> Any:
    from anban.ssm.backends.triton import kernels

    return kernels
