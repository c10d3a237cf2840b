"""Text-heavy pictures, line art, comic panels, sheets of figures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from anban.audit.checks.content import check, cut
from anban.audit.checks.language import Line
from anban.audit.limits import read_limits
from tests.audit.conftest import picture_of, scene

LIMITS = read_limits()["content"]


def problems(image: Image.Image, lines: list[Line] | None = None) -> dict[str, int]:
    """Problem -> pieces of evidence; `lines` is what was read, None if nobody has."""
    picture = picture_of(image)
    if lines is not None:
        picture.memo["lines"] = lines
    return {finding.problem: len(finding.evidence) for finding in check(picture, LIMITS)}


def written(image: Image.Image, rows: range, letters: int) -> list[Line]:
    """Bars of print, one line each, with so many letters."""
    draw = ImageDraw.Draw(image)
    for y in rows:
        for x in range(40, 440, 10):
            draw.line((x, y, x + 5, y + 8), fill="black", width=2)
    return [Line("x" * letters, ((35, y - 4), (445, y - 4), (445, y + 12), (35, y + 12)), 0.95) for y in rows]


def test_many_letters_are_text_heavy_whatever_is_around_them() -> None:
    image = scene(1)
    assert "text_heavy" in problems(image, written(image, range(20, 400, 20), 30))
    assert "text_heavy" not in problems(image, written(image, range(20, 400, 20), 10))


def test_few_letters_are_text_heavy_where_nothing_else_is_seen() -> None:
    notice = Image.new("RGB", (480, 420), "white")
    lines = written(notice, range(100, 300, 40), 20)
    assert "text_heavy" in problems(notice, lines)
    assert "text_heavy" not in problems(notice)  # nobody has read it
    notice.paste(scene(1, (480, 120)), (0, 300))
    assert "text_heavy" not in problems(notice, lines)


def drawing(colour: str = "black") -> Image.Image:
    image = Image.new("RGB", (480, 420), "white")
    draw = ImageDraw.Draw(image)
    for k in range(12):
        draw.arc(
            (40 + 20 * k, 30 + 9 * k, 300 + 10 * k, 380 - 11 * k), 20 * k, 20 * k + 200, fill=colour, width=3
        )
    return image


def test_line_art_has_thin_black_strokes_that_are_no_text() -> None:
    assert problems(drawing(), []) == {"line_art": 0}
    assert "line_art" not in problems(drawing("blue"), [])
    assert "line_art" not in problems(drawing())  # nobody has read it: it could be a page of text
    page = Image.new("RGB", (480, 420), "white")
    assert "line_art" not in problems(page, written(page, range(20, 400, 20), 30))
    unread = [Line("~", ((0, y), (480, y), (480, y + 105), (0, y + 105)), 0.3) for y in range(0, 420, 105)]
    assert "line_art" not in problems(drawing(), unread)  # lines of a script that cannot be read
    whole = [Line("2", ((0, 0), (480, 0), (480, 420), (0, 420)), 0.7)]
    assert "line_art" in problems(drawing(), whole)
    silhouette = drawing()
    ImageDraw.Draw(silhouette).ellipse((100, 80, 380, 350), fill="black")
    assert "line_art" not in problems(silhouette, [])


@pytest.mark.parametrize("gutter", ["white", "black", (90, 40, 40)])
def test_panels_that_are_bled_to_their_borders(gutter: str | tuple[int, int, int]) -> None:
    page = Image.new("RGB", (600, 800), gutter)
    for number, box in enumerate([(20, 20, 580, 380), (20, 400, 290, 780), (310, 400, 580, 780)]):
        page.paste(scene(number, (box[2] - box[0], box[3] - box[1])), box[:2])
    assert problems(page)["manga_panel"] == 3


def test_framed_panels_that_reach_the_border() -> None:
    strip = Image.new("RGB", (700, 264), "white")
    draw = ImageDraw.Draw(strip)
    for left in (0, 235, 470):
        draw.rectangle((left, 0, left + 225, 263), outline="black", width=3)
        draw.ellipse((left + 80, 80, left + 120, 120), outline="black", width=2)
    assert problems(strip)["manga_panel"] == 3
    assert "text_heavy" not in problems(strip, written(strip, range(20, 240, 10), 30))  # lettering of a comic


def test_paragraphs_and_single_frames_are_no_panels() -> None:
    page = Image.new("RGB", (480, 420), "white")
    written(page, range(20, 180, 20), 30)
    written(page, range(260, 400, 20), 30)
    assert "manga_panel" not in problems(page)
    framed = Image.new("RGB", (600, 500), "white")
    framed.paste(scene(4), (60, 40))
    assert "manga_panel" not in problems(framed)
    assert "manga_panel" not in problems(scene(5))


def test_cut_leaves_the_boxes_between_empty_bands() -> None:
    content = np.zeros((40, 60), bool)
    content[2:10, 5:50] = content[15:38, 5:20] = content[15:30, 30:50] = True
    assert cut(content, 3) == [(2, 5, 10, 50), (15, 5, 38, 20), (15, 30, 30, 50)]
    assert cut(content, 12) == [(2, 5, 38, 50)]
    assert cut(np.zeros((5, 5), bool), 2) == []


def figure(draw: ImageDraw.ImageDraw, x: int, y: int, colour: str = "orange") -> None:
    draw.ellipse((x + 10, y, x + 30, y + 22), fill="pink")
    draw.rectangle((x + 5, y + 20, x + 35, y + 90), fill=colour)


def sheet(columns: int, colour: str = "orange") -> Image.Image:
    image = Image.new("RGB", (600, 480), "white")
    for column in range(columns):
        figure(ImageDraw.Draw(image), 20 + 90 * column, 40 + 10 * (column % 2), colour)
        figure(ImageDraw.Draw(image), 25 + 90 * column, 250, colour)
    return image


def test_a_sheet_has_many_figures_of_one_height() -> None:
    assert problems(sheet(4), [])["character_sheet"] == 8
    assert "character_sheet" not in problems(sheet(2), [])
    assert "character_sheet" not in problems(scene(1), [])
    assert "character_sheet" not in problems(sheet(4))  # nobody has read it: they could be letters


def test_words_are_no_figures() -> None:
    image = sheet(4)
    lines = [Line("ABCD", ((10, y), (400, y), (400, y + 110), (10, y + 110)), 0.95) for y in (35, 240)]
    assert "character_sheet" not in problems(image, lines)


def test_one_figure_that_was_cut_out() -> None:
    image = Image.new("RGBA", (300, 400), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((110, 20, 190, 110), fill="pink")
    draw.rectangle((100, 100, 200, 390), fill="orange")
    assert problems(image, []) == {"character_sheet": 1}
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    assert problems(white, []) == {}  # not transparent: any product on white
