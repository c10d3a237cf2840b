"""How well boxes are found: COCO's and VOC's average precision, what was confused, and which kinds of errors were made.

Boxes are (x1, y1, x2, y2) in pixels, corners of areas and not of pixels: a box is x2 - x1 wide. Classes are numbered from 0.
No torch: the scores are needed where only records are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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

BOX_SCORES = ("precision", "recall", "f1")
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


# VOC --------------------------------------------------------------------------------------------------------------


def voc_ap(
    images: Sequence[Detected], classes: int, *, iou: float = 0.5, points: Literal["11", "all"] = "all"
) -> Floats:
    """Average precision of each class as PASCAL VOC's development kit computes it, (classes,); NaN without an object.

    Of all boxes of a class, best first, each is compared with the object that it overlaps most: it is right from `iou` on
    if it is the first to find this object, and does not count if the object is ignored.

    Args:
        points: "11": the mean of the best precision at recalls of at least 0, 0.1 ... 1 (until 2009); "all": the area under
            it (from 2010).
    """
    return np.asarray([_voc_class(images, label, iou, points) for label in range(classes)])


def _voc_class(images: Sequence[Detected], label: int, iou: float, points: str) -> float:
    scores, right, objects = [], [], 0
    for image in images:
        mine, theirs = np.flatnonzero(image.labels == label), image.classes == label
        mine = mine[np.argsort(-image.scores[mine], kind="stable")]
        ignored = image.ignored[theirs]
        objects += int((~ignored).sum())
        free = ~ignored
        shared = overlaps(image.boxes[mine], image.truth[theirs])
        for score, row in zip(image.scores[mine], shared, strict=True):
            best = int(row.argmax()) if len(row) else -1
            hit = best >= 0 and row[best] >= iou
            if hit and ignored[best]:
                continue
            scores.append(score)
            right.append(bool(hit and free[best]))
            if hit:
                free[best] = False
    if not objects:
        return float("nan")
    found = np.asarray(right, dtype=np.float64)[np.argsort(-np.asarray(scores), kind="stable")]
    recall = found.cumsum() / objects
    precision = found.cumsum() / np.arange(1, len(found) + 1)
    # the best precision at this recall or more
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if points == "11":
        # a hair less, so that 3 of 10 objects are a recall of 0.3
        at = [recall >= step / 10 - 1e-9 for step in range(11)]
        return float(np.mean([envelope[reached].max(initial=0.0) for reached in at]))
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


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
    def mean_iou(self) -> float | None:
        """The mean IoU of boxes that have the class of their object; None without any."""
        right = int(np.trace(self.confusion))
        return self.overlap / right if right else None


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


def match_scores(confusion: ArrayLike) -> dict[str, float | None]:
    """The scores of `box_scores` from `Matches.confusion`; None where one is undefined."""
    cells = np.asarray(confusion)
    sums = [np.trace(cells[:-1, :-1]), cells[:, :-1].sum(), cells[:-1].sum()]
    return {name: defined(float(value)) for name, value in box_scores(sums).items()}


def box_scores(sums: ArrayLike) -> dict[str, Floats]:
    r"""Scores from how many boxes are right, are found, and how many objects there are: (..., 3), each (...), fractions.

    Notation: a box is right if it overlaps an object of its class by an IoU of at least 0.5; $TP$ right boxes, $FP$ other boxes
    and $FN$ objects without a right box are summed over all pictures of a split before anything is divided.

    Formula of precision: $\frac{TP}{TP + FP}$, undefined where nothing is found.
    Formula of recall: $\frac{TP}{TP + FN}$, undefined where nothing is there.
    Formula of f1: $\frac{2 TP}{2 TP + FP + FN}$, undefined where nothing is found and nothing is there.
    """
    right, found, objects = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    return {
        "precision": divide(right, found),
        "recall": divide(right, objects),
        "f1": divide(2 * right, found + objects),
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
