"""The page in a real browser, opened from disk (`make test-browser`; needs playwright and a Chromium)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )
    with sync_playwright() as playwright:
        # Without a system browser playwright takes the one it installed itself.
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@dataclass
class Visit:
    """An open page with everything that went wrong in it and every address it asked for."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser: Browser, page: Path) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    seen = Visit(context.new_page())
    seen.page.on(
        "console",
        lambda message: seen.errors.append(message.text) if message.type in ("error", "warning") else None,
    )
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto(page.as_uri())
    yield seen
    context.close()
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("data:", page.as_uri()))] == []


def _methods(visit: Visit) -> list[str]:
    return [
        text.removesuffix("base").strip()
        for text in visit.page.locator("#comparison tbody th").all_inner_texts()
    ]


def _f1(visit: Visit) -> list[float]:
    return [
        float(text.split(" ")[0])
        for text in visit.page.locator("#comparison tbody td:nth-of-type(4)").all_inner_texts()
    ]


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_the_order(visit: Visit) -> None:
    before = _methods(visit)
    heading = visit.page.locator("#comparison thead th", has_text="F1")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert _methods(visit) != before
    assert _f1(visit) == sorted(_f1(visit), reverse=True)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert _f1(visit) == sorted(_f1(visit))


def test_sorting_works_from_the_keyboard_and_leaves_undefined_last(visit: Visit) -> None:
    heading = visit.page.locator("#comparison thead th", has_text="Pre")
    heading.locator("button").focus()
    for order in ("descending", "ascending"):
        visit.page.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == order
        assert _methods(visit)[-1] == "FC-Siam-diff"
    assert visit.page.locator('[aria-sort="ascending"], [aria-sort="descending"]').count() == 1


def test_a_picture_opens_walks_by_arrows_and_closes_by_escape(visit: Visit) -> None:
    viewer = visit.page.locator("#viewer")
    title = viewer.locator("strong")
    assert not viewer.is_visible()
    tile = visit.page.locator("#scenes .tile").first
    tile.click()
    assert viewer.is_visible()
    assert title.inner_text() == "test_01 · T1"
    box = viewer.locator("img").bounding_box()
    assert box is not None
    assert box["height"] > 600
    visit.page.keyboard.press("ArrowRight")
    assert title.inner_text() == "test_01 · T2"
    visit.page.keyboard.press("ArrowDown")
    assert title.inner_text() == "test_02 · T2"
    visit.page.keyboard.press("ArrowLeft")
    assert title.inner_text() == "test_02 · T1"
    visit.page.keyboard.press("Escape")
    assert not viewer.is_visible()


def test_a_number_leads_to_its_runs(visit: Visit) -> None:
    link = visit.page.locator("#comparison tbody tr", has_text="gated fusion").locator("td a").nth(2)
    link.click()
    assert visit.page.url.endswith("#runs-gated")
    group = visit.page.locator("#runs-gated")
    assert "TinyCD, gated fusion" in group.inner_text()
    assert group.locator("tr[id^=run-]").count() == 3
    from playwright.sync_api import expect

    expect(group).to_be_in_viewport()


def test_a_warning_leads_to_the_failed_run(visit: Visit) -> None:
    visit.page.locator(".cautions a").first.click()
    target = visit.page.locator("tr:target")
    assert re.search(r"-s2-", target.inner_text())
    assert "failed" in target.inner_text()


def test_the_latex_source_can_be_copied(visit: Visit, page: Path) -> None:
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.page.locator("#comparison button.copy", has_text="LaTeX").click()
    visit.page.get_by_text("LaTeX copied").wait_for()
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    assert copied == (page.parent / "tables" / "comparison.tex").read_text(encoding="utf-8")


def test_change_maps_take_another_convention(visit: Visit) -> None:
    colours = """async () => {
        const image = [...document.querySelectorAll("img.map")].at(-1);
        await image.decode();
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        canvas.getContext("2d").drawImage(image, 0, 0);
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const seen = new Set();
        for (let i = 0; i < data.length; i += 4) seen.add([...data.slice(i, i + 3)].join());
        return [...seen].sort();
    }"""
    # The last map is of the method that predicts no change: true negatives and false negatives only.
    assert visit.page.evaluate(colours) == ["0,0,0", "0,255,0"]
    for name, expected in (
        ("colour-blind", "0,114,178"),
        ("opencd", "255,0,0"),
        ("fp-red-fn-green", "0,255,0"),
    ):
        visit.page.select_option("#convention", name)
        visit.page.wait_for_selector("#convention:enabled")
        assert visit.page.evaluate(colours) == ["0,0,0", expected]
    assert "false negative (green)" in visit.page.locator(".legend").inner_text()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_sticks_out_at_any_width(visit: Visit, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 800})
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
