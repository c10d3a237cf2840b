"""Scores of single patients and of single slices, where the lines of samples.jsonl name a `patient`.

The score of a run is the mean over its slices, to which a patient gives as many as were cut of it. The mean over patients
counts every patient once, by the mean over its slices. Tables call each by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from anban.report.tables import (
    Cell,
    Column,
    Row,
    Table,
    compared_scores,
    score_column,
    scores_caption,
    stamp_of,
)
from anban.study.records import Arm, Run, Study
from anban.study.scores import INPUTS

Patients = dict[str, list[str]]  # patient, "" for unknown ones -> names of its slices
UNKNOWN = "not known"


class _Method(NamedTuple):
    """An arm, or with a prefix of INPUTS what its first run says of the data as they are."""

    title: str
    arm: Arm
    runs: Sequence[Run]
    prefix: str = ""


def patient_table(study: Study) -> Table | None:
    """The scores of each patient by method, then the mean over patients and that over slices.

    Returns None where no run names patients.
    """
    patients = _patients(study)
    if not patients:
        return None
    known = [slices for patient, slices in patients.items() if patient]
    every = [name for slices in patients.values() for name in slices]
    places = [(patient or UNKNOWN, [slices]) for patient, slices in patients.items()]
    places += [("Mean over patients", known), ("Mean over slices", [every])]
    columns = (Column("patient", "Patient"), Column("method", "Method"), Column("slices", "Slices", "count"))
    rows = []
    for place, groups in places:
        for method in _methods(study):
            count = sum(map(len, groups))
            cells = {"patient": Cell(place), "method": Cell(method.title), "slices": Cell(count)}
            rows.append(_row(study, method, cells, groups, place))
    caption = f"Means over the slices of each patient, {scores_caption(study)}"
    return Table("patients", "Patients", caption, (*columns, *_score_columns(study)), tuple(rows))


def slice_table(study: Study) -> Table | None:
    """The scores of each slice by method; None where no run names patients."""
    rows = []
    for patient, slices in _patients(study).items():
        for name in slices:
            for method in _methods(study):
                cells = {
                    "slice": Cell(name),
                    "patient": Cell(patient or UNKNOWN),
                    "method": Cell(method.title),
                }
                rows.append(_row(study, method, cells, [[name]], name))
    if not rows:
        return None
    columns = (Column("slice", "Slice"), Column("patient", "Patient"), Column("method", "Method"))
    caption = f"Scores of each slice, {scores_caption(study)}"
    return Table("slices", "Slices", caption, (*columns, *_score_columns(study)), tuple(rows))


def _patients(study: Study) -> Patients:
    """The slices of each patient, as the first finished run has them (all have the same); {} where none is known."""
    found: Patients = {}
    for _, run in study.finished[:1]:
        for name, patient in sorted(run.patients(study.split, study.protocol).items()):
            found.setdefault(patient, []).append(name)
    return dict(sorted(found.items())) if any(found) else {}


def _methods(study: Study) -> list[_Method]:
    """What every method starts from, then the methods."""
    found = []
    for prefix, title in INPUTS.items():
        arm = next((arm for arm in study.arms if any(name.startswith(prefix) for name in arm.results)), None)
        if arm is not None:
            found.append(_Method(title, arm, arm.finished[:1], prefix))
    return found + [_Method(arm.title, arm, arm.finished) for _, arm in study.rows]


def _score_columns(study: Study) -> list[Column]:
    return [score_column(name) for name in compared_scores(study)]


def _row(
    study: Study, method: _Method, cells: dict[str, Cell], groups: Sequence[Sequence[str]], place: str
) -> Row:
    for name in compared_scores(study):
        means = {
            run.id: mean
            for run in method.runs
            if (mean := _mean(study, run, method.prefix + name, groups)) is not None
        }
        values = tuple(means.values())
        spread = stdev(values) if len(values) > 1 else None
        cells[name] = Cell(fmean(values) if values else None, spread, runs=tuple(means), each=values)
    return Row(f"{place}/{method.prefix or method.arm.name}", cells, stamp_of(study, method.arm))


def _mean(study: Study, run: Run, score: str, groups: Sequence[Sequence[str]]) -> float | None:
    """Mean over groups of the mean over each group's slices, undefined ones left out; None where all are."""
    scored = (
        [run.image_score(study.split, study.protocol, name, score) for name in group] for group in groups
    )
    defined = [[value for value in values if value is not None] for values in scored]
    means = [fmean(values) for values in defined if values]
    return fmean(means) if means else None
