"""From the records of a study's runs to one table: scores per arm and seed, and what differs from the base.

Reads study.json and the run folders, nothing else; no torch. `compare` gives a plain dict that goes into JSON as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal

import numpy as np

from anban.errors import InputError
from anban.metrics import defined
from anban.record import RunFolder
from anban.study.records import Arm, Run, Study, usable
from anban.study.scores import COUNTED, counted_in, score_named
from anban.study.stats import (
    LEVEL,
    RESAMPLES,
    Difference,
    Measure,
    corrected,
    difference,
    image_mean,
    mean_sums,
    pooled_spread,
    scores,
)

COMPARISON_FORMAT = "anban-comparison/1"


def compare(
    study: Study,
    metrics: Sequence[str] | None = None,
    *,
    mix: bool = False,
    pool: Literal["study", "pair"] = "study",
    correction: Literal["holm", "none"] = "holm",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Every arm's scores, and its difference to the base with an interval (see `anban.study.stats`).

    Used are finished runs with per-image lines for the study's split and protocol (of checkpoint "best" where its
    scores are there), one per seed: of several the last in the list. All others are listed under "left_out" with the
    reason. A score that follows from what the lines count (see `anban.study.scores`) is that of all images together; any
    other is the mean of the per-image scores in samples.jsonl.

    Args:
        metrics: names of scores; None takes the study's one and the others that follow from counts, or without counts
            the others of the images.
        mix: compare even if runs differ in test images (then on the common ones), data or protocol, and say so
            under "mixed".
        pool: whether the variance between runs is taken from all arms or from the two compared.
        correction: how verdicts allow for there being several arms: those with a difference on one score are a family.
            Intervals and p stay those of each comparison alone.
        level, resamples, seed: of the intervals.

    Returns: {"format", "id", "title", "question", "split", "protocol", "stamp", "metric", "metrics", "counted": a key of
        `COUNTED` or null, "base", "level", "resamples", "pool", "correction", "images", "mixed": [text], "left_out": [{"arm", "seed", "path", "state", "why"}],
        "arms": [{"name", "title", "recipe", "difference", "is_base", "seeds": [int], "n", "runs": [path], "metrics":
            {name: {"higher_is_better", "values": [per seed], "mean", "std", "n",
                    "difference": null (the base itself, or no runs to compare) | {"value", "low", "high", "verdict",
                        "covers", "images", "seeds": [arm's, base's], "level", "undefined", "note", "p",
                        "p_adjusted", "family"}}}}],
        "expected": [{"arm", "over", "difference": as above, in the study's score and corrected among themselves, or
            null}], one for each arm with an expectation}
        mean is null if a value is; std has ddof 1 and is null for a single run. "images" is the number compared.

    Raises InputError where runs cannot be compared, or a score is not in the records.
    """
    used: dict[str, list[_Samples]] = {}
    left_out: list[dict[str, Any]] = []
    for arm in study.arms:
        used[arm.name] = []
        for run, why in _sorted_out(arm, study):
            if why is None:
                used[arm.name].append(_Samples(run, study))
            else:
                state = "unused" if run.state == "finished" else run.state
                left_out.append(
                    {"arm": arm.name, "seed": run.seed, "path": str(run.path), "state": state, "why": why}
                )
    every = [samples for group in used.values() for samples in group]
    mixed = _differences(every)
    if mixed and not mix:
        raise InputError(
            f"These runs cannot be put into one table: {'; '.join(mixed)}.",
            where=study.id,
            expected="the same test images, data and protocol for all",
            do="evaluate them alike with anban eval, or allow mixing: the table then says so",
        )
    names = _common_names(every, study)
    for samples in every:
        samples.names = names
    measures = _measures(metrics, study.metric, every)

    arms: list[dict[str, Any]] = []
    for arm in study.arms:
        group = used[arm.name]
        arms.append(
            {
                "name": arm.name,
                "title": arm.title,
                "recipe": arm.recipe,
                "difference": arm.difference,
                "is_base": arm.name == study.base,
                "seeds": [samples.run.seed for samples in group],
                "n": len(group),
                "runs": [str(samples.run.path) for samples in group],
                "metrics": {},
            }
        )

    def differences_of(
        measure: Measure, pairs: Sequence[tuple[str, str]]
    ) -> tuple[dict[str, list[float]], list[Difference | None]]:
        """Each arm's values, and the difference of each pair of arms; None where one of them has no runs."""
        known = {name: [samples.known(measure.name) for samples in group] for name, group in used.items()}
        values = {name: scores(group, measure) for name, group in known.items()}
        spread = pooled_spread(list(values.values())) if pool == "study" else None
        options: dict[str, Any] = {"spread": spread, "level": level, "resamples": resamples, "seed": seed}
        found = [
            difference(known[one], known[other], measure, **options)
            if one != other and known[one] and known[other]
            else None
            for one, other in pairs
        ]
        return values, corrected(found, measure.higher_is_better) if correction == "holm" else found

    for measure in measures:
        values, found = differences_of(measure, [(arm.name, study.base) for arm in study.arms])
        for row, result in zip(arms, found, strict=True):
            row["metrics"][measure.name] = {
                "higher_is_better": measure.higher_is_better,
                **_summary(values[row["name"]]),
                "difference": _plain(result),
            }
    pairs = [(arm.name, arm.expected.over) for arm in study.arms if arm.expected]
    of_pairs = differences_of(_measures([study.metric], study.metric, every)[0], pairs)[1] if pairs else []
    expected = [
        {"arm": arm, "over": over, "difference": _plain(result)}
        for (arm, over), result in zip(pairs, of_pairs, strict=True)
    ]
    return {
        "format": COMPARISON_FORMAT,
        "id": study.id,
        "title": study.title,
        "question": study.question,
        "split": study.split,
        "protocol": study.protocol,
        "stamp": every[0].stamp if every else None,
        "metric": study.metric,
        "metrics": [measure.name for measure in measures],
        "counted": every[0].counted if every else None,
        "base": study.base,
        "level": level,
        "resamples": resamples,
        "pool": pool,
        "correction": correction,
        "images": len(names),
        "mixed": mixed,
        "left_out": left_out,
        "arms": arms,
        "expected": expected,
    }


class _Samples:
    """What the lines of one run say, by image name; the lines themselves may hold large matrices and are not kept.

    Attributes:
        counted: the key of COUNTED that all lines have.
        names: the images that count, in this order.
    """

    def __init__(self, run: Run, study: Study):
        assert run.record is not None
        self.run = run
        info = run.record.info
        self.stamp = run.record.stamp(study.split, study.protocol)
        self.fingerprint = (info.get("data") or {}).get("fingerprint")
        lines = _lines(run.record, study)
        keys = {counted_in(line) for line in lines}
        self.counted = keys.pop() if len(keys) == 1 else None
        self.scores: dict[str, Mapping[str, Any]] = {}
        self._kept: dict[str, Sized] = {}
        for line in lines:
            name = line["name"]
            if name in self.scores:
                raise InputError(
                    f"the image {name!r} is in the record twice", where=run.path / "samples.jsonl"
                )
            self.scores[name] = line.get("scores") or {}
            if self.counted is not None:
                with usable(line, run.path / "samples.jsonl"):
                    self._kept[name] = COUNTED[self.counted].take(line)
        self.names: Sequence[str] = list(self.scores)

    @property
    def sizes(self) -> set[int]:
        """How many numbers the lines count: one size for one number of classes."""
        return {len(kept) for kept in self._kept.values()}

    def known(self, metric: str) -> Sized:
        """What the metric's measure takes of the run."""
        if self.counted is not None and metric in COUNTED[self.counted].scores:
            return self._gathered
        values = [self.scores[name].get(metric) for name in self.names]
        return mean_sums([np.nan if value is None else value for value in values])

    @cached_property
    def _gathered(self) -> Sized:
        return COUNTED[self.counted or ""].gather([self._kept[name] for name in self.names])


def _lines(record: RunFolder, study: Study) -> list[dict[str, Any]]:
    """The per-image lines behind the run's score."""
    place = (study.split, study.protocol)
    return record.samples(*place, record.scored_checkpoint(*place))


def _sorted_out(arm: Arm, study: Study) -> list[tuple[Run, str | None]]:
    """Each run with None, or with the reason why it is not used."""
    usable: dict[int, Run] = {}
    reasons: dict[int, str] = {}
    for run in arm.runs:
        if run.record is None or run.state != "finished":
            reasons[id(run)] = run.why or f"the run is {run.state}"
        elif not _lines(run.record, study):
            reasons[id(run)] = f"not evaluated on {study.split!r} under protocol {study.protocol!r}"
        else:
            if run.seed in usable:
                reasons[id(usable[run.seed])] = f"a later run has seed {run.seed} too"
            usable[run.seed] = run
    return [(run, reasons.get(id(run))) for run in arm.runs]


def _differences(every: Sequence[_Samples]) -> list[str]:
    """What is not the same in all runs, each as a text; empty if they can be compared."""
    if not every:
        return []
    found = []
    stamps = {json.dumps(samples.stamp, sort_keys=True) for samples in every}
    if len(stamps) > 1:
        keys = sorted({key for samples in every for key in samples.stamp or {}})
        unlike = [key for key in keys if len({json.dumps((s.stamp or {}).get(key)) for s in every}) > 1]
        found.append(f"the protocol differs in {', '.join(unlike) or 'being recorded at all'}")
    if len({samples.fingerprint for samples in every}) > 1:
        found.append("the data differ (fingerprints)")
    name_sets = [set(samples.scores) for samples in every]
    if any(names != name_sets[0] for names in name_sets):
        common = set.intersection(*name_sets)
        found.append(f"the test images differ ({len(common)} in common, of up to {max(map(len, name_sets))})")
    if len({samples.counted for samples in every}) > 1 or len(set().union(*(s.sizes for s in every))) > 1:
        raise InputError(
            "The runs do not count the same.", expected="records of one task, with one number of classes"
        )
    return found


def _common_names(every: Sequence[_Samples], study: Study) -> list[str]:
    if not every:
        return []
    names = sorted(set.intersection(*(set(samples.scores) for samples in every)))
    if not names:
        raise InputError("The runs have no test image in common.", where=study.id)
    return names


def _measures(metrics: Sequence[str] | None, main: str, every: Sequence[_Samples]) -> list[Measure]:
    counted = COUNTED.get(every[0].counted or "") if every else None
    per_image = list(dict.fromkeys(name for s in every for scores in s.scores.values() for name in scores))
    summed = counted.scores if counted else ()
    known = [*summed, *(name for name in per_image if name not in summed)]
    if metrics is None:
        metrics = [main, *(summed or per_image)]
    result = []
    for name in dict.fromkeys(metrics):
        if every and name not in known:
            raise InputError(f"the runs have no score {name!r}", where="metric", expected=", ".join(known))
        if counted and name in summed:
            result.append(counted.measure(name))
        else:
            result.append(image_mean(name, score_named(name).higher_is_better))
    return result


def _plain(found: Difference | None) -> dict[str, Any] | None:
    return None if found is None else {**asdict(found), "seeds": list(found.seeds)}


def _summary(values: Sequence[float]) -> dict[str, Any]:
    array = np.asarray(values, dtype=np.float64)
    return {
        "values": [defined(value) for value in values],
        "mean": defined(array.mean()) if len(array) else None,
        "std": defined(array.std(ddof=1)) if len(array) > 1 else None,
        "n": len(array),
    }
