"""From the records of a study's runs to one table: scores per arm and seed, and what differs from the base.

Reads study.json and the run folders, nothing else; no torch. `compare` gives a plain dict that goes into JSON as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from anban.errors import InputError
from anban.metrics import SCORES, defined
from anban.record import RunFolder
from anban.study.records import Arm, Run, Study
from anban.study.stats import (
    LEVEL,
    RESAMPLES,
    Floats,
    Measure,
    corrected,
    difference,
    image_mean,
    mean_sums,
    micro,
    pooled_spread,
    scores,
)

COMPARISON_FORMAT = "anban-comparison/1"
COUNTS = ("tn", "fp", "fn", "tp")
LOWER_IS_BETTER = frozenset({"loss", "mae", "mse", "rmse", "lpips"})


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
    reason. A score of `binary_scores` is that of an image set's summed counts; any other is the mean of the per-image
    scores in samples.jsonl.

    Args:
        metrics: names of scores; None takes the study's one and the other binary scores if there are counts.
        mix: compare even if runs differ in test images (then on the common ones), data or protocol, and say so
            under "mixed".
        pool: whether the variance between runs is taken from all arms or from the two compared.
        correction: how verdicts allow for there being several arms: those with a difference on one score are a family.
            Intervals and p stay those of each comparison alone.
        level, resamples, seed: of the intervals.

    Returns: {"format", "id", "title", "question", "split", "protocol", "stamp", "metric", "metrics", "base", "level",
        "resamples", "pool", "correction", "images", "mixed": [text], "left_out": [{"arm", "seed", "path", "state", "why"}],
        "arms": [{"name", "title", "recipe", "difference", "is_base", "seeds": [int], "n", "runs": [path], "metrics":
            {name: {"higher_is_better", "values": [per seed], "mean", "std", "n",
                    "difference": null (the base itself, or no runs to compare) | {"value", "low", "high", "verdict",
                        "covers", "images", "seeds": [arm's, base's], "level", "undefined", "note", "p",
                        "p_adjusted", "family"}}}}]}
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
    for measure in measures:
        sums = {
            name: [samples.sums(measure.name, names) for samples in group] for name, group in used.items()
        }
        values = {name: scores(group, measure) for name, group in sums.items()}
        spread = pooled_spread(list(values.values())) if pool == "study" else None
        found = [
            difference(
                sums[row["name"]],
                sums[study.base],
                measure,
                spread=spread,
                level=level,
                resamples=resamples,
                seed=seed,
            )
            if not row["is_base"] and sums[row["name"]] and sums[study.base]
            else None
            for row in arms
        ]
        if correction == "holm":
            found = corrected(found, measure.higher_is_better)
        for row, result in zip(arms, found, strict=True):
            row["metrics"][measure.name] = {
                "higher_is_better": measure.higher_is_better,
                **_summary(values[row["name"]]),
                "difference": result and {**asdict(result), "seeds": list(result.seeds)},
            }
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
        "base": study.base,
        "level": level,
        "resamples": resamples,
        "pool": pool,
        "correction": correction,
        "images": len(names),
        "mixed": mixed,
        "left_out": left_out,
        "arms": arms,
    }


class _Samples:
    """The per-image lines of one run, by image name."""

    def __init__(self, run: Run, study: Study):
        assert run.record is not None
        self.run = run
        info = run.record.info
        self.stamp = run.record.stamp(study.split, study.protocol)
        self.fingerprint = (info.get("data") or {}).get("fingerprint")
        self.lines: dict[str, Mapping[str, Any]] = {}
        for line in _lines(run.record, study):
            if line["name"] in self.lines:
                raise InputError(
                    f"the image {line['name']!r} is in the record twice", where=run.path / "samples.jsonl"
                )
            self.lines[line["name"]] = line
        self.has_counts = all(line.get("counts") is not None for line in self.lines.values())

    def sums(self, metric: str, names: Sequence[str]) -> Floats:
        """What the metric's measure sums, (images, C), of these images in this order."""
        lines = [self.lines[name] for name in names]
        if metric in SCORES and self.has_counts:
            return np.asarray([[line["counts"][cell] for cell in COUNTS] for line in lines], dtype=np.float64)
        values = [(line.get("scores") or {}).get(metric) for line in lines]
        return mean_sums([np.nan if value is None else value for value in values])


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
    name_sets = [set(samples.lines) for samples in every]
    if any(names != name_sets[0] for names in name_sets):
        common = set.intersection(*name_sets)
        found.append(f"the test images differ ({len(common)} in common, of up to {max(map(len, name_sets))})")
    if len({samples.has_counts for samples in every}) > 1:
        raise InputError("some runs have pixel counts and some have none", expected="records of one task")
    return found


def _common_names(every: Sequence[_Samples], study: Study) -> list[str]:
    if not every:
        return []
    names = sorted(set.intersection(*(set(samples.lines) for samples in every)))
    if not names:
        raise InputError("The runs have no test image in common.", where=study.id)
    return names


def _measures(metrics: Sequence[str] | None, main: str, every: Sequence[_Samples]) -> list[Measure]:
    counted = bool(every) and every[0].has_counts
    per_image = {
        name for samples in every for line in samples.lines.values() for name in line.get("scores") or {}
    }
    known = [*SCORES, *sorted(per_image - set(SCORES))] if counted else sorted(per_image)
    if metrics is None:
        metrics = [main, *(name for name in SCORES if counted and name != main)]
    result = []
    for name in dict.fromkeys(metrics):
        if every and name not in known:
            raise InputError(f"the runs have no score {name!r}", where="metric", expected=", ".join(known))
        result.append(
            micro(name) if counted and name in SCORES else image_mean(name, name not in LOWER_IS_BETTER)
        )
    return result


def _summary(values: Sequence[float]) -> dict[str, Any]:
    array = np.asarray(values, dtype=np.float64)
    return {
        "values": [defined(value) for value in values],
        "mean": defined(array.mean()) if len(array) else None,
        "std": defined(array.std(ddof=1)) if len(array) > 1 else None,
        "n": len(array),
    }
