"""What the boxes of detection runs show beyond one number: the AP of each class, kinds of errors, curves, confusion.

All of it is worked out anew from the objects and boxes that the runs' lines hold; what is shown of an arm is the mean over
its runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from anban.metrics.detection import ERRORS, Analysis, analyse
from anban.report.classwise import draw_shares, mean_cell, shares, table_of_classes
from anban.report.figures import COLUMN, PAGE, arm_styles, paper, settled
from anban.report.sheets import Chart
from anban.report.tables import Cell, Column, Row, Table, scores_caption, stamp_of
from anban.study.records import Arm, Study

MOST_PANELS = 8  # curves of single classes, beside that of all

Analyses = Mapping[str, Mapping[str, Analysis]]
"""Name of an arm -> id of a run -> what is known of its boxes."""


def analyses(study: Study) -> Analyses:
    """Of the finished runs whose lines hold boxes of the same classes; {} for other kinds of runs."""
    found: dict[str, dict[str, Analysis]] = {}
    if study.counted != "boxes":
        return found
    classes = _classes(study)
    for arm, run in study.finished:
        stamp = run.protocol(study.split, study.protocol)
        if stamp["classes"] == classes:
            images = run.boxes(study.split, study.protocol)
            known = analyse(list(images.values()), len(classes), score=stamp["least_score"])
            found.setdefault(arm.name, {})[run.id] = known
    return found


def _classes(study: Study) -> list[str]:
    """The names of the classes, those of the first run."""
    _, run = study.finished[0]
    return list(run.protocol(study.split, study.protocol)["classes"])


def class_table(study: Study, found: Analyses) -> Table | None:
    """The AP of each class; None without boxes."""
    if not found:
        return None
    values = {
        arm: {run: known.result.per_class for run, known in runs.items()} for arm, runs in found.items()
    }
    return table_of_classes(
        study, _classes(study), "AP", values, undefined="There is no object of this class."
    )


def error_table(study: Study, found: Analyses) -> Table | None:
    """How many errors of each kind there are: a row per method, or per class where there is a single method."""
    if not found:
        return None
    alone = len(study.arms) == 1
    columns = [Column("row", "Class" if alone else "Method"), Column("objects", "Objects", "count")]
    columns += [Column(kind, kind.capitalize(), "number", digits=1) for kind in ERRORS]
    rows = [_error_row(study, arm, found, arm.name, arm.title, slice(None)) for _, arm in study.rows]
    if alone:
        of_class = [
            _error_row(study, study.arms[0], found, name, name, slice(k, k + 1))
            for k, name in enumerate(_classes(study))
        ]
        rows = [*of_class, *(replace(row, cells={**row.cells, "row": Cell("all")}) for row in rows)]
    least = study.finished[0][1].protocol(study.split, study.protocol)["least_score"]
    caption = (
        f"How many boxes of a score of at least {least:g} are wrong, by the kind of error (Bolya et al. 2020): of the wrong class, in "
        "the wrong place, both, on an object that was found already, on nothing; and how many objects were missed; "
        f"{scores_caption(study)}"
    )
    # Without any marks: who finds nothing makes few errors of most kinds.
    return Table("errors", "Errors", caption, tuple(columns), tuple(rows))


def _error_row(study: Study, arm: Arm, found: Analyses, key: str, title: str, classes: slice) -> Row:
    runs = found.get(arm.name, {})
    cells = {"row": Cell(title), "objects": Cell(None, note="No run to take it from.")}
    if runs:
        cells["objects"] = Cell(float(next(iter(runs.values())).objects[classes].sum()), runs=tuple(runs))
    for kind in ERRORS:
        counts = [float(known.errors[kind][classes].sum()) for known in runs.values()]
        cells[kind] = mean_cell(counts, tuple(runs), "")
    return Row(key, cells, stamp_of(study, arm))


def charts(study: Study, found: Analyses) -> list[Chart]:
    """Curves of precision over recall, and what is taken for what; none without boxes."""
    if not found:
        return []
    return [
        Chart(
            "precision-recall",
            "Precision and recall",
            "The best precision at a recall or more, at IoU 0.5, of boxes of any score. Means over seeds; all: over the classes.",
            _curves(study, found),
        ),
        Chart(
            "confusion",
            "Confusion",
            "Of the objects of a class, the share found as each class, in percent, and in the last column the share that "
            "no box was found for; in the last row the boxes that are no object. Rows add up to 100. Of all seeds together.",
            _confusion(study, found),
        ),
    ]


def _confusion(study: Study, found: Analyses) -> Figure:
    known = [
        (arm.title, shares([np.sum([each.confusion for each in found[arm.name].values()], axis=0)]))
        for arm in study.arms
        if arm.name in found
    ]
    return draw_shares(known, [*_classes(study), "background"])


def _curves(study: Study, found: Analyses) -> Figure:
    """A panel for all classes, and one for each of a few; a line for each arm."""
    names = _classes(study)
    there = [
        k
        for k in range(len(names))
        if any(known.objects[k] for runs in found.values() for known in runs.values())
    ]
    panels = [("all", there)]
    if 1 < len(there) <= MOST_PANELS:
        panels += [(names[k], [k]) for k in there]
    styles = arm_styles(study)
    abreast = len(panels) if len(panels) < 5 else 3
    lines = -(-len(panels) // abreast)
    recalls = np.linspace(0, 100, 101)
    with paper():
        figure = Figure(figsize=(PAGE if abreast > 1 else COLUMN, 2.1 * lines + 0.3), layout="constrained")
        grid = figure.subplots(lines, abreast, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for (title, shown), axes in zip(panels, grid.flat, strict=False):
            for arm, runs in found.items():
                mean = np.mean(
                    [known.result.precision[shown].mean(axis=0) for known in runs.values()], axis=0
                )
                axes.plot(recalls, 100 * mean, color=styles[arm][0], linestyle=styles[arm][1])
            axes.set(title=title, xlim=(0, 100), ylim=(0, 102))
        for axes in grid[:, 0]:
            axes.set_ylabel("precision (%)")
        for axes in grid.flat[max(0, len(panels) - abreast) : len(panels)]:
            axes.set_xlabel("recall (%)")
            axes.tick_params(labelbottom=True)
        handles = [
            Line2D([], [], color=styles[arm.name][0], linestyle=styles[arm.name][1], label=arm.title)
            for arm in study.arms
            if arm.name in found
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3))
        return settled(figure)
