"""Counting right and wrong pixels, and the scores that follow from the counts.

Binary counts are int64, last axis 4, in the order (tn, fp, fn, tp): row by row the matrix [label, prediction].
torch is not imported here: the scores are needed where only records are read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
SCORES = ("precision", "recall", "f1", "iou", "oa", "kappa", "miou")


class ConfusionMatrix:
    """Adds up how often each label got each prediction; the order of updates does not matter.

    Args:
        num_classes: labels and predictions are 0 .. num_classes - 1.
        ignore: label of pixels that do not count, whatever is predicted there.
    """

    def __init__(self, num_classes: int, ignore: int | None = None):
        if num_classes < 2:
            raise ValueError(f"{num_classes} classes; at least 2 are needed (background is one)")
        self.num_classes, self.ignore = num_classes, ignore
        self._counts = np.zeros((num_classes, num_classes), dtype=np.int64)

    def update(self, pred: torch.Tensor | ArrayLike, label: torch.Tensor | ArrayLike) -> None:
        """Add pixels: class numbers of one shape, torch (on any device) or numpy; integers or booleans.

        Raises ValueError for shapes that differ and for values that are not a class, nor the ignored one in `label`.
        """
        predicted, true = _integers(pred), _integers(label)
        if predicted.shape != true.shape:
            raise ValueError(f"predictions are {tuple(predicted.shape)}, labels {tuple(true.shape)}")
        predicted, true = predicted.reshape(-1), true.reshape(-1)
        if self.ignore is not None:
            counted = true != self.ignore
            predicted, true = predicted[counted], true[counted]
        if len(true) == 0:
            return
        for name, values in (("prediction", predicted), ("label", true)):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"a {name} of {low if low < 0 else high}; classes are 0..{self.num_classes - 1}"
                )
        code = true * self.num_classes + predicted
        # Counting on the tensor's own device, so that a map never travels for four numbers.
        cells = self.num_classes**2
        found = (
            np.bincount(code, minlength=cells)
            if isinstance(code, np.ndarray)
            else code.bincount(minlength=cells)
        )
        self._counts += np.asarray(found.tolist(), dtype=np.int64).reshape(self._counts.shape)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add what another one has counted, over the same classes."""
        if (other.num_classes, other.ignore) != (self.num_classes, self.ignore):
            raise ValueError(
                f"{other.num_classes} classes ignoring {other.ignore} cannot be added to "
                f"{self.num_classes} classes ignoring {self.ignore}"
            )
        self._counts += other._counts

    @property
    def counts(self) -> NDArray[np.int64]:
        """A copy, (num_classes, num_classes), [label, prediction]; `.reshape(4)` of two classes is (tn, fp, fn, tp)."""
        return self._counts.copy()

    def to_list(self) -> list[list[int]]:
        """The same as nested lists, for JSON."""
        rows: list[list[int]] = self._counts.tolist()
        return rows


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
    iou, iou_of_negative = _divide(tp, tp + fp + fn), _divide(tn, tn + fp + fn)
    both = np.stack([iou, iou_of_negative])
    return {
        "precision": _divide(tp, tp + fp),
        "recall": _divide(tp, tp + fn),
        "f1": _divide(2 * tp, 2 * tp + fp + fn),
        "iou": iou,
        "oa": _divide(tp + tn, tp + tn + fp + fn),
        # Both sides times all^2, where 1 - pe needs no subtraction of nearly equal numbers.
        "kappa": _divide(2 * (tp * tn - fp * fn), (tp + fp) * (fp + tn) + (fn + tn) * (tp + fn)),
        "miou": _divide(np.nansum(both, axis=0), np.sum(~np.isnan(both), axis=0)),
    }


def defined(value: float | np.floating[Any]) -> float | None:
    """The number as JSON can hold it: null where it is undefined."""
    return float(value) if math.isfinite(value) else None


def _divide(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where below is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    result: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)
    return result


def _integers(values: Any) -> Any:
    """A torch tensor as int64 on its device, anything else as an int64 array; fractions are refused."""
    if hasattr(values, "detach"):
        if values.is_floating_point():
            raise ValueError(
                f"class numbers of type {values.dtype}; expected integers (apply a threshold or argmax)"
            )
        return values.detach().long()
    array = np.asarray(values)
    if array.dtype.kind not in "biu":
        raise ValueError(
            f"class numbers of type {array.dtype}; expected integers (apply a threshold or argmax)"
        )
    return array.astype(np.int64)
