"""Counting what the pixels of 19 classes were taken for, against torchmetrics: 4 maps of 512 x 1024, a tenth ignored.

Ours is what evaluation does: a matrix and five scores per image, and the scores of their sum; predictions and labels are
checked to be classes. The peers: a confusion matrix of all pixels together (which is less: nothing per image), and the IoU
of it, as they come and without their checks of the arguments. Predictions are int64, as argmax gives them, labels uint8.
"""

from __future__ import annotations

from typing import Any

import torch

from anban.metrics.classes import class_scores, confusion
from anban.tasks.segment.metric import sample_record, score
from benchmarks.timing import Row, Unavailable, interleave, row, seconds

CLASSES = 19


def run(rounds: int) -> list[Row]:
    """A row per peer."""
    try:
        from torchmetrics import Metric
        from torchmetrics import classification as tm
    except ImportError:
        raise Unavailable("torchmetrics is not installed") from None
    draws = torch.Generator().manual_seed(0)
    shape = (4, 512, 1024)
    pred = torch.randint(0, CLASSES, shape, generator=draws)
    label = torch.randint(0, CLASSES, shape, generator=draws).byte()
    label[torch.rand(shape, generator=draws) < 0.1] = 255

    def ours() -> torch.Tensor:
        matrices = confusion(pred, label, CLASSES, 255)
        for number, matrix in enumerate(matrices.numpy()):
            sample_record(f"{number}", matrix)
        total = matrices.sum(0)
        score(total.numpy())
        return total

    def theirs(metric: Metric) -> torch.Tensor:
        metric.update(pred, label)
        found: torch.Tensor = metric.compute()
        metric.reset()
        return found

    peers: dict[str, Metric] = {}
    for words, checked in (("", True), (", unchecked", False)):
        options: dict[str, Any] = {"num_classes": CLASSES, "ignore_index": 255, "validate_args": checked}
        peers[f"torchmetrics confusion matrix{words}"] = tm.MulticlassConfusionMatrix(**options)
        peers[f"torchmetrics IoU{words}"] = tm.MulticlassJaccardIndex(**options)
    # The same counts and scores, or there would be nothing to compare.
    matrix, iou = (theirs(peers[f"torchmetrics {what}"]) for what in ("confusion matrix", "IoU"))
    assert torch.equal(ours(), matrix)
    assert abs(float(class_scores(ours())["miou"]) - float(iou)) < 1e-6
    measures = {name: seconds(lambda m=metric: theirs(m)) for name, metric in peers.items()}  # type: ignore[misc]
    values = interleave({"matrices + scores": seconds(ours), **measures}, rounds)
    return [row(values, "4 maps of 512 x 1024, 19 classes", "matrices + scores", name) for name in peers]
