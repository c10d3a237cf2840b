"""Measures of boxes against pycocotools and against cases worked by hand."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from anban.metrics.detection import COCO_SCORES, Detected, coco, errors, matches
from anban.metrics.ranked import RANKED_SCORES, VOC_SCORES, Rankings

CLASSES = 3


def invented(seed: int = 0, images: int = 12) -> list[Detected]:
    """Objects of all sizes, some of them crowds; boxes near them, twice, of a wrong class or on nothing."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(images):
        count = 0 if number == 3 else int(draw.integers(1, 9))
        corner, side = draw.uniform(0, 300, (count, 2)), draw.choice([12, 50, 150], (count, 1))
        truth = np.concatenate([corner, corner + side * draw.uniform(0.7, 1.4, (count, 2))], axis=1)
        labels = draw.integers(0, CLASSES, count)
        boxes = np.repeat(truth, 3, axis=0) + draw.normal(0, 4, (3 * count, 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        boxes = np.concatenate([boxes, [[400, 400, 430, 420]]])
        given = np.append(np.where(draw.random(3 * count) < 0.8, np.repeat(labels, 3), 0), 1)
        found.append(
            Detected.of(
                {
                    "boxes": truth,
                    "labels": labels,
                    "ignored": draw.random(count) < 0.15,
                    "areas": side[:, 0] ** 2 * 0.8,
                },
                {"boxes": boxes, "labels": given, "scores": draw.random(len(boxes))},
            )
        )
    return found


def official(images: list[Detected]) -> COCOeval:
    """The same through pycocotools."""
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for box, label, crowd, area in zip(
            image.truth, image.classes, image.ignored, image.areas, strict=True
        ):
            size = [*box[:2], *(box[2:] - box[:2])]
            truths.append({"id": len(truths) + 1, "image_id": number, "category_id": int(label) + 1, "bbox": size,
                           "area": area, "iscrowd": int(crowd)})  # fmt: skip
        for box, label, score in zip(image.boxes, image.labels, image.scores, strict=True):
            size = [*box[:2], *(box[2:] - box[:2])]
            found.append({"image_id": number, "category_id": int(label) + 1, "bbox": size, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {
            "info": {},
            "images": [{"id": number + 1} for number in range(len(images))],
            "categories": [{"id": label + 1, "name": str(label)} for label in range(CLASSES)],
            "annotations": truths,
        }
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", [0, 1])
def test_coco_scores_are_those_of_pycocotools(seed: int) -> None:
    images = invented(seed)
    expected = official(images)
    result = coco(images, CLASSES)
    assert [result.scores[name] for name in COCO_SCORES] == pytest.approx(expected.stats, abs=1e-6)
    precision = expected.eval["precision"][:, :, :, 0, -1]
    np.testing.assert_allclose(result.per_class, precision.mean(axis=(0, 1)), atol=1e-6)
    np.testing.assert_allclose(result.precision, precision[0].T, atol=1e-6)


def test_without_objects_there_is_no_score_and_without_boxes_it_is_zero() -> None:
    nothing = {"boxes": [], "labels": [], "scores": []}
    empty = Detected.of(nothing, {"boxes": [[0, 0, 9, 9]], "labels": [0], "scores": [0.9]})
    assert set(coco([empty], CLASSES).scores.values()) == {None}
    blind = Detected.of({"boxes": [[0, 0, 9, 9]], "labels": [0]}, nothing)
    result = coco([blind], CLASSES)
    assert result.scores["ap"] == 0
    assert result.scores["ap_large"] is None
    assert result.per_class[0] == 0
    assert np.isnan(result.per_class[1:]).all()


def one_class(
    truth: list[list[float]], boxes: list[list[float]], ignored: list[bool] | None = None
) -> Detected:
    """Boxes with falling scores 0.9, 0.8, ..."""
    return Detected.of(
        {"boxes": truth, "labels": [0] * len(truth), "ignored": ignored or [False] * len(truth)},
        {"boxes": boxes, "labels": [0] * len(boxes), "scores": [0.9 - 0.1 * n for n in range(len(boxes))]},
    )


EMPTY: dict[str, Any] = {"boxes": [], "labels": [], "scores": []}
A, B, C, AWAY = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [80, 80, 90, 90]


def voc_ap(images: list[Detected], name: str = "voc_ap50") -> np.ndarray:
    return Rankings(images).of_classes(name, np.ones((1, len(images))))[0]


def test_voc_ap_worked_by_hand() -> None:
    # right, wrong (again), right, wrong (nothing there): precision 1, 1/2, 2/3, 1/2 at recall 1/3, 1/3, 2/3, 2/3
    image = one_class([A, B, C], [A, A, B, AWAY])
    assert voc_ap([image])[0] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    # recalls 0 .. 0.3 reach precision 1, 0.4 .. 0.6 reach 2/3, the other four nothing
    assert voc_ap([image], "voc07_ap50")[0] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)


def test_voc_ap_passes_over_what_is_difficult() -> None:
    image = one_class([A, B], [A, B], ignored=[True, False])
    assert voc_ap([image]).tolist() == [1]


def ties(images: int = 8) -> list[Detected]:
    """Whole pixels and few scores: overlaps of exactly 0.5 and 0.75, and many boxes of one score."""
    draw = np.random.default_rng(5)
    found = []
    for _ in range(images):
        corner = draw.integers(0, 20, (6, 2)) * 10.0
        truth = np.concatenate([corner, corner + draw.choice([10, 20, 40], (6, 2))], axis=1)
        boxes = np.concatenate(
            [truth, truth + np.array([0, 0, 0, 10]), truth + np.array([5, 0, 5, 0]), truth]
        )
        labels = draw.integers(0, CLASSES, 6)
        found.append(
            Detected.of(
                {"boxes": truth, "labels": labels},
                {"boxes": boxes, "labels": np.tile(labels, 4), "scores": draw.choice([0.2, 0.5, 0.9], 24)},
            )
        )
    return found


@pytest.mark.parametrize("images", [invented(0), invented(3), ties()], ids=["invented", "other", "ties"])
def test_ranked_boxes_have_the_scores_of_the_evaluation(images: list[Detected]) -> None:
    ranked, once = Rankings(images), np.ones((1, len(images)))
    expected = coco(images, CLASSES)
    for name in COCO_SCORES:
        known = expected.scores[name]
        value = np.nan if known is None else known
        assert ranked.score(name, once)[0] == pytest.approx(value, abs=1e-12, nan_ok=True)
    np.testing.assert_allclose(ranked.of_classes("ap", once)[0], expected.per_class, atol=1e-12)


def test_an_image_that_counts_twice_is_one_that_is_there_twice() -> None:
    images = invented(2)
    counts = np.array([2, 0, 1, 1, 3, 1, 0, 1, 2, 1, 0, 1])
    copies = [image for image, count in zip(images, counts, strict=True) for _ in range(count)]
    ranked, drawn = Rankings(images), np.stack([np.ones(len(images)), counts])
    expected = official(copies)
    for name, value in zip(COCO_SCORES, expected.stats, strict=True):
        assert ranked.score(name, drawn)[1] == pytest.approx(value, abs=1e-6)
    for name in VOC_SCORES:
        of_copies = voc_ap(copies, name)
        np.testing.assert_allclose(ranked.of_classes(name, drawn)[1], of_copies, atol=1e-12)


def test_a_class_counts_only_where_a_resample_has_an_object_of_it() -> None:
    images = [one_class([A, B], [A, AWAY]), Detected.of({"boxes": [C], "labels": [1]}, EMPTY)]
    ranked = Rankings(images)
    counts = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    # half of two objects is found in the one, nothing in the other
    half = 51 / 101
    np.testing.assert_allclose(ranked.score("ap50", counts), [half / 2, half, 0.0, np.nan])
    np.testing.assert_allclose(ranked.of_classes("ap50", counts)[1], [half, np.nan])
    assert set(RANKED_SCORES) > set(COCO_SCORES)
    assert np.isnan(Rankings([]).score("ap", np.ones((1, 0)))).all()


def mixed() -> Detected:
    """Class 0 on A and B, 1 on C: found right, half beside, of the wrong class, twice, and on nothing; AWAY is missed."""
    boxes = [A, [23, 0, 33, 10], C, [0, 0, 10, 9], [150, 0, 160, 10], [104, 0, 114, 10]]
    return Detected.of(
        {"boxes": [A, B, C, AWAY, [100, 0, 110, 10]], "labels": [0, 0, 1, 1, 1]},
        {"boxes": boxes, "labels": [0, 0, 0, 0, 1, 0], "scores": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]},
    )


def test_every_kind_of_error_is_told() -> None:
    image = mixed()
    # the box beside B overlaps it by 7/13, more than half
    counts = {kind: count.tolist() for kind, count in errors([image], 2, iou=0.6).items()}
    assert counts == {
        "classification": [1, 0],
        "localisation": [1, 0],
        "both": [1, 0],
        "duplicate": [1, 0],
        "background": [0, 1],
        "missed": [0, 2],
    }


def test_confusion_has_a_row_and_a_column_for_the_background() -> None:
    found = matches([mixed()], 2, iou=0.6)
    # truth 0: found once, missed once; truth 1: taken for 0 once, missed twice; on nothing: three 0 and one 1
    assert found.confusion.tolist() == [[1, 0, 1], [1, 0, 2], [3, 1, 0]]
    assert found.scores == pytest.approx({"precision": 1 / 6, "recall": 1 / 5, "f1": 2 / 11, "mean_iou": 1})
    assert matches([], 2).scores["recall"] is None


def test_boxes_on_ignored_objects_are_no_errors() -> None:
    image = one_class([[0, 0, 100, 100]], [[10, 10, 20, 20]], ignored=[True])
    assert matches([image], 1).confusion.sum() == 0
    assert sum(count.sum() for count in errors([image], 1).values()) == 0
