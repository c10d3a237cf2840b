"""SS2D: the selective scan of an image in several directions, with its projections.

Source: VMamba, arXiv 2401.10166, section 4.2 and figure 4; numerically equal to `classification/models/vmamba.py` of the
authors' release for every forward type that runs there, and to ChangeMamba's copy.

The projections of a direction do not see the order of the pixels: x_proj and dt_proj run once on the pixels, all directions
in one matrix product, and the scan reads step, B and C where that product left them. No tensor of 4 x H x W features is made
but the step itself. Data lie channels-last in memory in both layouts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError
from anban.ssm.orders import by_shear, sheared
from anban.ssm.parameters import undecayed
from anban.ssm.scan import selective_scan_2d
from anban.ssm.vmamba.forward_types import ForwardType, OutNorm
from anban.ssm.vmamba.forward_types import forward_type as parse
from anban.ssm.vmamba.layers import (
    ACTIVATIONS,
    Activation,
    LayerNorm2d,
    Official,
    ToFirst,
    ToLast,
    check_layout,
    choose,
    linear,
    to_first,
    to_last,
)


class SS2D(Official):
    """The selective scan of an image: (batch, H, W, d_model), or (batch, d_model, H, W) if channel-first, to the same shape.

    A linear layer widens the channels to d_inner = ssm_ratio * d_model (and as many for a gate), a depth-wise convolution and
    an activation follow, then the scan in four directions (in eight, with oblique orders), whose results are added up, a norm,
    the gate, and a linear layer back to d_model. Parameters have the official names.

    Args:
        d_model: channels of input and output.
        d_state: states N per channel and direction.
        ssm_ratio: d_inner / d_model.
        dt_rank: R, the rank of the projection that gives the step; "auto" is d_model / 16, rounded up.
        act_layer: activation behind the convolution, and of the gate.
        d_conv: size of the depth-wise convolution, odd; 1 is none, the activation stays (not with projection "input").
        conv_bias, bias: whether the convolution, and the outer linear layers, have a bias.
        dropout: of the result.
        dt_min, dt_max, dt_init_floor: range of softplus(step bias) at the start (log-uniform), and its lower bound.
        dt_init, dt_scale: the step's weights at the start: "random" in, or "constant" at, dt_scale / sqrt(dt_rank).
        initialize: start of step, A and D. "v0" as in Mamba: A = -(1 .. N), D = 1, the step by the dt_* arguments; "v1": A
            log-normal, step weights and biases 0.1 * normal; "v2": A = -1, step weights and biases uniform in [0, 0.1).
        forward_type: official string, or a `ForwardType`; see `forward_types()`. In the releases "v0" disregards act_layer,
            d_conv, conv_bias, bias, initialize and dt_*; here it does not.
        channel_first: layout of input and output; it governs the linear layers and the norm within.

    Raises:
        InputError: an unknown name, an even d_conv; in `forward`, an input of another layout or width.
    """

    def __init__(
        self,
        d_model: int = 96,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        act_layer: Activation = "silu",
        d_conv: int = 3,
        conv_bias: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        initialize: Literal["v0", "v1", "v2"] = "v0",
        forward_type: str | ForwardType = "v2",
        channel_first: bool = False,
    ):
        super().__init__()
        self.kind = kind = parse(forward_type)
        self.channel_first = channel_first
        self.directions = len(kind.orders)
        self.d_model, self.d_state = d_model, d_state
        self.d_inner = int(ssm_ratio * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        if d_conv > 1 and d_conv % 2 == 0:
            raise InputError(f"d_conv is {d_conv}", where="SS2D", expected="an odd size, or 1 for none")

        features = kind.projection == "features"
        widths = [self.d_inner] * (1 if kind.gate == "none" else 2) if features else self._fused_widths()
        self.in_proj = linear(d_model, sum(widths), channel_first=channel_first, bias=bias)
        self.act = choose(ACTIVATIONS, act_layer, "act_layer")()
        width = self.d_inner if features else d_model
        self.with_conv = d_conv > 1
        self.conv2d = (
            nn.Conv2d(width, width, d_conv, padding=(d_conv - 1) // 2, groups=width, bias=conv_bias)
            if self.with_conv
            else nn.Identity()
        )
        if features:
            shape = (self.directions, self.dt_rank + 2 * d_state, self.d_inner)
            self.x_proj_weight = nn.Parameter(torch.empty(shape).uniform_(-1, 1) / math.sqrt(self.d_inner))
        self.out_norm = _out_norm(kind.out_norm, self.d_inner, channel_first)
        self.out_act = nn.GELU() if kind.out_activation else nn.Identity()
        self.out_proj = linear(self.d_inner, d_model, channel_first=channel_first, bias=bias)
        self.dropout = nn.Dropout(dropout)

        shape = (self.directions, self.d_inner, self.dt_rank)
        rates: Tensor = choose(_RATES, initialize, "initialize")(self.directions * self.d_inner, d_state)
        if initialize == "v0":
            step_weight = _step_weight(shape, dt_init, dt_scale)
            step_bias = _step_bias(shape[:2], dt_min, dt_max, dt_init_floor)
        else:
            draw = torch.randn if initialize == "v1" else torch.rand
            step_weight, step_bias = 0.1 * draw(shape), 0.1 * draw(shape[:2])
        self.A_logs = undecayed(rates)
        self.Ds = undecayed(torch.ones(self.directions * self.d_inner))
        if kind.step != "full":
            self.dt_projs_weight = nn.Parameter(step_weight)
        self.dt_projs_bias = undecayed(step_bias)

    def forward(self, x: Tensor) -> Tensor:
        """The scanned image, in the layout and shape of x."""
        check_layout(x, self.d_model, self.channel_first, "SS2D")
        if self.kind.projection == "input":
            y, gate = self._from_input(x)
        else:
            y, gate = self._from_features(x)
        y = self.out_act(y)
        result: Tensor = self.dropout(self.out_proj(y if gate is None else y * gate))
        return result

    # ---- where step, B and C come from ------------------------------------------------------------------------------

    def _from_features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Projected, convolved, scanned with x_proj and dt_proj; and the gate."""
        x, gate = self.in_proj(x), None
        if self.kind.gate != "none":
            x, gate = x.chunk(2, dim=1 if self.channel_first else -1)
        if self.kind.gate == "activated":
            gate = self.act(gate)
        features = self.act(self._convolved(x))
        last = to_last(features) if self.channel_first else features
        y = self._cascade(last) if self.kind.cascade else self._all_orders(last)
        return self._normalised(y, features.dtype), gate

    def _from_input(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Convolved, then features, step, B and C projected together, then scanned."""
        if self.with_conv:
            x = self.act(self._convolved(x))
        projected: Tensor = self.in_proj(x)
        last = to_last(projected) if self.channel_first else projected
        features, step, B, C = last.split_with_sizes(self._fused_widths(), dim=-1)
        own = (*last.shape[:3], self.directions, -1)
        B, C = B.reshape(own), C.reshape(own)
        step = step.reshape(own) if self.kind.step == "own" else step.unsqueeze(3).expand(own)
        if self.kind.step != "full":
            step = _per_direction(step, self.dt_projs_weight)
        y = self._selective(features, step, B, C, self.kind.orders)
        gate = None if self.kind.gate == "none" else (to_first(features) if self.channel_first else features)
        return self._normalised(y, projected.dtype), gate

    def _fused_widths(self) -> list[int]:
        """What in_proj gives with projection "input": features, step, B and C."""
        steps = {"own": self.directions * self.dt_rank, "shared": self.dt_rank, "full": self.d_inner}
        states = self.directions * self.d_state
        return [self.d_inner, steps[self.kind.step], states, states]

    def _convolved(self, x: Tensor) -> Tensor:
        return self.conv2d(x) if self.channel_first else to_last(self.conv2d(to_first(x)))

    # ---- the scan, channels-last ------------------------------------------------------------------------------------

    def _all_orders(self, x: Tensor) -> Tensor:
        """`_scan` along all orders. For oblique ones the image is sheared in front of the projections, which see no order."""
        parts = (
            sheared(self._scan(sheared(x, columns), walks, members), -columns)
            for columns, members, walks in by_shear(self.kind.orders)
        )
        return functools.reduce(torch.add, parts)

    def _scan(self, x: Tensor, orders: Sequence[str], directions: slice | list[int] = slice(None)) -> Tensor:
        """(batch, H, W, d_inner) -> the same in float32: projected once on the pixels, scanned with some of the directions."""
        weight = self.x_proj_weight[directions]
        projected = F.linear(x, weight.flatten(0, 1)).view(*x.shape[:3], *weight.shape[:2])
        step, B, C = projected.split_with_sizes([self.dt_rank, self.d_state, self.d_state], dim=-1)
        step = _per_direction(step, self.dt_projs_weight[directions])
        return self._selective(x, step, B, C, orders, directions)

    def _selective(
        self,
        x: Tensor,
        step: Tensor,
        B: Tensor,
        C: Tensor,
        orders: Sequence[str],
        directions: slice | list[int] = slice(None),
    ) -> Tensor:
        if self.kind.float32_inputs:
            x, step, B, C = (_full(t) for t in (x, step, B, C))
        A = -_full(self.A_logs).exp().view(self.directions, self.d_inner, -1)[directions]
        D = _full(self.Ds).view(self.directions, self.d_inner)[directions]
        bias = _full(self.dt_projs_bias)[directions]
        return selective_scan_2d(x, step, A, B, C, D, bias, orders=orders)

    def _cascade(self, x: Tensor) -> Tensor:
        """Every row on its own with the first two directions, then every column of the result with the other two."""
        rows = self._lines(F.layer_norm(x, x.shape[-1:]), 0)
        columns = F.layer_norm(rows, rows.shape[-1:]).transpose(1, 2)
        return self._lines(columns, 2).transpose(1, 2)

    def _lines(self, x: Tensor, first: int) -> Tensor:
        batch, lines = x.shape[:2]
        x = x.flatten(0, 1).unsqueeze(1)
        there = self._scan(x, ("row",), slice(first, first + 1))
        back = self._scan(x, ("row-reversed",), slice(first + 1, first + 2))
        # The release adds the backward sequence as it comes out of the scan, its first place onto the line's first pixel.
        return (there + back.flip(2)).view(batch, lines, *x.shape[2:])

    def _normalised(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """The out norm of the scan's result (batch, H, W, d_inner), in our layout and the dtype of the features."""
        # No cast under autocast; where all parameters are half, so are those of the norm.
        y = y.to(self.Ds.dtype)
        result: Tensor = self.out_norm(to_first(y) if self.channel_first else y)
        return result.to(dtype)

    def extra_repr(self) -> str:
        """What the names of the parts do not tell."""
        return (
            f"d_state={self.d_state}, dt_rank={self.dt_rank}, channel_first={self.channel_first}, {self.kind}"
        )


def _per_direction(step: Tensor, weight: Tensor) -> Tensor:
    """dt_proj: low-rank steps (batch, H, W, K, R) times weights (K, d, R) -> (batch, H, W, K, d), in memory (K, batch, H, W, d)."""
    batch, height, width, directions, _ = step.shape
    by_direction = step.permute(3, 0, 1, 2, 4).flatten(1, 3)
    wide = torch.bmm(by_direction, weight.transpose(1, 2))
    return wide.view(directions, batch, height, width, -1).permute(1, 2, 3, 0, 4)


def _full(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class SoftmaxSpatial(nn.Module):
    """Softmax over the pixels of every channel."""

    def __init__(self, channel_first: bool):
        super().__init__()
        self.pixels = (2, 3) if channel_first else (1, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.pixels
        return x.flatten(first, second).softmax(dim=first).view(x.shape)


def _out_norm(kind: OutNorm, width: int, channel_first: bool) -> nn.Module:
    """The module behind the scan; positions in the sequences give the official parameter names."""
    norm = (LayerNorm2d if channel_first else nn.LayerNorm)(width) if "layer" in kind else None
    if "dwconv3" in kind:
        turns: list[nn.Module] = [nn.Identity(), nn.Identity()] if channel_first else [ToFirst(), ToLast()]
        convolution = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        return nn.Sequential(*([norm] if norm is not None else []), turns[0], convolution, turns[1])
    if norm is not None:
        return norm
    return {"none": nn.Identity(), "softmax": SoftmaxSpatial(channel_first), "sigmoid": nn.Sigmoid()}[kind]


# ---- initialisation --------------------------------------------------------------------------------------------------

_RATES = {
    "v0": lambda width, states: torch.arange(1.0, states + 1).log().repeat(width, 1),
    "v1": lambda width, states: torch.randn(width, states),
    "v2": lambda width, states: torch.zeros(width, states),
}
"""log(-A), (width, states): the real S4D initialisation of Mamba, log-normal rates, all alike."""


def _step_weight(shape: tuple[int, ...], how: str, scale: float) -> Tensor:
    largest = scale / math.sqrt(shape[-1])
    draw = {
        "random": lambda: torch.empty(shape).uniform_(-largest, largest),
        "constant": lambda: torch.full(shape, largest),
    }
    return choose(draw, how, "dt_init")()


def _step_bias(shape: tuple[int, ...], low: float, high: float, floor: float) -> Tensor:
    """softplus(bias) is log-uniform in [low, high]: the inverse of softplus is s + log(1 - exp(-s))."""
    step = (torch.rand(shape) * math.log(high / low) + math.log(low)).exp().clamp(min=floor)
    return step + (-torch.expm1(-step)).log()
