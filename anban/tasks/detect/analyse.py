"""What a run found and missed, from its record alone: `python -m anban.tasks.detect.analyse RUN [OUT]`.

Prints AP by class, the kinds of errors by class and, with OUT, a folder, writes `classes.csv`, `confusion.csv` and the figures
`confusion.png` and `precision-recall.png`.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anban.errors import InputError
from anban.metrics.detection import ERRORS, CocoResult, coco, errors, matches, voc_ap
from anban.tasks.detect.metric import detected

BACKGROUND = "background"


@dataclass(frozen=True)
class Analysis:
    """What is known of a split's boxes.

    Attributes:
        classes: names.
        objects: of each class, (K,).
        result: COCO's evaluation.
        voc: VOC's average precision of each class at IoU 0.5, (K,).
        errors: kind -> how many for each class, (K,), see `anban.metrics.detection.errors`.
        confusion: (K + 1, K + 1), [truth, found], background last.
    """

    classes: tuple[str, ...]
    objects: NDArray[np.int64]
    result: CocoResult
    voc: NDArray[np.float64]
    errors: dict[str, NDArray[np.int64]]
    confusion: NDArray[np.int64]

    def rows(self) -> list[list[str]]:
        """A table of the classes, its heading first."""
        rows = [["class", "objects", "AP", "VOC AP", *ERRORS]]
        for number, name in enumerate(self.classes):
            shares = (self.result.per_class[number], self.voc[number])
            rows.append([name, str(self.objects[number]), *("–" if np.isnan(x) else f"{100 * x:.2f}" for x in shares),
                         *(str(self.errors[kind][number]) for kind in ERRORS)])  # fmt: skip
        return rows


def analyse(run: Path) -> Analysis:
    """The result of a run: the first of its splits and protocols, with the boxes whose score its recipe lets count.

    Raises:
        InputError: no detection run, or one that is not evaluated.
    """
    try:
        info = json.loads((run / "run.json").read_text(encoding="utf-8"))
        split, protocol = next(iter(info["protocols"])).split("/", 1)
        stamp = info["protocols"][f"{split}/{protocol}"]
        lines = (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        raise InputError("This is no run that was evaluated.", where=run, expected="a run folder") from None
    records = [json.loads(line) for line in lines]
    records = [each for each in records if (each["split"], each["protocol"]) == (split, protocol)]
    latest = {each["name"]: each for each in records}  # a run may be evaluated again
    if not latest or any("found" not in each for each in latest.values()):
        raise InputError(
            "The run's record has no boxes.", where=run / "samples.jsonl", expected="a detection run"
        )
    images = [detected(each) for each in latest.values()]
    classes, score = tuple(stamp["classes"]), float(stamp["pairs"].rpartition(" ")[2])
    return Analysis(
        classes,
        np.bincount(np.concatenate([each.classes for each in images]), minlength=len(classes)),
        coco(images, len(classes)),
        voc_ap(images, len(classes)),
        errors(images, len(classes), score=score),
        matches(images, len(classes), score=score).confusion,
    )


def write(analysis: Analysis, out: Path) -> list[Path]:
    """The tables and figures of an analysis."""
    out.mkdir(parents=True, exist_ok=True)
    labels = [*analysis.classes, BACKGROUND]
    tables = {
        "classes": analysis.rows(),
        "confusion": [["truth", *labels], *([label, *map(str, row)] for label, row in zip(labels, analysis.confusion, strict=True))],
    }  # fmt: skip
    for name, rows in tables.items():
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    figures = {
        "confusion": draw_confusion(analysis.confusion, labels),
        "precision-recall": draw_curves(analysis),
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=150, bbox_inches="tight")
    return [*(out / f"{name}.csv" for name in tables), *(out / f"{name}.png" for name in figures)]


def draw_confusion(confusion: NDArray[np.int64], labels: Sequence[str]) -> Figure:
    """Truth downwards, what was found to the right; the colour is the share of a truth, the number how many."""
    side = max(4.0, 0.35 * len(labels))
    figure = Figure(figsize=(side, side))
    axes = figure.add_subplot()
    total = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(confusion / total, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            dark = count > total[row, 0] / 2
            axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("found")
    axes.set_ylabel("truth")
    return figure


def draw_curves(analysis: Analysis) -> Figure:
    """Precision over recall at IoU 0.5, a line for each class that has objects."""
    figure = Figure(figsize=(5, 4))
    axes = figure.add_subplot()
    recalls = np.linspace(0, 1, 101)
    for name, precision in zip(analysis.classes, analysis.result.precision, strict=True):
        if not np.isnan(precision).any():
            axes.plot(recalls, precision, label=f"{name} {100 * precision.mean():.1f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    if len(axes.lines) in range(1, 21):
        axes.legend(title="AP50", fontsize=7)
    return figure


def main(arguments: Sequence[str]) -> None:
    """Print the analysis of a run, and write it where a folder is given."""
    if len(arguments) not in (1, 2):
        sys.exit("usage: python -m anban.tasks.detect.analyse RUN [OUT]")
    try:
        analysis = analyse(Path(arguments[0]))
    except InputError as error:
        sys.exit(str(error))
    rows = analysis.rows()
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(arguments) == 2:
        for path in write(analysis, Path(arguments[1])):
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
