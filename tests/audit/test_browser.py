"""The page in a real browser, opened from disk (`make test-browser`; needs playwright and a Chromium)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.audit.test_run import run

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.fixture
def page(collection: Path, tmp_path: Path) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    run(collection, tmp_path / "out")
    file = tmp_path / "out" / "audit.html"
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        errors: list[str] = []
        requests: list[str] = []
        opened.on(
            "console", lambda told: errors.append(told.text) if told.type in ("error", "warning") else None
        )
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(file.as_uri())
        yield opened
        browser.close()
    assert errors == []
    assert [url for url in requests if not url.startswith(("data:", file.as_uri()))] == []


def names(page: Page) -> list[str]:
    return page.locator("#grid figcaption strong").all_inner_texts()


def test_filters_leave_what_fits_them(page: Page) -> None:
    assert len(names(page)) == 18  # thirteen files and five folders
    page.select_option("#problem", "blurred")
    assert names(page) == ["soft.jpg"]
    page.select_option("#problem", "nothing found")
    assert names(page) == ["one.png", "other.jpg", "海报.png"]
    page.select_option("#problem", "")
    page.select_option("#group", "archive")
    assert names(page) == ["pictures.zip"]
    page.select_option("#group", "")
    page.select_option("#fit", "yes")
    assert len(names(page)) == 4
    page.select_option("#fit", "")
    page.fill("#search", "FOREIGN/")
    assert names(page) == ["empty.png", "notes.txt", "page.jpg", "foreign/"]
    page.fill("#search", "")
    page.fill("#score", "0.9")
    assert set(names(page)) == {"small.png", "one copy.png", "other small.jpg"}
    page.fill("#score", "")
    page.fill("#search", "no such path")
    assert page.locator("#where").inner_text() == "no file is like that"


def test_a_click_on_a_count_filters(page: Page) -> None:
    page.click("#problems [data-problem='corrupt']")
    assert names(page) == ["cut.jpg"]


def test_evidence_is_drawn_in_the_pictures_own_pixels(page: Page) -> None:
    page.select_option("#problem", "blurred")
    drawing = page.locator("#grid svg")
    assert drawing.get_attribute("viewBox") == "0 0 480 420"
    marks = drawing.locator("polygon")
    assert marks.count() == 3
    for points in marks.evaluate_all("marks => marks.map(mark => mark.getAttribute('points'))"):
        corners = [tuple(map(float, corner.split(","))) for corner in points.split()]
        assert all(0 <= x <= 480 and 0 <= y <= 420 for x, y in corners)


def test_a_picture_can_be_enlarged_and_stepped_through(page: Page) -> None:
    page.select_option("#problem", "low_resolution")
    page.locator("#grid .frame").first.click()
    title = page.locator("#large strong")
    assert title.inner_text() == "bad/small.png"
    page.keyboard.press("ArrowRight")
    assert title.inner_text() == "copies/other small.jpg"
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
