"""Implementations of the selective scan, and which of them runs.

A backend is a module of this folder with

    STEPS          a state is saved for the backward pass before steps 0, STEPS, 2 STEPS, ...; None if nothing is saved
    unusable       (device, dtype) -> why it cannot run here, or None
    forward        (problem, save) -> y (batch, P, Kx, d), last (batch, K, d, N), saved (batch, K, ceil(P / STEPS), N, d)
    backward       (problem, saved, dy, dlast) -> Gradients

and imports what it needs (Triton, llvmlite) inside its functions, so that listing backends costs nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from anban.errors import InputError
from anban.ssm.orders import Walk

BACKENDS = ("triton", "cpu", "chunked", "reference")
"""Fastest first."""
VARIABLE = "ANBAN_SCAN_BACKEND"
"""The environment variable that stands in for `backend="auto"`."""

used: dict[str, str] = {}
"""What scans of this process have run on, backend -> why; a run writes it down."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One scan over P pixels (or steps) in K directions; strides are arbitrary in every dimension.

    Attributes:
        x: (batch, P, Kx, d). Kx = 1: all directions read the same x and y is summed over them; Kx = K: each has its own.
        delta: (batch, P, K, d), the raw step at the pixel.
        A: (K, d, N).
        B, C: (batch, P, K, N), or constant (K, d, N).
        D, bias: (K, d) or None.
        softplus: whether the step is softplus(delta + bias) or delta + bias.
        walks: one per direction: which pixel stands at position t of its sequence.
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None
    softplus: bool
    walks: tuple[Walk, ...]

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.x, self.delta, self.A, self.B, self.C, self.D, self.bias

    def map(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """The problem with every tensor changed."""
        changed = (None if tensor is None else change(tensor) for tensor in self.tensors())
        return Problem(*changed, self.softplus, self.walks)  # type: ignore

    def promoted(self) -> Problem:
        """The problem in float64 if x is, else in float32: the precision of states, decays and sums."""
        dtype = accumulator(self.x.dtype)
        return self.map(lambda tensor: tensor.to(dtype))


class Gradients(NamedTuple):
    """Gradients in the shapes of the problem's tensors; None where there was none."""

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The precision of a scan over `dtype`: never below float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def module(name: str) -> ModuleType:
    """The backend of that name.

    Raises:
        InputError: there is none.
    """
    if name not in BACKENDS:
        raise InputError(
            f"no scan backend is called {name!r}", expected=f"auto or one of {', '.join(BACKENDS)}"
        )
    return importlib.import_module(f"anban.ssm.backends.{name}")


def choose(backend: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The backend that runs, and why.

    Args:
        backend: a name of `BACKENDS`, or "auto": what the environment variable `ANBAN_SCAN_BACKEND` names, else the first of
            `BACKENDS` that can run.

    Raises:
        InputError: no such backend, or the named one cannot run here.
    """
    found = _choose(backend, os.environ.get(VARIABLE) or None, device.type, dtype)
    used[found[0]] = found[1]
    return found


@functools.cache
def _choose(backend: str, wish: str | None, device: str, dtype: torch.dtype) -> tuple[str, str]:
    source = "asked for"
    if backend == "auto" and wish is not None:
        backend, source = wish, f"named by {VARIABLE}"
    if backend != "auto":
        fault = module(backend).unusable(torch.device(device), dtype)
        if fault is not None:
            raise InputError(
                f"the scan backend {backend!r}, {source}, cannot run here: {fault}",
                expected="a backend for this device and data type",
                do="leave the choice to auto, or install what is missing",
            )
        return backend, source
    reasons: list[str] = []
    for name in BACKENDS:
        fault = module(name).unusable(torch.device(device), dtype)
        if fault is None:
            return name, "; ".join([f"the fastest that runs on {device}", *reasons])
        reasons.append(f"not {name}: {fault}")
    raise AssertionError("the reference runs everywhere")
