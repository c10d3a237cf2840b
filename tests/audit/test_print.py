"""A sheet on a table is found with its corners; frames of electronic originals, signs and text are not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from anban.audit.checks.print import check, halftone
from anban.audit.finding import Finding
from anban.audit.limits import read_limits
from tests.audit.conftest import picture_of, scene

LIMITS = read_limits()["print"]
CORNERS = ((120, 90), (520, 60), (560, 640), (90, 600))


def on_a_table(
    corners: tuple[tuple[int, int], ...] = CORNERS, grain: float = 3, table: int = 90
) -> Image.Image:
    """White paper with lines of print, seen slightly from the side."""
    image = Image.new("RGB", (640, 720), (table, table - 10, table - 25))
    draw = ImageDraw.Draw(image)
    draw.polygon(corners, fill=(225, 222, 210))
    for y in range(150, 560, 30):
        draw.line((170, y, 470, y - 10), fill=(60, 60, 60), width=6)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float32)
    pixels = pixels + np.random.default_rng(0).normal(0, grain, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def findings(image: Image.Image) -> list[Finding]:
    return check(picture_of(image, "JPEG", quality=90), LIMITS)


@pytest.mark.parametrize("scale", [1, 3])
def test_a_sheet_on_a_table_is_found_with_its_corners(scale: int) -> None:
    image = on_a_table()
    (finding,) = findings(image.resize((scale * 640, scale * 720), Image.Resampling.BICUBIC))
    assert finding.problem == "paper_edges"
    corners = np.array(finding.evidence[0].points) / scale
    away = np.linalg.norm(corners[:, None] - np.array(CORNERS)[None], axis=-1).min(0)
    assert away.max() < 12
    assert finding.data["perspective"] > 0.05


def test_a_sheet_that_runs_out_of_the_picture_has_three_sides() -> None:
    (finding,) = findings(on_a_table(((120, 90), (520, 60), (540, 900), (100, 900))))
    assert finding.data["sides"] == 3


def test_a_frame_on_a_perfectly_even_ground_is_an_electronic_original() -> None:
    assert findings(on_a_table(grain=0)) == []
    assert len(findings(on_a_table(grain=3))) == 1


def test_a_board_before_a_busy_ground_is_no_print() -> None:
    ground = scene(1, (640, 720))
    ImageDraw.Draw(ground).polygon(CORNERS, fill=(225, 222, 210))
    assert findings(ground) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_picture_without_a_sheet_has_no_finding(seed: int) -> None:
    assert findings(scene(seed)) == []


def test_a_round_thing_on_a_table_is_no_sheet() -> None:
    image = on_a_table(((0, 0), (1, 0), (1, 1), (0, 1)))
    ImageDraw.Draw(image).ellipse((120, 90, 520, 640), fill=(225, 222, 210))
    assert findings(image) == []


def screened(period: float, degrees: float) -> Image.Image:
    """A scene printed in dots on a grid that is turned by so many degrees."""
    image = scene(3, (600, 600)).convert("L").filter(ImageFilter.GaussianBlur(1))
    gray = np.asarray(image, np.float32) / 255
    y, x = np.mgrid[:600, :600] * (2 * np.pi / period)
    turn = np.radians(degrees)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    dots = gray + 0.25 * (np.cos(u) + np.cos(v)) > 0.5
    printed = Image.fromarray((255 * dots).astype(np.uint8))
    return printed.filter(ImageFilter.GaussianBlur(0.8)).convert("RGB")


@pytest.mark.parametrize("degrees", [15, 45, 75])
def test_halftone_dots_are_found_with_their_period(degrees: float) -> None:
    (finding,) = findings(screened(7, degrees))
    assert finding.problem == "paper_edges"
    assert finding.data["period"] == pytest.approx(7, rel=0.05)


def test_photographs_and_noise_have_no_halftone_dots() -> None:
    noise = np.random.default_rng(1).integers(0, 255, (512, 512)).astype(np.uint8)
    assert halftone(noise)[0] < LIMITS.dots
    assert halftone(picture_of(scene(2), "JPEG", quality=60).detail)[0] < LIMITS.dots
    assert halftone(noise[:100, :100]) == (0.0, 0.0)
