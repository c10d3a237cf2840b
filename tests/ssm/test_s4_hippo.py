"""HiPPO: matrices, their diagonal forms, and what the state remembers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from anban.errors import InputError
from anban.ssm.s4 import hippo


def test_legs_is_the_matrix_of_the_paper() -> None:
    A, B = hippo.transition("legs", 3)
    root = math.sqrt
    expected = [[-1, 0, 0], [-root(3), -2, 0], [-root(5), -root(15), -3]]
    torch.testing.assert_close(A, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(B, torch.tensor([1, root(3), root(5)], dtype=torch.float64))


def test_generalised_laguerre_tends_to_laguerre() -> None:
    A, B = hippo.transition("glagt", 5, alpha=0.0, beta=0.01)
    lagt, _ = hippo.transition("lagt", 5)
    torch.testing.assert_close(A, lagt, atol=0.006, rtol=0)
    torch.testing.assert_close(B, torch.full_like(B, 0.1))
    # alpha rescales the basis: the eigenvalues stay, the off-diagonal does not.
    tilted, _ = hippo.transition("glagt", 5, alpha=0.5)
    torch.testing.assert_close(tilted.diagonal(), A.diagonal())
    assert not torch.allclose(tilted, A)


@pytest.mark.parametrize(
    ("measure", "rank"),
    [
        ("legs", 1),
        ("legs", 3),
        ("legsd", 1),
        ("legt", 2),
        ("lagt", 1),
        ("fourier", 1),
        ("fourier2", 1),
        ("fourier_decay", 1),
    ],
)
@pytest.mark.parametrize("N", [4, 16, 64])
def test_the_diagonal_plus_low_rank_form_is_the_matrix(measure: str, rank: int, N: int) -> None:
    A, B = hippo.transition(measure, N)
    form = hippo.nplr(measure, N, rank)
    assert form.P.shape == (rank, N // 2)
    P = hippo.rank_correction(measure, N, rank)
    whole = 2 * (form.V @ torch.diag(form.A) @ form.V.mH).real - P.T @ P
    torch.testing.assert_close(whole, A, atol=1e-10 * N * N, rtol=0)
    torch.testing.assert_close(2 * (form.V @ form.B).real, B, atol=1e-9 * N, rtol=0)
    torch.testing.assert_close(2 * (form.P @ form.V.T).real, P, atol=1e-9 * N, rtol=0)
    assert (form.A.imag <= 1e-9).all()
    # The phase of eigenvectors is free: it is chosen so that B is the same on every machine.
    torch.testing.assert_close(form.B.imag, torch.zeros_like(form.B.imag), atol=1e-9 * N, rtol=0)
    assert (form.B.real >= -1e-9).all()


def test_diagonal_initialisations_have_their_formulas() -> None:
    N, n = 8, torch.arange(4, dtype=torch.float64)
    for name, imaginary in {
        "lin": math.pi * n,
        "inv": N / math.pi * (N / (2 * n + 1) - 1),
        "inv2": N / math.pi * (N / (n + 1) - 1),
        "quad": (1 + 2 * n) ** 2 / math.pi,
    }.items():
        A = hippo.dplr(name, N, H=3, real_scale=2.0, imag_scale=0.5).A
        torch.testing.assert_close(A, torch.complex(-torch.ones(4).double(), -imaginary / 2).expand(3, -1))
    torch.testing.assert_close(hippo.dplr("real", N).A[0], torch.complex(-(n + 1), 0 * n))
    legs = hippo.dplr("legs", N)
    torch.testing.assert_close(legs.A[0], hippo.nplr("legs", N).A)
    torch.testing.assert_close(legs.B[0], hippo.nplr("legs", N).B)
    assert hippo.dplr("rand", N, H=2).A.imag.max() < 0


def test_input_vectors() -> None:
    alternating = hippo.dplr("lin", 8, B_init="alternating", B_scale=2.0).B[0]
    torch.testing.assert_close(alternating.real, torch.tensor([2.0, -2.0, 2.0, -2.0]).double())
    clockwise = hippo.dplr("lin", 8, B_init="unit-cw").B[0]
    torch.testing.assert_close(clockwise[2], torch.tensor(-1j, dtype=torch.complex128))
    torch.testing.assert_close(hippo.dplr("lin", 8, B_init="unit-ccw").B[0], clockwise.conj())
    drawn = hippo.dplr("lin", 8, H=2, B_init="random").B
    assert drawn.real.unique().numel() == 8
    assert drawn.imag.unique().numel() == 8


def test_combinations_share_the_copies_out() -> None:
    both = hippo.initial("diag", 8, copies=4)
    torch.testing.assert_close(both.A[:2], hippo.dplr("inv", 8, H=2).A)
    torch.testing.assert_close(both.A[2:], hippo.dplr("lin", 8, H=2).A)
    assert not both.P.any()
    assert hippo.initial(["legs", "dplr-lin"], 8, 1, 2).P.shape == (1, 2, 4)
    assert hippo.initial("dplr-lin", 8, 2, 2, P_scale=0.5).P.any()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: hippo.transition("legz", 4), "unknown"),
        (lambda: hippo.transition("fourier", 5), "5 coefficients"),
        (lambda: hippo.transition("legs", 1), "1 coefficients"),
        (lambda: hippo.transition("legs", 4, beta=1.0), "beta"),
        (lambda: hippo.rank_correction("legt", 4), "rank 1"),
        (lambda: hippo.rank_correction("lmu", 4), "no normal plus low-rank form"),
        (lambda: hippo.nplr("legs", 5), "conjugate pairs"),
        (lambda: hippo.dplr("lin", 5), "conjugate pairs"),
        (lambda: hippo.dplr("curved", 4), "curved"),
        (lambda: hippo.dplr("lin", 4, B_init="none"), "none"),  # type: ignore[arg-type]
        (lambda: hippo.initial("hippo", 8, copies=3), "cannot be shared"),
        (lambda: hippo.initial("legs", 8, B_init="random"), "B_init"),
        (lambda: hippo.remember(torch.ones(3), 4, "legt"), "window"),
        (lambda: hippo.remember(torch.ones(3), 4, "lagt"), "lagt"),  # type: ignore[arg-type]
    ],
)
def test_wrong_input_is_one_message(call: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_legs_keeps_the_exact_projection_of_all_it_has_heard() -> None:
    N, L = 6, 9
    signal = torch.randn(2, L, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = hippo.remember(signal, N)
    assert states.shape == (2, L, N)
    # The integral of a held signal times a polynomial of degree N - 1, by quadrature that is exact for it.
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(N))
    for t in range(1, L + 1):
        times = (torch.arange(t)[:, None] + (nodes + 1) / 2) / t
        polynomials = hippo.legendre(N, times.reshape(-1)).reshape(t, N, N)
        expected = torch.einsum("bs,q,sqn->bn", signal[:, :t], weights / 2, polynomials) / t
        torch.testing.assert_close(states[:, t - 1], expected, atol=1e-12, rtol=0)


def test_a_signal_is_recalled_from_its_state() -> None:
    L = 400
    t = (torch.arange(L, dtype=torch.float64) + 0.5) / L
    signal = torch.sin(9 * t) + t**2
    recalled = hippo.recall(hippo.remember(signal, 24)[-1], t)
    assert (recalled - signal).abs().max() < 0.02
    few = hippo.recall(hippo.remember(signal, 4)[-1], t)
    assert (few - signal).square().mean() > 100 * (recalled - signal).square().mean()


def test_legt_recalls_the_window_and_nothing_else() -> None:
    L, window = 600, 200
    t = torch.arange(L, dtype=torch.float64)
    signal = torch.sin(t / 20)
    signal[:300] = 50.0  # long gone
    state = hippo.remember(signal, 32, "legt", window=window)[-1]
    times = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    expected = torch.sin((L - window + times * window - 0.5) / 20)
    assert (hippo.recall(state, times) - expected).abs().max() < 0.05


def test_the_basis_solves_the_equation_and_starts_at_b() -> None:
    A, B = hippo.transition("legs", 5)
    step = 1e-5
    near = hippo.basis("legs", 5, torch.tensor([0.0, 0.3 - step, 0.3, 0.3 + step]))
    torch.testing.assert_close(near[0], B)
    slope = (near[3] - near[1]) / (2 * step)
    torch.testing.assert_close(slope, A @ near[2], atol=2e-2, rtol=1e-2)


def test_legendre_polynomials_are_orthonormal() -> None:
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(12))
    values = hippo.legendre(10, (nodes + 1) / 2)
    torch.testing.assert_close(
        values.T @ (values * weights[:, None] / 2), torch.eye(10, dtype=torch.float64), atol=1e-12, rtol=0
    )
    assert hippo.legendre(1, nodes).shape == (12, 1)
