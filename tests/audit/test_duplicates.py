"""Near duplicates: found whatever their size and compression, and nothing else; the search misses no pair."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from anban.audit.duplicates import alike, close_pairs, listed_splits, place_of, print_of
from anban.audit.limits import read_limits
from tests.audit.conftest import picture_of, scene

LIMITS = read_limits()["duplicates"]


def same(first: Image.Image, second: Image.Image, **options: int) -> bool:
    one = print_of(picture_of(first), LIMITS)
    two = print_of(picture_of(second, "JPEG" if options else "PNG", **options), LIMITS)
    assert one is not None
    assert two is not None
    return (one.hash ^ two.hash).bit_count() <= LIMITS.most_bits and alike(one.small, two.small, LIMITS)


@pytest.mark.parametrize("seed", range(3))
def test_copies_are_the_same_picture(seed: int) -> None:
    image = scene(seed)
    assert same(image, image.resize((240, 210)))
    assert same(image, image.resize((400, 380)))  # its proportions changed a little
    assert same(image, image, quality=15)
    assert same(image, ImageEnhance.Brightness(image).enhance(1.05))


def test_other_pictures_are_not() -> None:
    prints = [print_of(picture_of(scene(seed, (200, 180))), LIMITS) for seed in range(40)]
    close = [
        (one.hash ^ two.hash).bit_count()
        for one, two in itertools.combinations(prints, 2)
        if one is not None and two is not None
    ]
    assert min(close) > LIMITS.most_bits
    assert not same(scene(1), scene(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def test_the_same_drawing_in_another_colour_is_not_the_same() -> None:
    image = scene(1)
    red, green, blue = image.split()
    assert not same(image, Image.merge("RGB", (blue, red, green)))


def test_an_even_area_has_no_print() -> None:
    assert print_of(picture_of(Image.new("RGB", (300, 300), "teal")), LIMITS) is None


@pytest.mark.parametrize("bits", [0, 3, 7])
def test_the_search_finds_every_close_pair(bits: int) -> None:
    draw = np.random.default_rng(0)
    base = draw.integers(0, 1 << 63, 60, dtype=np.uint64)
    near = [value ^ np.uint64(sum(1 << int(bit) for bit in draw.choice(64, count, replace=False)))
            for value in base for count in (1, 3, 5, 7, 9)]  # fmt: skip
    hashes = np.unique(np.concatenate([base, np.array(near, np.uint64)]))
    found = list(close_pairs(hashes, bits))
    assert len(found) == len(set(found))
    expected = {
        (first, second)
        for first, second in itertools.combinations(range(len(hashes)), 2)
        if int(hashes[first] ^ hashes[second]).bit_count() <= bits
    }
    assert set(found) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("train/A/1.png", ("train", False)),
        ("A/test_3.png", ("test", False)),
        ("leftImg8bit/val/city/x.png", ("val", False)),
        ("images/train2017/1.jpg", ("train", False)),
        ("images/validation/1.jpg", ("val", False)),
        ("train/label/1.png", ("train", True)),
        ("testannot/1.png", ("test", True)),
        ("annotations/training/1.png", ("train", True)),
        ("posters/trains/1.png", (None, False)),
        ("A/known.png", ("val", False)),
        ("A/other.png", (None, False)),
    ],
)
def test_the_split_of_a_path(path: str, expected: tuple[str | None, bool]) -> None:
    assert place_of(path, {"known": "val"}) == expected


def test_lists_name_the_splits_of_their_files(tmp_path: Path) -> None:
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "train.txt").write_text("1.png\n2.png\nboth.png\n")
    (tmp_path / "list" / "test.txt").write_text("images/3.png labels/3.png\nboth.png\n")
    (tmp_path / "readme.txt").write_text("4.png\n")
    assert listed_splits(tmp_path) == {"1": "train", "2": "train", "3": "test"}
