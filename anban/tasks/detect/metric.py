"""The numbers reported for boxes, and the one that picks the checkpoint; records and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anban.metrics import defined
from anban.metrics.detection import (
    BOX_SCORES,
    Detected,
    coco,
    matches,
)
from anban.metrics.ranked import RANKED_SCORES, VOC_SCORES, Rankings

SELECT = "ap"
SCORES = (*RANKED_SCORES, *BOX_SCORES)
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
    return record | {"boxes": paired.sums, "scores": paired.scores}


def detected(record: Mapping[str, Any]) -> Detected:
    """A line of samples.jsonl as the measures take it."""
    return Detected.of(record["truth"], record["found"])


def summary(records: Sequence[Mapping[str, Any]], classes: int, score: float) -> dict[str, float | None]:
    r"""The scores of a split, see `SCORES`; None where one is undefined.

    Notation: a box is right if it overlaps an object of its class by an IoU of at least a threshold $\theta$ and is the one that
    finds it: for ap the best first, each with the object of most overlap that is free, for voc_ap50 with the object of most
    overlap, free or not. $\pi(r)$ is the largest share of right boxes among the best ones of a class in all pictures that reach
    a recall of at least $r$, 0 where none do. Scores are means over the classes that have an object; ap50 and ap75 are at
    $\theta = 0.5$ and 0.75, the ap of sizes of objects below $32^2$, from $32^2$ to $96^2$, and above $96^2$ pixels; at most 100
    boxes of a class and picture count. For the last four the boxes of a sufficient score are paired with objects at
    $\theta = 0.5$, the pair of most overlap first; $TP$ boxes that are paired with an object of their class, $FP$ other boxes and
    $FN$ other objects are summed over all pictures.

    Formula of ap: $\frac{1}{10} \sum_{\theta \in \{0.5, 0.55, \dots, 0.95\}} \frac{1}{101} \sum_{r \in \{0, 0.01, \dots, 1\}} \pi_\theta(r)$.
    Formula of ar100: $\frac{1}{10} \sum_{\theta \in \{0.5, 0.55, \dots, 0.95\}} R_\theta$, where $R_\theta$ is the share of objects found.
    Formula of voc_ap50: $\int_0^1 \pi_{0.5}(r) \, dr$.
    Formula of voc07_ap50: $\frac{1}{11} \sum_{r \in \{0, 0.1, \dots, 1\}} \pi_{0.5}(r)$.
    Formula of precision: $\frac{TP}{TP + FP}$, undefined where nothing is found.
    Formula of recall: $\frac{TP}{TP + FN}$, undefined where nothing is there.
    Formula of f1: $\frac{2 TP}{2 TP + FP + FN}$, undefined where nothing is found and nothing is there.
    Formula of mean_iou: $\frac{1}{TP} \sum_b \mathrm{IoU}_b$, the sum over the $TP$ boxes, undefined without any.
    """
    images = [detected(record) for record in records]
    ranked, once = Rankings(images), np.ones((1, len(images)))
    voc = {name: defined(float(ranked.score(name, once)[0])) for name in VOC_SCORES}
    return coco(images, classes).scores | voc | matches(images, classes, score=score).scores


FORMULAS = summary
"""The function whose docstring has the formulas of the scores."""


def _rounded(values: ArrayLike) -> Any:
    return np.asarray(values, dtype=np.float64).round(_DIGITS).tolist()
