"""The named terms, their weights, and several outputs, in cases that can be solved by hand."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from anban.errors import InputError
from anban.losses import bce, dice
from anban.recipe.schema import Arguments, bind
from anban.tasks.change.loss import LOSS_SECTION, LOSSES, margin
from anban.tasks.supervision import DeepSupervision, SupervisedLoss

LN2 = math.log(2)


def change_loss(terms, deep=None):
    return SupervisedLoss(terms, LOSS_SECTION, deep, margin)


def drawn(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(2, 8, 8, generator=generator) < 0.3).to(torch.uint8)
    return torch.randn(2, 1, size, size, generator=generator), label


@pytest.mark.parametrize("name", LOSSES)
def test_every_address_leads_to_a_loss(name):
    module, attribute = LOSSES[name].split(":")
    logit, label = drawn()
    total, parts = change_loss({name: {}})(logit, label)
    assert torch.equal(total, getattr(import_module(module), attribute)(logit, label))
    assert parts.keys() == {name}


def test_parts_add_up_to_the_total():
    logit, label = drawn()
    logit.requires_grad_()
    loss = change_loss({"bce": {"weight": 0.5, "pos_weight": 2.0}, "dice": {"smooth": 3.0}, "focal": None})
    total, parts = loss(logit, label)
    assert list(parts) == ["bce", "dice"]
    assert torch.allclose(parts["bce"], 0.5 * bce(logit, label, pos_weight=2.0))
    assert torch.allclose(parts["dice"], dice(logit, label, smooth=3.0))
    assert torch.allclose(total, parts["bce"] + parts["dice"])
    assert not any(part.requires_grad for part in parts.values())
    total.backward()
    assert logit.grad is not None
    assert logit.grad.abs().max() > 0


def test_two_class_scores_cost_what_cross_entropy_says():
    scores = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    _, label = drawn()
    total, _ = change_loss({"bce": {}})(scores, label)
    assert torch.allclose(total, F.cross_entropy(scores, label.long()))
    assert torch.allclose(margin(scores).sigmoid(), scores.softmax(1)[:, 1:])


def test_margin():
    scores = torch.tensor([[[[1.0]], [[4.0]]]])
    assert margin(scores).tolist() == [[[[3.0]]]]
    assert torch.equal(margin(scores[:, :1]), scores[:, :1])
    for wrong in (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4)):
        with pytest.raises(ValueError, match="scores of shape"):
            margin(wrong)


def test_outputs_are_weighted_and_the_last_weight_is_repeated():
    # All logits 0: every output costs ln 2 per pixel, whatever its size.
    outputs = [
        torch.zeros(1, 1, 8, 8),
        torch.zeros(1, 2, 4, 4),
        torch.zeros(1, 1, 2, 2),
        torch.zeros(1, 1, 2, 2),
    ]
    label = torch.ones(1, 8, 8, dtype=torch.uint8)

    def total(deep: DeepSupervision | None) -> float:
        return change_loss({"bce": {"weight": 2.0}}, deep)(outputs, label)[0].item()

    assert total(None) == pytest.approx(2 * 4 * LN2)
    assert total(DeepSupervision(weights=[0.5])) == pytest.approx(2 * 2.5 * LN2)
    assert total(DeepSupervision(weights=[0.5, 0.25], resize="label")) == pytest.approx(2 * 2 * LN2)
    assert total(DeepSupervision(weights=[])) == pytest.approx(2 * LN2)
    assert total(DeepSupervision(weights=[0.5, 0.25, 1.0, 9.0])) == pytest.approx(2 * 2.75 * LN2)


def test_one_output_needs_no_list():
    logit, label = drawn()
    loss = change_loss({"bce": {}}, DeepSupervision(weights=[3.0]))
    assert torch.equal(loss(logit, label)[0], loss([logit], label)[0])


def test_logits_are_enlarged_or_the_label_is_reduced():
    small, label = drawn(size=4)
    total, _ = change_loss({"bce": {}})(small, label)
    large = F.interpolate(small, (8, 8), mode="bilinear", align_corners=False)
    assert torch.allclose(total, bce(large, label))
    total, _ = change_loss({"bce": {}}, DeepSupervision(resize="label"))(small, label)
    assert torch.allclose(total, bce(small, label[:, 1::2, 1::2]))


@pytest.mark.parametrize("resize", ["logits", "label"])
def test_uncounted_pixels(resize):
    logit, label = drawn()
    valid = torch.zeros(2, 8, 8, dtype=torch.bool)
    valid[:, :4] = True
    loss = change_loss({"bce": {}}, DeepSupervision(resize=resize))
    assert torch.allclose(loss(logit, label, valid=valid)[0], bce(logit[:, :, :4], label[:, :4]))
    other = logit.clone()
    other[:, :, 6:] = 100.0  # far enough from the border not to be blended across it
    both = [loss([logits, logits[:, :, ::2, ::2]], label, valid=valid)[0] for logits in (logit, other)]
    assert torch.equal(both[0], both[1])


def test_refused():
    with pytest.raises(InputError, match="did you mean 'dice'"):
        change_loss({"dicee": {}})
    with pytest.raises(InputError, match=r"loss\.bce\.pos_wieght(.|\n)*did you mean 'loss.bce.pos_weight'"):
        change_loss({"bce": {"pos_wieght": 2.0}})
    with pytest.raises(InputError, match=r"loss\.bce\.valid"):
        change_loss({"bce": {"valid": None}})
    for weight in (-1.0, math.nan, math.inf, "1", True):
        with pytest.raises(InputError, match=r"loss\.bce\.weight"):
            change_loss({"bce": {"weight": weight}})
    for terms in ({}, {"bce": None}):
        with pytest.raises(InputError, match="no loss term"):
            change_loss(terms)
    section = {"supervision": Arguments("anban.tasks.supervision:DeepSupervision")}
    with pytest.raises(InputError, match="at least 0"):
        bind(section, {"supervision": {"weights": [-0.5]}})
    with pytest.raises(InputError, match="one of label, logits"):
        bind(section, {"supervision": {"resize": "both"}})
    with pytest.raises(ValueError, match="no output"):
        change_loss({"bce": {}})([], torch.zeros(1, 2, 2))
