"""Powers and logarithms in vector registers, accurate to about one unit in the last place of float32.

The polynomials are minimax fits of the relative error (Remez's exchange on a grid), computed in double precision.
"""

from __future__ import annotations

from llvmlite import ir

from anban.ssm.backends.cpu import LOG2E
from anban.ssm.backends.cpu.emit import I32, Emitter, Value

EXP2 = (1.0, 0.69314718, 0.24022648, 0.055503324, 0.0096184369, 0.0013398874, 0.00015353361)
"""2^x on [-1/2, 1/2], 2e-9. Errors of the decays add up in one direction along a sequence: a fit of 8e-8, one term shorter,
costs the gradient of A a digit. The constant is exactly 1, so that a decay of 1 stays 1 however often it is multiplied."""

EXP2_SMALL = (1.0, 0.69314718, 0.24023429, 0.05550214)
"""2^x on [-1/32, 1/32], 2e-9."""
SIXTEENTHS = tuple(2 ** (i / 16) for i in range(16))

LOG1P = (
    1.0,
    -0.4999932,
    0.33315927,
    -0.24822132,
    0.19037218,
    -0.13536584,
    0.07690008,
    -0.028765732,
    0.0050617731,
)
"""log(1 + t) / t on [0, 1], 2e-8."""

ROUND = 12582912.0
"""1.5 * 2^23: adding it rounds a float32 to an integer, which then stands in the lowest bits."""


def polynomial(k: Emitter, x: Value, coefficients: tuple[float, ...]) -> Value:
    """c0 + c1 x + c2 x^2 + ..., by Horner's rule."""
    total = k.real(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = k.fma(total, x, coefficient)
    return total


def exp2(k: Emitter, x: Value) -> Value:
    """2^x; relative error 1e-7; inf above 128, NaN for NaN; below -126, without AVX-512, 2^-126 instead of less."""
    if not k.avx512:
        x = k.minimum(k.maximum(x, -126.0), 128.0)
    shifted = x + _grid(k)
    return _power(k, shifted, x - (shifted - _grid(k)))


def exp_of_negative(k: Emitter, x: Value) -> Value:
    """e^x for x <= 0; relative error 2e-7 however small: x log2(e) is not rounded on the way."""
    if not k.avx512:
        x = k.maximum(x, -87.0)
    shifted = k.fma(x, LOG2E, _grid(k))
    return _power(k, shifted, k.fma(x, LOG2E, _grid(k) - shifted))


def _grid(k: Emitter) -> float:
    """Adding it rounds to the multiples of 1/16 or 1 whose powers of two are at hand."""
    return ROUND / 16 if k.avx512 else ROUND


def _power(k: Emitter, shifted: Value, rest: Value) -> Value:
    """2^(whole + rest), where `shifted` is whole + `_grid`."""
    if k.avx512:
        power = k.lookup(SIXTEENTHS, shifted)
        beyond = rest * polynomial(k, rest, EXP2_SMALL[1:])
        return k.scaled(k.fma(power, beyond, power), shifted - _grid(k))
    exponent = k.builder.shl(k.bits(shifted), ir.Constant(k.integers, [ir.Constant(I32, 23)] * k.lanes))
    return k.unbits(k.builder.add(k.bits(polynomial(k, rest, EXP2)), exponent))


def softplus(k: Emitter, x: Value) -> tuple[Value, Value]:
    """log(1 + e^x) = max(x, 0) + log1p(t) with t = e^-|x|; returns it and t. Relative error 3e-7 down to x = -20, 1e-6 at -85."""
    t = exp_of_negative(k, 0.0 - k.absolute(x))
    return k.fma(t, polynomial(k, t, LOG1P), k.maximum(x, 0.0)), t


def logistic(k: Emitter, x: Value, t: Value) -> Value:
    """1 / (1 + e^-x), the derivative of the softplus, from t = e^-|x|: no digits are lost on either side."""
    return k.select_negative(x, t, k.real(1.0)) / (1.0 + t)
