"""The stated formulas of the losses are what the network is trained with."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from anban.cli.formulas import sections_of, to_latex
from anban.formulas import formulas
from anban.recipe import load_recipe
from anban.recipe.schema import pick
from anban.tasks.detect.loss import LOSSES
from anban.tasks.detect.metric import FORMULAS, SCORES
from anban.tasks.detect.models.boxes import IGNORED, encode
from anban.tasks.detect.models.head import anchors_of, losses
from anban.tasks.detect.models.settings import Convention, Detector

DETECTOR = Detector(anchor_sizes=(16.0,), anchor_octaves=1, anchor_ratios=(1.0,), focal_alpha=0.3, focal_gamma=1.5,
                    class_weight=2.0, box_weight=3.0, box_beta=0.4)  # fmt: skip


@pytest.mark.parametrize("convention", ["torchvision", "mmdetection"])
def test_losses_are_their_formulas(convention: Convention) -> None:
    """Two pictures with two objects and one; the sums of the formulas, anchor by anchor."""
    detector = replace(DETECTOR, convention=convention)
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, generator=draw)
    moves = 0.5 * torch.randn(2, 4, 4, 4, generator=draw)
    targets = [
        {"boxes": torch.tensor([[0.0, 1, 16, 17], [30, 32, 46, 48]]), "labels": torch.tensor([1, 0])},
        {"boxes": torch.tensor([[8.0, 8, 24, 22]]), "labels": torch.tensor([1])},
    ]
    classes, boxes, found = losses(detector, [logits], [moves], targets, (64, 64))
    (anchors,), _ = anchors_of(detector, [logits], (64, 64))
    finding = [max(1, int((each >= 0).sum())) for each in found]
    assert finding[0] > finding[1]
    focal = smooth = 0.0
    for image, target in enumerate(targets):
        n = 2 * finding[image] if convention == "torchvision" else sum(finding)
        for anchor, number in enumerate(found[image].tolist()):
            row, column = divmod(anchor, 4)
            if number == IGNORED:
                continue
            for label in range(2):
                p = 1 / (1 + math.exp(-float(logits[image, label, row, column])))
                one = number >= 0 and int(target["labels"][number]) == label
                q, alpha = (p, 0.3) if one else (1 - p, 0.7)
                focal += alpha * (1 - q) ** 1.5 * -math.log(q) / n
            if number >= 0:
                aims = encode(target["boxes"][number], anchors[anchor], detector.box_deviations)
                for moved, aim in zip(moves[image, :, row, column].tolist(), aims.tolist(), strict=True):
                    x = abs(moved - aim)
                    smooth += (x * x / 0.8 if x < 0.4 else x - 0.2) / n
    assert float(classes[0].sum()) == pytest.approx(2 * focal, rel=1e-5)
    assert float(boxes[0].sum()) == pytest.approx(3 * smooth, rel=1e-5)


def test_losses_and_scores_state_formulas() -> None:
    for name in LOSSES:
        assert len(formulas(pick(LOSSES, name, "loss").__doc__)) == 1
    stated = [formula.name for formula in formulas(FORMULAS.__doc__)]
    assert set(stated) <= set(SCORES)
    assert {"ap", "voc_ap50", "voc07_ap50", "precision", "recall", "f1", "mean_iou"} <= set(stated)


def test_formulas_of_a_recipe_have_its_parameters() -> None:
    config = load_recipe(
        "det/demo-pvt", ["model.detector.box_weight=2", "model.detector.box_beta=0.11"]
    ).config
    of_methods, stated, scores = sections_of("detect", {"PVT": config})
    assert [name for name, _ in stated.items] == ["focal", "smooth-l1"]
    ((title, text),) = of_methods.items
    assert title == "PVT"
    assert r"\mathcal{L}_{\text{focal}} + 2 \mathcal{L}_{\text{smooth-l1}}" in text
    assert r"$\alpha = 0.25$, $\gamma = 2$, convention = torchvision" in text
    assert r"$\beta = 0.11$" in text
    assert scores.items[0][0] == "AP"
    assert r"\item[{AP}]" in to_latex([scores])
