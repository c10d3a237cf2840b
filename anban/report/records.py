"""A study as the report reads it: its runs' records with what `anban.study.compare` made of them.

Everything here is read only and comes from files; nothing needs torch, a GPU or the data set. This is the one place
that knows the shape of a comparison.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anban.errors import InputError
from anban.record import RunFolder
from anban.study.compare import compare, experiment, load_study, runs_as_study, without_description


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        state: "finished" where the comparison uses the run; else what became of it (failed, interrupted, missing,
            unused, ...) with the reason in `why`.
        record: what the folder holds; None where it never came to be or its run.json cannot be read.
    """

    path: Path
    seed: int
    state: str
    why: str | None = None
    record: RunFolder | None = field(default=None, repr=False)

    @cached_property
    def info(self) -> dict[str, Any]:
        """run.json, {} without a record."""
        return self.record.info if self.record else {}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return self.record.metrics() if self.record else []

    @cached_property
    def has_folder(self) -> bool:
        return (self.path / "run.json").is_file()

    @property
    def id(self) -> str:
        return str(
            self.info.get("id") or (self.path.name if self.has_folder else f"no folder, seed {self.seed}")
        )

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    def protocol(self, split: str, name: str) -> dict[str, Any]:
        """The stamp that run.json stores for this split and protocol, {} where there is none."""
        return (self.record.stamp(split, name) if self.record else None) or {}

    def checkpoint(self, split: str, protocol: str) -> str | None:
        """The checkpoint whose scores are reported."""
        return self.record.scored_checkpoint(split, protocol) if self.record else None

    def counts(self, split: str, protocol: str) -> dict[str, dict[str, int]]:
        """Image name -> {"tn", "fp", "fn", "tp"}."""
        return {s["name"]: s["counts"] for s in self._samples(split, protocol) if s.get("counts")}

    def image_score(self, split: str, protocol: str, image: str, name: str) -> float | None:
        """The per-image score `name` of `image`, None where it is undefined or was not recorded."""
        found = (s for s in self._samples(split, protocol) if s["name"] == image)
        return next(((s.get("scores") or {}).get(name) for s in found), None)

    def _samples(self, split: str, protocol: str) -> list[dict[str, Any]]:
        """The per-image lines of the checkpoint that is reported."""
        if (split, protocol) not in self._read:
            lines = (
                self.record.samples(split, protocol, self.checkpoint(split, protocol)) if self.record else []
            )
            self._read[split, protocol] = lines
        return self._read[split, protocol]

    @cached_property
    def _read(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        return {}

    def series(self, split: str, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A recorded curve, of any protocol: steps (N,) ascending and values (N,), undefined as NaN."""
        points = {
            line["step"]: line["value"]
            for line in self.metrics
            if (line["split"], line["name"]) == (split, name)
        }
        steps = sorted(points)
        values = [np.nan if points[step] is None else points[step] for step in steps]
        return np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)

    @cached_property
    def recipe_text(self) -> str:
        """recipe.yaml as it stands, "" where it is missing."""
        path = self.path / "recipe.yaml"
        return path.read_text(encoding="utf-8") if self.info and path.is_file() else ""

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What the effective recipe sets, as a flat dict of dotted keys; {} where recipe.yaml is missing."""
        return experiment(self.record) if self.record else {}

    @cached_property
    def _pictured(self) -> dict[str, Any]:
        index = self.path / "figures" / "samples" / "index.json"
        return json.loads(index.read_text(encoding="utf-8")) if self.info and index.is_file() else {}

    @cached_property
    def pictures(self) -> dict[str, Path]:
        """Scene name -> folder with a.png, b.png, label.png, probability.png, in the recorded order."""
        folder = self.path / "figures" / "samples"
        return {each["name"]: folder / each["folder"] for each in self._pictured.get("samples", [])}

    @property
    def picture_threshold(self) -> float:
        """The threshold on the stored probabilities above which a pixel counts as change."""
        return float(self._pictured.get("threshold", 0.5))


@dataclass(frozen=True)
class Difference:
    """An arm's difference to the base on one score, in its unit.

    Attributes:
        low, high: the ends of its 95 % interval, None where there is none and `note` says why.
        verdict: "better", "worse" or "not distinguishable".
        covers: what the interval accounts for: "nothing", "images" or "images and seeds".
        seeds: runs of (the arm, the base).
    """

    value: float | None
    low: float | None
    high: float | None
    verdict: str
    covers: str
    images: int
    seeds: tuple[int, int]
    note: str | None = None


@dataclass(frozen=True)
class Result:
    """One score of one arm: values in run order, mean and sample standard deviation (None where undefined)."""

    values: tuple[float | None, ...]
    mean: float | None
    std: float | None
    difference: Difference | None = None


@dataclass(frozen=True)
class Arm:
    """One method or variant of the study with its runs in seed order and its results by score name."""

    name: str
    title: str
    recipe: str
    difference: dict[str, Any]
    runs: tuple[Run, ...]
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.finished)

    @property
    def why_empty(self) -> str:
        """Why no run of the arm is used, as words after "because": finished runs may not be evaluated as asked."""
        unused = dict.fromkeys(run.why for run in self.runs if run.state == "unused" and run.why)
        return "; ".join(unused) if unused else "none of its runs finished"

    @cached_property
    def root(self) -> str:
        """The complete recipe this arm stands on: its recipe's base where the recipe is itself a difference."""
        return next((str(run.info["base"]) for run in self.runs if run.info.get("base")), self.recipe)

    @cached_property
    def switches(self) -> dict[str, Any]:
        """Dotted key -> value of everything this arm changes from its root."""
        recorded: dict[str, Any] = next(
            (run.info["difference"] for run in self.runs if run.info.get("difference")), {}
        )
        return without_description({**recorded, **self.difference})


@dataclass(frozen=True)
class Study:
    """One question, its arms and their results.

    Attributes:
        split, protocol, metric: what the verdicts go by.
        base: name of the arm that the others are compared with.
        mixed: what is not alike in the runs (protocol, data, images) where mixing was asked for, as texts.
    """

    id: str
    title: str
    question: str
    split: str
    protocol: str
    metric: str
    base: str
    arms: tuple[Arm, ...]
    mixed: tuple[str, ...] = ()

    @property
    def runs(self) -> list[tuple[Arm, Run]]:
        return [(arm, run) for arm in self.arms for run in arm.runs]

    @property
    def finished(self) -> list[tuple[Arm, Run]]:
        return [(arm, run) for arm, run in self.runs if run.finished]

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def open_study(
    source: Path | str | Sequence[Path | str],
    *,
    split: str | None = None,
    protocol: str | None = None,
    metric: str | None = None,
    mix_protocols: bool = False,
) -> Study:
    """The study to report on: a study.json, its folder, or run folders that are taken together as one study.

    Args:
        source: one path, or a list of them; several must all be run folders.
        split, protocol: replace the study's own; of run folders, those of the first score are the default.
        metric: replaces the study's own score for differences and curves.
        mix_protocols: allow runs of different protocols, data or test images; `mixed` then says what differs.

    Raises:
        InputError: nothing of that kind is there, runs are mixed unasked, or a number carries no protocol.
    """
    paths = [Path(source)] if isinstance(source, str | Path) else [Path(each) for each in source]
    are_runs = [(path / "run.json").is_file() or path.name == "run.json" for path in paths]
    if paths and all(are_runs):
        study = runs_as_study(paths, split=split, protocol=protocol)
    elif len(paths) == 1:
        study = load_study(paths[0])
    else:
        raise InputError(
            "Several sources can be reported together only where all of them are run folders.",
            where=", ".join(str(path) for path, is_run in zip(paths, are_runs, strict=True) if not is_run)
            or None,
            expected="one study, or run folders (each with a run.json)",
        )
    study = replace(
        study,
        split=split or study.split,
        protocol=protocol or study.protocol,
        metric=metric or study.metric,
    )
    answer = compare(study, mix=mix_protocols)
    left_out = {
        (row["arm"], row["seed"], row["path"]): (row["state"], row["why"]) for row in answer["left_out"]
    }
    arms = []
    for arm, row in zip(study.arms, answer["arms"], strict=True):
        runs = []
        for run in arm.runs:
            state, why = left_out.get((arm.name, run.seed, str(run.path)), (run.state, run.why))
            runs.append(Run(run.path, run.seed, state, why, run.record))
        results = {name: _result(entry) for name, entry in row["metrics"].items()}
        ordered = tuple(sorted(runs, key=lambda run: run.seed))
        title = arm.title
        if title == arm.name == study.base:
            # Variants of one recipe all have its title: it stays with the base.
            title = _recorded_title(runs) or title
        arms.append(
            Arm(arm.name, title, arm.recipe, arm.difference, ordered, _in_order(results, runs, ordered))
        )
    bare = [run.id for arm in arms for run in arm.finished if not run.protocol(study.split, study.protocol)]
    if bare:
        raise InputError(
            f"These runs have scores on {study.split!r} under a protocol {study.protocol!r} that they do not describe.",
            where=", ".join(bare),
            expected=f"{study.split}/{study.protocol} under `protocols` in run.json",
            do="evaluate them again with anban eval",
        )
    return Study(
        study.id,
        study.title,
        study.question,
        study.split,
        study.protocol,
        study.metric,
        study.base,
        tuple(arms),
        tuple(answer["mixed"]),
    )


def _recorded_title(runs: Sequence[Run]) -> str | None:
    """What the recipe of the runs calls itself: better to read than the bare name of an untitled base."""
    return next((str(run.info["title"]) for run in runs if run.info.get("title")), None)


def _result(entry: dict[str, Any]) -> Result:
    found = entry["difference"]
    difference = None
    if found is not None:
        keys = ("value", "low", "high", "verdict", "covers", "images", "note")
        difference = Difference(seeds=tuple(found["seeds"]), **{key: found[key] for key in keys})
    return Result(tuple(entry["values"]), entry["mean"], entry["std"], difference)


def _in_order(results: dict[str, Result], found: Sequence[Run], ordered: Sequence[Run]) -> dict[str, Result]:
    """The results with their single values in the order of `ordered` instead of `found`."""
    was = [run for run in found if run.finished]
    places = [was.index(run) for run in ordered if run.finished]
    return {
        name: replace(result, values=tuple(result.values[place] for place in places))
        for name, result in results.items()
    }


def protocol_text(protocol: dict[str, Any]) -> str:
    """A protocol in one line: "whole: 256x256, whole tiles, no flips, scales 1, threshold 0.5, ..."."""
    scales = ", ".join(f"{scale:g}" for scale in protocol.get("scales") or [1.0])
    tiling = protocol.get("tiling")
    parts = [
        f"input {protocol['size']}" if protocol.get("size") else None,
        f"tiling {tiling}" + (f" with stride {protocol['stride']}" if protocol.get("stride") else ""),
        f"flips {protocol.get('flips') or 'none'}",
        f"{'scale' if ',' not in scales else 'scales'} {scales}",
        f"threshold {protocol['threshold']:g}" if protocol.get("threshold") is not None else None,
        f"ignore value {protocol['ignore']}" if protocol.get("ignore") is not None else "no ignore value",
        f"classes {' / '.join(map(str, protocol.get('classes') or []))}" if protocol.get("classes") else None,
        f"data range {protocol['data_range']}" if protocol.get("data_range") else None,
        f"{protocol['averaging']} averaging" if protocol.get("averaging") else None,
    ]
    return ", ".join(part for part in parts if part)
