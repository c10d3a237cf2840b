"""Anchors for a data set: `python -m anban.tasks.detect.anchors ROOT [PROTOCOL]`.

How well anchors can find a set's boxes is the mean, over its boxes, of the overlap with the best anchor that stands on the same centre;
recall is the share of boxes for which this is at least 0.5, RetinaNet's threshold of a match. Two ways to better ones: k-means on
widths and heights with 1 - IoU as distance (Redmon and Farhadi, "YOLO9000", CVPR 2017, section 2), which gives any shapes, and
differential evolution (Storn and Price, 1997) of RetinaNet's own parameters, a base size for each level and ratios for all, which
can be put into a recipe as they come (after Zlocha et al., "Improving RetinaNet for CT lesion detection with dense masks from weak
RECIST labels", MICCAI 2019, section 2.2).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from anban.errors import InputError
from anban.tasks.detect.data import DetectData
from anban.tasks.detect.models.boxes import cell_anchors
from anban.tasks.detect.protocols import parse_protocol

Shapes = NDArray[np.float64]


def shapes_of(data: DetectData, split: str, protocol: str) -> Shapes:
    """Widths and heights (N, 2) of a split's boxes in the pixels that a network sees; ignored ones are left out."""
    parsed = parse_protocol(protocol)
    found = [np.zeros((0, 2))]
    for each in data.labelled(split):
        height, width = parsed.of(*each.size)
        boxes = each.boxes[~each.ignored].astype(np.float64)
        found.append((boxes[:, 2:] - boxes[:, :2]) * [width / each.size[1], height / each.size[0]])
    return np.concatenate(found)


def retinanet_shapes(sizes: Sequence[float], octaves: int, ratios: Sequence[float]) -> Shapes:
    """Widths and heights (A, 2) of RetinaNet's anchors."""
    corners = [cell_anchors(size, octaves, ratios, "mmdetection").double().numpy() for size in sizes]
    cells = np.concatenate(corners)
    shapes: Shapes = cells[:, 2:] - cells[:, :2]
    return shapes


def best_overlaps(shapes: Shapes, anchors: Shapes) -> Shapes:
    """The IoU of each shape (N, 2) with its best anchor (A, 2) on the same centre, (N,)."""
    best: Shapes = _overlaps(shapes, anchors).max(axis=1)
    return best


def recall(shapes: Shapes, anchors: Shapes, iou: float = 0.5) -> float:
    """The share of shapes that some anchor overlaps by at least `iou`."""
    return float((best_overlaps(shapes, anchors) >= iou).mean())


def k_means(shapes: Shapes, count: int, seed: int = 0, rounds: int = 100) -> Shapes:
    """`count` anchors (A, 2), small to large: medians of the shapes that overlap them most."""
    draw = np.random.default_rng(seed)
    anchors = shapes[draw.choice(len(shapes), count, replace=False)]
    nearest = np.full(len(shapes), -1)
    for _ in range(rounds):
        before, nearest = nearest, _overlaps(shapes, anchors).argmax(axis=1)
        if (before == nearest).all():
            break
        # An anchor that nothing is nearest to stays where it is.
        groups = [shapes[nearest == number] for number in range(count)]
        anchors = np.stack(
            [np.median(g, axis=0) if len(g) else a for g, a in zip(groups, anchors, strict=True)]
        )
    ordered: Shapes = anchors[np.argsort(anchors.prod(axis=1))]
    return ordered


def evolve(
    shapes: Shapes, levels: int, octaves: int, ratios: int, seed: int = 0, generations: int = 120
) -> tuple[list[float], list[float]]:
    """Sizes for `levels` levels and `ratios` ratios of height over width, rising, with the largest mean overlap.

    Differential evolution on logarithms (rand/1/bin, F 0.6, CR 0.8, ten candidates for each parameter).
    """
    draw = np.random.default_rng(seed)
    sides = np.log(np.sqrt(shapes.prod(axis=1)))
    tall = np.log(shapes[:, 1] / shapes[:, 0])
    low = np.r_[[sides.min() - 0.7] * levels, [tall.min()] * ratios]
    high = np.r_[[sides.max()] * levels, [tall.max() + 1e-6] * ratios]

    def settings(candidate: Shapes) -> tuple[list[float], list[float]]:
        return tuple(np.exp(np.sort(part)).tolist() for part in (candidate[:levels], candidate[levels:]))  # type: ignore[return-value]

    def fitness(candidate: Shapes) -> float:
        sizes, proportions = settings(candidate)
        return float(best_overlaps(shapes, retinanet_shapes(sizes, octaves, proportions)).mean())

    count = 10 * (levels + ratios)
    candidates = draw.uniform(low, high, (count, levels + ratios))
    values = np.asarray([fitness(each) for each in candidates])
    for _ in range(generations):
        for number in range(count):
            first, second, third = candidates[draw.choice(count, 3, replace=False)]
            crossed = draw.random(levels + ratios) < 0.8
            crossed[draw.integers(levels + ratios)] = True
            trial = np.where(crossed, np.clip(first + 0.6 * (second - third), low, high), candidates[number])
            if (value := fitness(trial)) > values[number]:
                candidates[number], values[number] = trial, value
    return settings(candidates[values.argmax()])


def _overlaps(shapes: Shapes, anchors: Shapes) -> Shapes:
    shared: Shapes = np.minimum(shapes[:, None], anchors[None]).prod(axis=-1)
    union: Shapes = shapes.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - shared
    return shared / union


def main(arguments: Sequence[str]) -> None:
    """Propose anchors for a folder's split "train" under a protocol, and print the keys that a recipe would set.

    Recall is that of anchors on the centre of a box: an upper bound, the more so where maps are coarse.
    """
    if len(arguments) not in (1, 2):
        sys.exit("usage: python -m anban.tasks.detect.anchors ROOT [PROTOCOL]")
    try:
        data = DetectData(arguments[0], faulty="drop")
        shapes = shapes_of(data, "train", arguments[1] if len(arguments) == 2 else "whole")
    except InputError as error:
        sys.exit(str(error))
    sample = shapes[:: max(1, len(shapes) // 2000)]
    usual = ([32.0, 64.0, 128.0, 256.0, 512.0], [0.5, 1.0, 2.0])
    clustered = k_means(sample, 9)
    sizes, ratios = evolve(sample, levels=5, octaves=3, ratios=3, generations=40)
    for name, anchors in (
        ("RetinaNet's own", retinanet_shapes(usual[0], 3, usual[1])),
        ("k-means, 9", clustered),
        ("evolved", retinanet_shapes(sizes, 3, ratios)),
    ):
        mean = 100 * best_overlaps(shapes, anchors).mean()
        print(
            f"{name:<16} {len(anchors):>3} anchors, mean IoU {mean:.2f}, recall {100 * recall(shapes, anchors):.2f}"
        )
    print(
        "k-means (width x height): " + ", ".join(f"{width:.0f}x{height:.0f}" for width, height in clustered)
    )
    print(f"model.detector.anchor_sizes: [{', '.join(f'{size:.1f}' for size in sizes)}]")
    print(f"model.detector.anchor_ratios: [{', '.join(f'{ratio:.2f}' for ratio in ratios)}]")


if __name__ == "__main__":
    main(sys.argv[1:])
