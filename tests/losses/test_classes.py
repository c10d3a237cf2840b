"""Losses of K classes against torch, their binary relatives, and the selection rules that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anban.formulas import formulas
from anban.losses import classes as losses
from anban.losses import focal as binary_focal
from anban.losses import lovasz_sigmoid
from anban.losses.classes import cross_entropy, dice, focal, lovasz_softmax, ohem

ALL: list[Callable[..., Tensor]] = [cross_entropy, ohem, focal, dice, lovasz_softmax]


def drawn(classes: int = 5, seed: int = 0, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(2, classes, 12, 16, generator=draws)
    return logits, torch.randint(0, classes, (2, 12, 16), generator=draws)


def some(share: float, seed: int = 1) -> Tensor:
    return torch.rand(2, 12, 16, generator=torch.Generator().manual_seed(seed)) < share


def value_and_gradient(
    loss: Callable[..., Tensor], logits: Tensor, label: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, label, **options)
    assert value.shape == ()
    assert value.dtype == torch.float32
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def released_choice(cost: Tensor, thresh: float, n_min: int) -> Tensor:
    """Mean of the costs that the released rule keeps, by sorting: all above the threshold, at least n_min."""
    ordered = cost.flatten().sort(descending=True).values
    hard = int((ordered > -math.log(thresh)).sum())
    return ordered[: max(hard, n_min)].mean()


# --- what holds for all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("scale", [1e4, -1e4, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_the_extremes(loss, scale, dtype):
    _, label = drawn()
    right = F.one_hot(label, 5).movedim(-1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        value, gradient = value_and_gradient(loss, (scale * right).to(dtype), label)
    assert math.isfinite(value)
    assert value >= 0
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", ALL)
def test_nothing_counted_costs_nothing(loss):
    logits, label = drawn()
    value, gradient = value_and_gradient(loss, logits, label + 200, valid=some(0))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("form", ["old", "deeplab"])
def test_nothing_counted_costs_nothing_in_other_forms(form):
    logits, label = drawn()
    value, gradient = value_and_gradient(ohem, logits, label, valid=some(0), form=form)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("loss", ALL)
def test_what_does_not_count_says_nothing(loss):
    logits, label = drawn()
    valid = some(0.7)
    expected, _ = value_and_gradient(loss, logits, label, valid=valid)
    other, gradient = value_and_gradient(
        loss, torch.where(valid[:, None], logits, 3.0), label.masked_fill(~valid, 255).byte(), valid=valid
    )
    torch.testing.assert_close(other, expected)
    assert not gradient.movedim(1, -1)[~valid].any()
    assert expected != value_and_gradient(loss, logits, label)[0]


@pytest.mark.parametrize("loss", ALL)
def test_wrong_shapes_are_refused(loss):
    logits, label = drawn()
    with pytest.raises(ValueError, match="not the same pixels"):
        loss(logits, label[:, :6])
    with pytest.raises(ValueError, match="valid"):
        loss(logits, label, valid=some(1)[:1])
    with pytest.raises(ValueError, match="expected"):
        loss(logits[:, 0], label)


@pytest.mark.parametrize("loss", ALL)
def test_each_states_its_formula(loss):
    (formula,) = formulas(loss.__doc__)
    assert set(formula.symbols) <= set(loss.__kwdefaults__) - {"valid"}
    assert r"\mathrm{CE}_i" in (losses.__doc__ or "")


# --- cross entropy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 0.0, 2.0, 3.0]])
def test_cross_entropy_is_torch_s(weights):
    logits, label = drawn()
    valid = some(0.8)
    expected = F.cross_entropy(
        logits,
        label.masked_fill(~valid, -100),
        weight=None if weights is None else torch.tensor(weights),
    )
    torch.testing.assert_close(cross_entropy(logits, label, valid=valid, class_weights=weights), expected)


def test_weights_are_one_per_class():
    logits, label = drawn()
    with pytest.raises(ValueError, match="2 values for 5 classes"):
        cross_entropy(logits, label, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="2 values for 5 classes"):
        focal(logits, label, alpha=[1.0, 2.0])


def test_a_class_that_weighs_nothing_alone_costs_nothing():
    logits, label = drawn(2)
    assert cross_entropy(logits, label * 0, class_weights=[0.0, 1.0]) == 0


# --- hard examples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thresh", [0.9, 0.7, 0.3, 1e-3, 1e-6])
@pytest.mark.parametrize("form", ["new", "old"])
def test_hard_pixels_are_those_that_sorting_finds(form, thresh):
    logits, label = drawn()
    valid = some(0.6)
    cost = F.cross_entropy(logits, label.masked_fill(~valid, -100), reduction="none")
    pixels = int(valid.sum()) if form == "new" else valid.numel()
    expected = released_choice(cost, thresh, pixels // 16)
    found = ohem(logits, label, valid=valid, form=form, thresh=thresh)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("thresh", [0.7, 1e-6], ids=["many are hard", "few are hard"])
def test_forms_agree_where_every_pixel_counts(thresh):
    logits, label = drawn()
    new = value_and_gradient(ohem, logits, label, thresh=thresh)
    old = value_and_gradient(ohem, logits, label, thresh=thresh, form="old")
    assert torch.equal(new[0], old[0])
    assert torch.equal(new[1], old[1])


def test_forms_agree_where_enough_pixels_are_hard():
    logits, label = drawn()
    valid = some(0.5)
    assert ohem(logits, label, valid=valid, form="old") == ohem(logits, label, valid=valid)


def test_old_form_counts_ignored_pixels():
    logits, label = drawn()
    valid = some(0.02)
    assert 0 < valid.sum() < 384 // 16
    cost = F.cross_entropy(logits, label, reduction="none")[valid]
    new, old = (ohem(logits, label, valid=valid, form=form, thresh=1e-9) for form in ("new", "old"))
    assert new == 0  # a sixteenth of so few is no pixel, and none is hard
    torch.testing.assert_close(old, cost.sum() / (384 // 16))


def test_least_number_of_hard_pixels():
    logits, label = drawn()
    cost = F.cross_entropy(logits, label, reduction="none")
    assert ohem(logits, label, thresh=1e-9, n_min=1) == cost.max()
    torch.testing.assert_close(ohem(logits, label, thresh=1e-9, n_min=9999), cost.mean())
    assert ohem(logits, label, thresh=1e-9, n_min=0) == 0


def test_deeplab_takes_a_share():
    logits, label = drawn()
    found = ohem(logits, label, form="deeplab", top_k=0.25)
    torch.testing.assert_close(found, ohem(logits, label, thresh=1e-9, n_min=384 // 4))
    assert ohem(logits, label, form="deeplab", top_k=1.0) == cross_entropy(logits, label)
    assert ohem(logits, label, form="deeplab", top_k=0.0) == 0


def test_deeplab_leaves_ignored_pixels_out_of_the_mean():
    logits, label = drawn()
    valid = some(0.1)
    cost = F.cross_entropy(logits, label, reduction="none")[valid]
    found = ohem(logits, label, valid=valid, form="deeplab", top_k=0.5)
    torch.testing.assert_close(found, cost.mean())
    old = ohem(logits, label, valid=valid, form="old", thresh=1e-9, n_min=192)
    torch.testing.assert_close(old, cost.sum() / 192)


def test_unknown_form():
    with pytest.raises(ValueError, match="form"):
        ohem(*drawn(), form="newest")  # type: ignore[arg-type]


# --- focal, dice, lovász ----------------------------------------------------------------------------------------------


def test_focal_of_two_classes_is_the_binary_one():
    logits, label = drawn(2)
    valid = some(0.8)
    margin = logits[:, 1] - logits[:, 0]
    for gamma in (0.5, 1.0, 2.0):
        expected = binary_focal(margin, label, valid=valid, gamma=gamma, alpha=0.3)
        found = focal(logits, label, valid=valid, gamma=gamma, alpha=[0.7, 0.3])
        torch.testing.assert_close(found, expected)


def test_focal_without_discount_is_cross_entropy():
    logits, label = drawn()
    torch.testing.assert_close(focal(logits, label, gamma=0.0), cross_entropy(logits, label))
    assert focal(logits, label) < cross_entropy(logits, label)


def test_dice_by_hand():
    label = torch.tensor([[[0, 0, 1, 1]]])
    logits = torch.zeros(1, 3, 1, 4)  # a third each; class 2 does not occur
    share = (2 * 2 / 3 + 1) / (4 / 3 + 2 + 1)
    assert dice(logits, label).item() == pytest.approx(1 - share)
    assert dice(100 * F.one_hot(label, 3).movedim(-1, 1).float(), label).item() == pytest.approx(0, abs=1e-6)


def test_lovasz_is_the_mean_of_the_binary_ones():
    logits, label = drawn(4)
    label = label.masked_fill(label == 3, 0)  # class 3 does not occur
    valid = some(0.8)
    of_class = logits.softmax(1).double().logit()
    expected = [
        lovasz_sigmoid(of_class[:, c], label == c, valid=valid, per_image=False).item() for c in range(3)
    ]
    assert lovasz_softmax(logits, label, valid=valid).item() == pytest.approx(sum(expected) / 3, abs=1e-5)
