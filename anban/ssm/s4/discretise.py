"""Discretisation: from x' = A x + B u to x_l = dA x_{l-1} + dB u_l with a step dt.

"zoh" holds the input for the length of a step (exact for piecewise constant inputs), "bilinear" is the trapezoidal rule;
both map decaying systems to decaying ones. Small dt is a long memory: dt is the time scale a channel looks at.

Diagonal systems are given by the logarithm of dA: a kernel needs the powers dA^l = exp(l log dA), and with a real part that
is not positive no power can overflow.

Sources: S4 (arXiv 2111.00396) section 2.3 for the bilinear form, S4D (arXiv 2206.11893) section 3.1 for diagonals, DSS
(Gupta et al. 2022, arXiv 2203.14343) section 3 and its release's reciprocal for "dss".
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from anban.errors import InputError

Rule = Literal["zoh", "bilinear"]


def zoh(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-order hold of a diagonal system: log dA = dt A, dB = (exp(dt A) - 1) / A * B, also where A is 0."""
    dtA = dt * A
    near_zero = dtA.abs() < 1e-6
    safe = torch.where(near_zero, torch.ones_like(dtA), dtA)
    mean = torch.where(near_zero, 1 + dtA / 2, torch.expm1(safe) / safe)
    return dtA, dt * mean * B


def bilinear(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Bilinear rule of a diagonal system: dA = (1 + dt A/2) / (1 - dt A/2), dB = dt / (1 - dt A/2) * B; complex log dA."""
    half = dt * A / 2
    if not half.is_complex():
        # A real mode with dt |A| > 2 alternates in sign: its logarithm is complex.
        half = torch.complex(half, torch.zeros_like(half))
    return torch.log1p(half) - torch.log1p(-half), dt / (1 - half) * B


def discretise(A: Tensor, B: Tensor, dt: Tensor, disc: Rule = "zoh") -> tuple[Tensor, Tensor]:
    """(log dA, dB) of a diagonal system; A, B (..., N), real or complex, dt broadcasts against them."""
    if disc not in {"zoh", "bilinear"}:
        raise InputError(f"the discretisation {disc!r} is unknown", expected='"zoh" or "bilinear"')
    return (zoh if disc == "zoh" else bilinear)(A, B, dt)


def discretise_dense(A: Tensor, B: Tensor, dt: float, disc: Rule = "zoh") -> tuple[Tensor, Tensor]:
    """(dA, dB) of a dense system, A (N, N), B (N,); for small systems: it costs N^3."""
    N = A.shape[-1]
    if disc == "bilinear":
        eye = torch.eye(N, dtype=A.dtype, device=A.device)
        backward = eye - dt / 2 * A
        return torch.linalg.solve(backward, eye + dt / 2 * A), torch.linalg.solve(backward, dt * B)
    if disc != "zoh":
        raise InputError(f"the discretisation {disc!r} is unknown", expected='"zoh" or "bilinear"')
    # The exponential of [[A, B], [0, 0]] holds both, whether or not A can be inverted.
    joint = torch.zeros(N + 1, N + 1, dtype=A.dtype, device=A.device)
    joint[:N, :N], joint[:N, N] = dt * A, dt * B
    both = torch.linalg.matrix_exp(joint)
    return both[:N, :N], both[:N, N]


def dss_weights(A: Tensor, B: Tensor, dt: Tensor, L: int) -> tuple[Tensor, Tensor, Tensor]:
    """The "dss" form: modes normalised over the L steps of the kernel, so that growing ones may be used too.

    A mode with positive real part is run backwards from the last step, where it is 1. There is no recurrence for it: the
    weights depend on L.

    Returns:
        log nodes (real part not positive), weights, and which modes run backwards.
    """
    growing = A.real > 0
    log_nodes = torch.where(growing, -dt * A, dt * A)
    total = torch.expm1(log_nodes * L) * A
    # DSS's reciprocal: 1 / total, kept finite where total vanishes.
    inverse = total.conj() / (total * total.conj() + 1e-7)
    return log_nodes, torch.expm1(log_nodes) * inverse * B, growing
