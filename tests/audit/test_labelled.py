"""The labelled pictures and the checks that need no reader: what a person saw, but for the files that confuse them."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from anban.audit import checks
from anban.audit.limits import read_limits
from anban.audit.picture import read_picture

DATA = Path(os.environ.get("ANBAN_DATA", "")) / "audit"
LIMITS = read_limits()

pytestmark = pytest.mark.skipif("ANBAN_DATA" not in os.environ, reason="ANBAN_DATA is not set")

#: Labelled so and not found, with the reason.
MISSED = {
    "paper_edges": {
        "messy/scan/geppo_page.jpg": "a page made on a computer: its ground is perfectly even",
        "messy/scan/IMG_2041.jpg": "the sheet fills the picture but for a strip along one side",
        "messy/scan/book_boston.jpg": "a book page of which two sides are seen",
    },
    "manga_panel": {
        "messy/web/crop02.jpg": "a speech bubble, cut out: there is no panel",
        "messy/manga/line_01.jpg": "part of one panel, cut out",
    },
}


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    with open(DATA / "labels.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["opens_with_pillow"] == "yes"]
    return {
        row["path"]: names
        for row in rows
        if "non_image_file" not in (names := set(row["problems"].split(";")))
    }


@pytest.fixture(scope="module")
def told(labels: dict[str, set[str]]) -> dict[str, set[str]]:
    found = {}
    for path in labels:
        with open(DATA / path, "rb") as file:
            picture = read_picture(file, path, LIMITS["picture"])
        answers = [checks.load(name)(picture, LIMITS[name]) for name in ("print", "content")]
        found[path] = {finding.problem for answer in answers for finding in answer}
    return found


@pytest.mark.parametrize("problem", list(MISSED))
def test_what_is_labelled_is_found_but_for_what_is_known(
    problem: str, labels: dict[str, set[str]], told: dict[str, set[str]]
) -> None:
    labelled = {path for path, names in labels.items() if problem in names}
    assert {path for path, names in told.items() if problem in names} == labelled - MISSED[problem].keys()
