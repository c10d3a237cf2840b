"""Counts and scores against torchmetrics, by hand, and where they are undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional import classification as reference

from anban.metrics import SCORES, ConfusionMatrix, binary_scores, defined


def draw(seed: int = 0, share: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = (torch.rand(4, 16, 16, generator=generator) < share).long()
    flipped = torch.rand(4, 16, 16, generator=generator) < 0.2
    return torch.where(flipped, 1 - label, label), label


def scores_of(tn: int, fp: int, fn: int, tp: int) -> dict[str, float]:
    return {name: float(value) for name, value in binary_scores([tn, fp, fn, tp]).items()}


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_torchmetrics(seed):
    pred, label = draw(seed)
    matrix = ConfusionMatrix(2)
    matrix.update(pred, label)
    assert matrix.counts.tolist() == reference.binary_confusion_matrix(pred, label).tolist()
    ours = binary_scores(matrix.counts.reshape(4))
    theirs = {
        "precision": reference.binary_precision(pred, label),
        "recall": reference.binary_recall(pred, label),
        "f1": reference.binary_f1_score(pred, label),
        "iou": reference.binary_jaccard_index(pred, label),
        "oa": reference.binary_accuracy(pred, label),
        "kappa": reference.binary_cohen_kappa(pred, label),
        "miou": reference.multiclass_jaccard_index(pred, label, num_classes=2, average="macro"),
    }
    assert set(ours) == set(theirs) == set(SCORES)
    for name, value in theirs.items():
        assert float(ours[name]) == pytest.approx(float(value), abs=1e-6), name


def test_scores_by_hand():
    found = scores_of(tn=5, fp=1, fn=2, tp=2)
    expected = {"precision": 2 / 3, "recall": 1 / 2, "f1": 4 / 7, "iou": 2 / 5, "oa": 7 / 10}
    po, pe = 7 / 10, (3 * 4 + 7 * 6) / 100
    expected |= {"kappa": (po - pe) / (1 - pe), "miou": (2 / 5 + 5 / 8) / 2}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("cells", "undefined"),
    [
        ((9, 0, 0, 0), {"precision", "recall", "f1", "iou", "kappa"}),  # nothing there, nothing predicted
        ((8, 1, 0, 0), {"recall"}),  # false alarms on an empty mask count against f1 and iou
        ((8, 0, 1, 0), {"precision"}),
        ((0, 0, 0, 9), {"kappa"}),
        ((0, 0, 0, 0), set(SCORES)),
        ((0, 5, 4, 0), set()),
    ],
)
def test_what_is_undefined(cells, undefined):
    found = scores_of(*cells)
    assert {name for name, value in found.items() if math.isnan(value)} == undefined


def test_all_background():
    found = scores_of(9, 0, 0, 0)
    assert found["oa"] == 1
    assert found["miou"] == 1
    assert scores_of(8, 1, 0, 0)["f1"] == 0


def test_vectorised_over_leading_axes():
    counts = np.random.default_rng(0).integers(0, 5, (3, 7, 4))
    found = binary_scores(counts)
    for name, values in found.items():
        assert values.shape == (3, 7)
        assert values[1, 4] == pytest.approx(float(binary_scores(counts[1, 4])[name]), nan_ok=True)


def test_a_trillion_pixels_do_not_overflow():
    small = np.array([50, 10, 15, 25], dtype=np.int64)
    large, plain = binary_scores(small * 10**12), binary_scores(small)
    for name, value in plain.items():
        assert float(large[name]) == pytest.approx(float(value), rel=1e-14), name
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([1]), np.array([1]))
    for _ in range(41):
        matrix.merge(matrix)
    assert matrix.to_list() == [[0, 0], [0, 2**41]]


def test_merging_equals_the_whole():
    pred, label = draw()
    whole, parts = ConfusionMatrix(2), [ConfusionMatrix(2), ConfusionMatrix(2)]
    whole.update(pred, label)
    for part, rows in zip(parts, (slice(0, 1), slice(1, 4)), strict=True):
        part.update(pred[rows], label[rows])
    parts[0].merge(parts[1])
    assert parts[0].to_list() == whole.to_list()


def test_rows_are_labels_and_the_ignored_do_not_count():
    matrix = ConfusionMatrix(3, ignore=255)
    matrix.update(np.array([0, 2, 2, 1, 0], dtype=np.uint8), np.array([0, 1, 1, 255, 2], dtype=np.uint8))
    assert matrix.to_list() == [[1, 0, 0], [0, 0, 2], [1, 0, 0]]
    matrix.update(torch.tensor([7]), torch.tensor([255]))  # whatever is predicted there
    assert matrix.counts.sum() == 4


def test_booleans_numpy_and_torch_alike():
    pred, label = draw()
    matrices = [ConfusionMatrix(2) for _ in range(3)]
    matrices[0].update(pred, label)
    matrices[1].update(pred.numpy(), label.numpy().astype(np.uint8))
    matrices[2].update(pred.bool(), label.to(torch.uint8))
    assert matrices[0].to_list() == matrices[1].to_list() == matrices[2].to_list()


def test_counts_is_a_copy():
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 5
    assert matrix.counts.sum() == 0


def test_refused():
    matrix = ConfusionMatrix(2)
    with pytest.raises(ValueError, match="label of 255"):
        matrix.update(torch.tensor([0]), torch.tensor([255]))
    with pytest.raises(ValueError, match="prediction of -1"):
        matrix.update(torch.tensor([-1]), torch.tensor([0]))
    with pytest.raises(ValueError, match="threshold"):
        matrix.update(torch.tensor([0.7]), torch.tensor([1]))
    with pytest.raises(ValueError, match="threshold"):
        matrix.update(np.array([0.7]), np.array([1]))
    with pytest.raises(ValueError, match="labels"):
        matrix.update(torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="cannot be added"):
        matrix.merge(ConfusionMatrix(2, ignore=255))
    with pytest.raises(ValueError, match="at least 2"):
        ConfusionMatrix(1)
    with pytest.raises(ValueError, match="last axis"):
        binary_scores([1, 2, 3])


def test_defined():
    assert defined(np.float64(0.5)) == 0.5
    assert type(defined(np.float64(0.5))) is float
    assert defined(float("nan")) is None
    assert defined(float("inf")) is None
