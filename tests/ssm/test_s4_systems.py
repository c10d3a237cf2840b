"""Discretisation, and the three views of a discrete system: they agree, and so do their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anban.errors import InputError
from anban.ssm.s4 import DiagonalSystem, DPLRSystem, hippo
from anban.ssm.s4.discretise import Rule, bilinear, discretise, discretise_dense, dss_weights, zoh
from anban.ssm.s4.systems import causal_convolution, linear_scan, vandermonde

LENGTHS = [1, 2, 7, 8, 33, 64]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def diagonal(dtype: torch.dtype, disc: Rule = "zoh", H: int = 3, channels: int = 2) -> DiagonalSystem:
    start = hippo.initial("diag-inv", 16, copies=H)
    dt = torch.logspace(-2.5, -1, H, dtype=torch.float64)[:, None]
    log_dA, dB = discretise(start.A, start.B, dt, disc)
    wide = COMPLEX[dtype]
    return DiagonalSystem(log_dA.to(wide), dB.to(wide), draw(channels, H, 8, dtype=torch.complex128).to(wide))


def dplr(dtype: torch.dtype, rank: int = 1, H: int = 3, tied: bool = True) -> DPLRSystem:
    start = hippo.initial("legs" if rank == 1 else "legt", 16, rank, H)
    dt = torch.logspace(-2.5, -1, H, dtype=torch.float64)[:, None]
    if not tied:
        dt = dt * (1 + 0.1 * torch.arange(8))
    C = draw(2, H, 8, dtype=torch.complex128)
    wide = COMPLEX[dtype]
    return DPLRSystem(start.A.to(wide), start.B.to(wide), start.P.to(wide), C.to(wide), dt.to(dtype))


# ---- discretisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
def test_a_diagonal_system_is_discretised_like_a_dense_one(disc: Rule) -> None:
    A = torch.tensor([-0.5 + 3j, -1.0 + 0j, -2 - 40j], dtype=torch.complex128)
    B = draw(3, dtype=torch.complex128)
    log_dA, dB = discretise(A, B, torch.tensor(0.1), disc)
    dense_dA, dense_dB = discretise_dense(torch.diag(A), B, 0.1, disc)
    torch.testing.assert_close(log_dA.exp(), dense_dA.diagonal())
    torch.testing.assert_close(dB, dense_dB)
    assert (log_dA.real <= 0).all()


def test_the_hold_is_exact_for_a_held_input() -> None:
    A, B = hippo.transition("legs", 6)
    dA, dB = discretise_dense(A, B, 0.3)
    twice, dB_twice = discretise_dense(A, B, 0.6)
    torch.testing.assert_close(dA @ dA, twice)
    torch.testing.assert_close(dA @ dB + dB, dB_twice)


def test_the_hold_of_an_integrator_has_a_value_and_a_gradient() -> None:
    A = torch.tensor([0.0, -1e-9, -1e-3, -3.0], dtype=torch.float64, requires_grad=True)
    _, dB = zoh(A, torch.ones(4, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(dB[:2], torch.full((2,), 0.5, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(dB.sum(), A)
    torch.testing.assert_close(gradient[:3], torch.full((3,), 0.125, dtype=torch.float64), atol=1e-4, rtol=0)


def test_a_fast_real_mode_alternates_under_the_bilinear_rule() -> None:
    log_dA, _ = bilinear(torch.tensor([-30.0]), torch.ones(1), torch.tensor(0.1))
    torch.testing.assert_close(log_dA.exp().real, torch.tensor([-0.2]))
    system = DiagonalSystem(log_dA[None], torch.ones(1, 1, dtype=torch.cfloat), torch.ones(1, 1, 1))
    torch.testing.assert_close(system.kernel(4)[0, 0], 2 * torch.tensor([1.0, -0.2, 0.04, -0.008]))


def test_dss_of_a_long_kernel_is_the_hold_with_its_sign_turned() -> None:
    A = torch.tensor([[-1 + 2j, -2 - 5j]], dtype=torch.complex128)
    B = torch.ones_like(A)
    _, weights, growing = dss_weights(A, B, torch.tensor(0.1, dtype=torch.float64), 1000)
    _, dB = zoh(A, B, torch.tensor(0.1, dtype=torch.float64))
    assert not growing.any()
    torch.testing.assert_close(weights, -dB, atol=1e-6, rtol=0)


def test_dss_runs_growing_modes_backwards() -> None:
    A = torch.tensor([[40 + 2j, -40 + 2j]], dtype=torch.complex64)
    log_nodes, weights, growing = dss_weights(A, torch.ones_like(A), torch.tensor(1.0), 500)
    assert growing.tolist() == [[True, False]]
    assert (log_nodes.real < 0).all()
    assert torch.isfinite(torch.view_as_real(weights)).all()


def test_an_unknown_rule_is_refused() -> None:
    one = torch.ones(1, 1)
    for call in (
        lambda: discretise(one, one, one, "euler"),  # type: ignore[arg-type]
        lambda: discretise_dense(one, one[0], 1.0, "euler"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match="euler"):
            call()


# ---- views ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("L", LENGTHS)
def test_three_views_of_a_diagonal_system_agree(L: int, disc: Rule, dtype: torch.dtype) -> None:
    system, u = diagonal(dtype, disc), draw(2, 3, L, dtype=dtype)
    convolved, (recurred, last), (scanned, last_scanned) = system.convolve(u), system.recur(u), system.scan(u)
    assert convolved.shape == (2, 2, 3, L)
    assert convolved.dtype == dtype
    exact = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(convolved, recurred, **exact)
    torch.testing.assert_close(scanned, recurred, **exact)
    torch.testing.assert_close(last_scanned, last, **exact)
    torch.testing.assert_close(system.advance(u, system.zero_state(2)), last, **exact)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("rank", "tied"), [(1, True), (1, False), (2, True), (3, True)])
@pytest.mark.parametrize("L", LENGTHS)
def test_both_views_of_a_dplr_system_agree(L: int, rank: int, tied: bool, dtype: torch.dtype) -> None:
    system, u = dplr(dtype, rank, tied=tied), draw(2, 3, L, dtype=dtype)
    recurred, last = system.recur(u)
    # Without their low-rank part the modes of "legt" are not damped: digits are lost in taking it off again.
    scale = recurred.abs().max() if rank > 1 else 1.0
    exact = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(system.convolve(u) / scale, recurred / scale, **exact)
    torch.testing.assert_close(system.advance(u, system.zero_state(2)), last, **exact)


@pytest.mark.parametrize("L", [1, 12, 13])
@pytest.mark.parametrize("kind", ["diagonal", "dplr"])
def test_gradients_of_the_views_agree(kind: str, L: int) -> None:
    u = draw(2, 3, L)
    weights = draw(2, 2, 3, L, seed=1)

    def gradients(view: str) -> list[Tensor]:
        system: Any = diagonal(torch.float64) if kind == "diagonal" else dplr(torch.float64)
        parts = {"log_dA", "dB", "C"} if kind == "diagonal" else {"A", "B", "P", "C", "dt"}
        leaves = {name: getattr(system, name).detach().clone().requires_grad_() for name in sorted(parts)}
        x = u.clone().requires_grad_()
        made = (DiagonalSystem if kind == "diagonal" else DPLRSystem)(**leaves)
        out = getattr(made, view)(x)
        y = out if view == "convolve" else out[0]
        return list(torch.autograd.grad((y * weights).sum(), [*leaves.values(), x], materialize_grads=True))

    expected = gradients("recur")
    for view in ["convolve", "scan"] if kind == "diagonal" else ["convolve"]:
        for got, want in zip(gradients(view), expected, strict=True):
            scale = max(1.0, float(want.abs().max()))
            torch.testing.assert_close(got / scale, want / scale, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("kind", "view"),
    [
        ("diagonal", "convolve"),
        ("diagonal", "recur"),
        ("diagonal", "scan"),
        ("dplr", "convolve"),
        ("dplr", "recur"),
    ],
)
def test_a_sequence_may_come_in_pieces(kind: str, view: str) -> None:
    system: Any = diagonal(torch.float64) if kind == "diagonal" else dplr(torch.float64)
    u = draw(2, 3, 21)
    whole, _ = system.recur(u)
    state = system.advance(u[..., :8], system.zero_state(2))
    rest = getattr(system, view)(u[..., 8:], state)
    torch.testing.assert_close(
        rest if view == "convolve" else rest[0], whole[..., 8:], atol=1e-10, rtol=1e-10
    )


def test_the_kernel_is_the_response_to_an_impulse_and_to_its_state() -> None:
    for system in (diagonal(torch.float64), dplr(torch.float64)):
        impulse = torch.zeros(1, 3, 10, dtype=torch.float64)
        impulse[..., 0] = 1
        torch.testing.assert_close(system.recur(impulse)[0][0], system.kernel(10), atol=1e-12, rtol=0)
        struck = system.next_state(impulse[..., 0], system.zero_state(1))
        torch.testing.assert_close(
            system.response(struck, 9)[0], system.kernel(10)[..., 1:], atol=1e-10, rtol=0
        )


@pytest.mark.parametrize("rank", [1, 2])
def test_a_dplr_system_is_the_dense_hippo_system(rank: int) -> None:
    measure, dt, L = ("legs", 0.05, 30) if rank == 1 else ("legt", 0.05, 31)
    A, B = hippo.transition(measure, 16)
    dA, dB = discretise_dense(A, B, dt, "bilinear")
    x, expected = dB, []
    for _ in range(L):
        expected.append(x)
        x = dA @ x
    form = hippo.nplr(measure, 16, rank)
    # y = state itself: C of channel n picks coefficient n, x = 2 Re(V x_half).
    system = DPLRSystem(
        form.A[None],
        form.B[None],
        form.P[:, None],
        form.V[:, None],
        torch.full((1, 1), dt, dtype=torch.float64),
    )
    torch.testing.assert_close(system.kernel(L)[:, 0].T, torch.stack(expected), atol=1e-11, rtol=0)


def test_the_truncated_output_ends_the_response_and_is_undone() -> None:
    system = dplr(torch.float64)
    truncated = DPLRSystem(system.A, system.B, system.P, system.truncated_output(20), system.dt)
    torch.testing.assert_close(truncated.untruncated_output(20), system.C, atol=1e-9, rtol=0)
    # K~ = K_l - (what C sees 20 steps later): the sum of the two is the response.
    later = system.kernel(60)[..., 20:40]
    torch.testing.assert_close(truncated.kernel(20), system.kernel(20) - later, atol=1e-10, rtol=0)


def test_a_cauchy_matrix_is_held_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[Tensor, Tensor]:
        system = dplr(torch.float64)
        C = system.C.clone().requires_grad_()
        kernel = DPLRSystem(system.A, system.B, system.P, C, system.dt).kernel(50)
        return kernel.detach(), torch.autograd.grad(kernel.square().sum(), C)[0]

    whole = run()
    monkeypatch.setattr(DPLRSystem, "BUDGET", 100)
    for part, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(part, expected, atol=1e-12, rtol=0)


def test_long_kernels_are_finite_and_decay() -> None:
    for system in (diagonal(torch.float32), dplr(torch.float32)):
        kernel = system.kernel(20_001)
        assert kernel.shape == (2, 3, 20_001)
        assert torch.isfinite(kernel).all()
        assert kernel[..., -1000:].abs().max() < 1e-2 * kernel.abs().max()


# ---- pieces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("L", LENGTHS)
def test_the_vandermonde_product_is_the_sum_of_powers(L: int) -> None:
    log_nodes = -draw(3, 4, dtype=torch.complex128).abs() + 1j * draw(3, 4)
    weights = draw(2, 3, 4, dtype=torch.complex128)
    powers = torch.exp(log_nodes[..., None] * torch.arange(L))
    torch.testing.assert_close(
        vandermonde(weights, log_nodes, L), torch.einsum("chn,hnl->chl", weights, powers).real
    )
    real = vandermonde(weights.real, log_nodes.real, L)
    powers = torch.exp(log_nodes.real[..., None] * torch.arange(L))
    torch.testing.assert_close(real, torch.einsum("chn,hnl->chl", weights.real, powers))


def test_the_scan_has_exact_gradients() -> None:
    log_dA = (-draw(2, 3).abs()).requires_grad_()
    driven = draw(2, 2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(linear_scan, (log_dA, driven))


def test_a_two_sided_convolution_looks_ahead_from_the_next_step_on() -> None:
    kernel, u = draw(4, 3, 6), draw(2, 3, 9, seed=1)
    y = causal_convolution(u, kernel, two_sided=True)
    expected = torch.zeros(2, 2, 3, 9, dtype=torch.float64)
    for t in range(9):
        for s in range(9):
            lag = t - s
            if 0 <= lag < 6:
                expected[..., t] += kernel[:2, :, lag] * u[:, None, :, s]
            if -6 <= lag < 0:
                expected[..., t] += kernel[2:, :, -lag - 1] * u[:, None, :, s]
    torch.testing.assert_close(y, expected)


def test_low_precision_signals_are_convolved_in_float32() -> None:
    kernel, u = draw(1, 3, 6, dtype=torch.float32), draw(2, 3, 9, dtype=torch.float32).bfloat16()
    y = causal_convolution(u, kernel)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, causal_convolution(u.float(), kernel))


def test_autocast_leaves_kernels_alone() -> None:
    for system in (diagonal(torch.float32), dplr(torch.float32)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            kernel = system.kernel(40)
        torch.testing.assert_close(kernel, system.kernel(40))


def test_wrong_signals_are_refused() -> None:
    system = diagonal(torch.float64)
    for shape in ((3, 9), (2, 3, 0)):
        with pytest.raises(InputError, match="signal"):
            system.scan(torch.zeros(shape, dtype=torch.float64))
    for made in (system, dplr(torch.float64)):
        with pytest.raises(InputError, match="0 steps"):
            made.kernel(0)
