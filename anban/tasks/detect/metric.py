"""The numbers reported for boxes, and the one that picks the checkpoint; records and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anban.metrics import defined
from anban.metrics.detection import (
    COCO_SCORES,
    Detected,
    Matches,
    box_scores,
    coco,
    match_scores,
    matches,
    voc_ap,
)

SELECT = "ap"
FORMULAS = box_scores
"""The function whose docstring has the formulas of the scores that are no averages of precision."""
SCORES = (*COCO_SCORES, "voc_ap50", "voc07_ap50", "mean_iou", "precision", "recall", "f1")
"""COCO's; the mean over classes of VOC's at IoU 0.5, of 2010 and of 2007; and of boxes above a score, paired with objects from IoU 0.5
on: the mean IoU of those that have their object's class, and how many are right."""

_DIGITS = 3  # of corners and areas: a thousandth of a pixel


def sample_record(
    name: str, truth: Mapping[str, ArrayLike], found: Mapping[str, ArrayLike], classes: int, score: float
) -> dict[str, Any]:
    """What samples.jsonl keeps of a picture: the truth, what was found, and scores of this picture alone.

    Args:
        truth: `boxes` (N, 4), `labels`, `ignored` and `areas` (N).
        found: `boxes` (M, 4), `labels` and `scores` (M).
        score: boxes with a lower one are kept, but do not count for this picture's own scores.
    """
    record: dict[str, Any] = {
        "name": name,
        "truth": {
            "boxes": _rounded(truth["boxes"]),
            "labels": np.asarray(truth["labels"]).tolist(),
            "ignored": np.asarray(truth["ignored"]).tolist(),
            "areas": _rounded(truth["areas"]),
        },
        "found": {
            "boxes": _rounded(found["boxes"]),
            "labels": np.asarray(found["labels"]).tolist(),
            "scores": np.asarray(found["scores"], dtype=np.float64).round(6).tolist(),
        },
    }
    paired = matches([detected(record)], classes, score=score)
    objects, boxes = paired.confusion[:-1].sum(), paired.confusion[:, :-1].sum()
    record["boxes"] = {
        "right": int(np.trace(paired.confusion)), "found": int(boxes), "objects": int(objects)
    }  # fmt: skip
    record["scores"] = _of_matches(paired)
    return record


def detected(record: Mapping[str, Any]) -> Detected:
    """A line of samples.jsonl as the measures take it."""
    return Detected.of(record["truth"], record["found"])


def summary(records: Sequence[Mapping[str, Any]], classes: int, score: float) -> dict[str, float | None]:
    """The scores of a split, see `SCORES`; None where one is undefined."""
    images = [detected(record) for record in records]
    scores = coco(images, classes).scores
    for name, points in (("voc_ap50", "all"), ("voc07_ap50", "11")):
        per_class = voc_ap(images, classes, points=points)  # type: ignore[arg-type]
        known = per_class[~np.isnan(per_class)]
        scores[name] = defined(float(known.mean())) if len(known) else None
    return scores | _of_matches(matches(images, classes, score=score))


def _of_matches(paired: Matches) -> dict[str, float | None]:
    return {"mean_iou": paired.mean_iou, **match_scores(paired.confusion)}


def _rounded(values: ArrayLike) -> Any:
    return np.asarray(values, dtype=np.float64).round(_DIGITS).tolist()
