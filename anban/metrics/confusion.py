"""The scores of one class against the background that follow from counts of right and wrong pixels.

Counts are int64, last axis 4, in the order (tn, fp, fn, tp): row by row the matrix [label, prediction].
torch is not imported here: the scores are needed where only records are read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
SCORES = ("precision", "recall", "f1", "iou", "oa", "kappa", "miou")


def binary_scores(counts: ArrayLike) -> dict[str, Floats]:
    r"""Scores of the positive class from counts (..., 4), each (...), fractions; NaN where a score is undefined.

    Notation: $TP$, $FP$, $FN$ and $TN$ are summed over all pixels of a split before anything is divided, and $N$ is their sum.

    Formula of precision: $\frac{TP}{TP + FP}$, undefined where nothing is predicted.
    Formula of recall: $\frac{TP}{TP + FN}$, undefined where nothing is there.
    Formula of f1: $\frac{2 TP}{2 TP + FP + FN}$, undefined where nothing is predicted and nothing is there.
    Formula of iou: $\frac{TP}{TP + FP + FN}$, undefined where nothing is predicted and nothing is there.
    Formula of oa: $\frac{TP + TN}{N}$, undefined without pixels.
    Formula of kappa: $\frac{\mathrm{OA} - p_e}{1 - p_e}$, where $p_e = \frac{(TP + FP)(TP + FN) + (TN + FN)(TN + FP)}{N^2}$,
    undefined where $p_e = 1$: label and prediction are one and the same class.
    Formula of miou: $\frac{1}{2} \left( \frac{TP}{TP + FP + FN} + \frac{TN}{TN + FP + FN} \right)$, the mean over the defined ones of
    the two; undefined without pixels.

    Counts may be fractional (weighted sums). They are float64 inside, exact to 9e15 pixels, and the products in kappa,
    which leave int64 at 3e9 pixels, keep 15 digits.
    """
    array = np.asarray(counts, dtype=np.float64)
    if array.shape[-1:] != (4,):
        raise ValueError(f"counts of shape {array.shape}; the last axis must be (tn, fp, fn, tp)")
    tn, fp, fn, tp = np.moveaxis(array, -1, 0)
    iou, iou_of_negative = divide(tp, tp + fp + fn), divide(tn, tn + fp + fn)
    both = np.stack([iou, iou_of_negative])
    return {
        "precision": divide(tp, tp + fp),
        "recall": divide(tp, tp + fn),
        "f1": divide(2 * tp, 2 * tp + fp + fn),
        "iou": iou,
        "oa": divide(tp + tn, tp + tn + fp + fn),
        # Both sides times all^2, where 1 - pe needs no subtraction of nearly equal numbers.
        "kappa": divide(2 * (tp * tn - fp * fn), (tp + fp) * (fp + tn) + (fn + tn) * (tp + fn)),
        "miou": divide(np.nansum(both, axis=0), np.sum(~np.isnan(both), axis=0)),
    }


def defined(value: float | np.floating[Any]) -> float | None:
    """The number as JSON can hold it: null where it is undefined."""
    return float(value) if math.isfinite(value) else None


def divide(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where below is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    result: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)
    return result
