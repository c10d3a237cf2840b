"""Quality: pixels, blur, blocks of compression, enlargement; a sharp picture has none of it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from anban.audit.checks.quality import blockiness, check, edge_widths, interpolation
from anban.audit.limits import read_limits
from tests.audit.conftest import picture_of, scene

LIMITS = read_limits()["quality"]


def problems(image: Image.Image, form: str = "PNG", **options: int) -> set[str]:
    return {finding.problem for finding in check(picture_of(image, form, **options), LIMITS)}


@pytest.mark.parametrize("seed", range(4))
def test_a_sharp_picture_has_no_finding(seed: int) -> None:
    assert problems(scene(seed), "JPEG", quality=92) == set()


@pytest.mark.parametrize(("size", "low"), [((399, 400), True), ((400, 400), False), ((1600, 100), False)])
def test_resolution_is_width_times_height(size: tuple[int, int], low: bool) -> None:
    assert ("low_resolution" in problems(scene(1, size))) == low


@pytest.mark.parametrize("sigma", [2, 3, 5])
def test_blur_shows_in_the_sharpest_edges(sigma: float) -> None:
    assert "blurred" in problems(scene(2).filter(ImageFilter.GaussianBlur(sigma)))


def test_blur_of_a_part_is_no_blur() -> None:
    image = scene(2)
    image.paste(image.filter(ImageFilter.GaussianBlur(6)).crop((0, 0, 480, 300)), (0, 0))
    assert "blurred" not in problems(image)


def test_motion_is_blur() -> None:
    pixels = np.asarray(scene(3), np.float32)
    moved = np.mean(
        [np.roll(pixels, shift, axis=(0, 1)) for shift in zip(range(12), range(12), strict=True)], axis=0
    )
    assert "blurred" in problems(Image.fromarray(moved.astype(np.uint8)))


def test_edge_width_of_a_known_edge() -> None:
    # A ramp over eight pixels rises by an eighth of its height per pixel: its width is eight.
    row = np.clip((np.arange(64) - 20) / 8, 0, 1).astype(np.float32)
    widths = edge_widths(np.tile(row, (64, 1)), 0.5).widths
    assert widths.min() >= 4  # cut by the border of a block
    assert widths.max() == pytest.approx(8, rel=0.01)


def test_compression_shows_as_blocks() -> None:
    ratios = [blockiness(picture_of(scene(4), "JPEG", quality=quality).detail)[0] for quality in (5, 20, 90)]
    assert ratios[0] > ratios[1] > ratios[2]
    assert "compressed" in problems(scene(4), "JPEG", quality=5)
    assert "compressed" not in problems(scene(4), "JPEG", quality=80)


@pytest.mark.parametrize(("factor", "expected"), [(1.3, 1 / (1 - 1 / 1.3)), (1.5, 3.0), (3.0, 3.0)])
def test_enlarging_leaves_a_period(factor: float, expected: float) -> None:
    small = Image.effect_noise((400, 400), 50)
    large = small.resize((int(400 * factor), int(400 * factor)), Image.Resampling.BICUBIC)
    rise, period = interpolation(np.asarray(large))
    assert rise > LIMITS.period_peak
    assert interpolation(np.asarray(small))[0] < LIMITS.period_peak
    assert period == pytest.approx(expected, rel=0.03)


def test_a_picture_of_one_colour_says_nothing() -> None:
    assert problems(Image.new("RGB", (500, 500), "gray")) == set()


def test_tiny_pictures_are_only_small() -> None:
    for size in ((1, 1), (7, 500), (65, 11)):
        assert problems(Image.effect_noise(size, 40)) == {"low_resolution"}
