"""Scores by name: what they are called and shown in, and which of them follow from what a record counts.

A line of samples.jsonl holds per-image `scores`, numbers whose mean over the images is the score of a run. It may also
hold counts that are summed over images before anything is divided (micro average), under one of the keys of `COUNTED`:
what follows from them is taken from the sums. A new kind of counts is one more entry there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anban.metrics import CLASS_SCORES, binary_scores
from anban.metrics import SCORES as BINARY_SCORES
from anban.metrics.classes import class_iou as class_iou
from anban.metrics.classes import class_totals, scores_of_totals
from anban.metrics.detection import BOX_SCORES, box_scores

Floats = NDArray[np.float64]


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
    """Counts of an image that are summed over images before scores are taken.

    Attributes:
        sums: what a line of samples.jsonl holds -> the C numbers to sum, (C,).
        of: sums (..., C) -> scores by name, each (...), NaN where undefined.
        scores: the names of those scores.
        compared: those that stand in a table of methods, in its order.
        ablated: those that stand in a table of ablations.
        matrix: what a line holds -> the matrix [label, prediction] of K classes (K, K); None for counts that are none.
    """

    sums: Callable[[Any], Floats]
    of: Callable[[Floats], Mapping[str, Floats]]
    scores: tuple[str, ...]
    compared: tuple[str, ...]
    ablated: tuple[str, ...]
    matrix: Callable[[Any], Floats] | None = None


def _cells(counts: Mapping[str, float]) -> Floats:
    return np.asarray([counts[cell] for cell in ("tn", "fp", "fn", "tp")], dtype=np.float64)


#: Key of a line of samples.jsonl -> what it counts.
COUNTED: dict[str, Counted] = {
    "counts": Counted(
        _cells,
        binary_scores,
        BINARY_SCORES,
        compared=("precision", "recall", "f1", "iou", "oa", "kappa"),
        ablated=("f1", "iou"),
        matrix=lambda counts: _cells(counts).reshape(2, 2),
    ),
    # The totals, not the cells: resampling the images of 150 classes would take 50 times the memory.
    "confusion": Counted(
        lambda matrix: class_totals(matrix).reshape(-1),
        lambda sums: scores_of_totals(sums.reshape(*sums.shape[:-1], 3, -1)),
        CLASS_SCORES,
        compared=CLASS_SCORES,
        ablated=("miou", "mf1"),
        matrix=lambda matrix: np.asarray(matrix, dtype=np.float64),
    ),
    # Boxes of a sufficient score: those that are right, all of them, and the objects there are.
    "boxes": Counted(
        lambda boxes: np.asarray([boxes[key] for key in ("right", "found", "objects")], dtype=np.float64),
        box_scores,
        BOX_SCORES,
        compared=BOX_SCORES,
        ablated=("f1",),
    ),
}


def counted_in(line: Mapping[str, Any]) -> str | None:
    """Which key of COUNTED a line of samples.jsonl has; None where it has per-image scores alone."""
    return next((key for key in COUNTED if line.get(key) is not None), None)
