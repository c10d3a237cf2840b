"""Counts and scores of K classes against torchmetrics, by hand, and where they are undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional import classification as reference

from anban.formulas import formulas
from anban.metrics import CLASS_SCORES, ConfusionMatrix, binary_scores, class_f1, class_iou, class_scores
from anban.metrics.classes import confusion

K = 7


def draw(seed: int = 0, classes: int = K) -> tuple[Tensor, Tensor]:
    """Predictions and labels of three images; a tenth is ignored, half of the rest is right."""
    draws = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (3, 20, 24), generator=draws)
    pred = torch.randint(0, classes, label.shape, generator=draws)
    pred = torch.where(torch.rand(label.shape, generator=draws) < 0.5, label, pred)
    return pred, label.masked_fill(torch.rand(label.shape, generator=draws) < 0.1, 255)


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_counts_are_torchmetrics_of_each_image(dtype):
    pred, label = draw()
    found = confusion(pred.to(dtype), label.to(dtype), K)
    assert found.dtype == torch.int64
    for image in range(3):
        expected = reference.multiclass_confusion_matrix(pred[image], label[image], K, ignore_index=255)
        assert torch.equal(found[image], expected)


def test_more_classes_than_a_small_code_holds():
    pred, label = draw(classes=200)
    expected = reference.multiclass_confusion_matrix(pred, label, 200, ignore_index=255)
    assert torch.equal(confusion(pred, label, 200).sum(0), expected)


def test_ignored_label_may_be_a_class_or_none():
    pred, label = draw()
    label = label.clamp(max=K - 1)
    expected = reference.multiclass_confusion_matrix(pred, label, K, ignore_index=0)
    assert torch.equal(confusion(pred, label, K, ignore=0).sum(0), expected)
    assert confusion(pred, label, K, ignore=None).sum() == label.numel()


def test_predictions_at_ignored_pixels_are_not_looked_at():
    pred, label = draw()
    wild = torch.where(label == 255, 999, pred)
    assert torch.equal(confusion(wild, label, K), confusion(pred, label, K))


def test_numbers_that_are_no_class_are_refused():
    pred, label = draw()
    with pytest.raises(ValueError, match=r"prediction of 7; classes are 0\.\.6"):
        confusion(pred.masked_fill(label == 3, 7), label, K)
    with pytest.raises(ValueError, match="label of -1"):
        confusion(pred, label.masked_fill(label == 3, -1), K)
    with pytest.raises(ValueError, match="label of 254"):
        confusion(pred, label.masked_fill(label == 3, 254).byte(), K)
    with pytest.raises(ValueError, match="argmax"):
        confusion(pred.float(), label, K)
    with pytest.raises(ValueError, match="labels"):
        confusion(pred, label[:1], K)


def test_no_pixels():
    assert not confusion(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long), K).any()


def test_accumulator_is_the_sum_over_images():
    pred, label = draw()
    matrix = ConfusionMatrix(K, ignore=255)
    matrix.update(pred[:1], label[:1])
    matrix.update(pred[1:].numpy().astype(np.uint16), label[1:].numpy())
    assert matrix.to_list() == confusion(pred, label, K).sum(0).tolist()


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_torchmetrics(seed):
    pred, label = draw(seed)
    found = class_scores(confusion(pred, label, K).sum(0))
    options = {"num_classes": K, "ignore_index": 255}
    expected = {
        "miou": reference.multiclass_jaccard_index(pred, label, **options),
        "pixel_acc": reference.multiclass_accuracy(pred, label, average="micro", **options),
        "mean_acc": reference.multiclass_accuracy(pred, label, average="macro", **options),
        "fwiou": reference.multiclass_jaccard_index(pred, label, average="weighted", **options),
        "mf1": reference.multiclass_f1_score(pred, label, average="macro", **options),
    }
    assert tuple(found) == CLASS_SCORES == tuple(expected)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), abs=1e-6), name


def test_per_class_scores_are_torchmetrics():
    pred, label = draw()
    matrix = confusion(pred, label, K).sum(0)
    iou = reference.multiclass_jaccard_index(pred, label, K, average="none", ignore_index=255)
    f1 = reference.multiclass_f1_score(pred, label, K, average="none", ignore_index=255)
    np.testing.assert_allclose(class_iou(matrix), iou, atol=1e-6)
    np.testing.assert_allclose(class_f1(matrix), f1, atol=1e-6)


def test_a_class_that_is_nowhere_is_left_out():
    matrix = [[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    found = class_scores(matrix)
    assert found["miou"] == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert found["mean_acc"] == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert found["fwiou"] == pytest.approx(8 / 12 * 6 / 9 + 4 / 12 * 3 / 6)
    assert np.isnan(class_iou(matrix)).tolist() == [False, False, True, True]


def test_a_class_that_is_only_predicted_counts_nothing():
    found = class_scores([[6, 2, 1], [1, 3, 0], [0, 0, 0]])
    assert found["miou"] == pytest.approx((6 / 10 + 3 / 6 + 0) / 3)
    assert found["mf1"] == pytest.approx((12 / 16 + 6 / 9 + 0) / 3)
    assert found["mean_acc"] == pytest.approx((6 / 9 + 3 / 4) / 2)


def test_nothing_counted_is_undefined():
    assert all(math.isnan(value) for value in class_scores(np.zeros((3, 3))).values())


def test_smoothing_adds_pixels_to_the_denominators():
    matrix = [[6, 2, 0], [1, 3, 0], [0, 0, 0]]
    found = class_scores(matrix, smooth=1)
    assert found["miou"] == pytest.approx((6 / 10 + 3 / 7 + 0) / 3)
    assert found["mf1"] == pytest.approx((12 / 17 + 6 / 11 + 0) / 3)
    assert found["pixel_acc"] == pytest.approx(9 / 13)
    large = np.array(matrix) * 10**6
    assert class_scores(large[:2, :2], smooth=1)["miou"] == pytest.approx(
        float(class_scores(large)["miou"]), abs=1e-6
    )


def test_two_classes_are_the_binary_scores():
    matrix = np.array([[50, 10], [15, 25]])
    binary = binary_scores(matrix.reshape(4))
    assert class_iou(matrix)[1] == binary["iou"]
    assert class_f1(matrix)[1] == binary["f1"]
    assert class_scores(matrix)["miou"] == binary["miou"]
    assert class_scores(matrix)["pixel_acc"] == binary["oa"]


def test_vectorised_over_leading_axes():
    matrices = np.random.default_rng(0).integers(0, 9, (3, 2, K, K))
    found = class_scores(matrices)
    assert class_iou(matrices).shape == (3, 2, K)
    for name, values in found.items():
        assert values.shape == (3, 2)
        assert values[2, 1] == pytest.approx(float(class_scores(matrices[2, 1])[name]))


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match="K, K"):
        class_scores([1, 2, 3, 4])


def test_each_score_states_its_formula():
    assert tuple(formula.name for formula in formulas(class_scores.__doc__)) == CLASS_SCORES
