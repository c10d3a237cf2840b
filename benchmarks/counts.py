"""Counting right and wrong pixels of 16 probability maps of 512 x 512, and their scores, against torchmetrics.

Ours is what evaluation does: counts per image, seven scores for each image and for the sum. The peers: a confusion
matrix and F1 of all pixels together (which is less: nothing per image), as they come and without their checks of the
arguments; and counts and F1 per image without checks, which is the nearest to ours. The tensors are the same.
"""

from __future__ import annotations

from typing import Any

import torch

from anban.tasks.change.metric import counts, sample_record, score
from benchmarks.timing import Row, Unavailable, interleave, row, seconds


def run(rounds: int) -> list[Row]:
    """A row per peer."""
    try:
        from torchmetrics import Metric
        from torchmetrics import classification as tm
    except ImportError:
        raise Unavailable("torchmetrics is not installed") from None
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(16, 512, 512, generator=generator)
    label = (torch.rand(16, 512, 512, generator=generator) > 0.95).to(torch.uint8)

    def ours() -> torch.Tensor:
        table = counts(probability, label, 0.5)
        for number, of_image in enumerate(table.tolist()):
            sample_record(f"{number}", of_image)
        score(table.sum(0))
        return table

    def theirs(metrics: list[Metric]) -> list[torch.Tensor]:
        found = []
        for metric in metrics:
            metric.update(probability, label)
            found.append(metric.compute())
            metric.reset()
        return found

    def whole(check: bool) -> list[Metric]:
        return [tm.BinaryConfusionMatrix(validate_args=check), tm.BinaryF1Score(validate_args=check)]

    each: Any = {"multidim_average": "samplewise", "validate_args": False}
    peers: dict[str, list[Metric]] = {
        "torchmetrics, all pixels": whole(True),
        "torchmetrics, all pixels, unchecked": whole(False),
        "torchmetrics, per image, unchecked": [tm.BinaryStatScores(**each), tm.BinaryF1Score(**each)],
    }
    # The same counts, or there would be nothing to compare.
    assert torch.equal(ours().sum(0).reshape(2, 2), theirs(peers["torchmetrics, all pixels"])[0])
    measures = {name: seconds(lambda m=metrics: theirs(m)) for name, metrics in peers.items()}  # type: ignore[misc]
    values = interleave({"counts + scores": seconds(ours), **measures}, rounds)
    return [row(values, "16 maps of 512 px", "counts + scores", name) for name in peers]
