"""Accumulators (update, merge) and the scores that follow from their counts."""

from anban.metrics.classes import CLASS_SCORES, ConfusionMatrix, class_f1, class_iou, class_scores
from anban.metrics.confusion import SCORES, binary_scores, defined

__all__ = [
    "CLASS_SCORES",
    "SCORES",
    "ConfusionMatrix",
    "binary_scores",
    "class_f1",
    "class_iou",
    "class_scores",
    "defined",
]
