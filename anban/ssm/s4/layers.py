"""Layers around a state-space kernel: S4D (minimal), FFTConv (kernel, skip, activation) and S4Block (the S4 layer).

Trained by convolution, run by recurrence: `forward` convolves a whole sequence with the kernel; `step` takes one input and
the state and costs the same however long the past is. Both compute the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError
from anban.ssm.s4.kernels import S4DKernel, SSMKernelDiag, SSMKernelDPLR, restore
from anban.ssm.s4.systems import System, causal_convolution


class _GatedBy(nn.Module):
    """x, g -> x * activation(g), x and g the halves along `dim`."""

    def __init__(self, gate: nn.Module, dim: int):
        super().__init__()
        self.gate, self.dim = gate, dim

    def forward(self, x: Tensor) -> Tensor:
        x, g = x.chunk(2, dim=self.dim)
        gated: Tensor = x * self.gate(g)
        return gated


class FeatureDropout(nn.Module):
    """Dropout of whole features: (B, H, ...) loses a share `p` of its H, the rest is scaled up."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return torch.feature_dropout(x, self.p, self.training)


class _SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    **dict.fromkeys(["id", "identity", "linear", "none"], nn.Identity),
    **dict.fromkeys(["silu", "swish"], nn.SiLU),
    **dict.fromkeys(["sqrelu", "relu2"], _SquaredReLU),
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}


def activation_layer(name: str | None, dim: int = -1) -> nn.Module:
    """The activation `name`; "glu" and "glu-<activation>" gate the first half along `dim` by the second; None: none."""
    if name == "glu":
        return nn.GLU(dim=dim)
    if name and name.startswith("glu-"):
        return _GatedBy(activation_layer(name.removeprefix("glu-")), dim)
    if (name or "id") not in _ACTIVATIONS:
        raise InputError(
            f"the activation {name!r} is unknown",
            expected=", ".join([*_ACTIVATIONS, "glu", "glu-<activation>"]),
        )
    return _ACTIVATIONS[name or "id"]()


def dropout_layer(share: float, *, tied: bool = False) -> nn.Module:
    """Dropout of (B, H, ...): of single values or, tied, of whole features."""
    return FeatureDropout(share) if tied else nn.Dropout(share)


def is_gated(activation: str | None) -> bool:
    """Whether the activation halves its input."""
    return activation is not None and activation.startswith("glu")


def linear_layer(inputs: int, outputs: int, activation: str | None = None) -> nn.Module:
    """A linear layer over the last dimension, with an activation if one is given."""
    linear = nn.Linear(inputs, 2 * outputs if is_gated(activation) else outputs)
    return nn.Sequential(linear, activation_layer(activation)) if activation else linear


def make_kernel(name: str, **arguments: Any) -> SSMKernelDiag:
    """The kernel "dplr" (also "s4", "nplr") or "diag" ("s4d")."""
    kinds = dict.fromkeys(["dplr", "s4", "nplr"], SSMKernelDPLR) | dict.fromkeys(
        ["diag", "s4d"], SSMKernelDiag
    )
    if name not in kinds:
        raise InputError(f"the kernel {name!r} is unknown", expected=", ".join(kinds))
    try:
        return kinds[name](**arguments)
    except TypeError as error:
        raise InputError(f"the kernel {name!r}: {error}", expected="arguments of its class") from error


class S4D(nn.Module):
    """The minimal S4D layer: convolution by an `S4DKernel`, skip, GELU, linear, GLU. (B, H, L) -> the same shape.

    Args:
        d_model: features H.
        d_state: size of the state.
        dropout: share of features dropped, whole sequences at a time.
        transposed: True for (B, H, L), False for (B, L, H).
        dt_min, dt_max: range of the steps; a kernel reaches back about 1 / dt steps.

    Source: models/s4/s4d.py of github.com/state-spaces/s4; parameters by its names.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        dropout: float = 0.0,
        transposed: bool = True,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ):
        super().__init__()
        self.transposed = transposed
        self.D = nn.Parameter(torch.randn(d_model))
        self.kernel = S4DKernel(d_model, d_state, dt_min, dt_max)
        self.activation = nn.GELU()
        self.dropout = FeatureDropout(dropout)
        self.output_linear = nn.Sequential(nn.Conv1d(d_model, 2 * d_model, kernel_size=1), nn.GLU(dim=-2))

    def forward(self, u: Tensor) -> Tensor:
        """(B, H, L), or (B, L, H) if not `transposed`, -> the same shape."""
        if not self.transposed:
            u = u.transpose(-1, -2)
        y = causal_convolution(u, self.kernel(u.shape[-1])[None])[:, 0]
        y = self._mix((y + u * self.D[:, None]).to(u.dtype))
        return y if self.transposed else y.transpose(-1, -2)

    def step(
        self, u: Tensor, state: Tensor | None = None, system: System | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step: the input (B, H) and the state -> the output (B, H) and the next state.

        Args:
            state: (B, H, N), None at the beginning.
            system: `self.kernel.system()`, to discretise once for many steps.
        """
        system = system or self.kernel.system()
        y, state = system.step(u, system.zero_state(len(u)) if state is None else state)
        return self._mix((y[:, 0] + u * self.D)[..., None])[..., 0], state

    def _mix(self, y: Tensor) -> Tensor:
        mixed: Tensor = self.output_linear(self.dropout(self.activation(y)))
        return mixed


class FFTConv(nn.Module):
    """Convolution by a state-space kernel, skip D u, dropout, activation: (B, H, L) -> (B, channels * H, L).

    Args:
        d_model: features H.
        l_max: longest kernel; None: as long as the sequence.
        channels: outputs per feature.
        swap_channels: order of the outputs: features outside, channels inside, instead of the reverse.
        bidirectional: a second kernel runs backwards over what comes after; no recurrence then. Its value j weighs the input
            j + 1 steps ahead, so that the present is not counted twice.
        activation: after the skip; a "glu" takes twice the channels and halves them.
        dropout, tie_dropout: share of the outputs dropped; tied: the same ones at all steps.
        drop_kernel: share of the kernel's values dropped.
        kernel: "dplr" (S4) or "diag" (S4D).
        kernel_args: arguments of `SSMKernelDPLR` or `SSMKernelDiag`.
    """

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        channels: int = 1,
        *,
        swap_channels: bool = False,
        bidirectional: bool = False,
        activation: str | None = "gelu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        drop_kernel: float = 0.0,
        kernel: str = "dplr",
        **kernel_args: Any,
    ):
        super().__init__()
        self.l_max, self.swap_channels, self.bidirectional = l_max, swap_channels, bidirectional
        self.d_output = d_model * channels
        if is_gated(activation):
            channels *= 2
        self.activation = activation_layer(activation, dim=1)
        self.D = nn.Parameter(torch.randn(channels, d_model))
        self.kernel = make_kernel(
            kernel, d_model=d_model, channels=2 * channels if bidirectional else channels, **kernel_args
        )
        self.drop = dropout_layer(dropout, tied=tie_dropout)
        self.drop_kernel = nn.Dropout(drop_kernel)

    def forward(self, x: Tensor, rate: float = 1.0) -> Tensor:
        """(B, H, L) -> (B, channels * H, L); `rate`: see `SSMKernel.system`."""
        L = x.shape[-1]
        length = L if self.l_max is None else min(L, round(self.l_max / rate))
        kernel = self.drop_kernel(self.kernel(length, rate))
        return self._finish(causal_convolution(x, kernel, two_sided=self.bidirectional), x)

    def prefill(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A stretch of a longer sequence, by convolution: (B, H, L) and the state before -> outputs and the state after."""
        system = self.system()
        state = system.zero_state(len(x)) if state is None else state
        return self._finish(system.convolve(x, state), x), system.advance(x, state)

    def step(
        self, x: Tensor, state: Tensor | None = None, system: System | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: (B, H) and the state -> (B, channels * H) and the next state."""
        system = system or self.system()
        y, state = system.step(x, system.zero_state(len(x)) if state is None else state)
        return self._finish(y[..., None], x[..., None])[..., 0], state

    def system(self) -> System:
        """The discrete system of the recurrence; it is made once for many steps.

        Raises:
            InputError: the layer looks ahead, or sees `l_max` steps only: it has no recurrence.
        """
        if self.bidirectional or self.l_max is not None:
            raise InputError(
                "a bidirectional layer, or one with a longest kernel, has no recurrence",
                do="build it with bidirectional=False and l_max=None",
            )
        return self.kernel.system()

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        y = (y + x[:, None] * self.D[..., None]).to(x.dtype)
        if self.swap_channels:
            y = y.transpose(1, 2)
        finished: Tensor = self.activation(self.drop(y.flatten(1, 2)))
        return finished


class S4Block(nn.Module):
    """The S4 layer: state-space convolution with skip and GELU, then a linear layer with GLU that mixes the features.

    Args:
        d_model: features H.
        bottleneck: the convolution works on H / bottleneck features.
        gate: a second branch, `gate` times as wide, multiplies the convolution's (gated state spaces).
        gate_act: activation of that branch.
        mult_act: activation after the multiplication.
        final_act: activation after the last linear layer, "glu" as published; None: no such layer.
        dropout, tie_dropout: share of features dropped; tied: the same ones at all steps.
        transposed: True for (B, H, L), False for (B, L, H).
        layer_args: arguments of `FFTConv` and of its kernel (l_max, channels, bidirectional, activation, kernel, d_state,
            init, dt_min, ...).

    Source: models/s4/s4.py of github.com/state-spaces/s4, `S4Block`; parameters by its names. Gate and bottleneck are what
    they are meant to be there; the release cannot be built with them.
    """

    def __init__(
        self,
        d_model: int,
        *,
        bottleneck: int | None = None,
        gate: int | None = None,
        gate_act: str | None = None,
        mult_act: str | None = None,
        final_act: str | None = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = True,
        **layer_args: Any,
    ):
        super().__init__()
        if d_model % (bottleneck or 1):
            raise InputError(f"{d_model} features with a bottleneck of {bottleneck}", expected="a divisor")
        self.transposed = transposed
        inner = d_model // (bottleneck or 1)
        self.layer = FFTConv(inner, dropout=dropout, tie_dropout=tie_dropout, **layer_args)
        width = inner * gate if gate else self.layer.d_output
        self.input_linear = linear_layer(d_model, inner) if bottleneck else None
        self.input_gate = linear_layer(d_model, width, gate_act) if gate else None
        self.output_gate = (
            linear_layer(self.layer.d_output, width) if gate and self.layer.d_output != width else None
        )
        self.mult_activation = activation_layer(mult_act)
        self.drop = dropout_layer(dropout, tied=tie_dropout)
        self.output_linear = nn.Identity() if final_act is None else linear_layer(width, d_model, final_act)

    def forward(self, x: Tensor, lengths: Tensor | int | None = None, rate: float = 1.0) -> Tensor:
        """(B, H, L), or (B, L, H) if not `transposed`, -> the same shape.

        Args:
            lengths: (B,) or one for all: what comes after is padding and counts as zero.
            rate: see `SSMKernel.system`.
        """
        x = self._features_last(x)
        if lengths is not None:
            limit = torch.as_tensor(lengths, device=x.device).reshape(-1, 1, 1)
            x = x * (torch.arange(x.shape[1], device=x.device)[:, None] < limit)
        y = self.layer(self._enter(x).transpose(1, 2), rate=rate).transpose(1, 2)
        return self._features_last(self._leave(y, x))

    def prefill(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A stretch of a longer sequence, by convolution: x and the state before -> outputs and the state after."""
        x = self._features_last(x)
        y, state = self.layer.prefill(self._enter(x).transpose(1, 2), state)
        return self._features_last(self._leave(y.transpose(1, 2), x)), state

    def step(
        self, x: Tensor, state: Tensor | None = None, system: System | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: (B, H) and the state -> (B, H) and the next state.

        Args:
            state: (B, H, N), None at the beginning.
            system: `self.layer.system()`, to discretise once for many steps.
        """
        y, state = self.layer.step(self._enter(x), state, system)
        return self._leave(y[:, None], x[:, None])[:, 0], state

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn what the release keeps in DPLR kernels back, see `SSMKernelDPLR`."""
        return restore(self, state_dict)

    def _features_last(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.transposed else x

    def _enter(self, x: Tensor) -> Tensor:
        return x if self.input_linear is None else self.input_linear(x)

    def _leave(self, y: Tensor, x: Tensor) -> Tensor:
        if self.output_gate is not None:
            y = self.output_gate(y)
        if self.input_gate is not None:
            y = y * self.input_gate(x)
        y = self.mult_activation(y)
        y = self.drop(y.transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = self.output_linear(y)
        return mixed
