"""The plain-torch scan against the recurrence written out in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anban.ssm.backends import Gradients, Problem, chunked
from anban.ssm.orders import ORDERS, Walk, walks

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-11}
FIELDS = Gradients._fields


def oracle(problem: Problem) -> tuple[Tensor, Tensor]:
    """y and the last states, one step at a time for one direction at a time."""
    batch, pixels, directions, channels = problem.delta.shape
    shared = problem.x.shape[2] == 1
    y = [[torch.zeros(batch, channels) for _ in range(1 if shared else directions)] for _ in range(pixels)]
    ends = []
    for k, walk in enumerate(problem.walks):
        h = torch.zeros(batch, channels, problem.A.shape[2])
        for t in range(pixels):
            p = walk.pixel(t)
            x, s = problem.x[:, p, 0 if shared else k], problem.delta[:, p, k]
            s = s if problem.bias is None else s + problem.bias[k]
            s = torch.logaddexp(s, torch.zeros(())) if problem.softplus else s
            B, C = (m[k] if m.dim() == 3 else m[:, p, k, None] for m in (problem.B, problem.C))
            h = (s[..., None] * problem.A[k]).exp() * h + (s * x)[..., None] * B
            out = (h * C).sum(-1)
            y[p][0 if shared else k] = y[p][0 if shared else k] + (
                out if problem.D is None else out + problem.D[k] * x
            )
        ends.append(h)
    return torch.stack([torch.stack(row, 1) for row in y], 1), torch.stack(ends, 1)


def expected(problem: Problem, dy: Tensor, dlast: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """The oracle's y, last states and gradients, in float64."""
    with torch.enable_grad():
        leaves = problem.map(lambda tensor: tensor.detach().double().requires_grad_())
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            y, last = oracle(leaves)
        finally:
            torch.set_default_dtype(previous)
        given_ = [tensor for tensor in leaves.tensors() if tensor is not None]
        found = iter(torch.autograd.grad([y, last], given_, [dy.double(), dlast.double()]))
    return (
        y.detach(),
        last.detach(),
        [None if tensor is None else next(found) for tensor in leaves.tensors()],
    )


def run(problem: Problem, dy: Tensor, dlast: Tensor) -> tuple[Tensor, Tensor, Gradients]:
    y, last, saved = chunked.forward(problem, save=True)
    return y, last, chunked.backward(problem, saved, dy, dlast)


def seeds(problem: Problem, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Something to send back through y and through the last states."""
    g = torch.Generator().manual_seed(seed)
    batch, pixels, directions, channels = problem.delta.shape
    dtype = torch.float64 if problem.x.dtype == torch.float64 else torch.float32
    dy = torch.randn(batch, pixels, problem.x.shape[2], channels, generator=g, dtype=torch.float64)
    dlast = torch.randn(batch, directions, channels, problem.A.shape[2], generator=g, dtype=torch.float64)
    return dy.to(dtype), dlast.to(dtype)


def check(problem: Problem, tolerance: float | None = None) -> None:
    dy, dlast = seeds(problem)
    y, last, gradients = run(problem, dy, dlast)
    y_, last_, gradients_ = expected(problem, dy, dlast)
    limit = TOLERANCE[y.dtype] if tolerance is None else tolerance
    assert y.shape == y_.shape
    assert last.shape == last_.shape
    worst = {"y": error(y, y_), "last": error(last, last_)}
    for name, ours, theirs in zip(FIELDS, gradients, gradients_, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None and theirs is not None:
            assert ours.dtype == getattr(problem, name).dtype
            worst[name] = error(ours, theirs)
    assert max(worst.values()) <= limit, worst


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert ours.isfinite().all()
    return ((ours.double() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)).item()


def build(
    height: int = 5,
    width: int = 9,
    batch: int = 2,
    channels: int = 6,
    states: int = 3,
    orders: tuple[str, ...] = ("row", "column", "row-reversed", "column-reversed"),
    *,
    own: bool = False,
    constant: tuple[bool, bool] = (False, False),
    skip: bool = True,
    bias: bool = True,
    softplus: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Problem:
    """A problem in Mamba's initial ranges, A up to -states."""
    g = torch.Generator().manual_seed(seed)
    K, P = len(orders), height * width

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    def weight(fixed: bool) -> Tensor:
        return normal(K, channels, states) if fixed else normal(batch, P, K, states)

    raw = normal(batch, P, K, channels)
    return Problem(
        normal(batch, P, K if own else 1, channels),
        raw if softplus else raw.sigmoid() * 0.2,
        -torch.arange(1, states + 1, dtype=dtype).expand(K, channels, states)
        * (1 + 0.1 * normal(K, channels, states).abs()),
        weight(constant[0]),
        weight(constant[1]),
        normal(K, channels) if skip else None,
        (normal(K, channels) * 0.5 - 3 if softplus else normal(K, channels).abs() * 0.1) if bias else None,
        softplus,
        walks(orders, height, width),
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("states", [1, 2, 16, 64])
def test_states(states: int, dtype: torch.dtype) -> None:
    check(build(states=states, dtype=dtype))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 2), (1, 15), (16, 1), (1, 17), (7, 7), (8, 8), (9, 11)]
)
def test_lengths(height: int, width: int, dtype: torch.dtype) -> None:
    check(build(height, width, dtype=dtype))


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize(("skip", "bias"), list(itertools.product([True, False], repeat=2)))
def test_optional_parts(skip: bool, bias: bool, softplus: bool) -> None:
    check(build(skip=skip, bias=bias, softplus=softplus))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("constant", list(itertools.product([True, False], repeat=2)))
def test_constant_weights(constant: tuple[bool, bool], own: bool) -> None:
    check(build(constant=constant, own=own))


@pytest.mark.parametrize("orders", [ORDERS, ("row",), ("column", "column")])
def test_orders(orders: tuple[str, ...]) -> None:
    check(build(orders=orders))
    check(build(orders=orders, own=True))


DIFFICULT: dict[str, Callable[[Problem], None]] = {
    "no step at all": lambda p: p.delta.zero_(),
    "huge steps": lambda p: p.delta.mul_(100),
    "steps of 20": lambda p: p.delta.fill_(20),
    "mixed steps": lambda p: p.delta[:, ::7].fill_(1e4),
    "A to -1000": lambda p: p.A.mul_(300),
    "A to -1e30": lambda p: p.A.mul_(1e30),
    "A = 0": lambda p: p.A.zero_(),
    "A above 0": lambda p: p.A.mul_(-0.1),
    "A of both signs": lambda p: p.A[:, ::2].mul_(-0.5),
    "steps below 0": lambda p: p.delta.neg_(),
    "x = 0 at first": lambda p: p.x[:, :20].zero_(),
}


@pytest.mark.parametrize("change", DIFFICULT.values(), ids=DIFFICULT)
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_difficult_values(change: Callable[[Problem], None], softplus: bool, dtype: torch.dtype) -> None:
    problem = build(softplus=softplus, bias=False, dtype=dtype)
    change(problem)
    check(problem)


def test_growth_that_overflows_only_where_nothing_is() -> None:
    """The decay of a segment is infinite, but it multiplies a state of zero until the last steps."""
    problem = build(1, 64, orders=("row",), softplus=False, bias=False)
    problem.A.abs_().mul_(10)
    problem.delta.fill_(1)
    problem.x[:, :62].zero_()
    y, last, _ = chunked.forward(problem, save=False)
    y_, last_, _ = expected(problem, *seeds(problem))
    assert error(y, y_) < 2e-6
    assert error(last, last_) < 2e-6


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 9),
    st.lists(st.sampled_from(ORDERS), min_size=1, max_size=4),
    st.booleans(),
    st.tuples(st.booleans(), st.booleans()),
    st.floats(-1, 1),
    st.integers(0, 99),
)
def test_any_shape(
    height: int,
    width: int,
    batch: int,
    channels: int,
    states: int,
    orders: list[str],
    own: bool,
    constant: tuple[bool, bool],
    size: float,
    seed: int,
) -> None:
    """In float64: with few numbers a gradient may be the small difference of large ones."""
    kinds = {"own": own, "constant": constant, "dtype": torch.float64, "seed": seed}
    problem = build(height, width, batch, channels, states, tuple(orders), **kinds)
    problem.delta.mul_(10**size)
    check(problem)


@pytest.mark.parametrize("width", [1, 60, 500, 2**20])
def test_result_does_not_hang_on_the_chunks(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One segment at a time, several, all; one sample at a time or both."""
    monkeypatch.setattr(chunked, "_WIDTH", width)
    check(build(7, 13, dtype=torch.float64))


def test_strided_and_one_dimensional_inputs() -> None:
    """Channels first, as `selective_scan` has them, and B and C as slices of one projection."""
    g = torch.Generator().manual_seed(0)
    x, delta = (torch.randn(2, 3, 4, 37, generator=g).permute(0, 3, 1, 2) for _ in range(2))
    B, C = torch.randn(2, 37, 3, 13, generator=g)[..., 3:].split(5, -1)
    A = -torch.rand(3, 5, 4, generator=g).mT
    check(Problem(x, delta, A, B, C, None, None, True, (Walk(0, 1, 37, 37),) * 3))


def test_half_precision_inputs() -> None:
    """Equal to the scan of the same numbers in float32; gradients come in the dtype of their tensor."""
    problem = build().map(lambda tensor: tensor.bfloat16())
    wide = problem.map(lambda tensor: tensor.float())
    dy, dlast = seeds(wide)
    y, last, gradients = run(problem, dy, dlast)
    y_, last_, gradients_ = run(wide, dy, dlast)
    assert torch.equal(y, y_)
    assert torch.equal(last, last_)
    for ours, theirs in zip(gradients, gradients_, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs.bfloat16())


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory holds NaN until it is written."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
def test_reads_nothing_it_has_not_written() -> None:
    assert torch.empty(3).isnan().all()
    check(build(5, 7))
    check(build(5, 7, own=True, constant=(True, False)))


def test_bitwise_repeatable() -> None:
    problem = build(32, 32, channels=24, states=4)
    first, second = (run(problem, *seeds(problem)) for _ in range(2))
    for a, b in zip((*first[:2], *first[2]), (*second[:2], *second[2]), strict=True):
        assert torch.equal(a, b)


def test_leaves_its_inputs_alone() -> None:
    problem = build()
    before = problem.map(torch.clone)
    dy, dlast = seeds(problem)
    kept = dy.clone(), dlast.clone()
    run(problem, dy, dlast)
    for a, b in zip((*problem.tensors(), dy, dlast), (*before.tensors(), *kept), strict=True):
        assert torch.equal(a, b)  # type: ignore[arg-type]


def test_saves_nothing_unless_asked() -> None:
    problem = build(4, 9)
    assert chunked.forward(problem, save=False)[2].numel() == 0
    assert chunked.forward(problem, save=True)[2].shape == (2, 4, 3, 3, 6)


@pytest.mark.gpu
@pytest.mark.parametrize("states", [1, 16])
def test_gpu(states: int) -> None:
    problem = build(13, 11, states=states)
    dy, dlast = seeds(problem)
    y, last, gradients = run(problem.map(Tensor.cuda), dy.cuda(), dlast.cuda())
    again = run(problem.map(Tensor.cuda), dy.cuda(), dlast.cuda())
    y_, last_, gradients_ = expected(problem, dy, dlast)
    pairs = zip((y, last, *gradients), (y_, last_, *gradients_), (*again[:2], *again[2]), strict=True)
    for ours, theirs, repeated in pairs:
        assert ours is not None
        assert theirs is not None
        assert error(ours.cpu(), theirs) < 2e-6
        assert torch.equal(ours, repeated)  # type: ignore[arg-type]
