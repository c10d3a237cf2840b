from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from anban.tasks.segment.jitter import ColorJitter, adjust_brightness, adjust_contrast, adjust_saturation


def picture(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, 9, 11), generator=torch.Generator().manual_seed(seed)).byte()


def sample() -> dict[str, object]:
    return {"image": tv_tensors.Image(picture()), "label": tv_tensors.Mask(picture()[0]), "name": "a"}


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.7])
def test_tables_by_hand(factor):
    image = picture().numpy().astype(np.float64)
    brighter = np.clip(image * factor, 0, 255).astype(np.uint8)
    contrasted = np.clip(74 + (image - 74) * factor, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(adjust_brightness(picture(), factor).numpy(), brighter)
    np.testing.assert_array_equal(adjust_contrast(picture(), factor).numpy(), contrasted)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.7])
def test_saturation_moves_from_the_mean(factor):
    image = picture().double()
    mean = image.mean(0)
    expected = (mean + (image - mean) * factor).clamp(0, 255)
    found = adjust_saturation(picture(), factor).double()
    assert (expected - found).max() < 1.001  # the fraction is dropped
    assert (expected - found).min() > -0.001


def test_factors_of_one_change_nothing():
    for adjust in (adjust_brightness, adjust_contrast, adjust_saturation):
        assert torch.equal(adjust(picture(), 1.0), picture())


def test_step_changes_the_picture_only_and_leaves_its_input():
    given = sample()
    torch.manual_seed(0)
    found = ColorJitter()(given)
    assert found["label"] is given["label"]
    assert isinstance(found["image"], tv_tensors.Image)
    assert found["image"].dtype == torch.uint8
    assert not torch.equal(found["image"], given["image"])
    assert torch.equal(given["image"], picture())


def test_order_and_range_of_the_draws():
    torch.manual_seed(3)
    found = ColorJitter(0.4, 2.0, 0.1)(sample())["image"]
    torch.manual_seed(3)
    draws = [float(torch.rand(())) for _ in range(3)]
    expected = adjust_brightness(picture(), 0.6 + 0.8 * draws[0])
    expected = adjust_contrast(expected, 3 * draws[1])
    expected = adjust_saturation(expected, 0.9 + 0.2 * draws[2])
    assert torch.equal(found, expected)


def test_none_leaves_a_step_out():
    assert torch.equal(ColorJitter(None, None, None)(sample())["image"], picture())
    torch.manual_seed(3)
    found = ColorJitter(None, 0.5, None)(sample())["image"]
    torch.manual_seed(3)
    assert torch.equal(found, adjust_contrast(picture(), 0.5 + float(torch.rand(()))))
