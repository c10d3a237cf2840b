"""Counts per image, the line of samples.jsonl and the reported scores."""

from __future__ import annotations

import json

import pytest
import torch

from anban.metrics import SCORES, ConfusionMatrix
from anban.tasks.change.metric import SELECT, counts, sample_record, score


def test_counts_by_hand():
    probability = torch.tensor([[[[0.9, 0.6], [0.5, 0.1]]], [[[0.1, 0.1], [0.1, 0.8]]]])
    label = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [0, 0]]], dtype=torch.uint8)
    found = counts(probability, label, 0.5)
    assert found.dtype == torch.int64
    # At the threshold itself a pixel is not called change.
    assert found.tolist() == [[1, 1, 1, 1], [3, 1, 0, 0]]
    assert counts(probability[:, 0], label[:, None], 0.45).tolist() == [[1, 1, 0, 2], [3, 1, 0, 0]]
    valid = torch.tensor([[[1, 0], [1, 1]], [[1, 1], [1, 0]]], dtype=torch.bool)
    assert counts(probability, label, 0.5, valid=valid).tolist() == [[1, 0, 1, 1], [3, 0, 0, 0]]


def test_per_image_counts_sum_to_the_confusion_matrix():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(5, 1, 9, 9, generator=generator)
    label = (torch.rand(5, 9, 9, generator=generator) < 0.4).to(torch.uint8)
    matrix = ConfusionMatrix(2)
    matrix.update(probability[:, 0] > 0.3, label)
    assert counts(probability, label, 0.3).sum(0).tolist() == matrix.counts.reshape(4).tolist()


def test_score_has_the_reported_names_and_the_selecting_one():
    found = score(torch.tensor([5, 1, 2, 2]))
    assert tuple(found) == SCORES
    assert SELECT in found
    assert found["f1"] == pytest.approx(4 / 7)
    assert found["precision"] == pytest.approx(2 / 3)


def test_sample_record_of_an_empty_scene_is_json():
    record = sample_record("a.png", torch.tensor([9, 0, 0, 0]))
    assert json.loads(json.dumps(record, allow_nan=False)) == {
        "name": "a.png",
        "counts": {"tn": 9, "fp": 0, "fn": 0, "tp": 0},
        "scores": {
            "precision": None, "recall": None, "f1": None, "iou": None, "oa": 1.0, "kappa": None, "miou": 1.0
        },
    }  # fmt: skip


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="label"):
        counts(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 8), 0.5)
