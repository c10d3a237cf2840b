"""The selective scan as public code computes it in plain torch, written from the formulas: the peers of `benchmarks.ssm_cpu`.

Each takes u, delta (batch, K d, L), A (K d, N), B, C (batch, K, N, L), D, bias (K d,) and gives y (batch, K d, L):

    s = softplus(delta + bias);  h_t = exp(s_t A) h_{t-1} + s_t B_t u_t;  y_t = <C_t, h_t> + D u_t

`ss2d` puts VMamba's cross-scan before one of them and its cross-merge after, as copies of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """Decays and inputs of all steps at once, then a step at a time (mamba_ssm's `selective_scan_ref`)."""
    s = _step(delta, bias)
    B, C = _per_channel(B, u), _per_channel(C, u)  # (batch, K d, N, L)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", s, A))
    value = torch.einsum("bdl,bdnl,bdl->bdln", s, B, u)
    h, outputs = A.new_zeros(len(u), *A.shape), []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + value[:, :, t]
        outputs.append(torch.einsum("bdn,bdn->bd", h, C[..., t]))
    return torch.stack(outputs, 2) + D[:, None] * u


def hf(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """The same with the output as a matrix product of each step (`slow_forward` of transformers' Mamba), per group."""
    batch, groups, _, length = B.shape
    s, x = (_grouped(v, groups) for v in (_step(delta, bias), u))  # (batch, K, d, L)
    decay = torch.exp(_grouped(A, groups, 0)[None, :, :, None] * s[..., None])
    value = s[..., None] * B.transpose(2, 3)[:, :, None] * x[..., None]
    h, outputs = torch.zeros_like(value[:, :, :, 0]), []
    for t in range(length):
        h = decay[:, :, :, t] * h + value[:, :, :, t]
        outputs.append(torch.matmul(h, C[..., t, None])[..., 0])
    return torch.stack(outputs, -1).reshape(batch, -1, length) + D[:, None] * u


def pscan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """Blelloch's parallel scan over all states in memory, backward by hand (mamba.py's `pscan`)."""
    decay, value, C = _discretised(u, delta, A, B, C, bias)
    h = _ParallelScan.apply(decay, value)
    return _read(h, C, u, D)


def assoc(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """torch's own associative scan, differentiated by torch."""
    from torch._higher_order_ops.associative_scan import associative_scan

    decay, value, C = _discretised(u, delta, A, B, C, bias)
    h = associative_scan(_combine, (decay, value), dim=2, combine_mode="generic")[1]
    return _read(h, C, u, D)


def easy16(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """Cumulative sums in chunks of 16 (VMamba's `selective_scan_easy`); divides by decays, so only for small steps."""
    batch, groups, _, length = B.shape
    s = _grouped(_step(delta, bias), groups).permute(3, 0, 1, 2)  # (L, batch, K, d)
    x = _grouped(u, groups).permute(3, 0, 1, 2)
    B, C = (m.permute(3, 0, 1, 2) for m in (B, C))  # (L, batch, K, N)
    A = _grouped(A, groups, 0)
    h, outputs = A.new_zeros(batch, *A.shape), []
    for s_, x_, B_, C_ in zip(*(v.split(16) for v in (s, x, B, C)), strict=True):
        decay = torch.einsum("gdn,lbgd->lbgdn", A, s_.cumsum(0)).exp()
        value = torch.einsum("lbgd,lbgn->lbgdn", s_ * x_, B_)
        states = decay * (value / decay).cumsum(0) + decay * h
        outputs.append(torch.einsum("lbgn,lbgdn->lbgd", C_, states))
        h = states[-1]
    return torch.cat(outputs).permute(1, 2, 3, 0).reshape(batch, -1, length) + D[:, None] * u


ANCHORS: dict[str, Scan] = {"loop": loop, "hf": hf, "pscan": pscan, "assoc": assoc}
"""Correct for whatever input; the fastest of them on a cell is what the goals are measured against."""
CONDITIONAL: dict[str, Scan] = {"easy16": easy16}
QUADRATIC = ("loop", "hf")
"""Their backward pass takes time with the square of the length: the gradient of each step is as large as all of them."""


def ss2d(
    scan: Scan, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """x (batch, d, H, W) -> (batch, d, H, W): four copies of the image, a scan of their 4 d channels, their sum."""
    u = _CrossScan.apply(x)
    y = scan(u.flatten(1, 2), delta, A, B, C, D, bias)
    return _CrossMerge.apply(y.view(*u.shape[:3], *x.shape[2:]))


def sequences(pixels: Tensor) -> Tensor:
    """One tensor per direction and pixel, (batch, H, W, 4, c), as the sequences that `ss2d` reads: (batch, 4, c, L)."""
    rows, columns, rows_back, columns_back = pixels.permute(3, 0, 4, 1, 2)
    paths = (rows, columns.mT, rows_back.flip(2, 3), columns_back.mT.flip(2, 3))
    return torch.stack([path.flatten(2) for path in paths], 1)


# Parts ------------------------------------------------------------------------------------------------------------------


def _step(delta: Tensor, bias: Tensor) -> Tensor:
    return F.softplus(delta + bias[:, None])


def _grouped(v: Tensor, groups: int, dim: int = 1) -> Tensor:
    return v.unflatten(dim, (groups, -1))


def _per_channel(m: Tensor, u: Tensor) -> Tensor:
    return m.repeat_interleave(u.shape[1] // m.shape[1], 1)


def _discretised(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Decays and inputs (batch, K d, L, N), and C (batch, K, 1, L, N)."""
    groups = B.shape[1]
    s = _step(delta, bias)
    decay = torch.exp(s[..., None] * A[:, None])
    value = _grouped((s * u)[..., None], groups) * B.mT[:, :, None]
    return decay, value.flatten(1, 2), C.mT[:, :, None]


def _read(h: Tensor, C: Tensor, u: Tensor, D: Tensor) -> Tensor:
    y = (_grouped(h, C.shape[1]).unsqueeze(-2) @ C.unsqueeze(-1)).flatten(-3)
    return y.reshape(u.shape) + D[:, None] * u


def _combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return left[0] * right[0], right[0] * left[1] + right[1]


def _blelloch(decay: Tensor, value: Tensor, *, back: bool = False) -> None:
    """h_t = decay_t h_{t-1} + value_t (h_{t+1} if `back`) in place of `value`, (batch, c, L, N), L a power of two.

    Up: pairs of neighbours become one element at the place of the later, level by level. Down: what lies between two of
    them follows from the earlier one.
    """
    earlier, later = (1, 0) if back else (0, 1)
    levels = [(decay, value)]
    while levels[-1][0].shape[2] > 1:
        a, b = (v.unflatten(2, (-1, 2)) for v in levels[-1])
        b[:, :, :, later] += a[:, :, :, later] * b[:, :, :, earlier]
        a[:, :, :, later] *= a[:, :, :, earlier]
        levels.append((a[:, :, :, later], b[:, :, :, later]))
    for whole in levels[-2::-1]:
        a, b = (v.unflatten(2, (-1, 2)) for v in whole)
        if back:
            b[:, :, :-1, earlier] += a[:, :, :-1, earlier] * b[:, :, 1:, later]
        else:
            b[:, :, 1:, earlier] += a[:, :, 1:, earlier] * b[:, :, :-1, later]


class _ParallelScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, value: Tensor) -> Tensor:
        a, h = _padded(decay), _padded(value)
        _blelloch(a, h)
        h = h[:, :, : value.shape[2]]
        ctx.save_for_backward(decay, h)
        return h

    @staticmethod
    def backward(ctx: Any, *dh: Tensor) -> tuple[Tensor, Tensor]:
        decay, h = ctx.saved_tensors
        following = F.pad(decay[:, :, 1:], (0, 0, 0, 1))
        a, g = _padded(following), _padded(dh[0])
        _blelloch(a, g, back=True)
        g = g[:, :, : h.shape[2]]
        ddecay = torch.zeros_like(h)
        torch.mul(g[:, :, 1:], h[:, :, :-1], out=ddecay[:, :, 1:])
        return ddecay, g


def _padded(v: Tensor) -> Tensor:
    """A copy with a length that is a power of two."""
    length = v.shape[2]
    missing = (1 << (length - 1).bit_length()) - length
    return F.pad(v, (0, 0, 0, missing)) if missing else v.clone(memory_format=torch.contiguous_format)


def _scanned(x: Tensor) -> Tensor:
    """(batch, d, H, W) -> (batch, 4, d, L)."""
    xs = x.new_empty(len(x), 4, x.shape[1], x.shape[2] * x.shape[3])
    xs[:, 0], xs[:, 1] = x.flatten(2), x.mT.flatten(2)
    xs[:, 2:] = xs[:, :2].flip(-1)
    return xs


def _merged(ys: Tensor) -> Tensor:
    """(batch, 4, d, H, W), each in its own order -> (batch, d, H, W)."""
    height, width = ys.shape[3:]
    ys = ys.flatten(3)
    both = ys[:, :2] + ys[:, 2:].flip(-1)
    rows, columns = both[:, 0].unflatten(-1, (height, width)), both[:, 1].unflatten(-1, (width, height))
    return rows + columns.mT


class _CrossScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.size = x.shape[2:]
        return _scanned(x)

    @staticmethod
    def backward(ctx: Any, *dxs: Tensor) -> Tensor:
        return _merged(dxs[0].unflatten(-1, ctx.size))


class _CrossMerge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ys: Tensor) -> Tensor:
        return _merged(ys)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Tensor:
        return _scanned(dy[0]).unflatten(-1, dy[0].shape[2:])
