"""Every backend of the selective scan that runs without a GPU against the recurrence in float64.

All memory that the package asks for without filling it is filled with NaN here: what is read before it is written shows.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import oracle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import CROSS, Case, make, mamba
from torch import Tensor

from anban.errors import InputError
from anban.ssm import selective_scan, selective_scan_2d
from anban.ssm.orders import ORDERS

BACKENDS = ("cpu", "chunked", "reference")
EPSILON = 2e-6  # of the scale of a float32 result
EXACT = 1e-11  # in float64


@pytest.fixture(scope="module", autouse=True)
def poisoned() -> Iterator[None]:
    def fill(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(make)
        def filled(*args: Any, **options: Any) -> Tensor:
            tensor = make(*args, **options)
            if options.get("out") is None:
                tensor.fill_(math.nan if tensor.is_floating_point() else 77)
            return tensor

        return filled

    with pytest.MonkeyPatch.context() as patch:
        for home, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (torch.Tensor, "new_empty"),
            (torch.Tensor, "new_empty_strided"),
        ):
            patch.setattr(home, name, fill(getattr(home, name)))
        yield


def scan(case: Case, backend: str) -> Callable[..., Any]:
    if case.orders is None:
        return functools.partial(selective_scan, backend=backend, return_last_state=True)
    return functools.partial(selective_scan_2d, backend=backend)


def run(case: Case, backend: str) -> tuple[Tensor, ...]:
    return oracle.as_tuple(case.by(scan(case, backend)))


def check(case: Case, backend: str, tolerance: float = EPSILON) -> None:
    report = oracle.errors(case, scan(case, backend))
    assert max(report.values()) <= tolerance, table(report)


def table(report: dict[str, float]) -> str:
    return ", ".join(f"{name} {found:.1e}" for name, found in report.items())


def gradients(case: Case, backend: str, weight: Tensor) -> dict[str, Tensor]:
    """Of the sum of y times `weight`."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in case.tensors.items()}
    y = run(Case(leaves, case.options), backend)[0]
    return dict(zip(leaves, torch.autograd.grad((y * weight).sum(), list(leaves.values())), strict=True))


def test_the_poison_works() -> None:
    assert torch.empty(2).isnan().all()
    assert torch.zeros(1).new_empty((3,)).isnan().all()


# Values and gradients ----------------------------------------------------------------------------------------------------

CASES: dict[str, Callable[[], Case]] = {
    "1 state": lambda: make((2, 5, 40), 1),
    "2 states": lambda: make((2, 32, 40), 2),
    "2 states, odd number of vectors": lambda: make((1, 33, 40), 2, softplus=False),
    "3 states": lambda: make((3, 5, 40), 3, softplus=False),
    "4 states": lambda: make((2, 17, 40), 4),
    "5 states": lambda: make((2, 16, 40), 5),
    "16 states": lambda: make((1, 20, 70), 16),
    "17 states": lambda: make((1, 7, 70), 17),
    "64 states": lambda: make((1, 3, 35), 64),
    "many channels": lambda: make((1, 209, 34), 1),
    "one channel": lambda: make((3, 1, 34), 2, seed=1),
    "one step": lambda: make((2, 6, 1), 3),
    "31 steps": lambda: make((1, 6, 31), 3),
    "32 steps": lambda: make((1, 6, 32), 3),
    "33 steps": lambda: make((1, 6, 33), 3),
    "64 steps": lambda: make((1, 6, 64), 3),
    "65 steps": lambda: make((1, 6, 65), 3),
    "1000 steps": lambda: make((1, 4, 1000), 1),
    "1 group": lambda: make((2, 6, 35), 3, groups=1),
    "2 groups": lambda: make((2, 6, 35), 3, groups=2),
    "6 groups of one channel": lambda: make((2, 6, 35), 3, groups=6, softplus=False),
    "4 groups of 17": lambda: make((2, 68, 35), 5, groups=4),
    "groups of B alone": lambda: make((2, 6, 35), groups=2).but(C=lambda C: C[:, :1].clone()),
    "B constant": lambda: make((2, 5, 35), 3, constant="B"),
    "C constant": lambda: make((2, 18, 35), 5, constant="C"),
    "B and C constant": lambda: make((2, 5, 35), 6, constant="BC", softplus=False),
    "B constant, groups of C": lambda: make((2, 8, 35), 3, constant="B", groups=4),
    "bare sequence": lambda: make((2, 5, 35), softplus=False).without("D", "z", "delta_bias"),
    "sequence without D": lambda: make((2, 5, 35)).without("D"),
    "sequence without bias": lambda: make((2, 5, 35)).without("delta_bias"),
    "image": lambda: make((2, 5, 7, 20), 1, orders=CROSS),
    "image, 16 states": lambda: make((1, 7, 6, 33), 16, orders=CROSS),
    "image, every order": lambda: make((2, 6, 9, 5), 2, orders=ORDERS),
    "image, one order": lambda: make((2, 6, 9, 5), 3, orders=("column-leftward",)),
    "image, one order three times": lambda: make((1, 5, 8, 16), 4, orders=("row-upward",) * 3),
    "image of one line": lambda: make((2, 1, 37, 5), 3, orders=ORDERS),
    "image of one column": lambda: make((2, 37, 1, 5), 3, orders=ORDERS),
    "image of one pixel": lambda: make((2, 1, 1, 5), 3, orders=CROSS),
    "image of whole chunks": lambda: make((1, 8, 8, 5), 3, orders=CROSS),
    "image, steps as they are": lambda: make((1, 5, 5, 9), 3, orders=CROSS, softplus=False),
    "bare image": lambda: make((1, 5, 5, 9), 3, orders=CROSS).without("D", "delta_bias"),
    "image as VMamba begins": lambda: mamba(make((1, 14, 14, 24), 1, orders=CROSS)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_recurrence(name: str, backend: str) -> None:
    check(CASES[name](), backend)


def raw(case: Case, delta: Tensor | float) -> Case:
    """With these steps instead of the softplus of something."""
    steps = delta if isinstance(delta, Tensor) else torch.full_like(case.tensors["delta"], delta)
    return case.without("delta_bias").but(delta=steps, delta_softplus=False)


def spread(case: Case, low: float, high: float) -> Tensor:
    """Values from `low` to `high` in the shape of A, in equal ratios."""
    A = case.tensors["A"]
    exponents = torch.linspace(math.log(low), math.log(high), A.numel())
    return (
        exponents[torch.randperm(A.numel(), generator=torch.Generator().manual_seed(0))].view(A.shape).exp()
    )


def growing(case: Case) -> Case:
    return case.but(A=lambda A: A.abs().clamp(max=1))


def upswing() -> Case:
    """A state that grows by e^50 in each of three steps while it is empty, and only then gets something."""
    case = raw(make((1, 3, 64)), 0.01)
    delta, u = case.tensors["delta"].clone(), case.tensors["u"].clone()
    delta[..., 5:8], u[..., :8] = 50.0, 0.0
    return case.but(A=torch.ones(3, 3), delta=delta, u=u)


EXTREMES: dict[str, Callable[[], Case]] = {
    "growing states": lambda: growing(make((2, 5, 50))),
    "growing and decaying states": lambda: make((2, 5, 50)).but(A=lambda A: A + 2),
    "growing states of an image": lambda: growing(make((1, 6, 9, 5), orders=CROSS)),
    "A = 0": lambda: make((2, 5, 50)).but(A=torch.zeros_like),
    "steps of 0": lambda: raw(make((2, 5, 50)), 0.0),
    "steps of either sign": lambda: (c := make((2, 5, 50))) and raw(c, c.tensors["delta"] / 10),
    "steps that vanish": lambda: make((2, 5, 50)).but(delta=lambda delta: delta - 20),
    "steps of 20": lambda: raw(make((2, 5, 50)), 20.0),
    "softplus of 20": lambda: make((2, 5, 50)).but(delta=lambda delta: delta + 23),
    "steps of 10000": lambda: raw(make((2, 5, 50)), 1e4),
    "softplus of 10000": lambda: make((2, 5, 50)).but(delta=lambda delta: delta * 1e4),
    "A from -0.001 to -1000": lambda: (c := make((2, 5, 50), 4)) and c.but(A=-spread(c, 1e-3, 1e3)),
    "both": lambda: (c := make((2, 5, 50), 4)) and c.but(A=-spread(c, 1e-3, 1e3), delta=lambda d: d * 5 + 13),
    "both, image": lambda: (
        (c := make((1, 6, 9, 5), 4, orders=CROSS))
        and c.but(A=-spread(c, 1e-3, 1e3), delta=lambda d: d * 5 + 13)
    ),
    "large x": lambda: make((2, 5, 50)).but(u=lambda u: u * 1e30).without("z"),
    "a single pulse": lambda: make((2, 5, 100)).but(u=lambda u: u * (torch.arange(100) == 3)),
    "nothing": lambda: make((2, 5, 50)).but(u=torch.zeros_like),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", EXTREMES)
def test_equals_the_recurrence_at_extremes(name: str, backend: str) -> None:
    # where states grow, so do errors: in proportion to the sum of s A, which is about 10 here
    check(EXTREMES[name](), backend, 10 * EPSILON if name.startswith("growing") else EPSILON)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_finite_by_definition_stays_finite(backend: str) -> None:
    report = oracle.errors(upswing(), scan(upswing(), backend), gradients=False)
    assert max(report.values()) <= EPSILON, table(report)


FINE: dict[str, Callable[[], Case]] = {
    "sequence": lambda: mamba(make((1, 20, 300), 16, seed=1)),
    "few states": lambda: mamba(make((2, 20, 300), 2, seed=2)),
    "image": lambda: mamba(make((1, 12, 13, 20), 16, orders=CROSS, seed=3)),
    "image, 1 state": lambda: mamba(make((1, 14, 14, 24), 1, orders=CROSS, seed=4)),
    "large steps": EXTREMES["softplus of 20"],
    "large rates": EXTREMES["A from -0.001 to -1000"],
    "large steps and rates": EXTREMES["both"],
}


@pytest.mark.parametrize("name", FINE)
def test_gradients_on_processors_have_six_digits(name: str) -> None:
    check(FINE[name](), "cpu", 1e-6)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("name", ["4 states", "2 groups", "B and C constant", "image, every order"])
def test_double_precision(name: str, backend: str) -> None:
    case = CASES[name]().to(torch.float64)
    check(case, backend, EXACT)
    assert all(output.dtype == torch.float64 for output in run(case, backend))


def test_double_precision_chooses_a_backend_that_has_it() -> None:
    check(CASES["3 states"]().to(torch.float64), "auto", EXACT)


HALVES = [torch.bfloat16, torch.float16]
MOVING = {"sequence": ("u", "delta", "B", "C", "z"), "image": ("x", "delta", "B", "C")}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", MOVING)
def test_half_precision_inputs_are_scanned_in_single_precision(
    kind: str, dtype: torch.dtype, backend: str
) -> None:
    case = make((2, 18, 40)) if kind == "sequence" else make((1, 5, 7, 18), orders=CROSS)
    case = case.to(dtype, *MOVING[kind])
    report = oracle.errors(case, scan(case, backend))
    single = {
        "last",
        "dA",
        "dD",
        "ddelta_bias",
        *(["y"] if kind == "image" else []),
    }  # what is returned in float32
    rounding = torch.finfo(dtype).eps / 2
    for name, found in report.items():
        assert found <= EPSILON + (0 if name in single else rounding), table(report)
    y = run(case, backend)[0]
    assert y.dtype == (dtype if kind == "sequence" else torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_parameters_may_have_half_precision_too(dtype: torch.dtype, backend: str) -> None:
    case = make((1, 5, 7, 18), orders=CROSS).to(dtype)
    report = oracle.errors(case, scan(case, backend))
    assert report.pop("y") <= EPSILON
    assert max(report.values()) <= EPSILON + torch.finfo(dtype).eps / 2, table(report)


# Memory ------------------------------------------------------------------------------------------------------------------


def reversed_memory(tensor: Tensor) -> Tensor:
    """The same values with dimensions laid out the other way round."""
    dims = list(range(tensor.dim()))[::-1]
    return tensor.permute(dims).contiguous().permute(dims)


def gaps(tensor: Tensor) -> Tensor:
    """Every third element of something larger; what lies between is NaN."""
    wide = torch.full((*tensor.shape, 3), math.nan, dtype=tensor.dtype)
    wide[..., 1] = tensor
    return wide[..., 1]


def window(tensor: Tensor) -> Tensor:
    """A slice of a wider last dimension, off from the start of a vector."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 5), math.nan, dtype=tensor.dtype)
    wide[..., 3:-2] = tensor
    return wide[..., 3:-2]


LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "reversed": reversed_memory,
    "gaps": gaps,
    "window": window,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["reversed", "gaps", "window"])
@pytest.mark.parametrize("kind", ["sequence", "image", "whole vectors"])
def test_any_layout_of_memory(kind: str, layout: str, backend: str) -> None:
    case = {
        "sequence": lambda: make((2, 6, 35), 3, groups=2).without("z"),  # the gate is torch's
        "image": lambda: make((2, 5, 7, 6), 3, orders=CROSS),
        "whole vectors": lambda: make((2, 5, 7, 32), 3, orders=CROSS),
    }[kind]()
    change = LAYOUTS[layout]
    laid = Case({name: change(tensor) for name, tensor in case.tensors.items()}, case.options)
    check(laid, backend)
    for a, b in zip(run(case, backend), run(laid, backend), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_inputs(backend: str) -> None:
    sequence = make((3, 5, 35), 3)
    check(
        sequence.but(
            u=lambda u: u[:1, :, :1].expand(3, 5, 35),
            delta=lambda delta: delta[:, :1].expand(3, 5, 35),
            A=lambda A: A[:1].expand(5, 3),
            B=lambda B: B[:1, :1].expand(3, 3, 35),
            C=lambda C: C[..., :1].expand(3, 3, 35),
            D=lambda D: D[:1].expand(5),
            z=lambda z: z[:1].expand(3, 5, 35),
        ),
        backend,
    )
    image = make((2, 5, 7, 16), 3, orders=CROSS)
    check(
        image.but(
            x=lambda x: x[..., :1].expand(2, 5, 7, 16),
            delta=lambda delta: delta[:, :, :, :1].expand(2, 5, 7, 4, 16),
            A=lambda A: A[:1].expand(4, 16, 3),
            B=lambda B: B[:, :, :, :1].expand(2, 5, 7, 4, 3),
            delta_bias=lambda bias: bias[:, :1].expand(4, 16),
        ),
        backend,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_tensor_in_several_places(backend: str) -> None:
    """x is also the step, B is also C; their gradients are sums."""
    case = make((2, 4, 35), 4)
    u, B = (case.tensors[name].clone().requires_grad_() for name in ("u", "B"))
    shared = case.but(u=u, delta=u, B=B, C=B)
    exact = [tensor.detach().double().requires_grad_() for tensor in (u, B)]
    double = Case({k: v.double() for k, v in case.tensors.items()}, case.options)
    true = double.but(u=exact[0], delta=exact[0], B=exact[1], C=exact[1]).true()[0]
    found = torch.autograd.grad(run(shared, backend)[0].sum(), (u, B))
    for a, b in zip(found, torch.autograd.grad(true.sum(), exact), strict=True):
        assert oracle.error(a, b) <= EPSILON


def test_gradients_flow_only_where_they_are_asked_for() -> None:
    case = make((2, 4, 35))
    A = case.tensors["A"].clone().requires_grad_()
    y, last = run(case.but(A=A), "cpu")
    assert y.requires_grad
    assert last.requires_grad
    (found,) = torch.autograd.grad(last.sum(), A)
    exact = A.detach().double().requires_grad_()
    double = Case({k: v.double() for k, v in case.tensors.items()}, case.options)
    (true,) = torch.autograd.grad(double.but(A=exact).true()[1].sum(), exact)
    assert oracle.error(found, true) <= EPSILON
    assert not run(case, "cpu")[0].requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_twice_gives_the_same_twice(backend: str) -> None:
    case = make((2, 4, 35))
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in case.tensors.items()}
    y = run(Case(leaves, case.options), backend)[0].sum()
    first = torch.autograd.grad(y, list(leaves.values()), retain_graph=True)
    second = torch.autograd.grad(y, list(leaves.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


EXPANDED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "steps, over channels": ("delta", lambda m: m[:, :1].expand_as(m)),
    "steps, over the batch": ("delta", lambda m: m[:1].expand_as(m)),
    "steps, over both": ("delta", lambda m: m[:1, :1].expand_as(m)),
    "steps, over time": ("delta", lambda m: m[..., :1].expand_as(m)),
    "input, over channels": ("u", lambda m: m[:, :1].expand_as(m)),
    "every second channel": ("delta", lambda m: m.repeat_interleave(2, 1)[:, ::2]),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", EXPANDED)
def test_expanded_sequences_have_right_gradients(name: str, backend: str) -> None:
    """As wide and long as whole tiles, so that a kernel may read them in place."""
    which, change = EXPANDED[name]
    case = make((2, 32, 40), 4, groups=2)
    check(case.but(**{which: change(case.tensors[which])}), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_steps_of_an_image_may_be_expanded(dim: int, backend: str) -> None:
    case = make((2, 5, 6, 16), 2, orders=CROSS)
    delta = case.tensors["delta"]
    check(case.but(delta=delta.narrow(dim, 0, 1).expand_as(delta)), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_are_refused(backend: str) -> None:
    case = make((1, 2, 5)).without("z")
    u = case.tensors["u"].clone().requires_grad_()
    y = run(case.but(u=u), backend)[0]
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(y.square().sum(), u, create_graph=True)


# Identities --------------------------------------------------------------------------------------------------------------

TURNS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "row": (lambda m: m, lambda m: m),
    "row-reversed": (lambda m: m.flip(1, 2), lambda m: m.flip(1, 2)),
    "row-leftward": (lambda m: m.flip(2), lambda m: m.flip(2)),
    "row-upward": (lambda m: m.flip(1), lambda m: m.flip(1)),
    "column": (lambda m: m.transpose(1, 2), lambda m: m.transpose(1, 2)),
    "column-reversed": (lambda m: m.transpose(1, 2).flip(1, 2), lambda m: m.flip(1, 2).transpose(1, 2)),
    "column-leftward": (lambda m: m.rot90(1, (1, 2)), lambda m: m.rot90(-1, (1, 2))),
    "column-upward": (lambda m: m.rot90(-1, (1, 2)), lambda m: m.rot90(1, (1, 2))),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_a_row_of_the_turned_image(order: str, backend: str) -> None:
    turn, back = TURNS[order]
    case = make((2, 5, 8, 18), 3, orders=(order,))
    moving = {name: turn(case.tensors[name]) for name in MOVING["image"]}
    turned = case.but(orders=("row",), **moving)
    assert torch.equal(run(case, backend)[0], back(run(turned, backend)[0]))
    weight = torch.randn(case.tensors["x"].shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = gradients(case, backend, weight), gradients(turned, backend, turn(weight))
    for name, gradient in ours.items():
        if name in moving:
            assert torch.equal(gradient, back(theirs[name])), name
        else:  # sums over all pixels
            assert oracle.error(gradient, theirs[name].double()) <= EPSILON, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_of_one_order_is_a_sequence(backend: str) -> None:
    case = make((2, 5, 8, 6), 3, orders=("row",))
    t = {name: tensor.squeeze(0) for name, tensor in case.tensors.items()}
    u, delta, B, C = (
        t[name].reshape(2, 40, -1).transpose(1, 2).contiguous() for name in ("x", "delta", "B", "C")
    )
    y = selective_scan(u, delta, t["A"], B, C, t["D"], t["delta_bias"], True, backend)
    assert torch.equal(y.transpose(1, 2).reshape(2, 5, 8, 6), run(case, backend)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_directions_add_up(backend: str) -> None:
    case = make((2, 5, 8, 18), 3, orders=ORDERS)
    parts = []
    for k, order in enumerate(ORDERS):
        own = {name: case.tensors[name][:, :, :, k : k + 1] for name in ("delta", "B", "C")}
        own |= {name: case.tensors[name][k : k + 1] for name in ("A", "D", "delta_bias")}
        parts.append(run(case.but(orders=(order,), **own), backend)[0].double())
    assert oracle.error(run(case, backend)[0], sum(parts, torch.zeros(()).double())) <= EPSILON


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_and_channels_in_another_order(backend: str) -> None:
    case = make((3, 5, 8, 37), 3, orders=CROSS)
    y = run(case, backend)[0]
    batch, channels = torch.tensor([2, 0, 1]), torch.randperm(37, generator=torch.Generator().manual_seed(0))
    images = case.but(**{name: lambda m: m[batch] for name in MOVING["image"]})
    assert torch.equal(run(images, backend)[0], y[batch])
    shuffled = case.but(
        **{name: lambda m: m[..., channels] for name in ("x", "delta", "D", "delta_bias")},
        A=lambda A: A[:, channels],
    )
    assert torch.equal(run(shuffled, backend)[0], y[..., channels])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 31, 32, 33, 64])
def test_the_past_does_not_depend_on_the_future(length: int, backend: str) -> None:
    case = make((2, 18, 65), 3).without("z")
    short = case.but(**{name: lambda m: m[..., :length] for name in ("u", "delta", "B", "C")})
    long = run(case, backend)[0][..., :length].double()
    assert oracle.error(run(short, backend)[0], long) <= (0 if backend == "cpu" else EPSILON)


@pytest.mark.parametrize("backend", BACKENDS)
def test_skip_bias_and_gate_are_what_they_are_without_the_scan(backend: str) -> None:
    case = make((2, 18, 40))
    t = case.tensors
    plain = case.without("D", "z", "delta_bias")
    gated = run(plain.but(delta=t["delta"] + t["delta_bias"][:, None]), backend)[0]
    gated = (gated + t["D"][:, None] * t["u"]) * torch.nn.functional.silu(t["z"])
    assert oracle.error(run(case, backend)[0], gated.double()) <= EPSILON


@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_in_x_and_in_c(backend: str) -> None:
    case, other = (make((2, 18, 40), seed=seed).without("D") for seed in (0, 5))
    other = case.but(u=other.tensors["u"], C=other.tensors["C"])
    for name in ("u", "C"):
        mixed = case.but(**{name: 2 * case.tensors[name] - 3 * other.tensors[name]})
        parts = [run(c, backend)[0].double() for c in (case, case.but(**{name: other.tensors[name]}))]
        assert oracle.error(run(mixed, backend)[0], 2 * parts[0] - 3 * parts[1]) <= EPSILON


# NaN ---------------------------------------------------------------------------------------------------------------------

SICK = {
    "x": (1, 2, 3, 4),
    "delta": (1, 2, 3, 1, 4),
    "B": (1, 2, 3, 1, 0),
    "C": (1, 2, 3, 1, 0),
    "A": (1, 4, 0),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SICK)
def test_nan_reaches_what_depends_on_it_and_nothing_else(name: str, backend: str) -> None:
    case = make((2, 5, 8, 18), 3, orders=CROSS)
    tensor = case.tensors[name].clone()
    tensor[SICK[name]] = math.nan
    case = case.but(**{name: tensor})
    (found,), (true,) = run(case, backend), case.true()
    assert 0 < int(true.isnan().sum()) < true.numel()
    assert torch.equal(found.isnan(), true.isnan())
    assert oracle.error(found.nan_to_num(), true.nan_to_num()) <= EPSILON


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_a_sequence_stays_in_its_channel_and_its_future(backend: str) -> None:
    case = make((2, 18, 70))
    u = case.tensors["u"].clone()
    u[1, 4, 40] = math.nan
    y, last = run(case.but(u=u), backend)
    assert torch.equal(y.isnan().nonzero(), torch.tensor([[1, 4, t] for t in range(40, 70)]))
    assert torch.equal(last.isnan().any(-1).nonzero(), torch.tensor([[1, 4]]))


# Fuzz --------------------------------------------------------------------------------------------------------------------

FUZZ = settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
SINGLE = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])


def disturbed(draw: st.DrawFn, case: Case) -> Case:
    """With tensors laid out in memory at random, of random precision, some left out."""
    tensors = {}
    for name, tensor in case.tensors.items():
        if name in ("D", "delta_bias", "z") and draw(st.booleans()):
            continue
        layout = draw(st.sampled_from(sorted(LAYOUTS)))
        tensors[name] = LAYOUTS[layout](tensor.to(draw(SINGLE)))
    return Case(tensors, case.options)


@st.composite
def sequences(draw: st.DrawFn) -> Case:
    groups = draw(st.sampled_from([None, 1, 2, 3]))
    shape = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 20)) * (groups or 1),
        draw(st.integers(1, 70)),
    )
    case = make(
        shape,
        draw(st.sampled_from([1, 2, 5])),
        groups=groups,
        constant=draw(st.sampled_from(["", "", "B", "C"])),
        softplus=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )
    return disturbed(draw, case)


@st.composite
def images(draw: st.DrawFn) -> Case:
    size = st.integers(1, 9)
    case = make(
        (draw(st.integers(1, 2)), draw(size), draw(size), draw(st.integers(1, 40))),
        draw(st.sampled_from([1, 2, 5])),
        orders=draw(st.lists(st.sampled_from(ORDERS), min_size=1, max_size=4)),
        softplus=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )
    return disturbed(draw, case)


@pytest.mark.parametrize("backend", ["cpu", "chunked"])
@FUZZ
@given(case=sequences() | images())
def test_anything(backend: str, case: Case) -> None:
    report = oracle.errors(case, scan(case, backend))
    dtypes = {f"d{name}": tensor.dtype for name, tensor in case.tensors.items()}
    dtypes["y"] = case.tensors["u"].dtype if case.orders is None else torch.float32
    for name, found in report.items():
        dtype = dtypes.get(name, torch.float32)
        rounding = 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
        sums = name in ("dA", "dD", "ddelta_bias")  # over all steps: they may cancel
        assert found <= EPSILON * (10 if sums else 1) + rounding, (name, table(report))


# Refusals ----------------------------------------------------------------------------------------------------------------


def cut(name: str, dim: int = -1) -> Callable[[Case], Case]:
    """One entry less of one tensor along a dimension."""
    return lambda case: case.but(
        **{name: lambda m: m.narrow(dim, 0, m.shape[dim] - 1) if m.shape[dim] > 1 else m.expand(2)}
    )


def put(name: str, value: Any) -> Callable[[Case], Case]:
    return lambda case: case.but(**{name: value})


REFUSED_SEQUENCES: dict[str, tuple[Callable[[Case], Case], str, str]] = {
    "u flat": (put("u", lambda u: u[0]), "u", "(batch, dim, L)"),
    "empty batch": (put("u", lambda u: u[:0]), "u", "none of them 0"),
    "no steps": (put("u", lambda u: u[..., :0]), "u", "none of them 0"),
    "delta shorter": (cut("delta"), "delta", "(2, 6, 9)"),
    "delta transposed": (put("delta", lambda m: m.mT), "delta", "(2, 6, 9)"),
    "delta of fewer channels": (cut("delta", 1), "delta", "(2, 6, 9)"),
    "A of fewer channels": (cut("A", 0), "A", "(6, N)"),
    "A without states": (put("A", lambda A: A[:, :0]), "A", "(6, N)"),
    "A flat": (put("A", lambda A: A[:, 0]), "A", "(6, N)"),
    "B of fewer states": (cut("B", 2), "B", "(2, 2, 3, 9)"),
    "B shorter": (cut("B"), "B", "(2, 2, 3, 9)"),
    "B of another batch": (cut("B", 0), "B", "(2, 2, 3, 9)"),
    "B flat": (put("B", lambda B: B[0, 0, 0]), "B", "(batch, G, N, L)"),
    "B of five dimensions": (put("B", lambda B: B[None]), "B", "(batch, G, N, L)"),
    "constant B transposed": (put("B", torch.ones(3, 6)), "B", "(6, 3)"),
    "C shorter": (cut("C"), "C", "(2, 2, 3, 9)"),
    "C of fewer states": (cut("C", 2), "C", "(2, 2, 3, 9)"),
    "groups that do not divide dim": (put("B", lambda B: B.repeat(1, 2, 1, 1)), "B", "divides dim = 6"),
    "groups that do not divide each other": (
        lambda case: case.but(B=lambda B: B.repeat(1, 3, 1, 1)[:, :3]),
        "C",
        "divides dim = 6",
    ),
    "no groups": (put("B", lambda B: B[:, :0]), "B", "divides dim = 6"),
    "no groups at all": (put("C", lambda C: C[:, :0]), "C", "divides dim = 6"),
    "constant B, no groups of C": (
        lambda case: case.but(B=torch.ones(6, 3), C=lambda C: C[:, :0]),
        "C",
        "divides dim = 6",
    ),
    "D shorter": (cut("D"), "D", "(6,)"),
    "D a number": (put("D", torch.tensor(1.0)), "D", "(6,)"),
    "bias shorter": (cut("delta_bias"), "delta_bias", "(6,)"),
    "z shorter": (cut("z"), "z", "(2, 6, 9)"),
    "u of integers": (put("u", lambda u: u.long()), "u", "float32"),
    "A complex": (put("A", lambda A: A.to(torch.complex64)), "A", "anban.ssm.s4"),
    "C boolean": (put("C", lambda C: C > 0), "C", "float32"),
    "B elsewhere": (put("B", lambda B: B.to("meta")), "B", "cpu"),
    "z elsewhere": (put("z", lambda z: z.to("meta")), "z", "cpu"),
    "backend unknown": (put("backend", "cuda"), "cuda", "triton, cpu, chunked, reference"),
    "backend for float32": (
        lambda case: case.to(torch.float64).but(backend="cpu"),
        "cpu",
        "float64",
    ),
}
REFUSED_IMAGES: dict[str, tuple[Callable[[Case], Case], str, str]] = {
    "x of three dimensions": (put("x", lambda x: x[0]), "x", "(batch, H, W, d)"),
    "no lines": (put("x", lambda x: x[:, :0]), "x", "none of them 0"),
    "delta of fewer directions": (cut("delta", 3), "delta", "(2, 3, 5, 4, 6)"),
    "delta as a sequence": (put("delta", lambda m: m.flatten(1, 2)), "delta", "(2, 3, 5, 4, 6)"),
    "A of fewer directions": (cut("A", 0), "A", "(4, 6, N)"),
    "A of fewer channels": (cut("A", 1), "A", "(4, 6, N)"),
    "A flat": (put("A", lambda A: A.flatten(0, 1)), "A", "(4, 6, N)"),
    "B of fewer states": (cut("B"), "B", "(2, 3, 5, 4, 3)"),
    "C constant": (put("C", lambda C: C[0, 0]), "C", "(2, 3, 5, 4, 3)"),
    "H and W exchanged": (put("C", lambda C: C.transpose(1, 2)), "C", "(2, 3, 5, 4, 3)"),
    "D flat": (put("D", lambda D: D.flatten()), "D", "(4, 6)"),
    "bias of fewer channels": (cut("delta_bias"), "delta_bias", "(4, 6)"),
    "fewer orders": (put("orders", CROSS[:3]), "A", "(3, 6, N)"),
    "order unknown": (put("orders", (*CROSS[:3], "diagonal")), "diagonal", "column-upward"),
    "no orders": (
        lambda case: case.but(
            orders=(),
            A=lambda A: A[:0],
            **{name: lambda m: m[:, :, :, :0] for name in ("delta", "B", "C")},
            **{name: lambda m: m[:0] for name in ("D", "delta_bias")},
        ),
        "order",
        "",
    ),
    "x of integers": (put("x", lambda x: x.int()), "x", "float32"),
    "A complex": (put("A", lambda A: A.to(torch.complex128)), "A", "anban.ssm.s4"),
    "D elsewhere": (put("D", lambda D: D.to("meta")), "D", "cpu"),
    "backend unknown": (put("backend", "fast"), "fast", "triton, cpu, chunked, reference"),
}


@pytest.mark.parametrize(
    ("make_case", "refused"),
    [
        pytest.param(make_case, refused, id=f"{kind}: {name}")
        for kind, make_case, table in (
            ("sequence", lambda: make((2, 6, 9), 3, groups=2), REFUSED_SEQUENCES),
            ("image", lambda: make((2, 3, 5, 6), 3, orders=CROSS), REFUSED_IMAGES),
        )
        for name, refused in table.items()
    ],
)
def test_what_does_not_fit_is_refused(
    make_case: Callable[[], Case], refused: tuple[Callable[[Case], Case], str, str]
) -> None:
    spoil, names, expected = refused
    case = spoil(make_case())
    with pytest.raises(InputError) as caught:
        case.by(selective_scan if case.orders is None else selective_scan_2d)
    assert names in caught.value.what
    assert expected in str(caught.value)


def test_the_backend_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make((1, 2, 5))
    monkeypatch.setenv("ANBAN_SCAN_BACKEND", "reference")
    assert torch.equal(run(case, "auto")[0], run(case, "reference")[0])
    monkeypatch.setenv("ANBAN_SCAN_BACKEND", "fastest")
    with pytest.raises(InputError, match="fastest"):
        run(case, "auto")
    check(case, "cpu")  # what is asked for in words goes first


def test_orders_visit_every_pixel_once() -> None:
    for order, (height, width) in itertools.product(ORDERS, [(1, 1), (1, 4), (3, 1), (3, 4)]):
        path = oracle.ORDERS[order](torch.arange(height * width).view(height, width))
        assert sorted(path.tolist()) == list(range(height * width))
