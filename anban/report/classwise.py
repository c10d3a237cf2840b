"""What a matrix [label, prediction] of K classes shows beyond one number: the IoU of each class, and what is taken for what.

Matrices are those of whole runs, summed over the images; what is shown of an arm is the mean over its runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anban.metrics import class_iou
from anban.report.figures import INK, PAGE, paper, settled, wrapped
from anban.report.sheets import Chart
from anban.report.tables import Cell, Column, Row, Table, ranked, scores_caption, stamp_of, transposed
from anban.study.records import Arm, Study
from anban.study.stats import Floats

MOST_COLUMNS = 12  # classes as columns; more of them are rows
SMALLEST_TYPE = 3.2  # points; numbers that would have to be smaller are left out


def class_names(study: Study, count: int) -> list[str]:
    """The names of the classes as the protocol has them, or the pictures; else their numbers."""
    for _, run in study.finished:
        for found in (run.protocol(study.split, study.protocol).get("classes"), run.pictured.get("classes")):
            if isinstance(found, list) and len(found) == count:
                return [str(name) for name in found]
    return [str(number) for number in range(count)]


def _matrices(study: Study) -> list[tuple[Arm, dict[str, Floats]]]:
    """Arms with the matrices of their finished runs by run id, where they have any."""
    found = []
    for arm in study.arms:
        matrices = {
            run.id: m for run in arm.finished if (m := run.matrix(study.split, study.protocol)) is not None
        }
        if matrices:
            found.append((arm, matrices))
    return found


def class_table(study: Study) -> Table | None:
    """The IoU of each class: methods as rows and classes as columns, or the other way round for many classes.

    Returns None where no run counted more than two classes: their two IoU are among the scores.
    """
    found = {arm.name: matrices for arm, matrices in _matrices(study)}
    count = max((len(m) for matrices in found.values() for m in matrices.values()), default=0)
    if count < 3:
        return None
    ious = {arm: {run: class_iou(m) for run, m in matrices.items()} for arm, matrices in found.items()}
    return table_of_classes(
        study, class_names(study, count), "IoU", ious, undefined="Neither labelled nor predicted."
    )


def table_of_classes(
    study: Study,
    names: Sequence[str],
    score: str,
    values: Mapping[str, Mapping[str, Floats]],
    undefined: str,
) -> Table:
    """A score of each class: methods as rows and classes as columns, or the other way round for many classes.

    Args:
        score: what it is called.
        values: name of an arm -> id of a run -> the score of each class, (K,), 0..1, NaN where undefined.
        undefined: why a score is.
    """
    key = score.lower()
    columns = [Column("method", "Method")]
    columns += [Column(f"{key}:{name}", name, "number", "higher", 100.0, 1) for name in names]
    rows = []
    for _, arm in study.rows:
        own = values.get(arm.name, {})
        cells = {"method": Cell(arm.title)}
        for k, name in enumerate(names):
            cells[f"{key}:{name}"] = mean_cell([each[k] for each in own.values()], tuple(own), undefined)
        rows.append(Row(arm.name, cells, stamp_of(study, arm)))
    caption = f"{score} of each class in percent, {scores_caption(study)}"
    table = ranked(Table("classes", "Classes", caption, tuple(columns), tuple(rows)))
    return transposed(table, "Class") if len(names) > MOST_COLUMNS else table


def mean_cell(values: Sequence[float], runs: tuple[str, ...], undefined: str) -> Cell:
    """The mean over runs and its spread; with the note `undefined` where a value is NaN."""
    each = tuple(None if np.isnan(value) else float(value) for value in values)
    if not each or None in each:
        return Cell(None, runs=runs, note=undefined if each else "No run to take it from.", each=each)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Cell(float(np.mean(values)), spread, runs=runs, each=each)


def one_class_only(study: Study, arm: Arm) -> dict[str, list[str]]:
    """Name of a class -> the finished runs of an arm that predicted nothing else, though there was something else."""
    found: dict[str, list[str]] = {}
    for run in arm.finished:
        matrix = run.matrix(study.split, study.protocol)
        if matrix is None:
            continue
        predicted, labelled = (np.flatnonzero(matrix.sum(axis=axis)) for axis in (0, 1))
        if len(predicted) == 1 and set(labelled) - set(predicted):
            found.setdefault(class_names(study, len(matrix))[predicted[0]], []).append(run.id)
    return found


# --- confusion matrices -----------------------------------------------------------------------------------------


def shares(matrices: Sequence[Floats]) -> Floats:
    """Of the pixels of each class, the share predicted as each class (K, K), mean over runs; NaN where there are none."""
    totals = [matrix.sum(axis=1, keepdims=True) for matrix in matrices]
    each = [
        np.divide(matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)
        for matrix, total in zip(matrices, totals, strict=True)
    ]
    mean: Floats = np.mean(each, axis=0)
    return mean


def confusion(study: Study) -> Figure | None:
    """A K x K matrix per arm: of the pixels that truly are of a class, the share predicted as each class, in percent.

    Rows are the truth and add up to 100 %; shares are of all test pixels of a run, then averaged over its seeds.
    Returns None where no run counted anything.
    """
    known = [(arm.title, shares(list(matrices.values()))) for arm, matrices in _matrices(study)]
    return draw_shares(known, class_names(study, len(known[0][1]))) if known else None


def confusion_charts(study: Study) -> list[Chart]:
    """The matrices as the page shows them; none where no run counted anything."""
    caption = (
        "Of the pixels that truly are of a class, the share predicted as each class, in percent: rows add up to 100. "
        "Means over seeds."
    )
    figure = confusion(study)
    return [Chart("confusion", "Confusion", caption, figure)] if figure else []


def draw_shares(known: Sequence[tuple[str, Floats]], names: Sequence[str]) -> Figure:
    """A matrix of shares (K, K) under each title, side by side as far as they fit."""
    count = len(names)
    abreast = min(len(known), 4 if count < 3 else 3 if count < 7 else 2 if count < 25 else 1)
    lines = -(-len(known) // abreast)
    longest = max(map(len, names))
    of_names = 0.3 if count < 3 else 0.045 * longest + 0.25  # inches beside and below a matrix
    side = min((PAGE - of_names) / abreast, 1.75 if count < 3 else 3.2)
    cell = 72 * (side - 0.1) / count  # points
    with paper():
        size = (side * abreast + of_names, (side + 0.15) * lines + of_names)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(lines, abreast, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(known):
                axes.set_axis_off()
                continue
            title, share = known[place]
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            _numbers(axes, share, cell)
            axes.set_title("\n".join(wrapped(title, 24)), fontsize=7)
            _names(
                axes,
                names,
                min(6.0, 0.85 * cell),
                left=place % abreast == 0,
                below=place + abreast >= len(known),
            )
        return settled(figure)


def _numbers(axes: Axes, share: Floats, cell: float) -> None:
    """Percent in every cell of two classes; rounded, and without what rounds to 0, in those of more."""
    few = len(share) < 3
    size = min(7.5, cell / (4 if few else 2.4))
    if size < SMALLEST_TYPE:
        return
    for (truth, predicted), value in np.ndenumerate(share):
        exact = "–" if np.isnan(value) else f"{100 * value:.1f} %"
        text = exact if few else "" if np.isnan(value) or value < 0.005 else f"{100 * value:.0f}"
        dark = not np.isnan(value) and value > 0.55
        axes.text(
            predicted, truth, text, ha="center", va="center", color="white" if dark else INK, fontsize=size
        )


def _names(axes: Axes, names: Sequence[str], size: float, *, left: bool, below: bool) -> None:
    """Names at the left and below; those of two classes stand upright, in two lines if need be."""
    few = len(names) < 3
    places = range(len(names))
    shown = ["\n".join(wrapped(name, 8)) for name in names] if few else list(names)
    axes.set_xticks(places, list(names) if below or few else [""] * len(names), rotation=0 if few else 90)
    axes.set_yticks(places, shown if left or few else [""] * len(names))
    axes.tick_params(length=0, labelsize=size)
    axes.grid(visible=False)
    for line in np.arange(len(names) - 1) + 0.5:
        axes.axhline(line, color="white", linewidth=1.5 if few else 0.4)
        axes.axvline(line, color="white", linewidth=1.5 if few else 0.4)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if left:
        axes.set_ylabel("truth")
    if below:
        axes.set_xlabel("prediction")
