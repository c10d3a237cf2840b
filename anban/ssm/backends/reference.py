"""The selective scan as it is defined, step by step in plain torch. Everything else in this folder computes the same.

s_t = softplus(delta_t + bias)
h_t = exp(s_t A) h_{t-1} + s_t B_t x_t           exact exponential for A, Euler for B (Mamba, arXiv 2312.00752, section 3.6)
y_t = <C_t, h_t> + D x_t
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anban.ssm.backends import Gradients, Problem

STEPS: int | None = None


def unusable(device: torch.device, dtype: torch.dtype) -> str | None:
    """It runs everywhere."""
    return None


def recurrence(problem: Problem) -> tuple[Tensor, Tensor]:
    """y (batch, P, Kx, d) and the last state (batch, K, d, N); differentiable, in float32 or the double precision given."""
    p = problem.promoted()
    pixels, shared = p.delta.shape[1], p.x.shape[2] == 1
    s = p.delta if p.bias is None else p.delta + p.bias
    if p.softplus:
        s = F.softplus(s, threshold=40)
    outputs, ends = [], []
    for k, walk in enumerate(p.walks):
        path = torch.tensor([walk.pixel(t) for t in range(pixels)], device=p.x.device)
        step = s[:, path, k, :, None]  # (batch, L, d, 1)
        x = p.x[:, path, 0 if shared else k]  # (batch, L, d)
        B, C = (
            m[k] if m.dim() == 3 else m[:, path, k, None] for m in (p.B, p.C)
        )  # (d, N) or (batch, L, 1, N)
        decays, inputs = torch.exp(step * p.A[k]), step * B * x[..., None]
        h, states = torch.zeros_like(decays[:, 0]), []
        # unbind, not indexing: the gradient of every `decays[:, t]` would be a tensor as large as the whole
        for a, b in zip(decays.unbind(1), inputs.unbind(1), strict=True):
            h = a * h + b
            states.append(h)
        y = (torch.stack(states, 1) * C).sum(-1)
        if p.D is not None:
            y = y + p.D[k] * x
        outputs.append(y[:, path.argsort()])
        ends.append(h)
    stacked = torch.stack(outputs, 2)
    merged = stacked.sum(2, keepdim=True) if shared else stacked
    return merged, torch.stack(ends, 1)


def forward(problem: Problem, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        y, last = recurrence(problem)
    return y, last, y.new_empty(0)


def backward(problem: Problem, saved: Tensor, dy: Tensor, dlast: Tensor) -> Gradients:
    """Autograd through a second run."""
    with torch.enable_grad():
        leaves = problem.map(lambda tensor: tensor.detach().requires_grad_())
        y, last = recurrence(leaves)
        fields = [tensor for tensor in leaves.tensors() if tensor is not None]
        found = iter(torch.autograd.grad([y, last], fields, [dy.to(y.dtype), dlast.to(last.dtype)]))
    return Gradients(*(None if tensor is None else next(found) for tensor in leaves.tensors()))  # type: ignore[arg-type]
