"""Discrete linear time-invariant systems, seen three ways that agree.

    x_l = dA x_{l-1} + dB u_l,    y_l = C x_l = sum_j K_j u_{l-j},    K_l = C dA^l dB

- convolutional (`kernel`, `convolve`): dA, dB, C are the same at every step, so the whole output is one convolution with the
  impulse response K. All steps at once, by FFT in L log L: this is how such a model is trained.
- recurrent (`step`, `recur`): one state of fixed size, a constant cost per step however long the past is: this is how it is
  run on a stream.
- parallel scan (`scan`, diagonal systems): the recurrence in log2 L rounds, with every state at hand. Since dA does not depend
  on the input, only its powers are needed; they decay.

States hold one member of each conjugate pair, and y = 2 Re(C x). Shapes: B batch, H features (independent systems), N modes,
C channels (outputs per feature), L steps; u (B, H, L) real, y (B, C, H, L), states (B, H, N).

Source: S4 (arXiv 2111.00396), sections 2 and 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anban.errors import InputError


class System(ABC):
    """A discrete system of H features; the views every kind has."""

    C: Tensor
    """(C, H, N)"""

    @abstractmethod
    def kernel(self, L: int) -> Tensor:
        """The impulse response: the output (C, H, L) to the input 1, 0, 0, ..."""

    @abstractmethod
    def response(self, state: Tensor, L: int) -> Tensor:
        """What the state (B, H, N) alone adds to the next L outputs: (B, C, H, L)."""

    @abstractmethod
    def advance(self, u: Tensor, state: Tensor) -> Tensor:
        """The state after the input u (B, H, L)."""

    @abstractmethod
    def next_state(self, u: Tensor, state: Tensor) -> Tensor:
        """The state after one more input u (B, H)."""

    def zero_state(self, batch: int) -> Tensor:
        """(B, H, N) zeros: nothing has been heard yet."""
        return self.C.new_zeros(batch, *self.C.shape[1:])

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: the input u (B, H) and the state -> the output (B, C, H) and the next state."""
        state = self.next_state(u, state)
        return self._read("chn,bhn->bch", state), state

    def recur(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The recurrent view: L steps in a loop, (B, H, L) -> outputs (B, C, H, L) and the last state."""
        state = self.zero_state(len(u)) if state is None else state
        outputs = []
        for u_l in _signal(u).unbind(-1):
            y, state = self.step(u_l, state)
            outputs.append(y)
        return torch.stack(outputs, dim=-1), state

    def convolve(self, u: Tensor, state: Tensor | None = None) -> Tensor:
        """The convolutional view: (B, H, L) -> (B, C, H, L), all steps at once; from `state` on where one is given."""
        L = _signal(u).shape[-1]
        y = causal_convolution(u, self.kernel(L))
        return y if state is None else y + self.response(state, L)

    def _read(self, equation: str, state: Tensor) -> Tensor:
        with _full_precision(state):
            y = torch.einsum(equation, self.C, state.to(self.C))
        return 2 * (y.real if y.is_complex() else y)


class DiagonalSystem(System):
    """A diagonal dA (S4D), given by its logarithm.

    Args:
        log_dA: (H, N), real part not positive.
        dB: (H, N).
        C: (C, H, N).
    """

    def __init__(self, log_dA: Tensor, dB: Tensor, C: Tensor):
        self.log_dA, self.dA, self.dB = log_dA, log_dA.exp(), dB
        self.C = C.to(log_dA.dtype)

    def kernel(self, L: int) -> Tensor:
        return 2 * vandermonde(self.C * self.dB, self.log_dA, L)

    def response(self, state: Tensor, L: int) -> Tensor:
        return 2 * vandermonde(self.C * (self.dA * state)[:, None], self.log_dA, L)

    def next_state(self, u: Tensor, state: Tensor) -> Tensor:
        return self.dA * state + self.dB * u[..., None]

    def advance(self, u: Tensor, state: Tensor) -> Tensor:
        # sum_l dA^(L-1-l) u_l in blocks of about sqrt(L), as in `vandermonde`.
        L = _signal(u).shape[-1]
        m, q = _blocks(L)
        late_first = F.pad(u.flip(-1), (0, m * q - L)).reshape(*u.shape[:-1], q, m)
        fine, coarse = _powers(self.log_dA, 1, m), _powers(self.log_dA, m, q)
        heard = torch.einsum("bhqm,hnm,hnq->bhn", late_first.to(fine.dtype), fine, coarse)
        return (self.log_dA * L).exp() * state + self.dB * heard

    def scan(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The parallel view: log2 L rounds, (B, H, L) -> outputs (B, C, H, L) and the last state."""
        driven = self.dB[..., None] * _signal(u)[:, :, None]
        if state is not None:
            first = driven[..., :1] + (self.dA * state)[..., None]
            driven = torch.cat([first, driven[..., 1:]], dim=-1)
        states = linear_scan(self.log_dA, driven)
        return self._read("chn,bhnl->bchl", states), states[..., -1]


class DPLRSystem(System):
    """A diagonal plus low-rank state matrix, diag(A) - P P*, under the bilinear rule (S4).

    Args:
        A, B: (H, N); P: (rank, H, N); C: (C, H, N); all complex.
        dt: (H, 1), or (H, N): a step for each mode.
    """

    BUDGET = 2**24
    """Complex numbers of one Cauchy matrix held at a time."""

    def __init__(self, A: Tensor, B: Tensor, P: Tensor, C: Tensor, dt: Tensor):
        self.A, self.B, self.P, self.C, self.dt = A, B, P, C, dt
        # (2/dt - A + P P*)^-1 by Woodbury: D - D P (1 + P* D P)^-1 P* D, with sums over both members of each pair.
        self._D = 1 / (2 / dt - A)
        rank = len(P)
        inner = 2 * torch.einsum("rhn,hn,shn->hrs", P.conj(), self._D, P).real
        eye = torch.eye(rank, dtype=inner.dtype, device=inner.device)
        self._solved = torch.linalg.solve(
            (eye + inner).to(A.dtype), torch.einsum("rhn,hn->hrn", P.conj(), self._D)
        )

    def _low_rank(self, left: Tensor, x: Tensor) -> Tensor:
        """P (left x), left (H, rank, N): a sum over both members of each pair, hence real in between."""
        return torch.einsum(
            "rhn,bhr->bhn", self.P, (2 * torch.einsum("hrn,bhn->bhr", left, x).real).to(x.dtype)
        )

    def next_state(self, u: Tensor, state: Tensor) -> Tensor:
        forward = (2 / self.dt + self.A) * state - self._low_rank(self.P.conj().transpose(0, 1), state)
        forward = forward + 2 * self.B * u[..., None]
        return self._D * (forward - self._low_rank(self._solved, forward))

    def advance(self, u: Tensor, state: Tensor) -> Tensor:
        for u_l in _signal(u).unbind(-1):
            state = self.next_state(u_l, state)
        return state

    def kernel(self, L: int) -> Tensor:
        return self.generate(self.truncated_output(L), self.B[None], L)[0]

    def response(self, state: Tensor, L: int) -> Tensor:
        # dA x = (1 - dt/2 A)^-1 dt times what the input vector would have to be.
        moved = self.A * state - self._low_rank(self.P.conj().transpose(0, 1), state)
        return self.generate(self.truncated_output(L), state / self.dt + moved / 2, L)

    def transition(self) -> Tensor:
        """dA as a real matrix (H, 2N, 2N) on (real parts, imaginary parts) of the state."""
        H, N = self.A.shape
        eye = torch.eye(N, dtype=self.A.dtype, device=self.A.device)
        basis = torch.cat([eye, 1j * eye])[:, None].expand(-1, H, -1)
        moved = self.next_state(self.A.real.new_zeros(2 * N, H), basis)
        return torch.cat([moved.real, moved.imag], dim=-1).permute(1, 2, 0)

    def truncated_output(self, L: int) -> Tensor:
        """C (1 - dA^L), S4's C~: the output whose infinite response is the first L steps of that of C."""
        with _full_precision(self.C):
            power = torch.linalg.matrix_power(self.transition(), L)
            C = torch.cat([self.C.real, -self.C.imag], dim=-1)
            real, imag = (C - torch.einsum("chm,hmn->chn", C, power)).chunk(2, dim=-1)
        return torch.complex(real, -imag)

    def untruncated_output(self, L: int) -> Tensor:
        """The C of which this system's C is `truncated_output(L)`."""
        with _full_precision(self.C):
            power = torch.linalg.matrix_power(self.transition(), L)
            C = torch.cat([self.C.real, -self.C.imag], dim=-1).transpose(0, 1)
            eye = torch.eye(power.shape[-1], dtype=power.dtype, device=power.device)
            C = torch.linalg.solve(eye - power, C, left=False).transpose(0, 1)
            real, imag = C.chunk(2, dim=-1)
        return torch.complex(real, -imag)

    def generate(self, C: Tensor, B: Tensor, L: int) -> Tensor:
        """sum_l z^l C dA^l dB at the L-th roots of unity, transformed back: (J, C, H, L) for inputs B (J, H, N).

        This is the response itself where C = `truncated_output(L)`. The generating function is C (1 - z dA)^-1 dB; the bilinear
        rule makes it a Cauchy sum, 2 C (2 (1 - z) - dt A (1 + z))^-1 dt B, and Woodbury's identity takes care of P P*. With
        z = exp(2i phi), 1 - z and 1 + z are exp(i phi) times -2i sin phi and 2 cos phi: finite everywhere (z = -1 too), and
        exact to the last digit where z is close to 1.
        """
        _check_length(L)
        phi = -math.pi / L * torch.arange(L // 2 + 1, dtype=torch.float64, device=self.A.device)
        nodes = torch.stack([phi.sin(), phi.cos()]).to(self.A.real.dtype)
        rows = torch.cat([B, self.P])  # (J + rank, H, N)
        columns = torch.cat([C, self.P.conj()])  # (C + rank, H, N)
        v, w = self.dt * rows[:, None] * columns, self.dt * self.A
        # A Cauchy matrix is H N L / 2 numbers: hold a part of it at a time, in the backward pass as well.
        parts = torch.split(nodes, max(1, self.BUDGET // w.numel()), dim=1)
        if len(parts) == 1:
            spectrum = _woodbury(v, w, nodes, len(self.P))
        else:
            made = [checkpoint(_woodbury, v, w, part, len(self.P), use_reentrant=False) for part in parts]
            spectrum = torch.cat(made, dim=-1)
        turn = torch.polar(torch.ones_like(phi), -phi).to(spectrum.dtype)
        kernel: Tensor = torch.fft.irfft(spectrum * turn, n=L)
        return kernel


def _woodbury(v: Tensor, w: Tensor, nodes: Tensor, rank: int) -> Tensor:
    """exp(i phi) times the generating function at nodes (sin phi, cos phi), (2, F): (J, C, H, F); see `generate`."""
    sin, cos = nodes
    # Both members of a pair at once: v / (p - w q) + conj(v) / (p - conj(w) q) = (a p - b q) / (...)(...), a and b real.
    p, wq = -2j * sin, w[..., None] * cos
    scale = 1 / ((p - wq) * (p - wq.conj()))  # (H, N, F)
    a, b = 2 * v.real, 2 * (v * w.conj()).real
    with _full_precision(w):
        r: Tensor = p * _real_times(a, scale) - cos * _real_times(b, scale)
    r00, r01, r10, r11 = r[:-rank, :-rank], r[:-rank, -rank:], r[-rank:, :-rank], r[-rank:, -rank:]
    correction: Tensor
    if rank == 1:
        correction = r01 * r10 * cos / (1 + cos * r11)
    else:
        eye = torch.eye(rank, dtype=r.dtype, device=r.device)
        inner = eye + (cos * r11).permute(2, 3, 0, 1)
        solved = torch.linalg.solve(inner, (cos * r10).permute(2, 3, 0, 1))
        correction = torch.einsum("jrhf,hfrc->jchf", r01, solved)
    return r00 - correction


def _real_times(a: Tensor, scale: Tensor) -> Tensor:
    """sum_n a_n scale_n for real a (J, C, H, N) and complex scale (H, N, F)."""
    return torch.complex(
        torch.einsum("jchn,hnf->jchf", a, scale.real), torch.einsum("jchn,hnf->jchf", a, scale.imag)
    )


# ---- the pieces -----------------------------------------------------------------------------------------------------


def vandermonde(weights: Tensor, log_nodes: Tensor, L: int) -> Tensor:
    """Re sum_n weights_n exp(l log_nodes_n) for l = 0 .. L-1: (..., H, N) and (H, N) -> (..., H, L).

    With l = m q + r, m about sqrt(L), the sum is a product of two small matrices: H N L^(1/2) numbers are held instead of the
    H N L of the Vandermonde matrix, and no power is larger than 1 where the real parts are not positive.
    """
    _check_length(L)
    m, q = _blocks(L)
    fine = _powers(log_nodes, 1, m)  # (H, N, m)
    coarse = (weights.to(fine.dtype)[..., None] * _powers(log_nodes, m, q)).transpose(
        -1, -2
    )  # (..., H, q, N)
    with _full_precision(fine):
        blocks = coarse.real @ fine.real - coarse.imag @ fine.imag if fine.is_complex() else coarse @ fine
    return blocks.flatten(-2)[..., :L]


def _blocks(L: int) -> tuple[int, int]:
    m = math.isqrt(L - 1) + 1
    return m, -(-L // m)


def _powers(log_nodes: Tensor, stride: int, count: int) -> Tensor:
    """exp(l log_nodes) for l = 0, stride, ..., (count - 1) stride: (..., count)."""
    real = log_nodes.real if log_nodes.is_complex() else log_nodes
    return (log_nodes[..., None] * (stride * torch.arange(count, device=real.device).to(real.dtype))).exp()


def linear_scan(log_dA: Tensor, driven: Tensor) -> Tensor:
    """States of x_l = dA x_{l-1} + driven_l from x_{-1} = 0, in log2 L rounds: (H, N), (B, H, N, L) -> (B, H, N, L).

    The composition of steps is associative: pairs of steps make a sequence of half the length with dA^2 (twice the logarithm);
    its states are those at odd positions, and one more step gives the rest. Work is linear in L.
    """
    L = driven.shape[-1]
    if L == 1:
        return driven
    dA = log_dA.exp()[..., None]
    even, odd = driven[..., 0::2], driven[..., 1::2]
    pairs = L // 2
    at_odd = linear_scan(2 * log_dA, dA * even[..., :pairs] + odd)
    at_even = torch.cat([even[..., :1], dA * at_odd[..., : even.shape[-1] - 1] + even[..., 1:]], dim=-1)
    states = torch.stack([at_even[..., :pairs], at_odd], dim=-1).flatten(-2)
    return states if L % 2 == 0 else torch.cat([states, at_even[..., -1:]], dim=-1)


def causal_convolution(u: Tensor, kernel: Tensor, *, two_sided: bool = False) -> Tensor:
    """Convolve u (B, H, L) with every channel of kernel (C, H, l): (B, C, H, L), in u's precision or float32 if lower.

    Args:
        two_sided: the second half of the channels runs backwards over what comes after: its value j weighs the input j + 1
            steps ahead (the present belongs to the first half alone).
    """
    L, length = u.shape[-1], kernel.shape[-1]
    u = u if u.dtype in {torch.float32, torch.float64} else u.float()
    n = L + length
    spectrum = torch.fft.rfft(u, n=n)[:, None] * kernel_spectrum(kernel, n, two_sided=two_sided)
    y: Tensor = torch.fft.irfft(spectrum, n=n)[..., :L]
    return y


def kernel_spectrum(kernel: Tensor, n: int, *, two_sided: bool = False, half: bool = True) -> Tensor:
    """The n-point spectrum of a kernel (C, H, l), n >= l; with `two_sided` the forward and the backward half make one.

    Args:
        half: frequencies 0 .. n/2 alone, which are all there is to know of the last axis of a real signal.
    """
    if two_sided:
        forward, backward = kernel.chunk(2)
        room = n - kernel.shape[-1]
        kernel = F.pad(forward, (0, room)) + F.pad(backward.flip(-1), (room, 0))
    spectrum: Tensor = torch.fft.rfft(kernel, n=n) if half else torch.fft.fft(kernel, n=n)
    return spectrum


def _full_precision(x: Tensor) -> torch.autocast:
    """Products of powers lose too much in half precision: no autocast in here."""
    return torch.autocast(x.device.type, enabled=False)


def _check_length(L: int) -> None:
    if L < 1:
        raise InputError(f"a kernel of {L} steps", expected="at least 1")


def _signal(u: Tensor) -> Tensor:
    if u.ndim != 3 or u.shape[-1] < 1:
        raise InputError(f"a signal of the shape {tuple(u.shape)}", expected="(batch, features, L), L >= 1")
    return u
