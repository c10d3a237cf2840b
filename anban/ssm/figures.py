"""The figures of docs/ssm.md, drawn by the code that they are about.

python -m anban.ssm.figures OUT            all that do not depend on the machine
python -m anban.ssm.figures OUT cost       this one, which is measured
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError
from anban.ssm.experiments import Listen, kept, scene, taught, views
from anban.ssm.orders import BIDIRECTIONAL, CROSS, ORDERS, UNIDIRECTIONAL, walk
from anban.ssm.s4 import S4ND, SSMKernelDiag, SSMKernelDPLR
from anban.ssm.s4.discretise import discretise_dense
from anban.ssm.s4.hippo import basis, dplr, recall, remember
from anban.ssm.vmamba import ForwardType, VSSBlock

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = 7.16  # inches: two columns of a paper
INK, MUTED, RULE = "#1b1f24", "#5f6873", "#d5dae0"
BLUE, RED, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
STYLE: dict[Any, Any] = {
    **dict.fromkeys(["font.size", "axes.labelsize"], 7.5),
    **dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 7),
    **dict.fromkeys(["axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], MUTED),
    **dict.fromkeys(["axes.spines.top", "axes.spines.right", "legend.frameon"], False),
    **dict.fromkeys(["axes.grid", "axes.axisbelow"], True),
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    **dict.fromkeys(["axes.linewidth", "grid.linewidth"], 0.5),
    "lines.linewidth": 1.3,
    "grid.color": RULE,
    "text.color": INK,
}


def _figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def _picture(axes: Axes, values: Tensor, title: str, **options: Any) -> Any:
    axes.set_title(title)
    axes.set_axis_off()
    return axes.imshow(values.detach().numpy(), interpolation="nearest", **options)


# ---- sequences --------------------------------------------------------------------------------------------------------


def hold() -> Figure:
    """A signal is held for the length of a step; what a system makes of it."""
    figure, (left, right) = _figure(2.0, 1, 2)
    fine, k = torch.linspace(0, 6, 1201, dtype=torch.float64), torch.arange(0, 6, 0.4, dtype=torch.float64)
    signal, samples = ((1.3 * t).sin() + 0.5 * (3.1 * t).cos() for t in (fine, k))
    held = samples[(fine / 0.4 + 1e-9).long().clamp(max=len(k) - 1)]
    left.plot(fine, signal, color=MUTED, label="u(t)")
    left.plot(fine, held, color=BLUE, label="held for a step Δ")
    left.plot(k, samples, "o", color=BLUE, markersize=3, label="samples u$_k$")
    left.set_title("Zero-order hold, Δ = 0.4")
    left.set_xlabel("t")
    A, B = torch.tensor([[-0.2, -2.0], [2.0, -0.2]]).double(), torch.tensor([1.0, 0.0]).double()

    def run(inputs: Tensor, dt: float, rule: Any) -> Tensor:
        dA, dB = discretise_dense(A, B, dt, rule)
        h, seen = torch.zeros(2, dtype=torch.float64), []
        for u in inputs:
            h = dA @ h + dB * u
            seen.append(h[0])
        return torch.stack(seen)

    right.plot(fine, run(signal, 0.005, "zoh"), color=MUTED, label="of u(t)")
    right.plot(fine, run(held, 0.005, "zoh"), color=BLUE, linewidth=0.8, label="of the held")
    right.plot(k + 0.4, run(samples, 0.4, "zoh"), "o", color=BLUE, markersize=3, label="zoh")
    right.plot(k + 0.4, run(samples, 0.4, "bilinear"), "s", color=RED, markersize=3, label="bilinear")
    right.set_title("The state of an oscillator that hears it")
    right.set_xlabel("t = kΔ")
    for axes in (left, right):
        axes.legend(loc="lower left", ncols=4, columnspacing=1, handlelength=1.4)
        axes.set_ylim(bottom=axes.get_ylim()[0] - 0.5)
    return figure


def hippo() -> Figure:
    """A signal as the N coefficients of HiPPO-LegS tell it at the end."""
    figure, panels = _figure(1.7, 1, 3, sharey=True)
    t = torch.linspace(0, 1, 1000, dtype=torch.float64)
    signal = (9 * t).sin() * (1 - t / 2) + 0.4 * (41 * t).sin() + 0.8 * ((t > 0.55) & (t < 0.7))
    for axes, N in zip(panels, (4, 16, 64), strict=True):
        told = recall(remember(signal, N)[-1], t)
        error = ((told - signal).norm() / signal.norm()).item()
        axes.plot(t, signal, color=MUTED, linewidth=0.9)
        axes.plot(t, told, color=BLUE)
        axes.set_title(f"N = {N}: error {100 * error:.0f} %")
        axes.set_xlabel("time heard, 1 = now")
    return figure


def measures() -> Figure:
    """What the states of S4's time-invariant memories convolve with, and the measure behind."""
    figure, panels = _figure(1.8, 1, 3)
    t = torch.linspace(0, 5, 301, dtype=torch.float64)
    kinds = (
        ("legs", "LegS: e$^{-t}$, warped Legendre", (-t).exp()),
        ("lagt", "LagT: e$^{-t}$, Laguerre", (-t).exp()),
        ("legt", "LegT: a window of 2, Legendre", (t < 2).double()),
    )
    for axes, (name, title, weight) in zip(panels, kinds, strict=True):
        axes.fill_between(t, weight, color=RULE, linewidth=0)
        for n, colour in enumerate((INK, BLUE, RED, GREEN)):
            axes.plot(t, basis(name, 64, t)[:, n], color=colour, linewidth=1.0)
        axes.set_title(title)
        axes.set_xlabel("time ago")
    return figure


def responses() -> Figure:
    """Impulse responses at the start of training: single modes, and a kernel that mixes 32 of them at random."""
    figure, panels = _figure(2.9, 2, 3, sharex="row")
    t = torch.linspace(0, 3, 601, dtype=torch.float64)

    def modes(init: str, which: Sequence[int]) -> list[Tensor]:
        return [2 * (t * dplr(init, 64).A[0, n]).exp().real for n in which]

    step: dict[str, Any] = {"dt_min": 0.005, "dt_max": 0.005}
    kinds: dict[str, tuple[list[Tensor], Callable[[], SSMKernelDiag]]] = {
        "S4D-Lin": (modes("lin", range(1, 5)), lambda: SSMKernelDiag(1, 64, init="diag-lin", **step)),
        "S4D-Inv": (modes("inv", (30, 26, 20, 12)), lambda: SSMKernelDiag(1, 64, init="diag-inv", **step)),
        "S4-LegS": (list(basis("legs", 64, t)[:, :4].T), lambda: SSMKernelDPLR(1, 64, init="legs", **step)),
    }
    for place, (name, (lines, make)) in enumerate(kinds.items()):
        for line, colour in zip(lines, (INK, BLUE, RED, GREEN), strict=True):
            panels[place].plot(t, line, color=colour, linewidth=0.9)
        panels[place].set_title(name)
        torch.manual_seed(0)
        panels[place + 3].plot(t[:600], make()(600)[0, 0].detach(), color=BLUE, linewidth=0.9)
        panels[place + 3].set_xlabel("t")
    panels[0].set_ylabel("modes, $e^{tA}B$")
    panels[3].set_ylabel("a kernel, $Ce^{tA}B$")
    return figure


def kernel2d() -> Figure:
    """Kernels of S4ND: outer products of two kernels of S4D."""
    figure, panels = _figure(1.75, 1, 4)
    torch.manual_seed(2)
    layer = S4ND(4, 16, dim=2, dt_min=0.02, dt_max=0.1)
    for feature, (axes, kernel) in enumerate(zip(panels, layer.kernel_nd((32, 32))[0], strict=True)):
        largest = kernel.detach().abs().max().item()
        _picture(axes, kernel, f"feature {feature + 1}", cmap="RdBu", vmin=-largest, vmax=largest)
    return figure


# ---- selection --------------------------------------------------------------------------------------------------------


def selectivity() -> Figure:
    """What an S6 layer forgets where, after it has learnt to keep the last roof of a row in mind; and an LTI layer."""
    figure, panels = _figure(1.7, 1, 5)
    image, target = scene(48, 0)
    _picture(panels[0], image, "image")
    _picture(panels[1], target, "last roof", cmap="gray", vmin=0, vmax=1)
    for axes, selective in ((panels[2], False), (panels[3], True)):
        reader = taught(selective)
        with torch.no_grad(), Listen() as listener:
            told = reader(image)
        error = (told - target).square().mean().sqrt().item()
        _picture(
            axes, told, f"{'S6' if selective else 'LTI'}: error {error:.2f}", cmap="gray", vmin=0, vmax=1
        )
    _, delta, A, *_ = listener.heard[0]
    decay = (F.softplus(delta)[:, :, None] * A[None, :, :, None]).exp().mean((1, 2))
    shown = _picture(panels[4], decay, "S6: exp(sA)", cmap="cividis")
    figure.colorbar(shown, ax=panels[4], shrink=0.75, pad=0.03)
    return figure


# ---- images -----------------------------------------------------------------------------------------------------------


def orders() -> Figure:
    """The scan orders as paths over an image of 4 x 5 pixels."""
    figure, panels = _figure(2.7, 2, 4)
    for axes, order in zip(panels, (*CROSS, *(name for name in ORDERS if name not in CROSS)), strict=True):
        path = walk(order, 4, 5)
        pixels = torch.tensor([path.pixel(t) for t in range(20)])
        ramp = torch.empty(20).scatter_(0, pixels, torch.arange(20.0)).view(4, 5)
        _picture(axes, ramp, order, cmap="Blues", vmin=-6, vmax=34)
        axes.title.set_color(BLUE if order in CROSS else INK)
        x, y = (pixels % 5).tolist(), (pixels // 5).tolist()
        for t in range(19):
            near = abs(x[t + 1] - x[t]) + abs(y[t + 1] - y[t]) == 1
            look = {
                "arrowstyle": "-|>" if near else "->",
                "color": INK if near else RED,
                "shrinkA": 0,
                "shrinkB": 0,
            }
            style = {} if near else {"linewidth": 0.6, "linestyle": ":"}
            axes.annotate(
                "", (x[t + 1], y[t + 1]), (x[t], y[t]), arrowprops={**look, **style, "mutation_scale": 6}
            )
        axes.plot(x[0], y[0], "o", color=INK, markersize=4)
    return figure


def receptive() -> Figure:
    """How much every pixel of the input moves the centre of the output, at the start of training."""
    figure, panels = _figure(1.9, 1, 4)
    size, width, depth = 49, 24, 3
    block = partial(VSSBlock, width, norm_layer="ln2d", ssm_d_state=1, mlp_ratio=2.0)
    conv = partial(nn.Conv2d, width, width, 3, padding=1)
    kinds: dict[str, Callable[[], nn.Module]] = {
        "3 × 3 convolutions": lambda: nn.Sequential(conv(), nn.GELU()),
        "one direction": lambda: block(forward_type=ForwardType(UNIDIRECTIONAL, gate="none")),
        "two directions": lambda: block(forward_type=ForwardType(BIDIRECTIONAL, gate="none")),
        "four directions (SS2D)": lambda: block(forward_type=ForwardType(CROSS, gate="none")),
    }
    shown: Any = None
    for axes, (title, make) in zip(panels, kinds.items(), strict=True):
        torch.manual_seed(0)
        network = nn.Sequential(*(make() for _ in range(depth)))
        image = torch.randn(8, width, size, size, requires_grad=True)
        centre = network(image)[:, :, size // 2, size // 2]
        (gradient,) = torch.autograd.grad((centre * torch.randn_like(centre)).sum(), image)
        moved = gradient.abs().mean((0, 1))
        level = (moved / moved.max()).clamp(min=1e-9).log10()
        shown = _picture(axes, level, title, cmap="magma", vmin=-7, vmax=0)
    figure.colorbar(shown, ax=list(panels), shrink=0.8, pad=0.01, label="log$_{10}$, largest = 0")
    return figure


# ---- measured ---------------------------------------------------------------------------------------------------------


def cost() -> Figure:
    """Time and memory over the length of the sequence; times are of this machine."""
    figure, (left, right) = _figure(2.4, 1, 2)
    for (name, function), colour in zip(views().items(), (INK, BLUE, GREEN, PINK, RED), strict=True):
        lengths, seconds, sizes = [256, 512, 1024, 2048, 4096, 8192], [], []
        for length in lengths:
            u = torch.randn(1, 16, length, generator=torch.Generator().manual_seed(length))
            sizes.append(kept(function, u) / 2**20)
            with torch.no_grad():
                seconds.append(1e3 * min(timeit.repeat(partial(function, u), number=1, repeat=9)))
        print(name, *(f"{s:.2f} ms {m:.2f} MiB" for s, m in zip(seconds, sizes, strict=True)), sep="\t")
        left.plot(lengths, seconds, "o-", color=colour, markersize=2.5, label=name)
        right.plot(lengths, sizes, "o-", color=colour, markersize=2.5)
    for axes, title in ((left, "Forward pass (ms)"), (right, "Kept for the backward pass (MiB)")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("length L")
    figure.legend(loc="outside lower center", ncols=5, columnspacing=1.2)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    f.__name__: f for f in (hold, hippo, measures, responses, kernel2d, selectivity, orders, receptive)
}
MEASURED: dict[str, Callable[[], Figure]] = {"cost": cost}


def main(out: str, *names: str) -> None:
    """Draw the figures named, or all that are not measured, into the folder `out`."""
    import matplotlib

    known = FIGURES | MEASURED
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise InputError(f"no figure is called {unknown[0]!r}", expected=", ".join(known))
    Path(out).mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name in names or FIGURES:
            known[name]().savefig(Path(out) / f"{name}.png", dpi=144, metadata={"Software": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
