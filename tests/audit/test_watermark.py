"""Marks: by their words, their repetition, their place; and by what the pictures of a folder share."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from anban.audit.checks.language import Line
from anban.audit.checks.watermark import carries, check, repeats, shared_marks
from anban.audit.limits import read_limits
from anban.audit.picture import Picture
from tests.audit.conftest import picture_of, scene

LIMITS = read_limits()["watermark"]


def marked(
    image: Image.Image, places: list[tuple[int, int]], text: str = "MARKED", strength: int = 90
) -> Image.Image:
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    for place in places:
        ImageDraw.Draw(layer).text(
            place, text, fill=(255, 255, 255, strength), font=ImageFont.load_default(28)
        )
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def textured(seed: int, size: tuple[int, int] = (480, 420)) -> Image.Image:
    """Structure of all sizes, as photographs have it."""
    draw = np.random.default_rng(seed)
    pixels = np.zeros((size[1], size[0]))
    for step in (1, 2, 4, 8, 16, 32):
        coarse = Image.fromarray(
            draw.normal(0, 1, (size[1] // step + 1, size[0] // step + 1)).astype(np.float32)
        )
        pixels += step**0.7 * np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    values = 110 + 40 * pixels / pixels.std()
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")


def read_as(image: Image.Image, *lines: tuple[str, float, float]) -> list[str]:
    """What is said of a picture in which these lines were read: text, and where it begins."""
    picture = picture_of(image)
    picture.memo["lines"] = [
        Line(text, ((x, y), (x + 80, y), (x + 80, y + 20), (x, y + 20)), 0.97) for text, x, y in lines
    ]
    return [finding.what for finding in check(picture, LIMITS)]


@pytest.mark.parametrize(
    "text", ["© PhotoMarks", "Copyrighted Image", "SAMPLE", "@some.name", "shutterstock", "样图"]
)
def test_words_of_marks(text: str) -> None:
    assert len(read_as(scene(1), (text, 200, 200), ("another line", 50, 100))) == 1


@pytest.mark.parametrize("text", ["a sample of our finest work", "mail@home", "previewing", "正品促销"])
def test_other_words_are_no_marks(text: str) -> None:
    assert read_as(scene(1), (text, 200, 200), ("another line", 50, 100)) == []


def test_the_same_text_all_over_is_a_mark_and_in_a_column_is_a_list() -> None:
    spread = [("Wang Studio", x, y) for x in (20, 300) for y in (30, 350)]
    column = [("Wang Studio", 200.0, y) for y in (30.0, 130.0, 230.0, 350.0)]
    assert len(read_as(scene(1), *spread)) == 1
    assert read_as(scene(1), *column) == []


def test_the_only_text_in_a_corner_is_a_signature() -> None:
    assert len(read_as(scene(1), ("STUDIO", 390, 390))) == 1
    assert read_as(scene(1), ("STUDIO", 200, 200)) == []
    assert read_as(scene(1), ("STUDIO", 390, 390), ("a title", 200, 200)) == []


GRID = [(20 + 150 * column + 40 * (row % 2), 15 + 80 * row) for row in range(5) for column in range(3)]


@pytest.mark.parametrize("seed", range(3))
def test_a_pattern_that_repeats_over_a_picture_is_found_unread(seed: int) -> None:
    clean = textured(seed)
    assert check(picture_of(clean), LIMITS) == []
    (finding,) = check(picture_of(marked(clean, GRID)), LIMITS)
    assert finding.problem == "watermark"
    steps = np.abs(finding.data["steps"])
    assert {tuple(step) for step in steps.tolist()} & {(150, 160), (110, 80), (40, 80)}


def test_repeats_on_a_plain_ground_are_the_content() -> None:
    sheet = Image.new("RGB", (480, 420), "white")
    for place in GRID:
        ImageDraw.Draw(sheet).text(place, "FIGURE", fill="black", font=ImageFont.load_default(28))
    assert repeats(picture_of(sheet).gray, LIMITS) is None


@pytest.mark.parametrize("seed", range(3))
def test_lines_and_edges_are_no_repeats(seed: int) -> None:
    image = textured(seed)
    for y in range(10, 420, 40):
        ImageDraw.Draw(image).line((0, y, 480, y), fill="black", width=3)
    assert repeats(picture_of(image).gray, LIMITS) is None
    assert repeats(picture_of(scene(seed)).gray, LIMITS) is None


def folder(strength: int) -> list[Picture]:
    """Sixteen pictures of two sizes; all but every fourth have a word near their lower right corner."""
    pictures = []
    for number in range(16):
        size = (480, 420) if number % 2 else (400, 500)
        image = textured(number, size)
        if number % 4:
            image = marked(image, [(size[0] - 150, size[1] - 60)], strength=strength)
        pictures.append(picture_of(image, "JPEG", quality=85))
    return pictures


def test_a_mark_that_a_folder_shares_is_found_in_those_that_have_it() -> None:
    pictures = folder(strength=140)
    marks = shared_marks(pictures, LIMITS)
    assert [mark.anchor for mark in marks] == [(1.0, 1.0)]
    carried = [carries(picture, marks[0], LIMITS) for picture in pictures]
    assert [finding is not None for finding in carried] == [number % 4 > 0 for number in range(16)]
    (x0, y0), (x1, y1) = carried[1].evidence[0].points if carried[1] else ((0, 0), (0, 0))
    assert 325 < x0 < x1 < 475
    assert 355 < y0 < y1 < 400


def test_a_folder_without_a_mark_shares_nothing() -> None:
    assert shared_marks(folder(strength=0), LIMITS) == []
    assert shared_marks(folder(strength=140)[: LIMITS.pictures - 1], LIMITS) == []
