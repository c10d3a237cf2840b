"""A study as the report shows it: its records with what `anban.study.compare` made of them.

This is the one place that knows the shape of a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    differences = {row["arm"]: row["difference"] for row in answer["expected"]}
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
        expected = arm.expected
        if expected is not None:
            expected = replace(expected, difference=_difference(differences[arm.name]))
        arms.append(replace(arm, title=title, runs=tuple(runs), results=results, expected=expected))
    bare = [run.id for arm in arms for run in arm.finished if not run.protocol(study.split, study.protocol)]
    if bare:
        raise InputError(
            f"These runs have scores on {study.split!r} under a protocol {study.protocol!r} that they do not describe.",
            where=", ".join(bare),
            expected=f"{study.split}/{study.protocol} under `protocols` in run.json",
            do="evaluate them again with anban eval",
        )
    return replace(study, arms=tuple(arms), mixed=tuple(answer["mixed"]), counted=answer["counted"])


def _recorded_title(runs: Sequence[Run]) -> str | None:
    """What the recipe of the runs calls itself: better to read than the bare name of an untitled base."""
    return next((str(run.info["title"]) for run in runs if run.info.get("title")), None)


def _result(entry: dict[str, Any]) -> Result:
    return Result(tuple(entry["values"]), entry["mean"], entry["std"], _difference(entry["difference"]))


def _difference(found: dict[str, Any] | None) -> Difference | None:
    return None if found is None else Difference(**{**found, "seeds": tuple(found["seeds"])})


MOST_CLASSES = 4  # are named in a protocol's text; more are counted


def protocol_text(protocol: dict[str, Any]) -> str:
    """A protocol in one line: "input 256x256, tiling whole, flips none, scale 1, threshold 0.5, ..."."""
    known: dict[str, Callable[[Any], str]] = {
        "size": lambda size: f"input {size}" if size else "",
        "tiling": lambda tiling: f"tiling {tiling}" + (f" with stride {stride}" if stride else ""),
        "flips": lambda flips: f"flips {flips or 'none'}",
        "scales": lambda scales: (
            f"scale{'s' if len(scales or [1]) > 1 else ''} {', '.join(f'{x:g}' for x in scales or [1])}"
        ),
        "threshold": lambda threshold: "" if threshold is None else f"threshold {threshold:g}",
        "ignore": lambda ignore: "no ignore value" if ignore is None else f"ignore value {ignore}",
        "classes": _classes_text,
        "data_range": lambda limits: f"data range {limits}" if limits else "",
        "averaging": lambda averaging: f"{averaging} averaging" if averaging else "",
    }
    stride = protocol.get("stride")
    parts = [text(protocol[key]) for key, text in known.items() if key in protocol]
    others = {key: value for key, value in protocol.items() if key not in known}
    parts += [
        f"{key.replace('_', ' ')} {plain(value)}"
        for key, value in others.items()
        if key not in ("name", "split", "stride") and value is not None
    ]
    return ", ".join(part for part in parts if part)


def _classes_text(classes: Sequence[str] | None) -> str:
    if not classes:
        return ""
    return (
        f"{len(classes)} classes"
        if len(classes) > MOST_CLASSES
        else f"classes {' / '.join(map(str, classes))}"
    )


def plain(value: Any) -> str:
    """A recorded value in words."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
