"""The Mamba mixer: one block in place of an attention and an MLP block, read as a whole sequence or token by token.

H3's block is a short convolution, a state-space model and a gate; a gated MLP is a gate between two wide projections. Mamba
puts the two on top of each other: of the wide projection's halves one goes through convolution and scan, the other gates.

    (x, z) = in_proj(token);  x = silu(conv1d(x));  (dt, B, C) = x_proj(x);  y = scan(x, dt_proj(dt), A, B, C, D)
    out = out_proj(y * silu(z))

Source: Gu, Dao, "Mamba", arXiv 2312.00752, sections 3.4 and 3.5; in two directions, Zhu et al., "Vision Mamba", arXiv
2401.09417, algorithm 1. Numerically equal to the releases (github.com/state-spaces/mamba, github.com/hustvl/Vim), whose
parameter names are kept.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError
from anban.ssm.backends import accumulator
from anban.ssm.parameters import undecayed
from anban.ssm.scan import selective_scan_2d

Bimamba = Literal["none", "v1", "v2"]


class MambaState(NamedTuple):
    """What a mixer remembers of a sequence; its size does not depend on the sequence's length.

    Attributes:
        window: (batch, d_inner, d_conv - 1), the last inputs of the convolution.
        hidden: (batch, d_inner, d_state), the state of the scan, float32 (float64 in a float64 mixer).
    """

    window: Tensor
    hidden: Tensor


@dataclasses.dataclass(frozen=True)
class _Branch:
    """One set of selective parameters and the orders that it is scanned in, with a decay for each."""

    conv: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    D: Tensor
    decays: Mapping[str, Tensor]
    backwards: bool = False


class Mamba(nn.Module):
    """The Mamba mixer: tokens (batch, L, d_model) -> (batch, L, d_model).

    Args:
        d_model: width of the tokens.
        d_state: N, states per channel.
        d_conv: length of the depth-wise convolution.
        expand: the inner width is int(expand * d_model).
        dt_rank: width from which the steps are projected; "auto" is d_model / 16, rounded up.
        dt_min, dt_max: the steps' range at the start, log-uniform; none below `dt_init_floor`.
        dt_init: `dt_proj.weight` starts "random", uniform in +-dt_scale / sqrt(dt_rank), or "constant" at that value.
        dt_scale: see `dt_init`.
        dt_init_floor: see `dt_min`.
        conv_bias: whether the convolution has a bias.
        bias: whether `in_proj` and `out_proj` have one.
        bimamba_type: "none" reads forwards only; "v1" scans the same steps and projections backwards as well, with an A
            of its own; "v2" (Vision Mamba) gives the backward direction its own convolution, projections, A and D. The
            directions share `in_proj`, the gate and `out_proj`, and are added up.
        if_divide_out: halve the sum of v2's two directions.
        init_layer_scale: multiply the output by a learned factor per channel, `gamma`, that starts here; None: do not.
        backend: of the scan, see `selective_scan`.

    Raises:
        InputError: an unknown `bimamba_type` or `dt_init`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        bimamba_type: Bimamba = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        if bimamba_type not in ("none", "v1", "v2"):
            raise InputError(f"no bimamba_type is called {bimamba_type!r}", expected="none, v1 or v2")
        if dt_init not in ("random", "constant"):
            raise InputError(f"no dt_init is called {dt_init!r}", expected="random or constant")
        self.d_state, self.bimamba_type, self.backend = d_state, bimamba_type, backend
        self.if_divide_out = if_divide_out
        inner = int(expand * d_model)
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias)
        self.out_proj = nn.Linear(inner, d_model, bias=bias)
        self.gamma = (
            None
            if init_layer_scale is None
            else nn.Parameter(torch.full((d_model,), float(init_layer_scale)))
        )
        self.conv1d = _depthwise(inner, d_conv, conv_bias)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        _start_steps(self.dt_proj, dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        self.A_log = undecayed(_s4d_real(inner, d_state))
        self.D = undecayed(torch.ones(inner))
        if bimamba_type != "none":
            self.A_b_log = undecayed(_s4d_real(inner, d_state))
        if bimamba_type == "v2":
            self.conv1d_b = _depthwise(inner, d_conv, conv_bias)
            self.x_proj_b = nn.Linear(inner, rank + 2 * d_state, bias=False)
            # As released, the backward direction's steps do not start in the range of `dt_min` and `dt_max`.
            self.dt_proj_b = nn.Linear(rank, inner)
            self.D_b = nn.Parameter(torch.ones(inner))

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix (batch, L, d_model), all tokens at once."""
        return self._out(self.mixed(tokens))

    def mixed(self, tokens: Tensor) -> Tensor:
        """What `out_proj` is given, (batch, L, d_inner): for layers that put something of their own in front of it."""
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        y = functools.reduce(torch.add, (self._scan(x, branch) for branch in self._branches()))
        if self.if_divide_out and self.bimamba_type == "v2":
            y = y / 2
        return _gated(y, z)

    def allocate_state(self, batch: int) -> MambaState:
        """The state before the first token of `batch` sequences, for `step`: zeros."""
        inner, _, width = self.conv1d.weight.shape
        return MambaState(
            self.conv1d.weight.new_zeros(batch, inner, width - 1),
            self.A_log.new_zeros(batch, inner, self.d_state, dtype=accumulator(self.A_log.dtype)),
        )

    def step(self, token: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """The recurrent view: the next token of every sequence at a cost that does not grow with what came before.

        Args:
            token: (batch, d_model).
            state: from `allocate_state` or the step before; it is not changed.

        Returns:
            what `forward` gives for this token, (batch, d_model), and the state after it.

        Raises:
            InputError: the mixer reads backwards as well, that is from tokens still to come.
        """
        if self.bimamba_type != "none":
            raise InputError(
                f"a mixer of bimamba_type {self.bimamba_type!r} was stepped",
                expected="one that reads forwards only: bimamba_type none",
                do="call it with the whole sequence",
            )
        x, z = self.in_proj(token).chunk(2, dim=-1)
        window = torch.cat((state.window, x.unsqueeze(-1)), dim=-1)
        x = (window * self.conv1d.weight[:, 0]).sum(-1)
        x = F.silu(x if self.conv1d.bias is None else x + self.conv1d.bias)
        delta, B, C = self._select(x, self.x_proj, self.dt_proj)
        delta, B, C, x = (t.to(state.hidden.dtype) for t in (delta, B, C, x))
        delta = F.softplus(delta + self.dt_proj.bias).unsqueeze(-1)
        remembered = torch.exp(delta * decay(self.A_log)) * state.hidden
        hidden = remembered + delta * x.unsqueeze(-1) * B.unsqueeze(1)
        y = (hidden * C.unsqueeze(1)).sum(-1) + self.D * x
        return self._out(_gated(y, z)), MambaState(window[..., 1:], hidden)

    def _branches(self) -> list[_Branch]:
        forwards = _Branch(self.conv1d, self.x_proj, self.dt_proj, self.D, {"row": self.A_log})
        if self.bimamba_type == "none":
            return [forwards]
        if self.bimamba_type == "v1":
            both = {"row": self.A_log, "row-reversed": self.A_b_log}
            return [dataclasses.replace(forwards, decays=both)]
        own = {"row-reversed": self.A_b_log}
        return [
            forwards,
            _Branch(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.D_b, own, backwards=True),
        ]

    def _scan(self, x: Tensor, branch: _Branch) -> Tensor:
        x = F.silu(causal_conv(x, branch.conv.weight, branch.conv.bias, backwards=branch.backwards))
        orders = tuple(branch.decays)
        selected = self._select(x, branch.x_proj, branch.dt_proj)
        return scan_sequence(
            x,
            *(t.unsqueeze(2).expand(-1, -1, len(orders), -1) for t in selected),
            A=torch.stack([decay(A_log) for A_log in branch.decays.values()]),
            D=branch.D.expand(len(orders), -1),
            delta_bias=branch.dt_proj.bias.expand(len(orders), -1),
            orders=orders,
            backend=self.backend,
        )

    def _select(self, x: Tensor, x_proj: nn.Linear, dt_proj: nn.Linear) -> Sequence[Tensor]:
        """What makes the scan selective, from each token: raw step (..., d_inner), B and C (..., d_state)."""
        dt, B, C = x_proj(x).split([dt_proj.in_features, self.d_state, self.d_state], dim=-1)
        return F.linear(dt, dt_proj.weight), B, C  # dt_proj's bias is added inside the scan, in its precision

    def _out(self, mixed: Tensor) -> Tensor:
        out: Tensor = self.out_proj(mixed)
        return out if self.gamma is None else out * self.gamma


def _gated(y: Tensor, z: Tensor) -> Tensor:
    return y.to(z.dtype) * F.silu(z)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, *, backwards: bool = False) -> Tensor:
    """Depth-wise convolution over tokens (batch, L, d) that sees no later ones; no earlier ones if `backwards`.

    Args:
        weight: (d, 1, width), as of a Conv1d; its last entry meets the token itself.
        bias: (d,) or None.
    """
    reach = weight.shape[-1] - 1
    if backwards:
        weight = weight.flip(-1)
    x = F.pad(x, (0, 0, 0, reach) if backwards else (0, 0, reach, 0))
    # An image of one line whose channels are last in memory: many times faster than conv1d, which wants them first.
    image = x.transpose(1, 2).unsqueeze(2)
    return F.conv2d(image, weight.unsqueeze(2), bias, groups=weight.shape[0]).squeeze(2).transpose(1, 2)


def scan_sequence(
    x: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    orders: Sequence[str],
    backend: str = "auto",
) -> Tensor:
    """Selective scan of tokens along K orders, "row" and "row-reversed", added up: a sequence is an image of one line.

    Args:
        x: (batch, L, d).
        delta: (batch, L, K, d), the raw step.
        B, C: (batch, L, K, N).
        A: (K, d, N).
        D, delta_bias: (K, d).

    Returns:
        (batch, L, d), at least float32.
    """
    x, delta, B, C = (t.unsqueeze(1) for t in (x, delta, B, C))
    y = selective_scan_2d(
        x, delta, A, B, C, D, delta_bias, delta_softplus=True, backend=backend, orders=orders
    )
    return y.squeeze(1)


def decay(A_log: Tensor) -> Tensor:
    """A = -exp(A_log), in float32 whatever the parameter is in; float64 in float64."""
    return -torch.exp(A_log.to(accumulator(A_log.dtype)))


def _depthwise(channels: int, width: int, bias: bool) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, width, groups=channels, bias=bias)


def _s4d_real(channels: int, states: int) -> Tensor:
    """log(1 ... N) for every channel: A = -1 ... -N, S4D's real initialisation."""
    return torch.arange(1, states + 1, dtype=torch.float32).log().repeat(channels, 1)


@torch.no_grad()
def _start_steps(
    dt_proj: nn.Linear, dt_min: float, dt_max: float, dt_init: str, dt_scale: float, floor: float
) -> None:
    """Weights that keep the variance, and a bias whose softplus is log-uniform in [dt_min, dt_max]."""
    scale = dt_proj.in_features**-0.5 * dt_scale
    if dt_init == "constant":
        nn.init.constant_(dt_proj.weight, scale)
    else:
        nn.init.uniform_(dt_proj.weight, -scale, scale)
    dt = torch.exp(torch.empty_like(dt_proj.bias).uniform_(math.log(dt_min), math.log(dt_max))).clamp(
        min=floor
    )
    dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
