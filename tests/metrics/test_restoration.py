"""Scores of restored images: by hand, and against torchmetrics, scikit-image and the published measures."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional import image as reference

from anban.formulas import formulas
from anban.metrics.restoration import gaussian_window, psnr, rmse, ssim


def pair(channels: int = 1) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    target = torch.rand(3, channels, 24, 31, generator=draws, dtype=torch.float64)
    return target + 0.1 * torch.randn(target.shape, generator=draws, dtype=torch.float64), target


def integers() -> tuple[Tensor, Tensor]:
    """A pair that another program can be given by its formula."""
    target = torch.arange(13 * 14, dtype=torch.float64).reshape(1, 1, 13, 14) % 11
    return (3 * target + torch.arange(14)) % 13, target


@pytest.mark.parametrize("channels", [1, 3])
def test_equal_to_torchmetrics(channels: int) -> None:
    restored, target = pair(channels)
    ours = psnr(restored, target, data_range=1.0)
    theirs = reference.peak_signal_noise_ratio(
        restored, target, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    torch.testing.assert_close(ours, theirs)
    _, similar = reference.structural_similarity_index_measure(
        restored, target, data_range=2.0, return_full_image=True
    )
    inside = similar[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))  # torchmetrics reflects the image at its border
    torch.testing.assert_close(ssim(restored, target, data_range=2.0), inside)


def test_equal_to_scikit_image() -> None:
    """Values of skimage.metrics 0.26 for this pair: its own defaults, and the paper's settings."""
    restored, target = integers()
    uniform = ssim(restored, target, data_range=12, window="uniform", covariance="sample")
    assert uniform.item() == pytest.approx(0.012236411984079895, abs=1e-12)
    assert ssim(restored, target, data_range=12).item() == pytest.approx(-0.007055662316903993, abs=1e-12)
    assert psnr(restored, target, data_range=12).item() == pytest.approx(7.564320006904074, abs=1e-12)


def test_by_hand() -> None:
    restored, target = torch.tensor([[[[3.0, 0.0]]], [[[0.0, 0.0]]]]), torch.zeros(2, 1, 1, 2)
    assert rmse(restored, target).tolist() == [math.sqrt(4.5), 0]
    assert psnr(restored, target, data_range=3).tolist() == [pytest.approx(10 * math.log10(2)), math.inf]


def test_equal_images_are_perfectly_similar_at_any_border() -> None:
    _, target = pair()
    assert torch.equal(ssim(target, target, data_range=1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(ssim(target, target, data_range=1, border="zeros"), torch.ones(3, dtype=torch.float64))


def test_the_published_border_is_that_of_an_image_with_zeros_around_it() -> None:
    restored, target = pair()
    around = (5, 5, 5, 5)
    cropped = ssim(F.pad(restored, around), F.pad(target, around), data_range=1)
    torch.testing.assert_close(ssim(restored, target, data_range=1, border="zeros"), cropped)
    assert not torch.allclose(ssim(restored, target, data_range=1), cropped, atol=1e-4)
    # Zeros are not neutral: the same pictures in units with another zero score otherwise.
    moved = ssim(restored - 5, target - 5, data_range=1, border="zeros")
    assert not torch.allclose(moved, cropped, atol=1e-4)


def test_scores_are_those_of_each_image_by_itself() -> None:
    restored, target = pair(3)
    for score in (
        rmse,
        lambda *images: psnr(*images, data_range=1),
        lambda *images: ssim(*images, data_range=1),
    ):
        torch.testing.assert_close(score(restored, target)[1:2], score(restored[1:2], target[1:2]))


def test_what_cannot_be_scored_is_refused() -> None:
    restored, target = pair()
    with pytest.raises(ValueError, match="same"):
        rmse(restored[:1], target)
    with pytest.raises(ValueError, match="data range of 0"):
        psnr(restored, target, data_range=0)
    with pytest.raises(ValueError, match="the window has 11"):
        ssim(restored[..., :10], target[..., :10], data_range=1)


def test_the_window_and_the_formulas() -> None:
    window = gaussian_window(2)
    assert window.shape == (2, 1, 11, 11)
    torch.testing.assert_close(window.sum(dim=(1, 2, 3)), torch.ones(2, dtype=torch.float64))
    stated = [formula.name for score in (rmse, psnr, ssim) for formula in formulas(score.__doc__)]
    assert stated == ["rmse", "psnr", "ssim"]
