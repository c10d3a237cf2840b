"""What one core can do at best, and the least time that a selective scan can take on it.

A scan needs exponentials above all. How many of them, and how many multiply-adds, this core does per second is measured in
vector code that does nothing else, on data in the first cache: a polynomial of degree 6, as any processor can run it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from anban.ssm import backends
from benchmarks.timing import seconds

VECTORS = 128  # read and written at a time: 16 KiB at most
CHAINS = 16  # multiply-adds that do not wait for each other
REPEAT = 20_000


class Rates(NamedTuple):
    """Per second."""

    exps: float
    fmas: float
    measured: bool


ELSEWHERE = Rates(6.17e9, 58.7e9, measured=False)
"""One core of an AMD EPYC (Zen 4, AVX-512): stands in where vector code cannot be written."""


def rates() -> Rates:
    """Of this core."""
    if backends.module("cpu").unusable(torch.device("cpu"), torch.float32) is not None:
        return ELSEWHERE
    from anban.ssm.backends.cpu import build, launch

    lanes = build.target().lanes
    source, target = torch.rand(VECTORS * lanes) - 0.5, torch.zeros(VECTORS * lanes)

    def rate(write: Callable[[int], str], each: int) -> float:
        kernel = build.address(write(lanes))
        arguments = [0, REPEAT, source.data_ptr(), target.data_ptr()]
        measure = seconds(lambda: launch.run(kernel, arguments, 1))
        return REPEAT * lanes * each / min(measure().value for _ in range(15))

    return Rates(rate(_exponentials, VECTORS), rate(_multiply_adds, CHAINS), measured=True)


def _exponentials(lanes: int) -> str:
    from anban.ssm.backends.cpu import emit, functions

    k = emit.Emitter(lanes)
    with k.loop(k.argument(1)), k.loop(VECTORS) as i:
        k.store(k.argument(3), i * 4 * lanes, functions.exp2(k, k.load(k.argument(2), i * 4 * lanes)))
    return k.finish()


def _multiply_adds(lanes: int) -> str:
    from anban.ssm.backends.cpu import emit

    k = emit.Emitter(lanes)
    factor = k.load(k.argument(2))
    sums = [k.variable(k.real(0.0)) for _ in range(CHAINS)]
    with k.loop(k.argument(1)):
        for total in sums:
            total.set(k.fma(total.get(), factor, factor))
    for place, total in enumerate(sums):
        k.store(k.argument(3), 4 * lanes * place, total.get())
    return k.finish()


def floor(elements: int, states: int, rates: Rates, *, backward: bool) -> float:
    """Seconds of one core for so many channels times steps.

    Forward: an exponential per state for the decay, and two for the softplus. Backward: the same again and two more for the
    softplus' derivative, and 14 multiply-adds per state in all, which do not hide behind the exponentials there.
    """
    exps, fmas = (2 * states + 6, 14 * states) if backward else (states + 2, 0)
    return elements * (exps / rates.exps + fmas / rates.fmas)
