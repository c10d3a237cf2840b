"""From the records of a study's runs to one table: scores per arm and seed, and what differs from the base.

Reads study.json and the run folders, nothing else; no torch. `compare` gives a plain dict that goes into JSON as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anban.errors import InputError
from anban.metrics import SCORES, defined
from anban.recipe import flatten
from anban.recipe.recipe import DESCRIPTION, NOT_THE_EXPERIMENT
from anban.recipe.yamlfile import read
from anban.record import RunFolder, readable
from anban.study.stats import (
    LEVEL,
    RESAMPLES,
    Floats,
    Measure,
    difference,
    image_mean,
    mean_sums,
    micro,
    pooled_spread,
    scores,
)
from anban.study.study import FORMAT as STUDY_FORMAT

STUDY_FILE = "study.json"
COMPARISON_FORMAT = "anban-comparison/1"
COUNTS = ("tn", "fp", "fn", "tp")
ENDED_EARLY = ("failed", "interrupted")
LOWER_IS_BETTER = frozenset({"loss", "mae", "mse", "rmse", "lpips"})
# Keys of a recipe that name it, or say how a machine runs it, and change nothing about the experiment.
DESCRIBING = frozenset({*DESCRIPTION, *NOT_THE_EXPERIMENT})


@dataclass
class Run:
    """One run of an arm. `state` is that of its run.json where there is one, else "missing"; `why` belongs to it."""

    seed: int
    path: Path
    state: str
    why: str | None = None
    record: RunFolder | None = None


@dataclass
class Arm:
    name: str
    title: str
    recipe: str
    difference: dict[str, Any] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)


@dataclass
class Study:
    """What is compared: arms, the one they are compared with, and the split, protocol and score that decide."""

    id: str
    title: str
    question: str
    split: str
    protocol: str
    metric: str
    base: str
    arms: list[Arm]


def load_study(path: Path | str) -> Study:
    """The study in a folder with study.json, or in that file, with its run folders as they are now.

    A run folder that is not there, or cannot be read, becomes a run of state "missing" with the reason.
    Raises InputError where study.json itself cannot be used.
    """
    file = Path(path)
    file = file / STUDY_FILE if file.is_dir() else file
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            "This is no study: it has no study.json.", where=path, expected="a folder made by anban study"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"The study's record cannot be read: {error}.", where=file) from error
    found = info.get("format") if isinstance(info, dict) else None
    if found != STUDY_FORMAT:
        raise InputError(f"The study's record has format {found!r}.", where=file, expected=STUDY_FORMAT)
    try:
        arms = [
            Arm(
                name=arm["name"],
                title=arm.get("title") or arm["name"],
                recipe=arm["recipe"],
                difference=arm.get("difference") or {},
                runs=[_run_of(file.parent, run) for run in arm["runs"]],
            )
            for arm in info["arms"]
        ]
        study = Study(
            id=info["id"],
            title=info.get("title") or info["id"],
            question=info.get("question") or "",
            split=info["split"],
            protocol=info["protocol"],
            metric=info["metric"],
            base=info["base"],
            arms=arms,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The study's record is incomplete: {error!r}.", where=file, expected=STUDY_FORMAT
        ) from error
    _check(study, file)
    return study


def runs_as_study(
    paths: Sequence[Path | str],
    *,
    split: str | None = None,
    protocol: str | None = None,
    metric: str | None = None,
) -> Study:
    """Plain run folders as a study: runs of one effective configuration (hash) are an arm.

    The base is the arm whose recipe the others name as theirs, else the arm of the first path. A run whose record is
    damaged is passed over with a warning.

    Args:
        split, protocol: None takes those of the first score (that fits the other one, if given) of the first
            finished run that has one, else test and whole.
        metric: None takes the number that picked the checkpoint of the first finished run, else f1.

    Raises InputError for a path that is no run folder, and when there is no readable one.
    """
    records = list(readable(paths))
    if not records:
        raise InputError("no run to report", expected="at least one readable run folder")
    groups: dict[str, list[RunFolder]] = {}
    for record in records:
        # A record without a hash is like no other.
        groups.setdefault(str(record.info.get("hash") or record.path), []).append(record)
    arms: list[Arm] = []
    for key, group in groups.items():
        info = group[0].info
        name = str(info["recipe"])
        if any(arm.name == name for arm in arms):
            name = f"{name} ({key})"  # the same recipe with values from the command line
        arms.append(
            Arm(
                name=name,
                title=_unused(str(info.get("title") or name), key, arms),
                recipe=str(info["recipe"]),
                difference=dict(info.get("difference") or {}),
                runs=[_as_run(record) for record in group],
            )
        )
    named = [record.info.get("base") for record in records]
    base = next((arm for arm in arms if arm.recipe in named), arms[0])
    finished = [record for record in records if record.state == "finished"]
    first = next(iter(finished), records[0])
    best = (first.info.get("progress") or {}).get("best") or {}
    evaluated = (
        (str(score["split"]), str(score["protocol"]))
        for record in finished
        for score in record.info.get("scores") or []
        if split in (None, score["split"]) and protocol in (None, score["protocol"])
    )
    found = next(evaluated, ("test", "whole"))
    return Study(
        id="runs",
        title=" and ".join(arm.title for arm in arms) if len(arms) < 3 else f"{len(arms)} configurations",
        question="",
        split=split or found[0],
        protocol=protocol or found[1],
        metric=metric or best.get("name") or "f1",
        base=base.name,
        arms=arms,
    )


def experiment(run: RunFolder) -> dict[str, Any]:
    """What the run's effective recipe sets, by dotted key, without what only describes it; {} where there is none."""
    if not run.recipe_file.is_file():
        return {}
    return without_description(dict(flatten(read(run.recipe_file))))


def without_description(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and values without those that change nothing about the experiment."""
    return {key: value for key, value in flat.items() if key.split(".")[0] not in DESCRIBING}


def compare(
    study: Study,
    metrics: Sequence[str] | None = None,
    *,
    mix: bool = False,
    pool: Literal["study", "pair"] = "study",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Every arm's scores, and its difference to the base with an interval (see `anban.study.stats`).

    Used are finished runs with per-image lines for the study's split and protocol (of checkpoint "best" where its
    scores are there), one per seed: of several the last in the list. All others are listed under "left_out" with the reason. A score of `binary_scores` is that of an image
    set's summed counts; any other is the mean of the per-image scores in samples.jsonl.

    Args:
        metrics: names of scores; None takes the study's one and the other binary scores if there are counts.
        mix: compare even if runs differ in test images (then on the common ones), data or protocol, and say so
            under "mixed".
        pool: whether the variance between runs is taken from all arms or from the two compared.
        level, resamples, seed: of the intervals.

    Returns: {"format", "id", "title", "question", "split", "protocol", "stamp", "metric", "metrics", "base", "level",
        "resamples", "pool", "images", "mixed": [text], "left_out": [{"arm", "seed", "path", "state", "why"}],
        "arms": [{"name", "title", "recipe", "difference", "is_base", "seeds": [int], "n", "runs": [path], "metrics":
            {name: {"higher_is_better", "values": [per seed], "mean", "std", "n",
                    "difference": null (the base itself, or no runs to compare) | {"value", "low", "high", "verdict",
                        "covers", "images", "seeds": [arm's, base's], "level", "undefined", "note"}}}}]}
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
        for row in arms:
            name = row["name"]
            row["metrics"][measure.name] = {
                "higher_is_better": measure.higher_is_better,
                **_summary(values[name]),
                "difference": None,
            }
            if name != study.base and sums[name] and sums[study.base]:
                result = difference(
                    sums[name],
                    sums[study.base],
                    measure,
                    spread=spread,
                    level=level,
                    resamples=resamples,
                    seed=seed,
                )
                row["metrics"][measure.name]["difference"] = {**asdict(result), "seeds": list(result.seeds)}
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


def _run_of(folder: Path, entry: Mapping[str, Any]) -> Run:
    """A run as study.json names it, with what its own folder says: the run may have gone on since."""
    path, seed = entry.get("path"), int(entry["seed"])
    if path is None:
        return Run(seed, folder, entry.get("state") or "missing", entry.get("why") or "it was never started")
    try:
        run = _as_run(RunFolder.open((folder / path).resolve()), seed)
    except InputError as error:
        state = entry.get("state") if entry.get("state") in ENDED_EARLY else "missing"
        return Run(seed, folder / path, str(state), entry.get("why") or error.what)
    if run.state == "lost" and entry.get("state") in ENDED_EARLY:  # the run's disk did not take its end
        run.state, run.why = entry["state"], entry.get("why")
    return run


def _as_run(record: RunFolder, seed: int | None = None) -> Run:
    seed = int(record.info.get("seed") or 0) if seed is None else seed
    return Run(seed, record.path, record.state, record.info.get("why"), record)


def _unused(title: str, key: str, arms: Sequence[Arm]) -> str:
    return f"{title} ({key})" if any(arm.title == title for arm in arms) else title


def _check(study: Study, file: Path) -> None:
    names = [arm.name for arm in study.arms]
    if len(set(names)) != len(names):
        raise InputError("two arms have the same name", where=file, expected="a name for each")
    if study.base not in names:
        raise InputError(f"the base {study.base!r} is no arm", where=file, expected=", ".join(names))
