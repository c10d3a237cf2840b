"""Accumulators (update, merge) and the scores that follow from their counts."""

from anban.metrics.confusion import SCORES, ConfusionMatrix, binary_scores, defined

__all__ = ["SCORES", "ConfusionMatrix", "binary_scores", "defined"]
