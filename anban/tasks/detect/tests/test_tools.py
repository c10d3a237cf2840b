"""Anchors for a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anban.tasks.detect.anchors import best_overlaps, evolve, k_means, recall, retinanet_shapes, shapes_of
from anban.tasks.detect.data import DetectData
from anban.tasks.detect.demo import write_demo


def test_overlaps_of_shapes_worked_by_hand() -> None:
    shapes, anchors = np.array([[10.0, 10.0], [20.0, 5.0]]), np.array([[10.0, 10.0], [40.0, 5.0]])
    assert best_overlaps(shapes, anchors).tolist() == [1.0, 0.5]
    assert recall(shapes, anchors, iou=0.6) == 0.5


def test_shapes_of_retinanet_have_the_area_and_ratio_asked_for() -> None:
    shapes = retinanet_shapes([16.0], 2, [0.5, 2.0])
    np.testing.assert_allclose(sorted(shapes.prod(axis=1)), [256, 256, 512, 512], rtol=1e-5)
    np.testing.assert_allclose(sorted(shapes[:, 1] / shapes[:, 0]), [0.5, 0.5, 2, 2], rtol=1e-5)


def invented() -> np.ndarray:
    """Two kinds of boxes, small wide ones and large high ones."""
    draw = np.random.default_rng(0)
    kinds = np.array([[30.0, 10.0]] * 60 + [[40.0, 120.0]] * 60)
    return kinds * draw.uniform(0.9, 1.1, kinds.shape)


def test_k_means_finds_the_kinds_of_boxes() -> None:
    np.testing.assert_allclose(k_means(invented(), 2), [[30, 10], [40, 120]], rtol=0.05)


def test_evolved_anchors_fit_better_than_the_usual_ones_and_are_repeatable() -> None:
    shapes = invented()
    sizes, ratios = evolve(shapes, levels=2, octaves=1, ratios=2, generations=15)
    usual = retinanet_shapes([32.0, 64.0], 1, [0.5, 2.0])
    assert (
        best_overlaps(shapes, retinanet_shapes(sizes, 1, ratios)).mean()
        > best_overlaps(shapes, usual).mean() + 0.1
    )
    assert evolve(shapes, 2, 1, 2, generations=15) == (sizes, ratios)


def test_boxes_are_measured_in_the_pixels_of_the_network(tmp_path: Path) -> None:
    data = DetectData(str(write_demo(tmp_path / "cells", train=2, val=0, test=0, size=64)), val=None)
    whole, doubled = (shapes_of(data, "train", protocol) for protocol in ("whole", "size-64x128"))
    np.testing.assert_allclose(doubled, whole * [2, 1])
