"""Average precision of images that count more or less often than once, as resampled images do.

Whether a box is right depends on nothing outside of its image, so boxes are matched with objects once and put in order once;
what a resample changes is how often the boxes and objects of each image count. With every image once the values are those of
`anban.metrics.detection.coco`, and an image that counts twice adds what its copy would add.

Boxes of one score stand in the order of their images, and there in the order given (a stable sort, as pycocotools has it). The
copies of a box stand beside each other, so that only copies of different boxes of one score could be in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anban.metrics.detection import COCO_SCORES, Detected, Floats, Numbers, overlaps

Flags = NDArray[np.bool_]
Matching = Literal["coco", "voc"]

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
VOC07_RECALLS = np.linspace(0.0, 1.0, 11) - 1e-9  # a hair less, so that 3 of 10 objects are a recall of 0.3
MOST_BOXES = 100
SIZES = {"": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Areas of objects in pixels, from and to; "" for all of them."""

VOC_SCORES = ("voc_ap50", "voc07_ap50")
"""PASCAL VOC's average precision at IoU 0.5: the area under the best precision at a recall or more (from 2010), and its mean at
the recalls 0, 0.1 ... 1 (until 2009)."""
RANKED_SCORES = (*COCO_SCORES, *VOC_SCORES)
_CHUNK = 300_000  # numbers that are worked on at a time


@dataclass(frozen=True)
class Ranking:
    """The boxes of one class in all images, best first, and what became of them at T overlaps.

    Attributes:
        images: in which image each box lies, (D,).
        ranks: its place among the boxes of its image, from 0, (D,).
        right: whether it is the one that found an object, (T, D).
        passed: whether it counts neither as right nor as wrong, (T, D).
        objects: how many there are to find in each image, (N,).
    """

    images: Numbers
    ranks: Numbers
    right: Flags
    passed: Flags
    objects: Floats

    def average_precision(self, counts: Floats, levels: Floats | None) -> Floats:
        """The best precision at a recall or more, mean over recalls: (T, R), NaN without an object.

        Precision rises at right boxes only, so that nothing else has to be looked at.

        Args:
            counts: how often each image counts, (N, R).
            levels: the recalls, rising; None for the area under the precision.
        """
        objects = self.objects @ counts
        ends = np.flatnonzero(self.right.any(axis=0))  # of stretches of boxes; the last of all is right
        starts = np.append(0, ends[:-1] + 1)[: len(ends)]
        seen = np.add.reduceat(counts.take(self.images, axis=0), starts, axis=0).cumsum(axis=0)
        result = np.full((len(self.right), len(objects)), np.nan)
        for row, right, passed in zip(result, self.right, self.passed, strict=True):
            at, out = np.flatnonzero(right), np.flatnonzero(passed)
            hits, found = counts.take(self.images[at], axis=0).cumsum(axis=0), seen[np.searchsorted(ends, at)]
            if len(out):
                left_out = np.pad(counts[self.images[out]].cumsum(axis=0), ((1, 0), (0, 0)))
                found -= left_out[np.searchsorted(out, at)]
            precision = np.divide(hits, found, out=np.zeros_like(hits), where=found > 0)
            best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
            recall = np.divide(hits, objects, out=np.zeros_like(hits), where=objects > 0)
            reached = (
                recall if levels is None else np.searchsorted(levels, recall, side="right") / len(levels)
            )
            row[:] = (np.diff(reached, axis=0, prepend=0.0) * best).sum(axis=0)
        result[:, objects == 0] = np.nan
        return result

    def average_recall(self, counts: Floats, most: int) -> Floats:
        """The recall with at most so many boxes an image: (T, R), NaN without an object."""
        hits = np.zeros((len(self.right), len(counts)))
        for row, right in zip(hits, self.right & (self.ranks < most), strict=True):
            row[:] = np.bincount(self.images[right], minlength=len(counts))
        objects = self.objects @ counts
        found = hits @ counts
        return np.divide(found, objects, out=np.full_like(found, np.nan), where=objects > 0)


class Rankings:
    """The boxes and objects of a run, ready for any number of resamples of its images.

    Args:
        images: in the order in which they are counted.
    """

    def __init__(self, images: Sequence[Detected]):
        self._images = images
        self._rankings: dict[tuple[Matching, str], list[Ranking]] = {}
        self._scores: dict[tuple[str, int], tuple[Floats, Floats]] = {}

    def __len__(self) -> int:
        return len(self._images)

    def score(self, name: str, counts: Floats) -> Floats:
        """One of `RANKED_SCORES`, the mean over the classes that have an object, (R,); NaN where none has.

        What was last asked for is kept, for one and for many resamples: every comparison of a run needs it again.

        Args:
            counts: how often each image counts, (R, N).
        """
        key = (name, len(counts))
        if key not in self._scores or self._scores[key][0] is not counts:
            for each, found in self._family(name, counts).items():
                known = ~np.isnan(found)
                number, total = known.sum(axis=1), np.where(known, found, 0.0).sum(axis=1)
                mean = np.divide(total, number, out=np.full(len(counts), np.nan), where=number > 0)
                self._scores[each, len(counts)] = counts, mean
        return self._scores[key][1]

    def of_classes(self, name: str, counts: Floats) -> Floats:
        """The same for each class apart, (R, classes up to the last with an object); NaN where a class has none."""
        return self._family(name, counts)[name]

    def _family(self, name: str, counts: Floats) -> dict[str, Floats]:
        """That score of each class and those that come along with it, (R, K) each."""
        kind, _, rest = name.partition("_")
        if kind in ("voc", "voc07"):
            levels = None if kind == "voc" else VOC07_RECALLS
            found = self._each("voc", "", counts, partial(Ranking.average_precision, levels=levels))
            return {name: found[0]}
        if kind.startswith("ar"):
            most = int(kind[2:] or MOST_BOXES)
            found = self._each("coco", rest, counts, partial(Ranking.average_recall, most=most))
            return {name: found.mean(axis=0)}
        found = self._each("coco", rest, counts, partial(Ranking.average_precision, levels=RECALLS))
        if rest:
            return {name: found.mean(axis=0)}
        return {"ap": found.mean(axis=0), "ap50": found[0], "ap75": found[5]}

    def _each(
        self, matching: Matching, size: str, counts: Floats, value: Callable[[Ranking, Floats], Floats]
    ) -> Floats:
        """A value (T, R) of each class, (T, R, K); resamples are taken as many at a time as memory should hold."""
        if (matching, size) not in self._rankings:
            self._rankings[matching, size] = [
                _ranking(self._images, label, matching, SIZES[size]) for label in range(self._classes)
            ]
        by_image = np.ascontiguousarray(counts.T)  # whole rows are gathered and summed
        overlaps = 1 if matching == "voc" else len(IOUS)
        found = np.full((overlaps, len(counts), self._classes), np.nan)
        for label, ranking in enumerate(self._rankings[matching, size]):
            step = max(1, _CHUNK // max(len(ranking.images), 1))
            for start in range(0, len(counts), step):
                part = np.s_[start : start + step]
                found[:, part, label] = value(ranking, by_image[:, part])
        return found

    @cached_property
    def _classes(self) -> int:
        """Up to the last that has an object, ignored or not."""
        return 1 + max((int(image.classes.max(initial=-1)) for image in self._images), default=-1)


def _ranking(
    images: Sequence[Detected], label: int, matching: Matching, sizes: tuple[float, float]
) -> Ranking:
    """The boxes of a class in order; without those that count at no overlap, and those behind the last right one."""
    scores, places, ranks, right, passed, objects = [], [], [], [], [], []
    for place, image in enumerate(images):
        mine, theirs = np.flatnonzero(image.labels == label), np.flatnonzero(image.classes == label)
        mine = mine[np.argsort(-image.scores[mine], kind="stable")]
        if matching == "coco":
            mine = mine[:MOST_BOXES]
            of_size = (image.areas[theirs] >= sizes[0]) & (image.areas[theirs] <= sizes[1])
            ignored = image.ignored[theirs] | ~of_size
            found = _coco_matches(
                image.boxes[mine], image.truth[theirs], ignored, image.ignored[theirs], sizes
            )
        else:
            ignored = image.ignored[theirs]
            found = _voc_matches(image.boxes[mine], image.truth[theirs], ignored)
        objects.append(int((~ignored).sum()))
        scores.append(image.scores[mine])
        places.append(np.full(len(mine), place))
        ranks.append(np.arange(len(mine)))
        right.append(found[0])
        passed.append(found[1])
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit, out = np.concatenate(right, axis=1)[:, order], np.concatenate(passed, axis=1)[:, order]
    kept = np.flatnonzero(~out.all(axis=0))
    kept = kept[: 1 + int(np.flatnonzero(hit[:, kept].any(axis=0)).max(initial=-1))]
    order = order[kept]
    return Ranking(
        np.concatenate(places)[order], np.concatenate(ranks)[order], hit[:, kept], out[:, kept],
        np.asarray(objects, dtype=np.float64),
    )  # fmt: skip


def _coco_matches(
    boxes: Floats, truth: Floats, ignored: Flags, crowd: Flags, sizes: tuple[float, float]
) -> tuple[Flags, Flags]:
    """Which boxes of an image and class, best first, are right and which are passed over at each of `IOUS`, (T, M) each.

    A box takes the object of most overlap, of equals the last, among those that are free and count; where there is none,
    among the ignored ones, of which a crowd is always free. What takes nothing and has another size is passed over.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    right = np.zeros((len(IOUS), len(boxes)), dtype=bool)
    passed = np.repeat(((areas < sizes[0]) | (areas > sizes[1]))[None], len(IOUS), axis=0)
    shared = _coco_overlaps(boxes, truth, crowd)
    free = np.ones((len(IOUS), len(truth)), dtype=bool)
    rows = np.arange(len(IOUS))
    for m in np.flatnonzero(shared.max(axis=1, initial=0.0) >= IOUS[0]):
        able = (free | crowd) & (shared[m] >= IOUS[:, None])
        taken = np.full(len(IOUS), -1)
        for group in (ignored, ~ignored):  # those that count overrule
            among = np.where(able & group, shared[m], -1.0)[:, ::-1]
            best = among.argmax(axis=1)
            taken = np.where(among[rows, best] >= 0, len(truth) - 1 - best, taken)
        hit = taken >= 0
        free[rows[hit], taken[hit]] = False
        right[:, m] = hit & ~ignored[taken]
        passed[:, m] = np.where(hit, ignored[taken], passed[:, m])
    return right, passed


def _coco_overlaps(boxes: Floats, truth: Floats, crowd: Flags) -> Floats:
    """Intersection over union (M, N), of crowds over the box's own area.

    Worked out from corner and size, in the order of pycocotools: where an overlap is 0.5 sharp, the last bit decides.
    """
    sizes, others = boxes[:, 2:] - boxes[:, :2], truth[:, 2:] - truth[:, :2]
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum((boxes[:, :2] + sizes)[:, None], (truth[:, :2] + others)[None])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    own = sizes.prod(axis=1)[:, None]
    union = np.where(crowd, own, own + others.prod(axis=1) - shared)
    result: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return result


def _voc_matches(boxes: Floats, truth: Floats, ignored: Flags) -> tuple[Flags, Flags]:
    """The same as VOC's development kit has it, at IoU 0.5 alone: (1, M) each.

    A box is compared with the object that it overlaps most: it is right if it is the first to find it, and passed over if the
    object is ignored.
    """
    right, passed = np.zeros((1, len(boxes)), dtype=bool), np.zeros((1, len(boxes)), dtype=bool)
    free = np.ones(len(truth), dtype=bool)
    shared = overlaps(boxes, truth)
    for m in np.flatnonzero(shared.max(axis=1, initial=0.0) >= 0.5):
        best = int(shared[m].argmax())
        passed[0, m] = ignored[best]
        right[0, m] = free[best] and not ignored[best]
        free[best] = False
    return right, passed
