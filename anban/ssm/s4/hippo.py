"""HiPPO: state matrices whose state is an optimal summary of the past, and the diagonal forms S4 and S4D start from.

A continuous state space x' = A x + B u keeps, for the right (A, B), the coefficients of the past input in an orthogonal
basis: LegS of the whole past under a uniform measure, LegT and Fourier of a sliding window. S4 = SSM + HiPPO +
discretisation: the matrices here, made discrete by `anban.ssm.s4.discretise`.

Every HiPPO matrix is normal plus low rank (NPLR), A = V (diag(W) - P P*) V*: that is what makes S4's kernel computable in
near-linear time. S4D drops the low-rank part and keeps a diagonal.

Sources: Gu et al., "HiPPO", 2020 (arXiv 2008.07669); "S4", 2021 (arXiv 2111.00396), theorem 1 and appendix C; "How to train
your HiPPO", 2022 (arXiv 2206.12037); S4D, "On the parameterization and initialization of diagonal state space models", 2022
(arXiv 2206.11893), section 4. Normalisations follow the authors' release (github.com/state-spaces/s4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from anban.errors import InputError

# ---- transition matrices --------------------------------------------------------------------------------------------


def _legs(N: int) -> tuple[Tensor, Tensor]:
    B = (2 * _counts(N) + 1).sqrt()
    return -(torch.outer(B, B).tril(-1) + torch.diag(_counts(N) + 1)), B


def _legsd(N: int) -> tuple[Tensor, Tensor]:
    A, B = _legs(N)
    return A + torch.outer(B, B) / 2, B / 2


def _legt(N: int) -> tuple[Tensor, Tensor]:
    # Halved: the window is then 2 long, and the time scale that of LegS and Fourier.
    root, sign = (2 * _counts(N) + 1).sqrt(), _signs(N)
    flow = torch.outer(root, root)
    return -(flow.tril() + (flow * torch.outer(sign, sign)).triu(1)) / 2, root / 2


def _lmu(N: int) -> tuple[Tensor, Tensor]:
    rate, sign = 2 * _counts(N) + 1, _signs(N)
    ones = torch.ones(N, N, dtype=torch.float64)
    return -(ones.triu(1) + torch.outer(sign, sign).tril()) * rate[:, None], sign * rate


def _tlagt(N: int, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    ones = torch.ones(N, N, dtype=torch.float64)
    return (1 - beta) / 2 * torch.eye(N, dtype=torch.float64) - ones.tril(), beta * ones[0]


def _lagt(N: int, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    return _tlagt(N, 0.0)[0], beta * torch.ones(N, dtype=torch.float64)


def _glagt(N: int, alpha: float = 0.0, beta: float = 0.01) -> tuple[Tensor, Tensor]:
    n = _counts(N)
    A = -torch.eye(N, dtype=torch.float64) * (1 + beta) / 2 - torch.ones(N, N, dtype=torch.float64).tril(-1)
    log_binomial = (n + alpha + 1).lgamma() - (n + 1).lgamma() - math.lgamma(alpha + 1)
    norm = (((n + alpha + 1).lgamma() - (n + 1).lgamma()) / 2).exp()
    scale = math.exp(-math.lgamma(1 - alpha) / 2) * beta ** ((1 - alpha) / 2)
    return A * norm / norm[:, None], log_binomial.exp() / norm * scale


def _rotation(N: int, frequencies: Tensor) -> Tensor:
    """Block diagonal: the pair (2n, 2n + 1) turns with angular frequency n of `frequencies`."""
    above = torch.stack([frequencies, torch.zeros_like(frequencies)], dim=1).reshape(-1)[: N - 1]
    return torch.diag(above, -1) - torch.diag(above, 1)


def _constant_and_cosines(N: int) -> Tensor:
    B = torch.zeros(N, dtype=torch.float64)
    B[0::2] = math.sqrt(2)
    B[0] = 1
    return B


def _fourier(N: int, speed: float = 1.0, forget: float = 1.0) -> tuple[Tensor, Tensor]:
    # The rank-one term subtracts the value that leaves the window, as the state itself recalls it.
    B = _constant_and_cosines(N)
    return _rotation(N, speed * math.pi * _counts(N // 2)) - forget * torch.outer(B, B), forget * B


def _fourier_diag(N: int) -> tuple[Tensor, Tensor]:
    turn = _rotation(N, 2 * math.pi * _counts(N // 2))
    return turn - torch.eye(N, dtype=torch.float64) / 2, _constant_and_cosines(N)


_MEASURES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "legs": _legs,
    "legsd": _legsd,
    "legt": _legt,
    "lmu": _lmu,
    "lagt": _lagt,
    "tlagt": _tlagt,
    "glagt": _glagt,
    "fourier": _fourier,
    "fout": _fourier,
    "fourier2": lambda N: _fourier(N, speed=2.0, forget=2.0),
    "fourier_decay": lambda N: _fourier(N, forget=0.5),
    "fourier_diag": _fourier_diag,
    "foud": _fourier_diag,
}


def transition(measure: str, N: int, **options: float) -> tuple[Tensor, Tensor]:
    """The matrices (A, B) of x' = A x + B u for a HiPPO measure.

    Args:
        measure: "legs" (Legendre, whole past scaled to one), "legt" (Legendre, sliding window), "lmu" (the same in the
            normalisation of Legendre memory units), "lagt", "tlagt", "glagt" (Laguerre: exponential decay; tilted;
            generalised), "fourier" = "fout" (sliding window), "fourier2" (window of half the length), "fourier_decay",
            "fourier_diag" = "foud", "legsd" (normal parts alone).
        N: number of coefficients kept, at least 2; even for the Fourier measures.
        options: `beta` for the Laguerre measures (lagt, tlagt: 1; glagt: 0.01), `alpha` for glagt (0).

    Returns:
        A (N, N) and B (N,), float64.

    Raises:
        InputError: the measure is unknown, does not take an option, or N does not suit it.
    """
    if measure not in _MEASURES:
        raise InputError(f"the measure {measure!r} is unknown", expected=", ".join(_MEASURES))
    if N < 2 or (N % 2 and measure.startswith("fou")):
        raise InputError(f"{N} coefficients for the measure {measure!r}", expected="N >= 2, even for Fourier")
    allowed = {"glagt": {"alpha", "beta"}, "lagt": {"beta"}, "tlagt": {"beta"}}.get(measure, set())
    if not set(options) <= allowed:
        raise InputError(
            f"the measure {measure!r} was given {', '.join(options)}",
            expected=", ".join(sorted(allowed)) or "no option",
        )
    return _MEASURES[measure](N, **options)


def rank_correction(measure: str, N: int, rank: int = 1) -> Tensor:
    """P (rank, N), float64, such that A + P^T P of `transition` is normal; unused rows are zero.

    Raises:
        InputError: `rank` is less than the measure needs (2 for legt, else 1), or it has no such form here.
    """
    _, B = transition(measure, N)
    odd = torch.arange(N) % 2 == 1
    if measure == "legs":
        P = B[None] / math.sqrt(2)
    elif measure == "legt":
        # B is half of sqrt(2n + 1) here, the correction has 1 / sqrt(2) of it.
        P = math.sqrt(2) * torch.stack([B * odd, B * ~odd])
    elif measure == "lagt":
        P = torch.full((1, N), math.sqrt(0.5), dtype=torch.float64)
    elif measure in {"fourier", "fout", "fourier2", "fourier_decay"}:
        forget = {"fourier2": 2.0, "fourier_decay": 0.5}.get(measure, 1.0)
        P = math.sqrt(forget) * _constant_and_cosines(N)[None]
    elif measure in {"fourier_diag", "foud", "legsd"}:
        P = torch.zeros(1, N, dtype=torch.float64)
    else:
        raise InputError(
            f"the measure {measure!r} has no normal plus low-rank form here",
            expected="legs, legsd, legt, lagt, fourier, fourier2, fourier_decay, fourier_diag",
        )
    if rank < len(P):
        raise InputError(f"rank {rank} for the measure {measure!r}", expected=f"rank >= {len(P)}")
    return torch.cat([P, P.new_zeros(rank - len(P), N)])


def _counts(N: int) -> Tensor:
    return torch.arange(N, dtype=torch.float64)


def _signs(N: int) -> Tensor:
    return 1 - 2 * (_counts(N) % 2)


# ---- normal or diagonal plus low rank -------------------------------------------------------------------------------


class DPLR(NamedTuple):
    """A = diag(A) - P P*, one member of each conjugate pair: all complex128, imaginary parts of A not positive.

    A and B (..., N/2), P (rank, ..., N/2), V (..., N, N/2): the basis in which they are diagonal. With a leading
    dimension of independent copies where the maker says so.
    """

    A: Tensor
    P: Tensor
    B: Tensor
    V: Tensor


def nplr(measure: str, N: int, rank: int = 1) -> DPLR:
    """Diagonalise a HiPPO matrix up to low rank: transition(measure) = V (diag(A) - P P*) V* + complex conjugate.

    Pairs are in ascending order of their imaginary part. Eigenvectors are defined up to a phase only; here it is the one
    that makes B real and not negative, so that the result is the same on every machine. (The release takes the phase the
    linear algebra library happens to give and then clips the imaginary part of B at 2, which depends on it.)

    Returns:
        A (N/2,), P (rank, N/2), B (N/2,), V (N, N/2).

    Raises:
        InputError: N is odd, or see `transition` and `rank_correction`.
    """
    if N % 2:
        raise InputError(f"a state of size {N} has no conjugate pairs", expected="an even N")
    A, B = transition(measure, N)
    P = rank_correction(measure, N, rank)
    normal = A + P.T @ P
    # normal = c + skew-symmetric: its eigenvalues are c + i times those of a Hermitian matrix.
    frequencies, vectors = torch.linalg.eigh((normal - normal.T) / 2j)
    frequencies, V = frequencies[: N // 2], vectors[:, : N // 2]
    if frequencies[-1].abs() < 1e-4:
        # Only in the Fourier measures: the constant function and its empty partner turn with frequency zero.
        V = V.clone()
        V[:, -1] = 0
        V[0, -1], V[1, -1] = math.sqrt(0.5), 1j * math.sqrt(0.5)
    projected = V.mH @ B.to(V)
    phase = torch.where(projected.abs() > 1e-9, projected / projected.abs().clamp(min=1e-9), 1)
    V = V * phase
    return DPLR(
        A=torch.complex(normal.diagonal().mean().expand(N // 2), frequencies),
        P=P.to(V) @ V.conj(),
        B=B.to(V) @ V.conj(),
        V=V,
    )


_FREQUENCIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "lin": lambda n, N: math.pi * n,
    "inv": lambda n, N: N / math.pi * (N / (2 * n + 1) - 1),
    "inv2": lambda n, N: N / math.pi * (N / (n + 1) - 1),
    "quad": lambda n, N: (1 + 2 * n) ** 2 / math.pi,
    "real": lambda n, N: 0 * n,
    "legs": lambda n, N: -nplr("legs", N).A.imag,
}
_ALIASES = {
    "linear": "lin",
    "inverse": "inv",
    "inverse2": "inv2",
    "quadratic": "quad",
    "hippo": "legs",
    "random": "rand",
}


def dplr(
    init: str,
    N: int,
    rank: int = 1,
    H: int = 1,
    *,
    real_scale: float = 1.0,
    imag_scale: float = 1.0,
    B_init: Literal["constant", "random", "alternating", "unit-cw", "unit-ccw"] = "constant",
    B_scale: float = 1.0,
    P_scale: float = 1.0,
) -> DPLR:
    """A diagonal plus low-rank system written down directly: the initialisations of S4D.

    Eigenvalues are -1/2 - i w_n, n = 0 .. N/2 - 1, with w_n = pi n ("lin"), N/pi (N/(2n+1) - 1) ("inv"),
    N/pi (N/(n+1) - 1) ("inv2"), (1+2n)^2/pi ("quad"), those of HiPPO-LegS ("legs") or log-normal ("rand"); "real" has
    -(n+1) and no imaginary part. "legs" takes P and B of HiPPO too (B whole as in the release, where the S4D paper halves
    it); otherwise P is normal noise and B as `B_init` says.

    Returns:
        A, B (H, N/2), P (rank, H, N/2), V (H, N, N/2): H copies, alike except for what is random.

    Raises:
        InputError: `init` or `B_init` is unknown, or N is odd.
    """
    init = _ALIASES.get(init, init)
    if N < 2 or N % 2:
        raise InputError(f"a state of size {N} has no conjugate pairs", expected="an even N")
    n = _counts(N // 2)
    if init == "rand":
        frequencies = torch.randn(H, N // 2, dtype=torch.float64).exp()
    elif init in _FREQUENCIES:
        frequencies = _FREQUENCIES[init](n, N).expand(H, -1)
    else:
        raise InputError(
            f"the diagonal initialisation {init!r} is unknown", expected=", ".join([*_FREQUENCIES, "rand"])
        )
    real = n + 1 if init == "real" else torch.full_like(n, 0.5)
    A = torch.complex(-real_scale * real.expand(H, -1), -imag_scale * frequencies)
    if init == "legs":
        _, P, B, _ = nplr("legs", N, rank)
        P, B = P[:, None].expand(-1, H, -1), B.expand(H, -1)
    else:
        P, B = torch.randn(rank, H, N // 2, dtype=A.dtype), _input_vector(B_init, N, H)
    V = torch.eye(N, N // 2, dtype=A.dtype).expand(H, -1, -1)
    return DPLR(A, P_scale * P, B_scale * B, V)


def _input_vector(init: str, N: int, H: int) -> Tensor:
    n = _counts(N // 2)
    if init == "random":
        return torch.randn(H, N // 2, dtype=torch.complex128)
    turns = {"constant": 0 * n, "alternating": n / 2, "unit-cw": -n / N, "unit-ccw": n / N}
    if init not in turns:
        raise InputError(
            f"the initialisation {init!r} of B is unknown", expected=", ".join([*turns, "random"])
        )
    return torch.polar(torch.ones_like(n), 2 * math.pi * turns[init]).expand(H, -1)


COMBINATIONS = {
    "hippo": ("legs", "fourier"),
    "diag": ("diag-inv", "diag-lin"),
    "all": ("legs", "fourier", "diag-inv", "diag-lin"),
}


def initial(
    init: str | Sequence[str], N: int, rank: int = 1, copies: int = 1, **options: float | str
) -> DPLR:
    """The starting point of a layer: `copies` systems, shared out evenly among the given initialisations.

    Args:
        init: a measure of `nplr` ("legs", "legt", ...), "diag-X" (P zero) or "dplr-X" with X an initialisation of `dplr`,
            a combination ("hippo": legs and fourier, "diag": diag-inv and diag-lin, "all"), or a sequence of them.
        options: keyword options of `dplr`, for its initialisations.

    Returns:
        A, B (copies, N/2), P (rank, copies, N/2), V (copies, N, N/2).

    Raises:
        InputError: an initialisation is unknown, or `copies` is not a multiple of their number.
    """
    names = COMBINATIONS.get(init, (init,)) if isinstance(init, str) else tuple(init)
    if not names or copies % len(names):
        raise InputError(
            f"{copies} systems cannot be shared by {len(names)} initialisations",
            expected="a multiple of them",
        )
    parts = [_one_initial(name, N, rank, copies // len(names), options) for name in names]
    A, P, B, V = zip(*parts, strict=True)
    return DPLR(torch.cat(A), torch.cat(P, dim=1), torch.cat(B), torch.cat(V))


def _one_initial(name: str, N: int, rank: int, copies: int, options: dict[str, float | str]) -> DPLR:
    kind, _, diagonal = name.partition("-")
    if kind in {"diag", "dplr"}:
        scale = {"P_scale": 0.0} if kind == "diag" else {}
        return dplr(diagonal or "legs", N, rank, copies, **options, **scale)  # type: ignore[arg-type]
    if options:
        raise InputError(
            f"the initialisation {name!r} was given {', '.join(options)}",
            expected="no option: it is HiPPO's own",
        )
    A, P, B, V = nplr(name, N, rank)
    return DPLR(
        A.expand(copies, -1),
        P[:, None].expand(-1, copies, -1),
        B.expand(copies, -1),
        V.expand(copies, -1, -1),
    )


# ---- what the state remembers ---------------------------------------------------------------------------------------


def remember(
    signal: Tensor, N: int, measure: Literal["legs", "legt"] = "legs", window: float | None = None
) -> Tensor:
    """Feed a signal to a HiPPO memory, sample by sample: the state after every sample.

    "legs" keeps the Legendre coefficients of everything heard so far, the past being squeezed into [0, 1] ever more:
    x' = (A x + B u) / t. "legt" keeps those of the last `window` samples (up to the error of recalling what leaves the
    window). Samples are held for one unit of time, and for such a signal LegS is exact.

    Args:
        signal: (..., L), real.
        window: length in samples for "legt".

    Returns:
        (..., L, N), float64: row t is the state after samples 0 .. t.

    Raises:
        InputError: another measure, or "legt" without a positive window.
    """
    if measure not in {"legs", "legt"} or (measure == "legt" and not (window and window > 0)):
        raise InputError(
            f"a memory with the measure {measure!r} and the window {window}",
            expected='"legs", or "legt" with a window in samples',
        )
    A, B = transition(measure, N)
    signal = signal.detach().to(torch.float64)
    # dx/ds = A x + B u with the rest point -A^-1 B u; s = log t for LegS, 2 t / window for LegT.
    rest = -torch.linalg.solve(A, B)
    state = signal.new_zeros(*signal.shape[:-1], N)
    if measure == "legt":
        steady = torch.linalg.matrix_exp(A * (2.0 / window))  # type: ignore[operator]
    states = []
    for t, u in enumerate(signal.unbind(-1)):
        target = rest * u[..., None]
        if measure == "legs":
            # Before the first sample the past is empty: log 0, any state is forgotten.
            decay = torch.linalg.matrix_exp(A * math.log((t + 1) / t)) if t else torch.zeros_like(A)
        else:
            decay = steady
        state = target + (state - target) @ decay.T
        states.append(state)
    return torch.stack(states, dim=-2)


def recall(state: Tensor, times: Tensor) -> Tensor:
    """The remembered signal, as a Legendre memory's state (..., N) tells it: (..., T).

    Args:
        times: (T,) in [0, 1]: 0 is the beginning of what is remembered (of the signal for LegS, of the window for LegT), 1 is
            now.
    """
    return state @ legendre(state.shape[-1], times.to(state)).T


def legendre(N: int, times: Tensor) -> Tensor:
    """The orthonormal Legendre polynomials on [0, 1], sqrt(2n+1) P_n(2t - 1): (T,) -> (T, N)."""
    x = 2 * times - 1
    values = [torch.ones_like(x), x]
    for n in range(1, N - 1):
        values.append(((2 * n + 1) * x * values[n] - n * values[n - 1]) / (n + 1))
    return torch.stack(values[:N], dim=-1) * (2 * _counts(N).to(x) + 1).sqrt()


def basis(measure: str, N: int, times: Tensor, **options: float) -> Tensor:
    """The N functions a time-invariant state space convolves its input with, exp(t A) B: (T,) -> (T, N), float64.

    A kernel of S4 is a weighted sum (weights C) of these: exponentially warped Legendre polynomials for "legs", Legendre
    polynomials on a window for "legt", truncated cosines and sines for "fourier".
    """
    A, B = transition(measure, N, **options)
    return torch.stack([torch.linalg.matrix_exp(A * t) @ B for t in times.to(torch.float64)])
