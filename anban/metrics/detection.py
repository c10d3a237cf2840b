"""How well boxes are found: COCO's scores, what was confused, and which kinds of errors were made.

Boxes are (x1, y1, x2, y2) in pixels, corners of areas and not of pixels: a box is x2 - x1 wide. Classes are numbered from 0.
No torch: the scores are needed where only records are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anban.metrics.confusion import defined, divide

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

COCO_SCORES = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
"""Average precision over the IoUs 0.5, 0.55 ... 0.95, at 0.5 and at 0.75, of boxes below 32 x 32, up to 96 x 96 and above; average
recall with at most 1, 10 and 100 boxes an image, and by size."""

BOX_SCORES = ("precision", "recall", "f1", "mean_iou")
ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""Bolya et al., "TIDE: a general toolbox for identifying object detection errors", ECCV 2020, section 2.2."""


@dataclass(frozen=True)
class Detected:
    """What is in one image, and what was found there.

    Attributes:
        truth: boxes (N, 4).
        classes: of them, (N,).
        ignored: which of them neither count as missed nor make what finds them wrong: COCO's crowds, VOC's difficult ones.
        areas: of the objects in pixels, by which COCO tells small from large; at most those of the boxes.
        boxes: found, (M, 4).
        labels: their classes, (M,).
        scores: (M,), 0..1.
    """

    truth: Floats
    classes: Numbers
    ignored: NDArray[np.bool_]
    areas: Floats
    boxes: Floats
    labels: Numbers
    scores: Floats

    @classmethod
    def of(cls, truth: Mapping[str, ArrayLike], found: Mapping[str, ArrayLike]) -> Detected:
        """From `boxes`, `labels`, `ignored` and `areas` of the truth and `boxes`, `labels` and `scores` of what was found.

        This is how samples.jsonl keeps them; the truth's last two may be missing.
        """
        boxes = np.asarray(truth["boxes"], dtype=np.float64).reshape(-1, 4)
        return cls(
            boxes,
            np.asarray(truth["labels"], dtype=np.int64),
            np.asarray(truth.get("ignored", np.zeros(len(boxes))), dtype=bool),
            np.asarray(truth.get("areas", _areas(boxes)), dtype=np.float64),
            np.asarray(found["boxes"], dtype=np.float64).reshape(-1, 4),
            np.asarray(found["labels"], dtype=np.int64),
            np.asarray(found["scores"], dtype=np.float64),
        )

    def above(self, score: float) -> Detected:
        """Without the boxes of lower scores, and best first."""
        order = np.argsort(-self.scores, kind="stable")
        order = order[self.scores[order] >= score]
        return Detected(
            self.truth,
            self.classes,
            self.ignored,
            self.areas,
            self.boxes[order],
            self.labels[order],
            self.scores[order],
        )


def overlaps(first: Floats, second: Floats) -> Floats:
    """Intersection over union of boxes (N, 4) and (M, 4): (N, M); 0 where both are empty."""
    shared = _intersections(first, second)
    union = _areas(first)[:, None] + _areas(second)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


# COCO -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CocoResult:
    """What COCO's evaluation says.

    Attributes:
        scores: those of `COCO_SCORES`, None where there is no object they could be of.
        per_class: AP of each class, (K,), NaN where it has no object.
        precision: at IoU 0.5 of each class, (K, 101), at the recalls 0, 0.01 ... 1; NaN where the class has no object.
    """

    scores: dict[str, float | None]
    per_class: Floats
    precision: Floats


def coco(images: Sequence[Detected], classes: int) -> CocoResult:
    """COCO's evaluation of boxes (Lin et al., ECCV 2014; cocodataset.org/#detection-eval), at most 100 an image."""
    from faster_coco_eval import COCOeval_faster  # not where only records are read

    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for box, label, ignored, area in zip(
            image.truth, image.classes, image.ignored, image.areas, strict=True
        ):
            truths.append(_annotation(len(truths), number, box, label) | {"iscrowd": int(ignored), "area": float(area)})  # fmt: skip
        for box, label, score in zip(image.boxes, image.labels, image.scores, strict=True):
            found.append(_annotation(len(found), number, box, label) | {"score": float(score)})
    if not truths:
        nothing = np.full((classes, 101), np.nan)
        return CocoResult(dict.fromkeys(COCO_SCORES), nothing[:, 0], nothing)
    evaluation = COCOeval_faster(
        _coco(len(images), classes, truths), _coco(len(images), classes, found), "bbox"
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    # (IoUs, recalls, classes, sizes, most boxes), -1 where there is no object
    precision = np.asarray(evaluation.eval["precision"], dtype=np.float64)[:, :, :, 0, -1]
    precision[precision < 0] = np.nan
    scores = {name: _or_none(value) for name, value in zip(COCO_SCORES, evaluation.stats[:12], strict=True)}
    return CocoResult(scores, precision.mean(axis=(0, 1)), precision[0].T)


def _coco(images: int, classes: int, annotations: list[dict[str, Any]]) -> Any:
    from faster_coco_eval import COCO

    return COCO(
        {
            "images": [{"id": number} for number in range(1, images + 1)],
            "categories": [{"id": number, "name": str(number)} for number in range(classes)],
            "annotations": annotations,
        }
    )


def _annotation(before: int, image: int, box: Floats, label: np.int64) -> dict[str, Any]:
    x1, y1, x2, y2 = map(float, box)
    return {
        "id": before + 1,
        "image_id": image,
        "category_id": int(label),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
    }


def _or_none(value: float) -> float | None:
    return float(value) if value >= 0 else None


# Matches and errors -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matches:
    """What became of the objects and boxes of images; all of it adds up over images.

    Attributes:
        confusion: (K + 1, K + 1), [truth, found], background last: objects that nothing found stand in the last column, boxes
            that are no object in the last row.
        overlap: sum of the IoU of boxes that have the class of their object.
    """

    confusion: Numbers
    overlap: float

    @property
    def sums(self) -> dict[str, float]:
        """What `box_scores` takes, by name: `right`, `found`, `objects`, `overlap`."""
        right, found, objects = (
            int(cells.sum())
            for cells in (self.confusion.diagonal()[:-1], self.confusion[:, :-1], self.confusion[:-1])
        )
        return {"right": right, "found": found, "objects": objects, "overlap": self.overlap}

    @property
    def scores(self) -> dict[str, float | None]:
        """Those of `box_scores`, None where one is undefined."""
        return {name: defined(float(value)) for name, value in box_scores(list(self.sums.values())).items()}


def matches(images: Sequence[Detected], classes: int, *, iou: float = 0.5, score: float = 0.3) -> Matches:
    """Pair boxes with objects whatever their classes, the pair of most overlap first, each box and each object once.

    Args:
        iou: least overlap of a pair.
        score: boxes with a lower one do not count.
    """
    confusion = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    overlap = 0.0
    for whole in images:
        image = whole.above(score)
        shared = overlaps(image.truth, image.boxes)
        at, by = np.full(len(image.truth), -1), np.full(len(image.boxes), -1)
        # Best first; of equals those of the same class.
        agreeing = image.classes[:, None] == image.labels[None, :]
        for pair in np.lexsort((~agreeing.ravel(), -shared.ravel())):
            n, m = divmod(int(pair), len(image.boxes))
            if shared[n, m] < iou:
                break
            if at[n] < 0 and by[m] < 0:
                at[n], by[m] = m, n
        for n, m in enumerate(at):
            if not image.ignored[n]:
                confusion[image.classes[n], image.labels[m] if m >= 0 else classes] += 1
                overlap += float(shared[n, m]) if m >= 0 and agreeing[n, m] else 0.0
        spared = _touching_ignored(image, iou)
        for m, n in enumerate(by):
            if n < 0 and not spared[m]:
                confusion[classes, image.labels[m]] += 1
    return Matches(confusion, overlap)


def box_scores(sums: ArrayLike) -> dict[str, Floats]:
    """Scores from how many boxes are right, are found, how many objects there are and the summed IoU of right boxes.

    These are sums (..., 4), in this order; each score is (...), a fraction, NaN where undefined.
    """
    right, found, objects, overlap = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    return {
        "precision": divide(right, found),
        "recall": divide(right, objects),
        "f1": divide(2 * right, found + objects),
        "mean_iou": divide(overlap, right),
    }


def errors(
    images: Sequence[Detected], classes: int, *, iou: float = 0.5, background: float = 0.1, score: float = 0.3
) -> dict[str, Numbers]:
    """How many errors of each kind of `ERRORS` there are by class, (K,) each, as TIDE tells them apart.

    A box is right if it is the best yet on an object of its class. Else, the first that fits: its overlap with an object of its
    class lies between `background` and `iou` (localisation); it lies on one of another class (classification); on one of its
    class that is found already (duplicate); on nothing (background); or on too little of another class (both). Missed are the
    objects that no box found and that no error of class or place explains. They count for the class of the object, all others
    for that of the box.
    """
    counts = {kind: np.zeros(classes, dtype=np.int64) for kind in ERRORS}
    for whole in images:
        image = whole.above(score)
        shared = overlaps(image.boxes, image.truth) * ~image.ignored
        spared = _touching_ignored(image, iou)
        found = np.zeros(len(image.truth), dtype=bool)
        explained = found.copy()
        for m, row in enumerate(shared):
            same = row * (image.classes == image.labels[m])
            other = row * (image.classes != image.labels[m])
            free = same * ~found
            if free.max(initial=0.0) >= iou:
                found[free.argmax()] = True
                continue
            if spared[m]:
                continue
            kind = _kind(same.max(initial=0.0), other.max(initial=0.0), iou, background)
            counts[kind][image.labels[m]] += 1
            if kind in ("classification", "localisation"):
                explained[(other if kind == "classification" else same).argmax()] = True
        missed = image.classes[~(found | explained | image.ignored)]
        counts["missed"] += np.bincount(missed, minlength=classes)
    return counts


@dataclass(frozen=True)
class Analysis:
    """What is known of the boxes of a split.

    Attributes:
        objects: that count, of each class, (K,).
        result: COCO's evaluation, of boxes of any score.
        errors: kind -> how many of each class, (K,), see `errors`.
        confusion: see `Matches`.
    """

    objects: Numbers
    result: CocoResult
    errors: dict[str, Numbers]
    confusion: Numbers


def analyse(images: Sequence[Detected], classes: int, *, score: float = 0.3) -> Analysis:
    """All that is shown of a split; boxes of a score below `score` are no errors and in no confusion."""
    counted = [image.classes[~image.ignored] for image in images]
    return Analysis(
        np.bincount(np.concatenate([np.zeros(0, dtype=np.int64), *counted]), minlength=classes),
        coco(images, classes),
        errors(images, classes, score=score),
        matches(images, classes, score=score).confusion,
    )


def _kind(same: float, other: float, iou: float, background: float) -> str:
    """The kind of error of a box, from its largest overlap with objects of its class and of others."""
    if background <= same < iou:
        return "localisation"
    if other >= iou:
        return "classification"
    if same >= iou:
        return "duplicate"
    return "background" if max(same, other) < background else "both"


def _touching_ignored(image: Detected, iou: float) -> NDArray[np.bool_]:
    """Which boxes lie on ignored objects: `iou` of the box's own area, as COCO has it for crowds."""
    areas = np.maximum(_areas(image.boxes), 1e-9)[:, None]
    shares = _intersections(image.boxes, image.truth[image.ignored]) / areas
    return np.asarray((shares >= iou).any(axis=1), dtype=np.bool_)


def _intersections(first: Floats, second: Floats) -> Floats:
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared: Floats = np.clip(high - low, 0, None).prod(axis=-1)
    return shared


def _areas(boxes: Floats) -> Floats:
    areas: Floats = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas
