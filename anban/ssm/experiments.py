"""Small experiments with state spaces, behind docs/ssm.md: what a scan forgets where, and what each view of a system costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anban.ssm.s4 import DiagonalSystem, SSMKernelDiag
from anban.ssm.s4.discretise import discretise
from anban.ssm.scan import selective_scan

# ---- what a scan forgets where ----------------------------------------------------------------------------------------


class Listen(TorchDispatchMode):
    """Within `with Listen() as listener`, `listener.heard` is what every selective scan is given: x, delta, A, B, C, D, bias."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.heard: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.anban.scan.default:
            self.heard.append(args[:7])
        return func(*args, **(kwargs or {}))


class Reader(nn.Module):
    """Reads rows of pixels, (batch, L, 3) -> (batch, L): a pixel's embedding, one scan to the right, a small MLP.

    Args:
        selective: step, B and C are projected from the pixel (S6); else they are learnt, and the same for all pixels (LTI).
    """

    def __init__(self, selective: bool, width: int = 16, states: int = 1):
        super().__init__()
        self.selective, self.sizes = selective, [width, states, states]
        self.embed = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width))
        self.select = nn.Linear(width, sum(self.sizes))
        self.rates = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(width, 1))
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, rows: Tensor) -> Tensor:
        u = self.embed(rows)
        source = u if self.selective else torch.zeros_like(u)
        delta, B, C = (part.transpose(1, 2) for part in self.select(source).split(self.sizes, -1))
        # A backend in plain torch: after hundreds of steps, the last digits of a tuned kernel would show in the figure.
        y = selective_scan(u.transpose(1, 2), delta, -self.rates.exp(), B, C, None, None, True, "chunked")
        read: Tensor = self.head(y.transpose(1, 2))[..., 0]
        return read


def scene(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Roofs on ground, (size, size, 3), and for every pixel how bright the last roof to its left was (0: none yet)."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.tensor([0.36, 0.46, 0.3]) + 0.05 * torch.randn(size, size, 3, generator=draw)
    roof = torch.zeros(size, size)
    for _ in range(7):
        top, left, high, wide = torch.randint(size - 8, (4,), generator=draw).tolist()
        brightness = 0.3 + 0.7 * torch.rand((), generator=draw)
        roof[top : top + 5 + high % 8, left : left + 5 + wide % 8] = brightness
    image = torch.where(roof[..., None] > 0, roof[..., None] * torch.tensor([1.0, 0.75, 0.65]), image)
    last = roof.clone()
    for column in range(1, size):
        last[:, column] = torch.where(roof[:, column] > 0, roof[:, column], last[:, column - 1])
    return image.clamp(0, 1), last


def taught(selective: bool, steps: int = 600, scenes: int = 40) -> Reader:
    """A reader that has learnt from rows of scenes 1 ... `scenes` to tell the last roof."""
    rows, wanted = (
        torch.cat(parts) for parts in zip(*(scene(48, 1 + n) for n in range(scenes)), strict=True)
    )
    torch.manual_seed(0)
    reader = Reader(selective)
    optimiser = torch.optim.Adam(reader.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-2, steps)
    for _ in range(steps):
        some = torch.randint(len(rows), (96,))
        optimiser.zero_grad()
        F.mse_loss(reader(rows[some]), wanted[some]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        rate.step()
    return reader


# ---- what each view of a system costs ---------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention of an image's pixels, (batch, H, W, width) -> the same, its matrix written out."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return mixed.view(x.shape)


def views(features: int = 16, states: int = 16) -> dict[str, Callable[[Tensor], Tensor]]:
    """One state space by recurrence, convolution and scan; the selective scan; attention: each (1, features, L) -> the same."""
    torch.manual_seed(0)
    kernel = SSMKernelDiag(features, 2 * states)
    parts = [nn.Parameter(part.detach()) for part in kernel.continuous()]
    A = nn.Parameter(-torch.arange(1.0, states + 1).repeat(features, 1))
    B, C = torch.randn(2, features, states)

    def system() -> DiagonalSystem:
        a, b, c, dt = parts
        return DiagonalSystem(*discretise(a, b, dt), c)

    def attention(u: Tensor) -> Tensor:
        x = u.transpose(1, 2)
        return ((x @ u / math.sqrt(features)).softmax(-1) @ x).transpose(1, 2)

    return {
        "recurrence": lambda u: system().recur(u)[0],
        "convolution (FFT)": lambda u: system().convolve(u),
        "parallel scan": lambda u: system().scan(u)[0],
        "selective scan (S6)": lambda u: selective_scan(u, u, A, B, C, delta_softplus=True),
        "attention": attention,
    }


def kept(function: Callable[[Tensor], Any], *inputs: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of `function(*inputs)`, each memory counted once."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function(*(u.detach().requires_grad_() for u in inputs))
    del output  # until here all that is kept was alive, so no two of them had one address
    return sum(sizes.values())
