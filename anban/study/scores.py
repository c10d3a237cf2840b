"""Scores by name: what they are called and shown in, and which of them follow from what a record counts.

A line of samples.jsonl holds per-image `scores`, numbers whose mean over the images is the score of a run. It may also
hold, under one of the keys of `COUNTED`, what a score needs of all images together: counts that are summed before anything
is divided (micro average), or boxes that are ranked together (average precision). A new kind is one more entry there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anban.metrics import CLASS_SCORES
from anban.metrics import SCORES as BINARY_SCORES
from anban.metrics.classes import class_totals, scores_of_totals
from anban.metrics.detection import BOX_SCORES, Detected, box_scores
from anban.metrics.ranked import RANKED_SCORES, Rankings
from anban.study.stats import Floats, Measure, micro


@dataclass(frozen=True)
class Score:
    """How a score is shown.

    Attributes:
        scale: from the recorded value to the shown one: 100 for shares, which are shown in percent.
        digits: after the point.
        unit: of the shown value where it is neither percent nor a bare number.
    """

    title: str
    scale: float = 100.0
    higher_is_better: bool = True
    digits: int = 2
    unit: str = ""

    @property
    def is_share(self) -> bool:
        """Whether it is a share of a whole, 0..1, and shown in percent."""
        return self.scale == 100.0

    @property
    def heading(self) -> str:
        """Title and unit, as over a column: "F1", "PSNR (dB)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def points(self) -> str:
        """What a difference is counted in: "F1 points", "PSNR (dB)"."""
        return f"{self.title} points" if self.is_share else self.heading


NAMED: dict[str, Score] = {
    "precision": Score("Pre"),
    "recall": Score("Rec"),
    "f1": Score("F1"),
    "iou": Score("IoU"),
    "oa": Score("OA"),
    "kappa": Score("Kappa"),
    "miou": Score("mIoU"),
    "pixel_acc": Score("PA"),
    "mean_acc": Score("mAcc"),
    "fwiou": Score("FWIoU"),
    "mf1": Score("mF1"),
    "ap": Score("AP"),
    "ap50": Score("AP50"),
    "ap75": Score("AP75"),
    "ap_small": Score("APs"),
    "ap_medium": Score("APm"),
    "ap_large": Score("APl"),
    "ar1": Score("AR1"),
    "ar10": Score("AR10"),
    "ar100": Score("AR100"),
    "ar_small": Score("ARs"),
    "ar_medium": Score("ARm"),
    "ar_large": Score("ARl"),
    "voc_ap50": Score("VOC AP"),
    "voc07_ap50": Score("VOC07 AP"),
    "mean_iou": Score("mean IoU"),
    "psnr": Score("PSNR", 1.0, unit="dB"),
    "ssim": Score("SSIM", 1.0, digits=4),
    "loss": Score("loss", 1.0, higher_is_better=False, digits=4),
    "mae": Score("MAE", 1.0, higher_is_better=False),
    "mse": Score("MSE", 1.0, higher_is_better=False),
    "rmse": Score("RMSE", 1.0, higher_is_better=False, unit="HU"),
    "lpips": Score("LPIPS", 1.0, higher_is_better=False, digits=4),
}


#: What the names of scores begin with that are of the data as they are, before any method, and what that is called.
INPUTS = {"low_dose_": "Low dose"}


def score_named(name: str) -> Score:
    """The score of that name; one that is not known is shown as it was recorded, and higher is better."""
    for prefix, title in INPUTS.items():
        if name.startswith(prefix):
            score = score_named(name.removeprefix(prefix))
            return replace(score, title=f"{title}: {score.title}")
    return NAMED.get(name) or Score(name, 1.0, digits=4)


@dataclass(frozen=True)
class Counted:
    """What lines hold of images, and the scores that follow from all images together.

    Attributes:
        take: a line of samples.jsonl -> what is kept of the image; of images that can be compared equally long.
        gather: what is kept of each image, in order -> what the measures take of a run.
        measure: the name of a score -> its measure.
        scores: the names of those scores.
        compared: those that stand in a table of methods, in its order.
        ablated: those that stand in a table of ablations.
        matrix: a line -> the matrix [label, prediction] of K classes (K, K); None for what has none.
    """

    take: Callable[[Mapping[str, Any]], Sized]
    gather: Callable[[Sequence[Any]], Sized]
    measure: Callable[[str], Measure]
    scores: tuple[str, ...]
    compared: tuple[str, ...]
    ablated: tuple[str, ...]
    matrix: Callable[[Mapping[str, Any]], Floats] | None = None


def _cells(line: Mapping[str, Any]) -> Floats:
    return np.asarray([line["counts"][cell] for cell in ("tn", "fp", "fn", "tp")], dtype=np.float64)


class _Boxes:
    """The boxes of a run, counted and ranked.

    Args:
        images: of each what `_of_boxes` keeps.
    """

    def __init__(self, images: Sequence[tuple[Floats, Detected]]):
        self.sums = np.stack([sums for sums, _ in images])
        self.ranked = Rankings([image for _, image in images])

    def __len__(self) -> int:
        return len(self.ranked)


def _of_boxes(line: Mapping[str, Any]) -> tuple[Floats, Detected]:
    """What `box_scores` takes, and the boxes themselves."""
    sums = [line["boxes"][key] for key in ("right", "found", "objects", "overlap")]
    return np.asarray(sums, dtype=np.float64), Detected.of(line["truth"], line["found"])


def _box_measure(name: str) -> Measure:
    if name in RANKED_SCORES:
        return Measure(name, lambda boxes, counts: boxes.ranked.score(name, counts))
    of_sums = micro(name, box_scores)
    return Measure(name, lambda boxes, counts: of_sums.of(boxes.sums, counts))


#: Key of a line of samples.jsonl -> what it counts.
COUNTED: dict[str, Counted] = {
    "counts": Counted(
        _cells,
        np.stack,
        micro,
        BINARY_SCORES,
        compared=("precision", "recall", "f1", "iou", "oa", "kappa"),
        ablated=("f1", "iou"),
        matrix=lambda line: _cells(line).reshape(2, 2),
    ),
    # The totals, not the cells: resampling the images of 150 classes would take 50 times the memory.
    "confusion": Counted(
        lambda line: class_totals(line["confusion"]).reshape(-1),
        np.stack,
        lambda name: micro(name, lambda sums: scores_of_totals(sums.reshape(*sums.shape[:-1], 3, -1))),
        CLASS_SCORES,
        compared=CLASS_SCORES,
        ablated=("miou", "mf1"),
        matrix=lambda line: np.asarray(line["confusion"], dtype=np.float64),
    ),
    "boxes": Counted(
        _of_boxes,
        _Boxes,
        _box_measure,
        (*RANKED_SCORES, *BOX_SCORES),
        compared=("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
        ablated=("ap", "ap50"),
    ),
}


def counted_in(line: Mapping[str, Any]) -> str | None:
    """Which key of COUNTED a line of samples.jsonl has; None where it has per-image scores alone."""
    return next((key for key in COUNTED if line.get(key) is not None), None)
