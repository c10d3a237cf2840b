"""Shapes, contenders and samples of `benchmarks.ssm_cpu`."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anban.ssm import backends
from anban.ssm.scan import selective_scan_2d
from benchmarks import ssm_anchors
from benchmarks.timing import Row, Taken, Unavailable


class Shape(NamedTuple):
    """An image and the states per channel; four directions."""

    batch: int
    channels: int
    height: int
    width: int
    states: int

    @property
    def elements(self) -> int:
        """Channels of all directions times pixels."""
        return 4 * self.batch * self.channels * self.height * self.width


SHAPES = {
    "A": Shape(1, 96, 64, 64, 16),
    "B": Shape(1, 192, 32, 32, 1),
    "C": Shape(2, 96, 64, 64, 1),
    "D": Shape(1, 384, 16, 16, 16),
    "F": Shape(1, 192, 56, 56, 1),
    "G": Shape(1, 192, 56, 56, 16),
}


def shapes(rounds: int) -> dict[str, Shape]:
    """Those that are measured; of a trial, a quarter of each."""
    if rounds > 1:
        return SHAPES
    return {name: shape._replace(height=shape.height // 4) for name, shape in SHAPES.items()}


WHATS = ("forward", "forward+backward")
THREADS = (1, 2)
OURS = ("cpu", "chunked")

SAMPLE = 0.25  # seconds
OTHERS = 0.12  # of a core
PATIENCE = 60.0  # seconds per cell
LONGEST = 10.0  # seconds of one call
SLOW = 4.0  # times the fastest peer: measured once only
ERROR = 1e-5  # of a correct peer, relative to the largest value


# Inputs and contenders --------------------------------------------------------------------------------------------------


def inputs(shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of `selective_scan_2d` as Mamba begins: A = -1 ... -N, steps log-uniform in 0.001 to 0.1, D = 1."""
    g = torch.Generator().manual_seed(seed)
    batch, channels, height, width, states = shape
    step = torch.exp(math.log(1e-3) + math.log(100) * torch.rand(4, channels, generator=g))
    B, C = torch.randn(batch, height, width, 4, 2 * states, generator=g).split(states, -1)
    return {
        "x": torch.randn(batch, height, width, channels, generator=g),
        "delta": 0.3 * torch.randn(batch, height, width, 4, channels, generator=g),
        "A": -torch.arange(1.0, states + 1).repeat(4, channels, 1),
        "B": B,
        "C": C,
        "D": torch.ones(4, channels),
        "delta_bias": step + torch.log(-torch.expm1(-step)),
    }


@dataclass
class Contender:
    """A way to compute the scan, with its inputs in the layout it likes, and y sent back through it."""

    name: str
    call: Callable[..., Tensor]
    leaves: list[Tensor]
    dy: Tensor
    channels_first: bool = False

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.call(*self.leaves)

    def both(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.call(*self.leaves), self.leaves, self.dy)

    def run(self, what: str) -> Callable[[], object]:
        return self.forward if what == "forward" else self.both

    def results(self, *, backward: bool = True) -> list[Tensor]:
        """y (batch, H, W, d), and the gradients of x in that layout and of A (K, d, N) if `backward`."""
        if not backward:
            return [self._pixels(self.forward())]
        dx, _, dA, *_ = self.both()
        return [
            self._pixels(self.forward()),
            self._pixels(dx),
            dA.unflatten(0, (4, -1)) if dA.dim() == 2 else dA,
        ]

    def _pixels(self, image: Tensor) -> Tensor:
        return image.permute(0, 2, 3, 1) if self.channels_first else image


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_()


def ours(name: str, given: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Contender:
    dy = torch.randn(given["x"].shape, generator=torch.Generator().manual_seed(1))
    # steps direction by direction, as one product per direction writes them in SS2D
    laid_out = dict(given) | {
        "delta": given["delta"].permute(3, 0, 1, 2, 4).contiguous().permute(1, 2, 3, 0, 4)
    }
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in laid_out.values()]
    return Contender(name, partial(selective_scan_2d, backend=name), leaves, dy.to(dtype))


def peer(name: str, scan: ssm_anchors.Scan, given: Mapping[str, Tensor]) -> Contender:
    x, delta, A, B, C, D, bias = given.values()
    delta, B, C = (ssm_anchors.sequences(m) for m in (delta, B, C))
    leaves = [x.permute(0, 3, 1, 2), delta.flatten(1, 2), A.flatten(0, 1), B, C, D.flatten(), bias.flatten()]
    dy = ours("reference", given).dy.permute(0, 3, 1, 2).contiguous()
    ss2d = torch.compile(ssm_anchors.ss2d) if name.endswith("compiled") else ssm_anchors.ss2d
    return Contender(name, partial(ss2d, scan), [_leaf(leaf) for leaf in leaves], dy, channels_first=True)


def peers() -> dict[str, ssm_anchors.Scan]:
    """Those always compared, and compiled forms if asked for and possible."""
    found = ssm_anchors.ANCHORS | ssm_anchors.CONDITIONAL
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if os.environ.get("ANBAN_BENCH_COMPILE") and compiler:
        found |= {f"{name} compiled": found[name] for name in ("pscan", "assoc", "easy16")}
    return found


def usable() -> list[str]:
    """Those of our backends that can run here."""
    return [name for name in OURS if _fault(name) is None]


def _fault(name: str) -> str | None:
    fault: str | None = backends.module(name).unusable(torch.device("cpu"), torch.float32)
    return fault


# Measuring --------------------------------------------------------------------------------------------------------------


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _busy() -> float:
    """Seconds that all processors together have worked."""
    try:
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    except OSError:
        raise Unavailable("how busy the machine is cannot be read here (no /proc/stat)") from None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def sample(
    work: Callable[[], object], shortest: float, before: Callable[[], object] | None = None
) -> tuple[Taken, float]:
    """Seconds of one call, averaged over as many as fill `shortest` seconds, and what others used of a core meanwhile.

    `before` is called before each and not counted.
    """
    begun, busy, own = time.perf_counter(), _busy(), time.process_time()
    wall = cpu = 0.0
    calls = 0
    while calls == 0 or time.perf_counter() - begun < shortest:
        if before is not None:
            before()
        wall, cpu = wall - time.perf_counter(), cpu - time.process_time()
        work()
        wall, cpu = wall + time.perf_counter(), cpu + time.process_time()
        calls += 1
    others = (_busy() - busy - (time.process_time() - own)) / (time.perf_counter() - begun)
    return Taken(wall / calls, cpu / calls), others


@dataclass
class Samples:
    """Samples of several contenders taken in turn; `quiet` if nothing else ran meanwhile."""

    taken: dict[str, list[Taken]] = field(default_factory=dict)
    quiet: bool = True

    def median(self, name: str) -> float:
        return statistics.median(t.value for t in self.taken[name])

    def cpu(self, name: str) -> float:
        return statistics.median(t.cpu or 0.0 for t in self.taken[name])


def in_turn(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    once: Sequence[str] = (),
    before: Callable[[], object] | None = None,
) -> Samples:
    """`rounds` samples of each, those of `once` a single one; samples that others disturbed are repeated for a while."""
    samples, end = Samples({name: [] for name in works}), time.monotonic() + PATIENCE
    for number in range(rounds):
        for name, work in works.items():
            if number and name in once:
                continue
            while True:
                taken, others = sample(work, SAMPLE if rounds > 1 else 0.0, before)
                if others < OTHERS or rounds == 1 or time.monotonic() > end:
                    break
            samples.quiet &= others < OTHERS
            samples.taken[name].append(taken)
    return samples


# Cells ------------------------------------------------------------------------------------------------------------------


@dataclass
class Cell:
    """One shape, one kind of work, one number of threads."""

    shape: str
    what: str
    threads: int
    samples: Samples
    absent: dict[str, str]  # contender -> why it was not measured

    @property
    def anchor(self) -> str:
        """The fastest of the peers that are correct for any input."""
        present = [name for name in ssm_anchors.ANCHORS if name in self.samples.taken]
        return min(present, key=self.samples.median)

    @property
    def fastest(self) -> str:
        """The fastest of all peers."""
        return min((name for name in self.samples.taken if name not in OURS), key=self.samples.median)

    def rows(self) -> list[Row]:
        case = f"{self.shape}, {self.what}, {self.threads} thread{'s' * (self.threads > 1)}"
        case += "" if self.samples.quiet else ", not quiet"
        found = []
        for name in OURS:
            if name in self.samples.taken:
                a, b = self.samples.taken[name], self.samples.taken[self.anchor]
                pairs = min(len(a), len(b))
                found.append(Row(case, name, self.anchor, a[:pairs], b[:pairs]))
        return found

    def to_dict(self) -> dict[str, Any]:
        names = self.samples.taken
        return {
            "shape": self.shape,
            "what": self.what,
            "threads": self.threads,
            "quiet": self.samples.quiet,
            "anchor": self.anchor,
            "fastest": self.fastest,
            "ms": {name: 1e3 * self.samples.median(name) for name in names},
            "cpu_ms": {name: 1e3 * self.samples.cpu(name) for name in names},
            "absent": self.absent,
        }


def cells(rounds: int) -> Iterator[Cell]:
    """All cells."""
    if os.environ.get("ANBAN_BENCH_MISH"):
        F.mish(torch.randn(100_000))
    for name, shape in shapes(rounds).items():
        contenders, absent = _checked(shape)
        for number in THREADS:
            with threads(number):
                for what in WHATS:
                    samples, left_out = _samples(shape, what, contenders, rounds)
                    yield Cell(name, what, number, samples, absent | left_out)


def _checked(shape: Shape) -> tuple[list[Contender], dict[str, str]]:
    """Every contender whose y and gradients are right, on an eighth of the image and on all of it; why not the others."""
    given, small = inputs(shape), inputs(shape._replace(height=max(2, shape.height // 8)))
    right = ours("reference", small, torch.float64).results(), ours("chunked", given, torch.float64).results()
    contenders, absent = [], {name: why for name in OURS if (why := _fault(name)) is not None}
    makers: dict[str, Callable[[Mapping[str, Tensor]], Contender]] = {n: partial(ours, n) for n in usable()}
    makers |= {name: partial(peer, name, scan) for name, scan in peers().items()}
    for name, make in makers.items():
        contender, backward = make(given), name not in ssm_anchors.QUADRATIC
        worst = max(
            error(make(small).results(), right[0]), error(contender.results(backward=backward), right[1])
        )
        if worst < ERROR:
            contenders.append(contender)
        else:
            absent[name] = f"wrong here: error {worst:.0e}"
    return contenders, absent


def error(computed: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference relative to the largest value, of as many as there are; inf where something is not finite."""
    pairs = zip(computed, expected, strict=False)
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]
    return max(error if math.isfinite(error) else math.inf for error in errors)


def _samples(
    shape: Shape, what: str, contenders: Sequence[Contender], rounds: int
) -> tuple[Samples, dict[str, str]]:
    """Of all contenders that do not take forever; why not of the others."""
    works, first, absent = {}, {}, {}
    for contender in contenders:
        if what != "forward" and contender.name in ssm_anchors.QUADRATIC:
            expected = _quadratic(contender.name, shape)
            if expected > LONGEST:
                absent[contender.name] = f"one call would take about {expected:.0f} s"
                continue
        works[contender.name] = contender.run(what)
        first[contender.name] = sample(works[contender.name], 0.0)[0].value
    fastest = min(first[name] for name in first if name not in OURS)
    once = [name for name in first if name not in OURS and first[name] > SLOW * fastest]
    return in_turn(works, rounds, once), absent


def _quadratic(name: str, shape: Shape) -> float:
    """Seconds that the backward pass of a loop would take, from an eighth of the length."""
    short = shape._replace(height=max(1, shape.height // 8))
    work = peer(name, ssm_anchors.ANCHORS[name], inputs(short)).both
    return min(sample(work, 0.0)[0].value for _ in range(2)) * (shape.height / short.height) ** 2
