"""Is one arm of a study better than another? Differences with intervals that cover both images and seeds.

An arm is trained with a few seeds and every run is measured on the same test images. Its score is the mean over its
runs of the score of all images together (of summed counts: micro average; of boxes ranked: average precision). A
difference of two such means is uncertain twice: other images would have given another one, and so would other seeds.
The interval here puts both together:

    value + image deviation * k * sqrt(N / chi2) + sqrt(v (1/n + 1/m)) * t

Every run is measured on every image, so the two are crossed, and one draw of the sum resamples both together: one set of
images for all runs of both arms, with the scores computed anew from how often each image was drawn (see `Measure`), and
one shift by the seeds.

Image deviation: what resampling the N images changes in the difference, the same images for both arms (a hard scene is
hard for both, so pairing them takes most of the spread away) and with the runs as they are. A bootstrap of N images is
too narrow by sqrt((N - 1) / N) and has normal tails; the factor, chi2 of N - 1 degrees of freedom drawn anew for each
resample, mends both (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 3.3).
Seed deviation: n and m runs, v the variance between runs of one arm, pooled over arms, t of as many degrees of freedom
as that variance has. Seeds are not resampled: two or three values drawn with replacement understate their variance by
1 - 1/n and know nothing about how badly they determine it.
The factor k <= 1: where a seed moves single scenes, v shows it and so do the resampled images. How much the resamples
add to the variance between runs says how large that shared part is; it is taken out of the image deviation, not out of
v, whose few degrees of freedom would no longer fit.

Measured coverage of nominal 95 % intervals: two arms with a true difference, 400 invented studies per case (scenes of
very different size and difficulty, a fifth of them empty, difficulty partly shared by the arms). The range is over four
mixtures (seeds dominate, images dominate, both alike, seeds move single scenes), each with 20 and with 100 images:

    runs per arm                                         2            3            5
    images resampled, runs fixed                   0.22-0.94    0.24-0.93    0.34-0.94
    images and runs resampled (the naive one)      0.68-0.99    0.78-0.99    0.88-1.00
    images, and a normal of the runs' variance     0.81-0.98    0.87-0.98    0.91-0.99
    images, and each arm's own t, not pooled       0.99-1.00    0.92-1.00    0.91-1.00
    the form above                                 0.95-0.97    0.92-0.96    0.91-0.97
    the same, one arm spreading 3 times the other  0.94-0.95    0.92-0.93    0.93-0.94

The naive one fails where seeds matter (0.68) and is too wide where they move single scenes (0.99). Not pooling is safe and
useless: with two runs per arm its intervals are three to four times as wide. What pooling assumes is that arms spread
alike; an arm much less steady than many others gets too narrow an interval, and `pool="pair"` in `anban.study.compare`
keeps those others out. The interval says nothing about other data sets.

p is the same distribution read the other way: twice the smaller share of draws on either side of 0, so p < 0.05 where the
95 % interval leaves 0 out. Twenty arms against one base bring one such finding on average where nothing differs. Verdicts
therefore go by p after `holm` (Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure"), which keeps the
chance of any false finding in the family at 5 % however the comparisons depend on each other, as those with one base do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anban.metrics import binary_scores

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "not distinguishable"]
Covers = Literal["nothing", "images", "images and seeds"]

RESAMPLES = 2000
LEVEL = 0.95
# Above this share of resamples without a defined score the rest is a selection, and its percentiles mean little.
UNDEFINED_ALLOWED = 0.05
# The deviations that are drawn from a known distribution cost nothing: more of them make the ends of the interval calm.
DRAWS_PER_RESAMPLE = 20


@dataclass(frozen=True)
class Measure:
    """A score of a run as a function of how often each of its images counts, which is all that resampling changes.

    Args:
        name: as in the records.
        of: what is known of a run's images, as many as its length says, and how often each counts in each of R resamples,
            (R, images), to scores (R,), NaN where undefined; a common factor of the counts must not change it.
        higher_is_better: decides between "better" and "worse".
    """

    name: str
    of: Callable[[Any, Floats], Floats]
    higher_is_better: bool = True


def linear(name: str, of: Callable[[Floats], Floats], higher_is_better: bool = True) -> Measure:
    """A score that follows from sums over images (..., C): a run is its per-image sums (images, C)."""
    return Measure(name, lambda run, counts: of(counts @ _sums(run)), higher_is_better)


def micro(name: str, of: Callable[[Floats], Mapping[str, Floats]] = binary_scores) -> Measure:
    """A score, among those that `of` gives, of summed counts; per-image sums are the counts themselves, (images, C)."""
    return linear(name, lambda sums: of(sums)[name])


def image_mean(name: str, higher_is_better: bool = True) -> Measure:
    """The mean of one number per image (PSNR, per-image F1, ...) over the images where it is defined."""
    return linear(name, _ratio, higher_is_better)


def mean_sums(values: ArrayLike) -> Floats:
    """Per-image sums (images, 2) for `image_mean` from one number per image (images,), NaN where undefined."""
    array = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(array)
    return np.stack([np.where(known, array, 0.0), known.astype(np.float64)], axis=-1)


@dataclass(frozen=True)
class Spread:
    """Variance between runs of one arm, and the degrees of freedom it was estimated with (0: not known)."""

    variance: float
    freedom: int


def pooled_spread(scores: Sequence[Sequence[float]]) -> Spread:
    """The common variance of runs within arms, from each arm's scores; undefined scores are left out."""
    squares, freedom = 0.0, 0
    for arm in scores:
        known = np.asarray([score for score in arm if np.isfinite(score)], dtype=np.float64)
        if len(known) > 1:
            squares += float(np.sum((known - known.mean()) ** 2))
            freedom += len(known) - 1
    return Spread(squares / freedom if freedom else 0.0, freedom)


@dataclass(frozen=True)
class Difference:
    """Arm minus base, in the unit of the score.

    Attributes:
        value: difference of the means over runs; None if a run's score is undefined.
        low, high: ends of the interval of this comparison alone; None where there is none, and `note` says why.
        verdict: "not distinguishable" unless `p_adjusted` is below 1 - level.
        covers: what the interval accounts for; "images" only where no arm has a second run.
        images: how many were resampled.
        seeds: runs of (arm, base).
        undefined: share of the resamples without a defined score, which were left out.
        p: two-sided, of this comparison alone; None where there is no interval.
        p_adjusted: p among all comparisons of its family; p itself for a comparison that stands alone.
        family: how many comparisons were corrected for.
    """

    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    covers: Covers
    images: int
    seeds: tuple[int, int]
    level: float = LEVEL
    undefined: float = 0.0
    note: str | None = None
    p: float | None = None
    p_adjusted: float | None = None
    family: int = 1


def holm(p: Sequence[float]) -> list[float]:
    """Each p (0..1) after Holm's step-down correction for all of them together, in their order.

    The smallest is multiplied by their number m, the next by m - 1 and so on; none may come out smaller than one before
    it, or above 1. Comparing the results with 5 % keeps the chance of any false finding at 5 %.
    """
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in adjusted]


def corrected(differences: Sequence[Difference | None], higher_is_better: bool) -> list[Difference | None]:
    """The comparisons of one question as a family: `p_adjusted`, `family` and the verdict by Holm's correction.

    Those without p count for nothing and stay as they are.
    """
    known = [one for one in differences if one is not None and one.p is not None]
    adjusted = iter(holm([one.p for one in known if one.p is not None]))
    result: list[Difference | None] = []
    for one in differences:
        if one is not None and one.p is not None:
            p = next(adjusted)
            verdict = verdict_of(one.value, p, one.level, higher_is_better)
            one = replace(one, p_adjusted=p, family=len(known), verdict=verdict)
        result.append(one)
    return result


def scores(runs: Sequence[Sized], measure: Measure) -> list[float]:
    """The score of each run, every image counting once; NaN where undefined."""
    return [float(measure.of(run, np.ones((1, len(run))))[0]) for run in runs]


def difference(
    arm: Sequence[Sized],
    base: Sequence[Sized],
    measure: Measure,
    *,
    spread: Spread | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Arm minus base with an interval; the same numbers for the same arguments.

    Args:
        arm, base: for each run what the measure takes, all of the same images in the same order.
        spread: variance between runs, pooled over more arms than these two; None takes these two.
        level: nominal coverage, in (0, 1).
        resamples: of the images.
        seed: of the resampling.

    Raises ValueError for an arm without runs and for runs of different numbers of images.
    """
    if not len(arm) or not len(base):
        raise ValueError("a difference needs at least one run on each side")
    runs = (*arm, *base)
    images = len(runs[0])
    if any(len(run) != images for run in runs):
        raise ValueError(f"runs of {', '.join(str(len(run)) for run in runs)} images; expected the same ones")
    # Minus the mean of the base's runs, plus the mean of the arm's: one row of factors.
    factors = np.concatenate([np.full(len(arm), 1 / len(arm)), np.full(len(base), -1 / len(base))])
    single = np.asarray(scores(runs, measure))
    spread = spread or pooled_spread([list(single[: len(arm)]), list(single[len(arm) :])])
    sizes = (len(arm), len(base))

    def without_interval(value: float | None, why: str, undefined: float = 0.0) -> Difference:
        return Difference(
            value, None, None, "not distinguishable", "nothing", images, sizes, level, undefined, why
        )

    if not np.isfinite(single).all():
        return without_interval(
            None, f"{measure.name} is undefined for {int((~np.isfinite(single)).sum())} of {len(runs)} runs"
        )
    # One mean minus the other: for equal runs exactly 0, which a sum of products need not be.
    value = float(single[: len(arm)].mean() - single[len(arm) :].mean())
    if images < 2:
        return without_interval(value, "a single image says nothing about other images")

    counts = _weights(images, resamples, seed)
    again = np.stack([measure.of(run, counts) for run in runs], axis=1)  # (resamples, runs)
    shift = (again - single) @ factors
    known = shift[np.isfinite(shift)]
    undefined = 1 - len(known) / resamples
    if undefined > UNDEFINED_ALLOWED:
        return without_interval(
            value, f"{measure.name} is undefined in {undefined:.0%} of the resamples", undefined
        )

    rng = np.random.default_rng((seed, 1))  # another stream than the weights
    shape = (DRAWS_PER_RESAMPLE, len(known))
    draws = (
        known
        * _unshared(again, single, known, spread, sizes)
        * np.sqrt(images / rng.chisquare(images - 1, shape))
    )
    if spread.freedom:
        draws += np.sqrt(spread.variance * (1 / sizes[0] + 1 / sizes[1])) * rng.standard_t(
            spread.freedom, shape
        )
    draws += value
    beyond = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    p = min(1.0, 2 * (1 + int(beyond)) / (1 + draws.size))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Difference(
        value=value,
        low=float(low),
        high=float(high),
        verdict=verdict_of(value, p, level, measure.higher_is_better),
        covers="images and seeds" if spread.freedom else "images",
        images=images,
        seeds=sizes,
        level=level,
        undefined=undefined,
        note=None if spread.freedom else "one run per arm: other seeds may differ by more than this interval",
        p=p,
        p_adjusted=p,
    )


@lru_cache(maxsize=1)
def _weights(images: int, resamples: int, seed: int) -> Floats:
    """How often each image is in each resample, (resamples, images); every arm and score of a study needs the same."""
    drawn = np.random.default_rng((seed, 0)).integers(0, images, (resamples, images))
    drawn += (
        images * np.arange(resamples)[:, None]
    )  # counting numbers is six times as quick as drawing the counts
    weights: Floats = (
        np.bincount(drawn.ravel(), minlength=resamples * images).reshape(resamples, images).astype(float)
    )
    weights.flags.writeable = False
    return weights


def _unshared(again: Floats, single: Floats, shift: Floats, spread: Spread, sizes: tuple[int, int]) -> float:
    """The factor k of the module's text: the image deviation less the part that the variance between runs contains."""
    total = float(shift.var())
    if not spread.freedom or not total:
        return 1.0
    parts = [slice(0, sizes[0]), slice(sizes[0], None)]
    observed = pooled_spread([list(single[part]) for part in parts]).variance
    again = again[np.isfinite(again).all(axis=1)]
    freedom = sum(sizes) - 2
    resampled = sum(
        float(again[:, part].var(axis=1).mean()) * size for part, size in zip(parts, sizes, strict=True)
    )
    shared = (resampled / freedom - observed) * (1 / sizes[0] + 1 / sizes[1]) if freedom else 0.0
    return float(np.sqrt(np.clip(1 - shared / total, 0.0, 1.0)))


def verdict_of(value: float | None, p: float, level: float, higher_is_better: bool) -> Verdict:
    """What a difference is called whose (corrected) two-sided p is known."""
    if not value or p >= 1 - level:
        return "not distinguishable"
    return "better" if (value > 0) == higher_is_better else "worse"


def _ratio(sums: Floats) -> Floats:
    above, below = sums[..., 0], sums[..., 1]
    result: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)
    return result


def _sums(run: ArrayLike) -> NDArray[Any]:
    array = np.asarray(run)
    if array.ndim != 2:
        raise ValueError(f"per-image sums of shape {array.shape}; expected (images, C)")
    return array.astype(np.float64)
