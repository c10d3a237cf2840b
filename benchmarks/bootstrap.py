"""The interval of a difference of two arms (2048 images, 3 runs each, 2000 resamples) against scipy.stats.bootstrap.

Both resample the images of all six runs together and compute the difference of the mean F1 of the summed counts. scipy
gathers the values of each resample (vectorised, paired, percentile interval, in batches of 20, which is its fastest
here); ours is a product of a matrix of weights with the counts, and adds the spread between seeds, which scipy's does
not have. In a study the weights are drawn once, since every arm and every score needs the same ones: both cases are
measured.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anban.study.stats import difference, micro
from benchmarks.timing import Row, Unavailable, interleave, row, seconds

IMAGES, RUNS, RESAMPLES = 2048, 3, 2000


def run(rounds: int) -> list[Row]:
    """A row with new weights and one with those of the call before."""
    try:
        from scipy import stats  # type: ignore[import-untyped]
    except ImportError:
        raise Unavailable("scipy is not installed") from None
    arm, base = ([invented_run(2 * number + side) for number in range(RUNS)] for side in (0, 1))
    columns = tuple(run[:, cell].astype(np.float64) for run in (*arm, *base) for cell in (1, 2, 3))

    def f1_difference(*resampled: NDArray[np.float64], axis: int = -1) -> Any:
        sums = [column.sum(axis=axis) for column in resampled]
        f1 = [2 * tp / (2 * tp + fp + fn) for fp, fn, tp in zip(*[iter(sums)] * 3, strict=True)]
        return sum(f1[:RUNS]) / RUNS - sum(f1[RUNS:]) / RUNS

    def theirs() -> object:
        return stats.bootstrap(columns, f1_difference, n_resamples=RESAMPLES, batch=20, vectorized=True,
                               paired=True, axis=-1, method="percentile", rng=0)  # fmt: skip

    f1, fresh = micro("f1"), count(1)
    values = interleave(
        {
            "difference, new weights": seconds(
                lambda: difference(arm, base, f1, resamples=RESAMPLES, seed=next(fresh))
            ),
            "scipy.stats.bootstrap": seconds(theirs),
        },
        rounds,
    )
    again = interleave(
        {
            "difference, weights known": seconds(lambda: difference(arm, base, f1, resamples=RESAMPLES)),
            "scipy.stats.bootstrap": seconds(theirs),
        },
        rounds,
    )
    case = f"{IMAGES} images, {RUNS} + {RUNS} runs, {RESAMPLES} resamples"
    peer = "scipy.stats.bootstrap"
    return [
        row(values, case, "difference, new weights", peer),
        row(again, case, "difference, weights known", peer),
    ]


def invented_run(seed: int) -> NDArray[np.int64]:
    """Counts (images, 4) of 256 x 256 pixels each, with scenes of very different difficulty."""
    rng = np.random.default_rng(seed)
    change = rng.beta(0.5, 5, IMAGES)
    right = rng.beta(5, 1 + seed % 2, IMAGES)
    cells = np.stack([(1 - change) * 0.98, (1 - change) * 0.02, change * (1 - right), change * right], axis=1)
    return rng.multinomial(65536, cells / cells.sum(axis=1, keepdims=True)).astype(np.int64)
