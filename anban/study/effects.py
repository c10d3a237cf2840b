"""What does each switch do, over all finished runs? A regression of the score on the switches in which the runs differ.

Runs measured alike (split, protocol, checkpoint, data) make one table; others stand apart and are never pooled. In a
table the score of a run is a constant plus one number for each changed switch plus the seed's share. Each switch is a
category with the base's (else the commonest) level as reference; a number of more than five levels is a slope. Repeats of a
configuration with other seeds say how much the seed does.

Switches that were always changed together, or whose columns depend linearly on one another, cannot be told apart by any
calculation. They are reported as one group with its joint effect, by the connected components of that dependence; all else
in the table is not touched by it.

Interval: ordinary least squares; an effect is a sum of w_i y_i over the runs, its variance the HC2 estimate, the sum of
w_i^2 e_i^2 / (1 - h_i) from residuals e and leverages h, with a Student t whose degrees of freedom are those of that
estimate under equal spread (Bell and McCaffrey 2002; Imbens and Kolesár 2016, "Robust Standard Errors in Small Samples:
Some Practical Advice"). A run that alone fixes a coefficient has h = 1 and no residual: it takes the mean spread of the
others, and the effect says so (`borrowed`).

Measured coverage of nominal 95 % intervals, 2000 simulations each; the figure is that of the worst covered of the switches:

    design                            7 arms against a base     half of 2^4     12 random settings of 7
    seeds per setting                         2           3               2                           2
    all settings spread alike
        HC1, normal                        0.80        0.88            0.92                        0.84
        one variance for all, t            0.95        0.95            0.95                        0.95
        the form above                     0.95        0.95            0.95                        0.96
    one setting spreads 4 times the others
        HC1, normal                        0.74        0.83            0.91                        0.87
        one variance for all, t            0.71        0.73            0.95                        0.93
        the form above                     0.92        0.92            0.95                        0.97

The price is width: 1.7 times that of one variance for all with 2 seeds per arm, 1.25 times with 3, none where the design is
balanced. Bootstrapping settings, or clustering by them, is no choice here: where one arm alone has a switch, a resample
without that arm does not have the effect, and the residuals of that arm add up to 0.

The intervals are about other seeds on the same test images, not about other images.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anban.record import RunFolder
from anban.study.records import experiment
from anban.study.scores import score_named
from anban.study.stats import LEVEL, Floats, Verdict, holm, verdict_of
from anban.study.switches import Missing, plain, switches

MOST_LEVELS = 5  # a number with more is a slope
DECADES_FROM = 10.0  # largest by smallest value from which a slope is per factor of ten
# How and where a run is measured is said by its protocol and fingerprint, which keep groups apart.
NO_SWITCH = ("eval.", "data.root", "data.cache")
NOTHING = 1e-9  # beside 1


@dataclass(frozen=True)
class Alike:
    """What runs have in common that may be in one regression; `data` is the folder's name, the fingerprint decides."""

    split: str
    protocol: str
    stamp: str  # the protocol in full, as JSON
    checkpoint: str
    fingerprint: str | None
    data: str = field(compare=False)


@dataclass(frozen=True)
class Observation:
    """One finished run: its score, and what its effective recipe sets by dotted key."""

    run: RunFolder
    score: float
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """A switch and the two levels between which it was turned; a slope has the unit of its step as `after`."""

    key: str
    before: str
    after: str


@dataclass(frozen=True)
class Effect:
    """What a change does to the score, all other switches kept.

    Attributes:
        changes: one; several where the runs cannot tell them apart, whose joint effect this is.
        together: whether those were always changed together; if not, their columns depend on each other otherwise.
        value: in the unit of the score.
        low, high: the interval of this effect alone; None where the runs leave nothing to estimate the spread from.
        p, p_adjusted: two-sided, alone and after Holm's correction for all effects of the table; None without interval.
        verdict: "not distinguishable" unless `p_adjusted` is below 1 - level.
        runs: numbers of the observations with the change.
        others: how many observations have what is changed from; None for a slope.
        borrowed: whether the spread of a run without a repeat was taken from other configurations.
    """

    changes: tuple[Change, ...]
    together: bool
    value: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    verdict: Verdict
    runs: tuple[int, ...]
    others: int | None
    borrowed: bool


@dataclass(frozen=True)
class Effects:
    """The effects in one group of runs that were measured alike.

    Attributes:
        configurations: how many different settings of the switches there are.
        misfit: p of "the score is a sum of single effects" against the spread between seeds; None where no setting has
            a second run, or the switches leave nothing to test.
    """

    alike: Alike
    metric: str
    observations: tuple[Observation, ...]
    configurations: int
    effects: tuple[Effect, ...]
    misfit: float | None
    level: float = LEVEL


def effects(
    runs: Iterable[RunFolder],
    metric: str,
    *,
    split: str = "test",
    protocol: str | None = None,
    reference: Mapping[str, Any] | None = None,
    level: float = LEVEL,
) -> list[Effects]:
    """The effects of the switches, for each group of finished runs that were measured alike; the largest group first.

    One run counts per configuration (hash) and seed, the latest. Runs without a recipe.yaml count for nothing.

    Args:
        metric: name of the score; the effects have the unit it is recorded in (shares are fractions).
        split, protocol: where it was measured; None takes every protocol there is, each for itself.
        reference: the base's recipe by dotted key; its levels are what changes are counted from. None takes the recipe
            that the others name as theirs; a level that no run has is replaced by the commonest.
        level: of the intervals and verdicts, in (0, 1).
    """
    groups = _measured_alike(runs, metric, split, protocol)
    return [_effects(alike, metric, found, reference or _base(found), level) for alike, found in groups]


def _measured_alike(
    runs: Iterable[RunFolder], metric: str, split: str, protocol: str | None
) -> list[tuple[Alike, list[Observation]]]:
    groups: dict[Alike, dict[tuple[Any, Any], Observation]] = {}
    recipes: dict[Any, dict[str, Any]] = {}
    for run in sorted((run for run in runs if run.state == "finished"), key=lambda run: run.id):
        configuration = run.info.get("hash") or run.id
        if configuration not in recipes:
            flat = experiment(run)
            recipes[configuration] = {k: v for k, v in flat.items() if not k.startswith(NO_SWITCH)}
        for score in run.info.get("scores") or []:
            place = (score["split"], score["protocol"])
            wanted = score["name"] == metric and place[0] == split and protocol in (None, place[1])
            if not wanted or score["checkpoint"] != run.scored_checkpoint(*place):
                continue
            if score["value"] is None or not recipes[configuration]:
                continue
            data = run.info.get("data") or {}
            alike = Alike(
                *place,
                stamp=json.dumps(run.stamp(*place) or {}, sort_keys=True),
                checkpoint=score["checkpoint"],
                fingerprint=data.get("fingerprint"),
                data=PurePath(str(data.get("root", "unknown data")).replace("\\", "/")).name,
            )
            observation = Observation(run, float(score["value"]), recipes[configuration])
            groups.setdefault(alike, {})[configuration, run.info.get("seed")] = observation
    largest_first = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [(alike, list(found.values())) for alike, found in largest_first]


def _base(found: Sequence[Observation]) -> Mapping[str, Any]:
    """The recipe that most runs name as their base (or are of), as changed the least; {} where no run is of it."""
    named = Counter(each.run.info.get("base") or each.run.info["recipe"] for each in found)
    of_base = [each for each in found if each.run.info["recipe"] == named.most_common(1)[0][0]]
    least = min(of_base, key=lambda each: len(each.run.info.get("difference") or {}), default=None)
    return least.recipe if least else {}


# --- the columns ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """One column of the design: 1 where the switch `key` has the level `after`, or the values of a slope.

    `levels` is what each recipe has there, a dash where the switch does not belong.
    """

    key: str
    before: str
    after: str
    values: Floats
    levels: tuple[str, ...]
    is_slope: bool = False


def _columns(recipes: Sequence[Mapping[str, Any]], reference: Mapping[str, Any]) -> list[_Column]:
    """The columns of all switches; no column of a switch is 1 where another one of it is."""
    # The base is read as one more recipe, so that its parts and groups become switches in the same way.
    choices = switches([*recipes, reference] if reference else recipes)
    found: list[_Column] = []
    for key, values in choices.items():
        own = values[: len(recipes)]
        texts = tuple(map(plain, own))
        used = [text for text in texts if text != Missing.UNUSED.value]
        levels = list(dict.fromkeys(used))
        if len(levels) > MOST_LEVELS and all(_is_number(v) for v in own if v is not Missing.UNUSED):
            found.append(_slope(key, own))
            continue
        normal = plain(values[-1]) if reference else ""
        if normal not in levels:
            normal = max(levels, key=used.count, default="")
        for after in levels:
            if after != normal:
                has = np.asarray([text == after for text in texts], dtype=np.float64)
                found.append(_Column(key, normal, after, has, texts))
    return found


def _slope(key: str, values: Sequence[Any]) -> _Column:
    used = [value is not Missing.UNUSED for value in values]
    numbers = np.asarray([value if there else 0.0 for value, there in zip(values, used, strict=True)], float)
    known = numbers[used]
    step = "+ 1"
    if known.min() > 0 and known.max() / known.min() >= DECADES_FROM:
        numbers[used], step = np.log10(known), "× 10"
    numbers[used] -= numbers[used].mean()  # where it is not used it moves nothing
    return _Column(key, "", step, numbers, tuple(map(plain, values)), is_slope=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def dependent_groups(columns: Floats) -> tuple[list[list[int]], list[int]]:
    """Which columns (n, k) cannot be told apart, beside a constant: all of them in groups, and a basis of their span.

    A group is a connected component of the dependence: columns that share a combination which is 0, directly or through
    others. The spans of different groups are independent, so what is said of one holds whatever the others are.
    """
    centred = columns - columns.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=0), NOTHING)
    group = list(range(columns.shape[1]))
    basis: list[int] = []
    for number in range(columns.shape[1]):
        weights, *_ = np.linalg.lstsq(centred[:, basis], centred[:, number], rcond=None)
        if np.linalg.norm(centred[:, number] - centred[:, basis] @ weights) > 1e-7:
            basis.append(number)
            continue
        for place in np.flatnonzero(np.abs(weights) > 1e-7):
            joined = group[basis[place]]
            group = [group[number] if name == joined else name for name in group]
    members = [[n for n, own in enumerate(group) if own == name] for name in dict.fromkeys(group)]
    return members, basis


# --- the fit ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Ordinary least squares of scores (n,) on a constant and columns (n, k) of full rank.

    Attributes:
        solve: (k + 1, n); its product with the scores are the coefficients, the constant first.
        q: (n, k + 1), an orthonormal basis of the columns.
        leverage: (n,), 0..1; 1 where the run alone fixes a coefficient.
        residuals: (n,).
    """

    solve: Floats
    q: Floats
    leverage: Floats
    scores: Floats
    residuals: Floats

    @classmethod
    def of(cls, columns: Floats, scores: Floats) -> Fit:
        """Fits the scores."""
        design = np.column_stack([np.ones(len(scores)), columns])
        q, r = np.linalg.qr(design)
        residuals = scores - q @ (q.T @ scores)
        return cls(np.linalg.solve(r, q.T), q, np.sum(q**2, axis=1), scores, residuals)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the residuals."""
        return len(self.scores) - len(self.solve)

    def contrast(self, factors: Floats) -> tuple[float, float | None, float, bool]:
        """The sum of the coefficients times `factors` (k,): value, standard error, its degrees of freedom, borrowed.

        The error is None where no degree of freedom is left; see the module's text for the rest.
        """
        weights = factors @ self.solve[1:]
        value = float(weights @ self.scores)
        if not self.freedom:
            return value, None, 0.0, False
        alone = self.leverage > 1 - 1e-7
        each = np.divide(weights**2, 1 - self.leverage, out=np.zeros_like(weights), where=~alone)
        lacking = float(np.sum(weights[alone] ** 2))
        each = each + lacking / self.freedom
        # each @ residuals**2 is a quadratic form of the noise; these are the traces of its matrix and of that squared.
        mean = float(each @ (1 - self.leverage))
        square = each**2 @ (1 - 2 * self.leverage) + np.sum((self.q.T @ (each[:, None] * self.q)) ** 2)
        error = float(np.sqrt(each @ self.residuals**2))
        return value, error, mean**2 / float(square), lacking > NOTHING * float(weights @ weights)


@lru_cache(maxsize=16)
def _angles(first: float, second: float) -> tuple[Floats, Floats]:
    """Angles 0..pi/2 and the share of F(first, second) below first / second * F = tan(angle)^2."""
    angle = np.linspace(0.0, np.pi / 2, 20001)
    middle = (angle[1:] + angle[:-1]) / 2
    log_density = (first - 1) * np.log(np.sin(middle)) + (second - 1) * np.log(np.cos(middle))
    share = np.cumsum(np.exp(log_density - log_density.max()))
    return angle, np.concatenate([[0.0], share / share[-1]])


def f_tail(value: float, first: float, second: float) -> float:
    """The probability that F with these degrees of freedom is `value` or larger; t squared has first = 1."""
    angle, share = _angles(first, second)
    return float(1 - np.interp(np.arctan(np.sqrt(first / second * value)), angle, share))


def t_critical(level: float, freedom: float) -> float:
    """What |t| of so many degrees of freedom stays below with probability `level`."""
    angle, share = _angles(1.0, freedom)
    return float(np.sqrt(freedom) * np.tan(np.interp(level, share, angle)))


# --- one group --------------------------------------------------------------------------------------------------------


def _effects(
    alike: Alike, metric: str, found: list[Observation], reference: Mapping[str, Any], level: float
) -> Effects:
    columns = _columns([each.recipe for each in found], reference)
    scores = np.asarray([each.score for each in found])
    design = np.column_stack([np.empty((len(found), 0)), *(column.values for column in columns)])
    groups, basis = dependent_groups(design)
    fit = Fit.of(design[:, basis], scores)
    effects = [effect for group in groups for effect in _of_group(group, columns, design, basis, fit, level)]
    known = [effect.p for effect in effects if effect.p is not None]
    adjusted = iter(holm(known))
    higher = score_named(metric).higher_is_better
    judged = []
    for effect in effects:
        if effect.p is not None:
            p = next(adjusted)
            effect = replace(effect, p_adjusted=p, verdict=verdict_of(effect.value, p, level, higher))
        judged.append(effect)
    settings = np.unique(design, axis=0, return_inverse=True)[1].reshape(-1)
    return Effects(
        alike, metric, tuple(found), len(set(settings)), tuple(judged), _misfit(fit, settings), level
    )


def _of_group(
    group: list[int], columns: Sequence[_Column], design: Floats, basis: list[int], fit: Fit, level: float
) -> list[Effect]:
    """The effects of columns that cannot be told apart: one for each setting of them beside the one counted from."""
    own = [columns[number] for number in group]
    if len(own) == 1 and own[0].is_slope:
        factors = np.asarray([number == group[0] for number in basis], dtype=np.float64)
        change = Change(own[0].key, own[0].before, own[0].after)
        runs = [row for row, text in enumerate(own[0].levels) if text != Missing.UNUSED.value]
        return [_effect((change,), True, factors, runs, None, fit, level)]
    part = design[:, group]
    settings, first, which = np.unique(part, axis=0, return_index=True, return_inverse=True)
    which = which.reshape(-1)
    untouched = np.flatnonzero(~settings.any(axis=1))
    normal = int(untouched[0] if len(untouched) else np.argmax(np.bincount(which)))
    together = bool((part == part[:, :1]).all())
    found = []
    for number in sorted(range(len(settings)), key=lambda number: first[number]):
        if number == normal:
            continue
        factors = np.zeros(len(basis))
        for place, column in enumerate(group):
            if column in basis:
                factors[basis.index(column)] = settings[number, place] - settings[normal, place]
        changes = _changes(own, int(first[normal]), int(first[number]))
        runs = np.flatnonzero(which == number).tolist()
        others = sum(
            all(c.levels[row] == change.before for change in changes for c in own if c.key == change.key)
            for row in np.flatnonzero(which == normal)
        )
        found.append(_effect(changes, together, factors, runs, others, fit, level))
    return found


def _changes(columns: Sequence[_Column], before: int, after: int) -> tuple[Change, ...]:
    """What differs in these columns between two rows, by switch; a level without a column here is the one before."""

    def level(key: str, row: int) -> str:
        of_key = [column for column in columns if column.key == key]
        has = [column for column in of_key if column.is_slope or column.values[row]]
        return has[0].levels[row] if has else of_key[0].before

    turned = [
        Change(key, level(key, before), level(key, after))
        for key in dict.fromkeys(column.key for column in columns)
    ]
    return tuple(change for change in turned if change.before != change.after)


def _effect(
    changes: tuple[Change, ...],
    together: bool,
    factors: Floats,
    runs: Sequence[int],
    others: int | None,
    fit: Fit,
    level: float,
) -> Effect:
    value, error, freedom, borrowed = fit.contrast(factors)
    low = high = p = None
    if error is not None:
        reach = t_critical(level, freedom) * error
        low, high = value - reach, value + reach
        p = f_tail((value / error) ** 2, 1.0, freedom) if error else float(not value)
    return Effect(
        changes, together, value, low, high, p, None, "not distinguishable", tuple(runs), others, borrowed
    )


def _misfit(fit: Fit, settings: NDArray[np.int64]) -> float | None:
    """The F test of lack of fit: what single effects leave unexplained, beside what seeds of one setting differ by."""
    means = np.bincount(settings, fit.scores) / np.bincount(settings)
    between_seeds = float(np.sum((fit.scores - means[settings]) ** 2))
    of_seeds = len(settings) - len(means)
    of_misfit = fit.freedom - of_seeds
    if not of_seeds or not of_misfit or not between_seeds:
        return None
    unexplained = max(float(np.sum(fit.residuals**2)) - between_seeds, 0.0)
    return f_tail((unexplained / of_misfit) / (between_seeds / of_seeds), of_misfit, of_seeds)
