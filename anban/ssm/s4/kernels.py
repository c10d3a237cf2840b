"""Trainable state-space kernels: SSMKernelDiag (S4D), SSMKernelDPLR (S4) and the minimal S4DKernel.

A kernel module holds the continuous system and a step for every feature, discretises it (`system`) and gives its impulse
response (`forward`). The views of the discrete system (convolution, recurrence, scan) are those of `anban.ssm.s4.systems`.

Parameters are those of github.com/state-spaces/s4, by name and meaning, so that its checkpoints load:
    inv_dt (H, 1)              the step under `dt_transform`: with "exp", its logarithm
    A_real, A_imag (S, N)      A = -f(A_real) - i g(A_imag), f and g: `real_transform`, `imag_transform`
    B (1, S, N, 2), C (channels, H, N, 2), P (rank, S, N, 2)     real and imaginary parts
with H features, S = n_ssm systems shared by them and N = d_state / 2 conjugate pairs.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError
from anban.ssm.s4.discretise import discretise, dss_weights
from anban.ssm.s4.hippo import initial
from anban.ssm.s4.systems import DiagonalSystem, DPLRSystem, System, vandermonde

Transform = Literal["none", "exp", "relu", "sigmoid", "softplus"]

_SMALL = 1e-4

_TRANSFORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "none": (lambda p: p, lambda x: x),
    # Some HiPPO matrices have real parts of zero; a logarithm needs something.
    "exp": (torch.exp, lambda x: x.clamp(min=_SMALL).log()),
    "relu": (lambda p: F.relu(p) + _SMALL, lambda x: x - _SMALL),
    "sigmoid": (torch.sigmoid, lambda x: x.clamp(_SMALL, 1 - _SMALL).logit()),
    "softplus": (F.softplus, lambda x: x.clamp(min=_SMALL) + (-torch.expm1(-x.clamp(min=_SMALL))).log()),
}
"""What makes a parameter positive, and the parameter that makes a value."""


class SSMKernel(nn.Module, ABC):
    """A kernel made by a state space. Calling it with a length gives the kernel, (channels, d_model, L)."""

    @abstractmethod
    def system(self, rate: float = 1.0) -> System:
        """The discrete system, differentiable; `rate` 2 takes every second sample of what the parameters were learnt on."""

    def forward(self, L: int, rate: float = 1.0) -> Tensor:
        """The impulse response over L steps, (channels, d_model, L)."""
        return self.system(rate).kernel(L)


class SSMKernelDiag(SSMKernel):
    """S4D: a diagonal state matrix.

    Args:
        d_model: features H; each has a system of its own unless `n_ssm` says otherwise.
        d_state: size of the state, counting both members of each conjugate pair (`is_real`: the number of real modes).
        channels: outputs per feature, each with its own C.
        init: an initialisation of `anban.ssm.s4.hippo.initial`; the usual ones are "diag-lin", "diag-inv", "diag-legs",
            "diag" (half of the features inv, half lin) and, with `is_real`, "diag-real".
        init_args: options of that function.
        n_ssm: number of different (A, B); it divides d_model. None: d_model.
        disc: "zoh", "bilinear", or "dss" (kernel only: normalised over its length).
        dt_min, dt_max: steps are drawn log-uniformly between them. A kernel reaches back about 1 / dt steps.
        dt_tie: one step for all modes of a feature; False: one each.
        dt_transform: what makes a step of its parameter.
        dt_fast: the parameter of the step is kept under asinh (Ohno and Kumagai 2022).
        real_transform, imag_transform: what makes the parts of -A of their parameters.
        bandlimit: drop modes that turn more than bandlimit / 2 times per step, as S4ND does (1: those that alias).
        is_real: real modes, an exponential moving average each.
        deterministic: evenly spread steps and C = e_0 instead of draws. (The release, asked for it, takes the exponential of
            the steps twice; here they lie between dt_min and dt_max.)

    Raises:
        InputError: an option is unknown or does not go with another.

    Source: S4D (arXiv 2206.11893); models/s4/s4.py of github.com/state-spaces/s4. Parameters start at the exact values of the
    initialisation, where the release raises what is below 1e-4 to it (the constant mode of "diag-lin").
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        channels: int = 1,
        *,
        init: str | Sequence[str] = "diag-lin",
        init_args: Mapping[str, Any] | None = None,
        n_ssm: int | None = None,
        disc: Literal["zoh", "bilinear", "dss"] = "zoh",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_tie: bool = True,
        dt_transform: Transform = "exp",
        dt_fast: bool = False,
        real_transform: Transform = "exp",
        imag_transform: Transform = "none",
        bandlimit: float | None = None,
        is_real: bool = False,
        deterministic: bool = False,
    ):
        super().__init__()
        n_ssm = n_ssm or d_model
        _check(d_model, channels, n_ssm, disc, (dt_transform, real_transform, imag_transform))
        if is_real and bandlimit is not None:
            raise InputError(
                "a band limit was given for real modes", expected="complex modes: real ones do not turn"
            )
        self.d_model, self.channels, self.n_ssm, self.disc = d_model, channels, n_ssm, disc
        self.dt_transform, self.dt_fast, self.bandlimit = dt_transform, dt_fast, bandlimit
        self.real_transform, self.imag_transform, self.is_real = real_transform, imag_transform, is_real

        # Whatever low-rank part the initialisation has (2 at most) is not used by a diagonal matrix.
        start = initial(init, 2 * d_state if is_real else d_state, 2, n_ssm, **(init_args or {}))
        N = start.A.shape[-1]
        steps = _steps(d_model, 1 if dt_tie else N, dt_min, dt_max, deterministic)
        inv_dt = _TRANSFORMS[dt_transform][1](steps)
        C = torch.randn(channels, d_model, N, dtype=torch.cfloat)
        if deterministic:
            C = start.V[:, 0].repeat(d_model // n_ssm, 1).expand(channels, -1, -1)
        self.inv_dt = _parameter(inv_dt.asinh() if dt_fast else inv_dt)
        self.C = _parameter(C.real if is_real else torch.view_as_real(C.resolve_conj()))
        self.B = _parameter((start.B.real if is_real else torch.view_as_real(start.B.resolve_conj()))[None])
        self.A_real = _parameter(_TRANSFORMS[real_transform][1](-start.A.real))
        if not is_real:
            self.A_imag = _parameter(_TRANSFORMS[imag_transform][1](-start.A.imag))

    def continuous(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A (H, N), B (H, N), C (channels, H, N) and dt (H, 1), or (H, N) if steps are not tied."""
        A = -_TRANSFORMS[self.real_transform][0](self.A_real)
        B: Tensor = self.B[0]
        C: Tensor = self.C
        if not self.is_real:
            A = torch.complex(A, -_TRANSFORMS[self.imag_transform][0](self.A_imag))
            B, C = torch.view_as_complex(B), torch.view_as_complex(C)
        A, B = self._shared(A), self._shared(B)
        dt = _TRANSFORMS[self.dt_transform][0](self.inv_dt.sinh() if self.dt_fast else self.inv_dt)
        if self.bandlimit is not None:
            turns = dt * A.imag.abs() / (2 * math.pi)
            C = C * (turns < self.bandlimit / 2)
        return A, B, C, dt * rate

    def _shared(self, x: Tensor) -> Tensor:
        """Feature h has system h mod n_ssm: (..., S, N) -> (..., H, N)."""
        return x.repeat(*[1] * (x.ndim - 2), self.d_model // self.n_ssm, 1)

    def system(self, rate: float = 1.0) -> DiagonalSystem:
        """The discrete system.

        Raises:
            InputError: the kernel has the "dss" form, which has no recurrence.
        """
        if self.disc == "dss":
            raise InputError(
                'a kernel of the form "dss" depends on its length: it is no recurrence', do='take disc="zoh"'
            )
        A, B, C, dt = self.continuous(rate)
        return DiagonalSystem(*discretise(A, B, dt, self.disc), C)

    def forward(self, L: int, rate: float = 1.0) -> Tensor:
        """The impulse response over L steps, (channels, d_model, L)."""
        if self.disc != "dss":
            return super().forward(L, rate)
        A, B, C, dt = self.continuous(rate)
        log_nodes, weights, growing = dss_weights(A, B, dt, L)
        kernel = vandermonde(C * weights * ~growing, log_nodes, L)
        if growing.any():
            kernel = kernel + vandermonde(C * weights * growing, log_nodes, L).flip(-1)
        return kernel


class SSMKernelDPLR(SSMKernelDiag):
    """S4: a diagonal plus low-rank state matrix, diag(A) - P P*, so HiPPO-LegS itself; bilinear rule.

    The kernel of length L is truncated exactly: C~ = C (1 - dA^L) is computed from C every time. (The release overwrites
    the parameter C by C~ at the first forward pass and trains that; its checkpoints, which say so in `l_kernel`, are turned back
    by `from_official`.)

    Args:
        rank: of the correction: 1, for "legt" 2.
        init: as for `SSMKernelDiag`; also the measures of HiPPO themselves: "legs", "legt", "fourier", "hippo" (half of the
            features legs, half fourier).
        others: as for `SSMKernelDiag`, which explains them.

    Source: S4 (arXiv 2111.00396), algorithm 1.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        channels: int = 1,
        *,
        init: str | Sequence[str] = "legs",
        rank: int = 1,
        init_args: Mapping[str, Any] | None = None,
        n_ssm: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_tie: bool = True,
        dt_transform: Transform = "exp",
        dt_fast: bool = False,
        real_transform: Transform = "exp",
        imag_transform: Transform = "none",
        deterministic: bool = False,
    ):
        super().__init__(
            d_model,
            d_state,
            channels,
            init=init,
            init_args=init_args,
            n_ssm=n_ssm,
            disc="bilinear",
            dt_min=dt_min,
            dt_max=dt_max,
            dt_tie=dt_tie,
            dt_transform=dt_transform,
            dt_fast=dt_fast,
            real_transform=real_transform,
            imag_transform=imag_transform,
            deterministic=deterministic,
        )
        P = initial(init, d_state, rank, self.n_ssm, **(init_args or {})).P
        self.P = _parameter(torch.view_as_real(P.resolve_conj()))

    def system(self, rate: float = 1.0) -> DPLRSystem:  # type: ignore[override]
        """The discrete system."""
        A, B, C, dt = self.continuous(rate)
        return DPLRSystem(A, B, self._shared(torch.view_as_complex(self.P)), C, dt)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop `l_kernel`; where it is not zero, turn the C~ that the release keeps back into C."""
        state = dict(state_dict)
        length = int(state.pop("l_kernel", torch.tensor(0)))
        if length:
            twin = copy.deepcopy(self).double()
            twin.load_state_dict({name: value.double() for name, value in state.items()})
            with torch.no_grad():
                C = twin.system().untruncated_output(length)
            state["C"] = torch.view_as_real(C).to(state["C"])
        return state


class S4DKernel(SSMKernel):
    """The minimal S4D kernel: A = -exp(log_A_real) + i A_imag, B = 1, zero-order hold; calling it gives (d_model, L).

    Args:
        d_model: features.
        N: size of the state, counting both members of each conjugate pair.
        dt_min, dt_max: steps are drawn log-uniformly between them.

    Source: models/s4/s4d.py of github.com/state-spaces/s4; starts from S4D-Lin.
    """

    def __init__(self, d_model: int, N: int = 64, dt_min: float = 0.001, dt_max: float = 0.1):
        super().__init__()
        n = torch.arange(N // 2, dtype=torch.float32)
        self.C = _parameter(torch.view_as_real(torch.randn(d_model, N // 2, dtype=torch.cfloat)))
        self.log_dt = _parameter(_steps(d_model, 1, dt_min, dt_max, False)[:, 0].log())
        self.log_A_real = _parameter(torch.full((d_model, N // 2), 0.5).log())
        self.A_imag = _parameter((math.pi * n).repeat(d_model, 1))

    def system(self, rate: float = 1.0) -> DiagonalSystem:
        """The discrete system, of one channel."""
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        dt = rate * self.log_dt.exp()[:, None]
        return DiagonalSystem(*discretise(A, torch.ones_like(A), dt), torch.view_as_complex(self.C)[None])

    def forward(self, L: int, rate: float = 1.0) -> Tensor:
        """The impulse response over L steps, (d_model, L)."""
        return super().forward(L, rate)[0]


def restore(module: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`SSMKernelDPLR.from_official` for every such kernel inside a module."""
    state = dict(state_dict)
    for name, kernel in module.named_modules():
        if isinstance(kernel, SSMKernelDPLR):
            prefix = f"{name}." if name else ""
            own = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
            restored = kernel.from_official({key.removeprefix(prefix): value for key, value in own.items()})
            state |= {prefix + key: value for key, value in restored.items()}
    return state


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(
        value.detach().to(torch.get_default_dtype()).clone(memory_format=torch.contiguous_format)
    )


def _steps(features: int, modes: int, low: float, high: float, even: bool) -> Tensor:
    """(features, modes) steps between low and high, log-uniform."""
    if not 0 < low <= high:
        raise InputError(f"steps between {low} and {high}", expected="0 < dt_min <= dt_max")
    share = torch.linspace(0, 1, features)[:, None].expand(-1, modes) if even else torch.rand(features, modes)
    return low * (high / low) ** share


def _check(d_model: int, channels: int, n_ssm: int, disc: str, transforms: Sequence[str]) -> None:
    if min(d_model, channels, n_ssm) < 1 or d_model % n_ssm:
        raise InputError(
            f"d_model {d_model}, channels {channels}, n_ssm {n_ssm}",
            expected="positive; n_ssm divides d_model",
        )
    if disc not in {"zoh", "bilinear", "dss"}:
        raise InputError(f"the discretisation {disc!r} is unknown", expected='"zoh", "bilinear" or "dss"')
    for name in transforms:
        if name not in _TRANSFORMS:
            raise InputError(f"the transform {name!r} is unknown", expected=", ".join(_TRANSFORMS))
