"""Counting what the pixels of each class were taken for, and the scores that follow from the counts.

A confusion matrix is int64, (..., K, K), [label, prediction]. torch is imported only to count: the scores are needed
where only records are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anban.metrics.confusion import Floats, divide

if TYPE_CHECKING:
    from torch import Tensor

CLASS_SCORES = ("miou", "pixel_acc", "mean_acc", "fwiou", "mf1")


def confusion(pred: Tensor, label: Tensor, num_classes: int, ignore: int | None = 255) -> Tensor:
    """How often each label got each prediction, image by image.

    Args:
        pred: class numbers, (B, ...), integers or booleans.
        label: class numbers of the same pixels, or `ignore`.
        ignore: label of pixels that do not count, whatever is predicted there; None counts all.

    Returns:
        int64 (B, num_classes, num_classes), [label, prediction], on the device of `pred`.

    Raises:
        ValueError: shapes that differ, fractions, or a number that is no class.
    """
    import torch

    if pred.shape != label.shape:
        raise ValueError(f"predictions are {tuple(pred.shape)}, labels {tuple(label.shape)}")
    for values in (pred, label):
        if values.is_floating_point():
            raise ValueError(
                f"class numbers of type {values.dtype}; expected integers (apply a threshold or argmax)"
            )
    pred, label = (x.byte() if x.dtype == torch.bool else x for x in (pred, label))
    counted = torch.ones_like(label, dtype=torch.bool) if ignore is None else label != ignore
    label = label.masked_fill(~counted, 0)
    for name, values in (("prediction", pred), ("label", label)):
        # What is predicted at ignored pixels is looked at only where it could be what is out of range.
        wrong = _outside(values, num_classes) and _outside(values[counted], num_classes)
        if wrong:
            raise ValueError(f"a {name} of {wrong[0]}; classes are 0..{num_classes - 1}")
    # Narrow codes: reading and writing them is most of the work. Ignored pixels fall into a cell of their own.
    cells = num_classes**2
    narrow = torch.int16 if cells < 2**15 else torch.int32
    code = (label.to(narrow) * num_classes + pred.to(narrow)).masked_fill_(~counted, cells)
    counts = code.new_zeros((len(code), cells), dtype=torch.int64)
    for row, image in zip(counts, code.flatten(1), strict=True):
        row += image.bincount(minlength=cells + 1)[:cells]
    return counts.view(-1, num_classes, num_classes)


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

    def update(self, pred: Tensor | ArrayLike, label: Tensor | ArrayLike) -> None:
        """Add pixels: class numbers of one shape, torch (on any device) or numpy; see `confusion` for what is refused."""
        found = confusion(_tensor(pred)[None], _tensor(label)[None], self.num_classes, self.ignore)
        self._counts += found[0].cpu().numpy()

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


def class_iou(matrix: ArrayLike, *, smooth: float = 0.0) -> Floats:
    """IoU of every class from confusion matrices (..., K, K): (..., K), fractions.

    NaN for a class that neither occurs nor is predicted. `smooth` as in `class_scores`.
    """
    return _iou(*_totals(matrix), smooth)


def class_f1(matrix: ArrayLike, *, smooth: float = 0.0) -> Floats:
    """F1 (Dice) of every class, as `class_iou`."""
    return _f1(*_totals(matrix), smooth)


def class_scores(matrix: ArrayLike, *, smooth: float = 0.0) -> dict[str, Floats]:
    r"""Scores over all classes from confusion matrices (..., K, K), each (...), fractions; NaN where undefined.

    Notation: $n_{ab}$ is how many pixels of class $a$ were taken for class $b$, summed over all images of a split before anything
    is divided; $t_c = \sum_b n_{cb}$, $r_c = \sum_a n_{ac}$, $N = \sum_c t_c$, and ignored pixels are in none of them.

    Formula of miou: $\frac{1}{\lvert C \rvert} \sum_{c \in C} \frac{n_{cc}}{t_c + r_c - n_{cc}}$, where $C$ are the classes that
    occur or are predicted: one that does neither is left out, one that is only predicted counts 0.
    Formula of pixel_acc: $\frac{1}{N} \sum_c n_{cc}$.
    Formula of mean_acc: $\frac{1}{\lvert C \rvert} \sum_{c \in C} \frac{n_{cc}}{t_c}$, where $C$ are the classes that occur.
    Formula of fwiou: $\sum_c \frac{t_c}{N} \frac{n_{cc}}{t_c + r_c - n_{cc}}$, over the classes that occur.
    Formula of mf1: $\frac{1}{\lvert C \rvert} \sum_{c \in C} \frac{2 n_{cc}}{t_c + r_c}$, with the $C$ of miou.

    Args:
        smooth: pixels added to every denominator, of which F1 has two: precision's and recall's. 1 gives what
            CoinCheung/BiSeNet prints (its micro F1 is pixel_acc here); absent classes then have 0 and are not left out.
    """
    return scores_of_totals(class_totals(matrix), smooth=smooth)


def class_totals(matrix: ArrayLike) -> Floats:
    """All that `class_scores` needs of confusion matrices (..., K, K): (..., 3, K), 3 K numbers instead of K * K.

    They are the pixels of each class that are right, that are of the class, and that are predicted as it; sums of them
    are those of the summed matrices.
    """
    return np.stack(_totals(matrix), axis=-2)


def scores_of_totals(totals: ArrayLike, *, smooth: float = 0.0) -> dict[str, Floats]:
    """`class_scores` from `class_totals` (..., 3, K)."""
    right, there, predicted = np.moveaxis(np.asarray(totals, dtype=np.float64), -2, 0)
    iou, pixels = _iou(right, there, predicted, smooth), there.sum(axis=-1)
    return {
        "miou": _mean(iou),
        "pixel_acc": divide(right.sum(axis=-1), pixels + smooth),
        "mean_acc": _mean(divide(right, there + smooth)),
        "fwiou": divide(np.nansum(there * iou, axis=-1), pixels),
        "mf1": _mean(_f1(right, there, predicted, smooth)),
    }


def _totals(matrix: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Pixels that are right, of the class, and predicted as the class: (..., K) each."""
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2]:
        raise ValueError(f"a matrix of shape {counts.shape}; expected (..., K, K)")
    return np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)


def _iou(right: Floats, there: Floats, predicted: Floats, smooth: float) -> Floats:
    return divide(right, there + predicted - right + smooth)


def _f1(right: Floats, there: Floats, predicted: Floats, smooth: float) -> Floats:
    return divide(2 * right, there + predicted + 2 * smooth)


def _mean(values: Floats) -> Floats:
    """Mean over the last axis of what is defined."""
    return divide(np.nansum(values, axis=-1), np.sum(~np.isnan(values), axis=-1))


def _tensor(values: Tensor | ArrayLike) -> Tensor:
    import torch

    if isinstance(values, torch.Tensor):
        return values
    array = np.asarray(values)
    # torch counts no unsigned 16-bit numbers.
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "biu" else array)


def _outside(values: Tensor, num_classes: int) -> list[int]:
    """The extremes among the values that are no class; empty where all are one."""
    if values.numel() == 0:
        return []
    low, high = (int(end) for end in values.aminmax())
    return [end for end in (low, high) if not 0 <= end < num_classes]
