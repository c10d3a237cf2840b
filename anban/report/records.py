"""A study as the report shows it: its records with what `anban.study.compare` made of them.

This is the one place that knows the shape of a comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anban.errors import InputError
from anban.study.compare import compare
from anban.study.records import Result, Run, Study, load_study, runs_as_study
from anban.study.stats import Difference


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
            runs.append(replace(run, state=state, why=why))
        title = arm.title
        if title == arm.name == study.base:
            # Variants of one recipe all have its title: it stays with the base.
            title = _recorded_title(runs) or title
        results = {name: _result(entry) for name, entry in row["metrics"].items()}
        arms.append(replace(arm, title=title, runs=tuple(runs), results=results))
    bare = [run.id for arm in arms for run in arm.finished if not run.protocol(study.split, study.protocol)]
    if bare:
        raise InputError(
            f"These runs have scores on {study.split!r} under a protocol {study.protocol!r} that they do not describe.",
            where=", ".join(bare),
            expected=f"{study.split}/{study.protocol} under `protocols` in run.json",
            do="evaluate them again with anban eval",
        )
    return replace(study, arms=tuple(arms), mixed=tuple(answer["mixed"]))


def _recorded_title(runs: Sequence[Run]) -> str | None:
    """What the recipe of the runs calls itself: better to read than the bare name of an untitled base."""
    return next((str(run.info["title"]) for run in runs if run.info.get("title")), None)


def _result(entry: dict[str, Any]) -> Result:
    found = entry["difference"]
    difference = None if found is None else Difference(**{**found, "seeds": tuple(found["seeds"])})
    return Result(tuple(entry["values"]), entry["mean"], entry["std"], difference)


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
