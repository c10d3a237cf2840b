"""Losses against numbers worked by hand and against their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anban.losses import bce, dice, focal, lovasz_hinge, lovasz_sigmoid, swbce, weighted_bce

ALL: list[Callable[..., Tensor]] = [bce, weighted_bce, focal, dice, lovasz_hinge, lovasz_sigmoid, swbce]
LN3 = math.log(3)  # the logit of 3/4


def image(*rows: list[float]) -> Tensor:
    """One image, (1, 1, H, W)."""
    return torch.tensor(rows)[None, None]


def drawn(batch: int = 2, size: int = 8, share: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logit = torch.randn(batch, 1, size, size, generator=generator) * 2
    return logit, (torch.rand(batch, 1, size, size, generator=generator) < share).float()


def value_and_gradient(
    loss: Callable[..., Tensor], logit: Tensor, target: Tensor, **options: Any
) -> tuple[float, Tensor]:
    logit = logit.clone().requires_grad_()
    value = loss(logit, target, **options)
    assert value.shape == ()
    assert value.dtype == torch.float32
    value.backward()
    assert logit.grad is not None
    return value.item(), logit.grad


# --- what holds for all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("level", [0.0, 1.0, None], ids=["background", "change", "both"])
@pytest.mark.parametrize("scale", [1e4, -1e4, 0.0])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_finite_at_the_extremes(loss, level, scale, autocast):
    target = torch.zeros(2, 1, 6, 6) if level is None else torch.full((2, 1, 6, 6), level)
    if level is None:
        target[0, 0, :2] = 1
    logit = torch.full((2, 1, 6, 6), scale, dtype=torch.bfloat16 if autocast else torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value, gradient = value_and_gradient(loss, logit, target)
    assert math.isfinite(value)
    assert value >= 0
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", ALL)
def test_shapes_and_types_of_the_same_pixels_are_equal(loss):
    logit, target = drawn()
    expected = loss(logit, target)
    for other in (target[:, 0], target.to(torch.uint8), target.bool()[:, 0]):
        assert torch.equal(loss(logit, other), expected)
    assert torch.equal(loss(logit[:, 0], target), expected)


@pytest.mark.parametrize("loss", ALL)
def test_wrong_shapes_are_refused(loss):
    with pytest.raises(ValueError, match="not the same pixels"):
        loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 8))
    with pytest.raises(ValueError, match="expected"):
        loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="valid"):
        loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), valid=torch.ones(1, 4, 5))


@pytest.mark.parametrize("loss", ALL)
def test_masked_pixels_might_as_well_not_exist(loss):
    logit, target = drawn(size=6)
    wide_logit = F.pad(logit, (0, 3), value=50.0)
    wide_target = F.pad(target, (0, 3), value=0.0)
    valid = F.pad(torch.ones_like(target), (0, 3)).bool()
    value, gradient = value_and_gradient(loss, wide_logit, wide_target, valid=valid)
    expected, expected_gradient = value_and_gradient(loss, logit, target)
    assert value == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(gradient[..., :6], expected_gradient, atol=1e-7)
    assert gradient[..., 6:].abs().max() == 0
    assert loss(wide_logit, wide_target).item() != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("loss", ALL)
def test_nothing_counted_costs_nothing(loss):
    logit, target = drawn()
    value, gradient = value_and_gradient(loss, logit, target, valid=torch.zeros_like(target))
    assert value == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("loss", ALL)
def test_mask_of_ones_changes_nothing(loss):
    logit, target = drawn()
    assert torch.equal(loss(logit, target, valid=torch.ones_like(target).bool()), loss(logit, target))


@pytest.mark.parametrize("loss", [bce, focal, dice, lovasz_hinge, lovasz_sigmoid])
def test_batch_cut_in_two_gives_the_same_mean(loss):
    logit, target = drawn(batch=4)
    halves = [loss(logit[part], target[part]) for part in (slice(0, 2), slice(2, 4))]
    assert torch.allclose(sum(halves) / 2, loss(logit, target), atol=1e-6)


@pytest.mark.parametrize("loss", ALL)
def test_bf16_logits_are_summed_in_float32(loss):
    logit, target = drawn(size=64)
    logit = logit.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logit, target)
    assert torch.equal(value, loss(logit.float(), target))


@pytest.mark.parametrize("loss", ALL)
def test_gradient_points_to_the_target(loss):
    logit, target = drawn()
    _, gradient = value_and_gradient(loss, logit, target)
    assert (gradient * (2 * target - 1) <= 0).all()
    assert gradient.abs().max() > 0


# --- cross entropies --------------------------------------------------------------------------------------------------


def test_bce_by_hand():
    # p = 3/4 on a change pixel, 3/4 on a background pixel: -ln(3/4) and -ln(1/4).
    logit, target = image([LN3, LN3]), image([1.0, 0.0])
    assert bce(logit, target).item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert bce(logit, target, pos_weight=3.0).item() == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 2)


def test_bce_is_torchs():
    logit, target = drawn()
    assert torch.allclose(bce(logit, target), F.binary_cross_entropy_with_logits(logit, target))


def test_weighted_bce_by_hand():
    # One change pixel (cost ln 4/3), three background ones (ln 4 each): balanced is the mean of the class means.
    logit, target = image([LN3, LN3], [LN3, LN3]), image([1.0, 0.0], [0.0, 0.0])
    assert weighted_bce(logit, target).item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    given = weighted_bce(logit, target, class_weights=(1.0, 5.0)).item()
    assert given == pytest.approx((5 * math.log(4 / 3) + 3 * math.log(4)) / 8)


def test_uniform_weights_change_nothing():
    logit, target = drawn()
    plain = bce(logit, target)
    assert torch.allclose(weighted_bce(logit, target, class_weights=(7.0, 7.0)), plain)
    assert torch.equal(bce(logit, target, pos_weight=1.0), plain)
    even = torch.zeros_like(target)
    even[..., ::2] = 1  # half of each class: balancing has nothing to do
    assert torch.allclose(weighted_bce(logit, even), bce(logit, even))


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_balanced_bce_of_one_class_is_bce(level):
    logit, target = drawn()
    target = torch.full_like(target, level)
    assert torch.allclose(weighted_bce(logit, target), bce(logit, target))


def test_weights_that_leave_nothing():
    logit = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    value, gradient = value_and_gradient(weighted_bce, logit, torch.zeros(1, 4, 4), class_weights=(0.0, 1.0))
    assert value == 0
    assert gradient.abs().max() == 0


# --- focal ------------------------------------------------------------------------------------------------------------


def test_focal_by_hand():
    # p_t = 3/4 and 1/4: alpha (1/4)^2 ln(4/3) and (1 - alpha) (3/4)^2 ln 4.
    logit, target = image([LN3, LN3]), image([1.0, 0.0])
    expected = (0.25 * math.log(4 / 3) / 16 + 0.75 * math.log(4) * 9 / 16) / 2
    assert focal(logit, target).item() == pytest.approx(expected)
    assert focal(logit, target, alpha=None).item() == pytest.approx(
        (math.log(4 / 3) / 16 + math.log(4) * 9 / 16) / 2
    )


def test_focal_without_focus_is_bce():
    logit, target = drawn()
    assert torch.allclose(focal(logit, target, gamma=0.0, alpha=None), bce(logit, target))
    assert torch.allclose(focal(logit, target, gamma=0.0, alpha=0.5), bce(logit, target) / 2)


def test_focal_small_gamma_has_a_finite_slope_where_all_is_right():
    _, gradient = value_and_gradient(focal, image([200.0, -200.0]), image([1.0, 0.0]), gamma=0.5)
    assert torch.isfinite(gradient).all()


# --- dice -------------------------------------------------------------------------------------------------------------


def test_dice_by_hand():
    # p = 3/4 everywhere, two of four pixels change: overlap 3/2, sums 3 and 2.
    logit, target = image([LN3, LN3], [LN3, LN3]), image([1.0, 1.0], [0.0, 0.0])
    assert dice(logit, target).item() == pytest.approx(1 - (3 + 1) / (3 + 2 + 1))
    assert dice(logit, target, smooth=0.5).item() == pytest.approx(1 - 3.5 / 5.5)


def test_dice_of_the_batch_is_one_ratio():
    logit = torch.cat([image([LN3, LN3]), image([-LN3, -LN3])])
    target = torch.cat([image([1.0, 1.0]), image([1.0, 0.0])])
    # Overlaps 3/2 and 1/4; predicted 3/2 and 1/2; positive 2 and 1.
    assert dice(logit, target, per_image=False).item() == pytest.approx(1 - (2 * 1.75 + 1) / (2 + 3 + 1))
    each = (1 - (3 + 1) / (1.5 + 2 + 1)) + (1 - (0.5 + 1) / (0.5 + 1 + 1))
    assert dice(logit, target).item() == pytest.approx(each / 2)


@pytest.mark.parametrize("empty", ["area", "smooth"])
def test_dice_empty_mask(empty):
    target = torch.zeros(1, 1, 16, 16)
    quiet, _ = value_and_gradient(dice, torch.full_like(target, -30.0), target, empty=empty)
    assert quiet == pytest.approx(0, abs=1e-6)
    logit = torch.full_like(target, -30.0)
    logit[..., :4] = 0.0
    alarm, gradient = value_and_gradient(dice, logit, target, empty=empty)
    # A quarter of the image at probability 1/2: 32 predicted pixels of 256.
    assert alarm == pytest.approx({"area": 32 / 256, "smooth": 1 - 1 / 33}[empty], rel=1e-5)
    assert (gradient[..., :4] > 0).all()


def test_dice_area_keeps_its_slope_when_the_alarm_is_large():
    target, logit = torch.zeros(1, 1, 128, 128), torch.zeros(1, 1, 128, 128)
    slope = {
        empty: value_and_gradient(dice, logit, target, empty=empty)[1].sum().item()
        for empty in ("area", "smooth")
    }
    assert slope["area"] == pytest.approx(0.25)
    assert slope["smooth"] < 1e-3


def test_dice_skip_forgives_alarms_on_empty_masks():
    value, gradient = value_and_gradient(
        dice, torch.full((1, 1, 4, 4), 3.0), torch.zeros(1, 4, 4), empty="skip"
    )
    assert value == 0
    assert gradient.abs().max() == 0


# --- swbce ------------------------------------------------------------------------------------------------------------


def test_swbce_by_hand():
    # Six pixels: 2 hits, 1 miss, 1 false alarm, 2 right background. IoU of change 2/4, of background 2/4.
    logit = image([LN3, LN3, -LN3, LN3, -LN3, -LN3])
    target = image([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    right, wrong = math.log(4 / 3), math.log(4)
    assert swbce(logit, target).item() == pytest.approx(0.5 * (4 * right + 2 * wrong) / 6)
    # One hit, one miss, no alarm, two right: IoU of change 1/2 weighs background, IoU of background 2/3 weighs change.
    logit, target = image([LN3, -LN3, -LN3, -LN3]), image([1.0, 1.0, 0.0, 0.0])
    expected = (2 / 3 * (right + wrong) + 1 / 2 * 2 * right) / 4
    for degenerate in ("bce", "published"):
        assert swbce(logit, target, degenerate=degenerate).item() == pytest.approx(expected)


def test_swbce_without_change_in_the_batch():
    target = torch.zeros(1, 1, 2, 2)
    quiet, alarm = torch.full_like(target, -2.0), image([2.0, -2.0], [-2.0, -2.0])
    assert torch.allclose(swbce(quiet, target), bce(quiet, target))
    assert torch.allclose(swbce(alarm, target), bce(alarm, target))
    # As published: no weight is defined for the first, and the alarm in the second is free.
    assert torch.isnan(swbce(quiet, target, degenerate="published"))
    value, gradient = value_and_gradient(swbce, alarm, target, degenerate="published")
    assert value == 0
    assert gradient.abs().max() == 0


def test_swbce_wrong_everywhere_still_learns():
    logit, target = image([2.0, -2.0]), image([0.0, 1.0])
    assert torch.allclose(swbce(logit, target), bce(logit, target))
    assert swbce(logit, target, degenerate="published").item() == 0


def test_unknown_options_are_refused():
    logit, target = drawn()
    with pytest.raises(ValueError, match="area"):
        dice(logit, target, empty="never")
    with pytest.raises(ValueError, match="published"):
        swbce(logit, target, degenerate="never")
