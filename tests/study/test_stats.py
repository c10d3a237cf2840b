"""Differences with intervals: hand-solvable cases, and whether 95 % are 95 %."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from anban.metrics import binary_scores
from anban.study.stats import (
    Difference,
    Measure,
    Spread,
    corrected,
    difference,
    holm,
    image_mean,
    mean_sums,
    micro,
    pooled_spread,
    scores,
)

F1 = micro("f1")


def f1_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return binary_scores(sums)["f1"]


Counts = NDArray[np.int64]


def invented(
    rng: np.random.Generator,
    *,
    studies: int,
    seeds: int,
    images: int,
    seed_sd: float,
    scene_sd: float,
    gain: float = 0.4,
) -> Counts:
    """Counts of invented runs, (studies, 2 arms, seeds, images, 4): base first, the second arm better by `gain`.

    The scenes differ in size of the change and in difficulty, mostly alike for both arms. A seed moves recall and false
    alarms of a whole run (`seed_sd`) and of single scenes (`scene_sd`), in logits.
    """
    pixels = 65536
    scene, arm, run, each = (
        (studies, 1, 1, images), (studies, 2, 1, images), (studies, 2, seeds, 1), (studies, 2, seeds, images)
    )  # fmt: skip
    change = np.round(pixels * np.minimum(np.exp(rng.normal(-3, 1, scene)), 0.8)) * (rng.random(scene) > 0.2)
    ease = rng.normal(0, 1, scene) + rng.normal(0, 0.4, arm) + gain * np.arange(2)[:, None, None]
    recall = 1 / (1 + np.exp(-1.5 - ease - rng.normal(0, seed_sd, run) - rng.normal(0, scene_sd, each)))
    alarms = np.exp(-5 - 0.5 * ease + rng.normal(0, seed_sd, run) + rng.normal(0, scene_sd, each))
    tp, fp = np.round(recall * change), np.round(np.minimum(alarms * pixels, pixels - change))
    return np.stack([pixels - change - fp, fp, change - tp, tp], axis=-1).astype(np.int64)


def naive(study: Counts, rng: np.random.Generator, resamples: int = 300) -> NDArray[np.float64]:
    """The interval that resamples images and runs and takes percentiles."""
    _, seeds, images, _ = study.shape
    weights = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    again = f1_of(np.einsum("bi,asic->basc", weights, study, optimize=True).astype(float))
    picked = rng.integers(0, seeds, (2, resamples, seeds))
    rows = np.arange(resamples)[:, None]
    return np.quantile(again[rows, 1, picked[1]].mean(1) - again[rows, 0, picked[0]].mean(1), [0.025, 0.975])


MIXTURES = {"seeds": (0.6, 0.1), "images": (0.03, 0.05), "both": (0.25, 0.3), "scenes": (0.03, 0.8)}


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize(("seeds", "images"), [(2, 40), (3, 20), (5, 60)])
def test_coverage(mixture, seeds, images):
    seed_sd, scene_sd = MIXTURES[mixture]
    rng = np.random.default_rng(7)
    kind = {"seed_sd": seed_sd, "scene_sd": scene_sd}
    # Truth: expected score of a run on very many scenes, over very many runs.
    many = f1_of(invented(rng, studies=1, seeds=100, images=3000, **kind)[0].sum(axis=2).astype(float)).mean(
        axis=1
    )
    truth = many[1] - many[0]
    studies = invented(rng, studies=250, seeds=seeds, images=images, **kind)
    found = [difference(list(study[1]), list(study[0]), F1, resamples=300) for study in studies]
    assert all(one.covers == "images and seeds" and one.low is not None for one in found)
    assert 0.90 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.99
    if mixture == "seeds" and seeds == 2:  # what the correction is for
        ends = [naive(study, rng) for study in studies]
        assert np.mean([low <= truth <= high for low, high in ends]) < 0.80


def test_no_difference_is_rarely_found():
    rng = np.random.default_rng(3)
    studies = invented(rng, studies=250, seeds=3, images=40, seed_sd=0.25, scene_sd=0.3, gain=0.0)
    verdicts = [difference(list(s[1]), list(s[0]), F1, resamples=300).verdict for s in studies]
    assert verdicts.count("not distinguishable") >= 0.90 * len(verdicts)


def test_holm_by_hand():
    # In order: .005 * 4, .01 * 3, .03 * 2, .04 * 1; the last must not be smaller than the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.3, 0.9]) == pytest.approx([0.9, 0.9, 0.9])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_a_family_is_judged_together():
    def one(p: float | None, value: float = 0.01) -> Difference:
        return Difference(value, None, None, "better", "images", 9, (2, 2), p=p, p_adjusted=p)

    found = corrected([one(0.01), None, one(0.04), one(None), one(0.03, -0.01)], higher_is_better=True)
    assert [d and d.p_adjusted for d in found] == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),
        None,
        pytest.approx(0.06),
    ]
    assert [d and d.family for d in found] == [3, None, 3, 1, 3]
    assert [d and d.verdict for d in found] == [
        "better",
        None,
        "not distinguishable",
        "better",
        "not distinguishable",
    ]
    assert [d and d.p for d in found] == [0.01, None, 0.04, None, 0.03]
    assert corrected([one(0.01)], higher_is_better=False)[0].verdict == "worse"


def test_four_arms_that_differ_in_nothing_are_rarely_found_different():
    rng = np.random.default_rng(11)
    psnr, alone, together = image_mean("psnr"), 0, 0
    for _ in range(150):
        values = rng.normal(30, 3, 25) + rng.normal(0, 0.4, (5, 3, 1)) + rng.normal(0, 0.8, (5, 3, 25))
        base, *arms = ([mean_sums(run) for run in arm] for arm in values)
        spread = pooled_spread([scores(arm, psnr) for arm in (base, *arms)])
        found = [difference(arm, base, psnr, spread=spread, resamples=200) for arm in arms]
        alone += any(one.verdict != "not distinguishable" for one in found)
        together += any(one.verdict != "not distinguishable" for one in corrected(found, True) if one)
    assert together / 150 <= 0.09
    assert alone / 150 >= 0.10


def test_p_agrees_with_the_interval():
    arm, base = study_of(3, gain=0.3)
    found = difference(arm, base, F1)
    assert found.p is not None
    edge = difference(arm, base, F1, level=1 - found.p)
    assert min(abs(edge.low), abs(edge.high)) < 0.02 * (edge.high - edge.low)
    assert found.p_adjusted == found.p
    assert difference(arm, arm, F1).p == pytest.approx(1.0, abs=0.05)


def study_of(
    seeds: int, images: int = 30, gain: float = 0.4, seed_sd: float = 0.1
) -> tuple[list[Counts], list[Counts]]:
    counts = invented(
        np.random.default_rng(0),
        studies=1,
        seeds=seeds,
        images=images,
        seed_sd=seed_sd,
        scene_sd=0.1,
        gain=gain,
    )[0]
    return list(counts[1]), list(counts[0])


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_run_compared_with_itself(seeds):
    arm, _ = study_of(seeds)
    found = difference(arm, arm, F1)
    assert found.value == 0
    assert found.verdict == "not distinguishable"
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0 <= found.high
    if seeds == 1:
        assert found.low == found.high == 0


def test_value_is_the_difference_of_mean_micro_scores():
    arm, base = study_of(2)
    expected = np.mean([2 * c[3] / (2 * c[3] + c[1] + c[2]) for c in (run.sum(0) for run in arm)])
    expected -= np.mean([2 * c[3] / (2 * c[3] + c[1] + c[2]) for c in (run.sum(0) for run in base)])
    assert difference(arm, base, F1).value == pytest.approx(expected)


def test_verdicts_and_direction():
    arm, base = study_of(3, gain=2.0, seed_sd=0.02)
    better = difference(arm, base, F1)
    assert better.verdict == "better"
    assert better.low is not None
    assert better.low > 0
    assert difference(base, arm, F1).verdict == "worse"
    error = Measure("error", lambda run, counts: 1 - F1.of(run, counts), higher_is_better=False)
    assert difference(arm, base, error).verdict == "better"
    assert difference(base, arm, error).verdict == "worse"


def test_one_seed_covers_images_only_and_says_so():
    arm, base = study_of(1)
    alone = difference(arm, base, F1)
    assert alone.covers == "images"
    assert alone.seeds == (1, 1)
    assert alone.note is not None
    borrowed = difference(arm, base, F1, spread=Spread(variance=0.03**2, freedom=4))
    assert borrowed.covers == "images and seeds"
    assert borrowed.note is None
    assert borrowed.high - borrowed.low > alone.high - alone.low


def test_seed_part_is_a_t_interval_when_images_do_not_matter():
    # Equal images: only seeds vary. Scores .1 .2 .3 and .5 .6 .7: variance .01 each, 4 degrees of freedom.
    runs = [np.repeat(mean_sums([value]), 40, axis=0) for value in (0.1, 0.2, 0.3, 0.5, 0.6, 0.7)]
    found = difference(runs[3:], runs[:3], image_mean("score"))
    half = 2.776 * math.sqrt(0.01 * 2 / 3)  # t of 4 degrees of freedom at 97.5 %
    assert found.value == pytest.approx(0.4)
    assert found.low == pytest.approx(0.4 - half, abs=0.02)
    assert found.high == pytest.approx(0.4 + half, abs=0.02)


def test_image_part_is_a_paired_t_interval():
    rng = np.random.default_rng(0)
    hard, gain = rng.normal(30, 10, 25), rng.normal(1, 1, 25)
    found = difference([mean_sums(hard + gain)], [mean_sums(hard)], image_mean("psnr"))
    half = (
        2.064 * gain.std(ddof=1) / 5
    )  # t of 24 degrees of freedom; the difficulty, ten times as spread, is gone
    assert found.low == pytest.approx(gain.mean() - half, abs=0.05)
    assert found.high == pytest.approx(gain.mean() + half, abs=0.05)


def test_same_arguments_same_numbers():
    arm, base = study_of(2)
    assert difference(arm, base, F1) == difference(arm, base, F1)
    assert difference(arm, base, F1, seed=1) != difference(arm, base, F1)


def test_level():
    arm, base = study_of(3)
    wide, narrow = difference(arm, base, F1), difference(arm, base, F1, level=0.5)
    assert narrow.high - narrow.low < wide.high - wide.low
    assert narrow.level == 0.5


def test_undefined_resamples():
    # One image of ten has change: a third of the resamples miss it, and have no recall.
    counts = np.tile(np.array([100, 1, 0, 0], dtype=np.int64), (10, 1))
    counts[3] = [80, 0, 5, 15]
    found = difference([counts], [counts], micro("recall"))
    assert found.value == 0
    assert found.low is None
    assert found.verdict == "not distinguishable"
    assert found.undefined == pytest.approx(0.9**10, abs=0.05)
    assert "resamples" in (found.note or "")
    # Five of ten: one resample in a thousand, which is left out.
    counts[3:8] = [80, 0, 5, 15]
    found = difference([counts], [counts], micro("recall"))
    assert found.low == found.high == 0
    assert 0 <= found.undefined < 0.01


def test_undefined_score_has_no_difference():
    counts = np.tile(np.array([100, 0, 0, 0], dtype=np.int64), (10, 1))
    found = difference([counts], [counts], F1)
    assert found.value is None
    assert found.low is None
    assert found.covers == "nothing"
    assert found.verdict == "not distinguishable"
    assert "undefined" in (found.note or "")


def test_single_image_has_no_interval():
    arm, base = study_of(3, images=1)
    found = difference(arm, base, F1)
    assert found.value is not None
    assert found.low is None
    assert "single image" in (found.note or "")


def test_refused():
    arm, base = study_of(2)
    with pytest.raises(ValueError, match="at least one run"):
        difference([], base, F1)
    with pytest.raises(ValueError, match="expected the same"):
        difference(arm, [run[:5] for run in base], F1)
    with pytest.raises(ValueError, match="per-image sums"):
        difference([arm[0][:, 0]], base, F1)


def test_pooled_spread_by_hand():
    # Squares about the means: .02 in the first arm, .005 in the second; 2 + 1 degrees; a single run says nothing.
    spread = pooled_spread([[0.1, 0.2, 0.3], [0.5, 0.6], [0.9], [math.nan, 0.4]])
    assert spread.freedom == 3
    assert spread.variance == pytest.approx((0.02 + 0.005) / 3)
    assert pooled_spread([[0.5], [0.7]]) == Spread(0.0, 0)


def test_image_mean_leaves_undefined_images_out():
    runs = [mean_sums([1.0, math.nan, 3.0]), mean_sums([math.nan] * 3)]
    values = scores(runs, image_mean("f1"))
    assert values[0] == pytest.approx(2.0)
    assert math.isnan(values[1])
