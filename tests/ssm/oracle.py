"""What the selective scan has to be: its recurrence step by step in float64, and inputs to try it on.

    s_t = softplus(delta_t + delta_bias);  h_t = exp(s_t A) h_{t-1} + s_t B_t u_t;  y_t = <C_t, h_t> + D u_t

Nothing of the package is used: scan orders are written as flips and transpositions of an image, gradients are autograd's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "row": lambda image: image.flatten(),
    "row-reversed": lambda image: image.flatten().flip(0),
    "row-leftward": lambda image: image.flip(1).flatten(),
    "row-upward": lambda image: image.flip(0).flatten(),
    "column": lambda image: image.T.flatten(),
    "column-reversed": lambda image: image.T.flatten().flip(0),
    "column-leftward": lambda image: image.rot90(1).flatten(),
    "column-upward": lambda image: image.rot90(-1).flatten(),
}
"""The sequence that an order makes of an image (H, W)."""
CROSS = ("row", "column", "row-reversed", "column-reversed")


# The recurrence ----------------------------------------------------------------------------------------------------------


def scan(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """y (batch, L, d) and the last state (batch, d, N) for x, step (batch, L, d); A (d, N); B, C (batch, L, d or 1, N)."""
    h = torch.zeros(len(x), *A.shape, dtype=x.dtype)
    y = []
    for t in range(x.shape[1]):
        s = step[:, t, :, None]
        h = torch.exp(s * A) * h + s * B[:, t] * x[:, t, :, None]
        y.append((C[:, t] * h).sum(-1))
    return torch.stack(y, 1), h


def steps(delta: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    raw = delta if bias is None else delta + bias
    return torch.logaddexp(raw, torch.zeros_like(raw)) if softplus else raw


def sequence(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `selective_scan(..., return_last_state=True)` returns."""
    dim, length = u.shape[1:]

    def per_channel(m: Tensor) -> Tensor:  # (batch, L, dim, N)
        if m.dim() == 2:
            return m.expand(len(u), length, *m.shape)
        m = m.unsqueeze(1) if m.dim() == 3 else m
        return m.permute(0, 3, 1, 2).repeat_interleave(dim // m.shape[1], 2)

    x = u.transpose(1, 2)
    y, last = scan(
        x, steps(delta.transpose(1, 2), delta_bias, delta_softplus), A, per_channel(B), per_channel(C)
    )
    y = y if D is None else y + D * x
    y = y if z is None else y * F.silu(z.transpose(1, 2))
    return y.transpose(1, 2), last


def image(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    orders: Sequence[str] = CROSS,
) -> tuple[Tensor]:
    """What `selective_scan_2d` returns, as a tuple of one."""
    total = torch.zeros_like(x)
    for k, order in enumerate(orders):
        path = ORDERS[order](torch.arange(x.shape[1] * x.shape[2]).view(x.shape[1:3]))
        back = torch.empty_like(path)
        back[path] = torch.arange(len(path))
        along = [m.flatten(1, 2)[:, path] for m in (x, delta[:, :, :, k], B[:, :, :, k], C[:, :, :, k])]
        step = steps(along[1], None if delta_bias is None else delta_bias[k], delta_softplus)
        y, _ = scan(along[0], step, A[k], along[2].unsqueeze(2), along[3].unsqueeze(2))
        y = y if D is None else y + D[k] * along[0]
        total = total + y[:, back].view(x.shape)
    return (total,)


# Inputs ------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of the scan of images if there are `orders`, else of sequences."""

    tensors: dict[str, Tensor]
    options: dict[str, Any]

    @property
    def orders(self) -> Sequence[str] | None:
        return self.options.get("orders")

    def but(self, **changes: Any) -> Case:
        """With other tensors or options; a function changes a tensor."""
        tensors, options = dict(self.tensors), dict(self.options)
        for name, value in changes.items():
            if name in tensors and callable(value):
                tensors[name] = value(tensors[name])
            elif isinstance(value, Tensor):
                tensors[name] = value
            else:
                options[name] = value
        return Case(tensors, options)

    def without(self, *names: str) -> Case:
        return Case({k: v for k, v in self.tensors.items() if k not in names}, self.options)

    def to(self, dtype: torch.dtype, *names: str) -> Case:
        """With tensors (all, or those named) of another dtype."""
        return self.but(**{name: self.tensors[name].to(dtype) for name in names or self.tensors})

    def true(self) -> tuple[Tensor, ...]:
        """The oracle's outputs on float64 copies of what the tensors hold."""
        return self.by(sequence if self.orders is None else image, lambda tensor: tensor.double())

    def by(self, function: Callable[..., Any], change: Callable[[Tensor], Tensor] | None = None) -> Any:
        tensors = {k: v if change is None else change(v) for k, v in self.tensors.items()}
        return function(**tensors, **self.options)


def make(
    shape: Sequence[int],
    states: int = 3,
    *,
    orders: Sequence[str] | None = None,
    groups: int | None = None,
    constant: str = "",
    softplus: bool = True,
    seed: int = 0,
) -> Case:
    """Random tensors of all kinds: (batch, dim, L) without orders, else (batch, H, W, d).

    Steps are spread over 0.001 to 0.3, decay rates A from -0.1 to -20.

    Args:
        groups: None: B and C have no dimension for groups.
        constant: which of "BC" do not change along the sequence.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).float()

    if orders is None:
        batch, dim, length = shape
        row, vector = (batch, dim, length), (dim,)
        matrix = (batch, states, length) if groups is None else (batch, groups, states, length)
    else:
        batch, height, width, dim = shape
        row = (batch, height, width, len(orders), dim)
        vector, matrix = (len(orders), dim), (*row[:4], states)
    tensors = {"u" if orders is None else "x": normal(*shape), "delta": normal(*row)}
    if not softplus:
        tensors["delta"] = tensors["delta"].sub(3).exp()
    tensors["A"] = -(normal(*vector, states) * 1.2).exp().clamp(0.1, 20)
    for name in "BC":
        tensors[name] = normal(*((dim, states) if name in constant else matrix))
    tensors["D"] = normal(*vector)
    tensors["delta_bias"] = normal(*vector) - 3 if softplus else normal(*vector).abs() / 100
    if orders is None:
        tensors["z"] = normal(*shape)
    options: dict[str, Any] = {"delta_softplus": softplus}
    return Case(tensors, options if orders is None else {**options, "orders": tuple(orders)})


def mamba(case: Case, seed: int = 0) -> Case:
    """The same with steps and rates as Mamba begins: A = -1 ... -N, D = 1, steps log-uniform in [0.001, 0.1]."""
    generator = torch.Generator().manual_seed(seed)
    A, bias = case.tensors["A"], case.tensors["delta_bias"]
    uniform = torch.rand(bias.shape, generator=generator, dtype=torch.float64)
    start = (math.log(1e-3) + uniform * math.log(100)).exp()
    return case.but(
        A=-torch.arange(1.0, A.shape[-1] + 1).expand(A.shape).clone(),
        D=torch.ones_like(case.tensors["D"]),
        delta_bias=(start + (-torch.expm1(-start)).log()).float(),
        delta=lambda delta: delta * 0.3,
    )


# Comparison --------------------------------------------------------------------------------------------------------------


def error(found: Tensor, true: Tensor) -> float:
    """max |found - true| / max |true|; infinite if a number is not finite that should be. Both zero: 0."""
    assert found.shape == true.shape, (found.shape, true.shape)
    found, true = found.detach(), true.detach()
    difference = (found.double() - true).abs()
    if not difference.isfinite().all():
        return math.inf
    return float(difference.max() / true.abs().max().clamp(min=1e-37))


def errors(case: Case, function: Callable[..., Any], *, gradients: bool = True) -> dict[str, float]:
    """Errors of outputs (y, last) and of the gradients of all tensors; the inputs must be left as they were.

    Outputs are weighted at random to have something to differentiate; gradients of reduced precision are compared with the
    rounded true ones, so that what is left is the error of the scan (a unit in the last place more or less).
    """
    leaves = {name: tensor.detach().requires_grad_(gradients) for name, tensor in case.tensors.items()}
    versions = {name: tensor._version for name, tensor in leaves.items()}
    before = {name: tensor.detach().clone() for name, tensor in leaves.items()}
    exact = {name: tensor.detach().double().requires_grad_(gradients) for name, tensor in leaves.items()}
    found = as_tuple(Case(leaves, case.options).by(function))
    true = Case(exact, case.options).true()
    report = {name: error(a, b) for name, a, b in zip(("y", "last"), found, true, strict=False)}
    if gradients:
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in found]
        ours = torch.autograd.grad(found, list(leaves.values()), weights)
        theirs = torch.autograd.grad(true, list(exact.values()), [w.double() for w in weights])
        for name, a, b in zip(leaves, ours, theirs, strict=True):
            assert a.dtype == case.tensors[name].dtype, name
            report[f"d{name}"] = error(a, b)
    for name, tensor in leaves.items():
        assert tensor._version == versions[name], f"{name} was written to"
        assert torch.equal(tensor, before[name]), f"{name} was changed"
    return report


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def worst(report: dict[str, float]) -> tuple[str, float]:
    return max(report.items(), key=lambda item: item[1])
