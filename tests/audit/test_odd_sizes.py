"""Pictures of one pixel, of one row, of one colour: every check has an answer for them."""

from __future__ import annotations

import pytest
from PIL import Image

from anban.audit import checks
from anban.audit.limits import read_limits
from tests.audit.conftest import picture_of

LIMITS = read_limits()


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3000, 2), (300, 70), (257, 256)])
@pytest.mark.parametrize("colour", ["white", "black", "red"])
def test_even_pictures_of_odd_sizes_have_nothing_to_find(size: tuple[int, int], colour: str) -> None:
    picture = picture_of(Image.new("RGB", size, colour))
    picture.memo["lines"] = []
    found = [finding for name in checks.NAMES for finding in checks.load(name)(picture, LIMITS[name])]
    assert {finding.problem for finding in found} <= {"low_resolution"}


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3000, 2), (2000, 8), (9, 1500), (40, 40)])
def test_the_reader_reads_nothing_in_them(size: tuple[int, int]) -> None:
    pytest.importorskip("rapidocr", reason="rapidocr is not installed")
    assert checks.load("language")(picture_of(Image.new("RGB", size, "white")), LIMITS["language"]) == []
