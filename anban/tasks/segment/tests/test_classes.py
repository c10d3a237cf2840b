"""Class sets: names, colours, and the numbers that stand for them on disk."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anban.errors import InputError
from anban.tasks.segment.classes import CLASS_SETS, IGNORE, LABEL_IDS, UNKNOWN, class_set

REAL = Path(os.environ.get("ANBAN_DATA", "unset")) / "segmentation"


@pytest.mark.parametrize("name", [*CLASS_SETS, 2, 11, 254])
def test_every_class_has_a_name_a_colour_and_a_number_in_every_coding(name: str | int) -> None:
    classes = class_set(name)
    assert len(set(classes.classes)) == len(classes.palette) == len(classes)
    assert all(0 <= channel <= 255 for colour in classes.palette for channel in colour)
    for coding in classes.codings:
        assert set(coding.numbers.values()) == set(range(len(classes)))
        assert not coding.ignored & set(coding.numbers)


@pytest.mark.parametrize("name", [name for name in [*CLASS_SETS, 254] if name != "ade20k-150"])
def test_no_two_classes_share_a_colour(name: str | int) -> None:
    # In ADE20K's own palette road and skyscraper are one grey.
    assert len(set(class_set(name).palette)) == len(class_set(name))


@pytest.mark.parametrize(
    ("name", "coding", "stored", "numbers"),
    [
        ("cityscapes-19", "label-ids", [7, 8, 11, 33, 0, 9, 29, 34], [0, 1, 2, 18, 255, 255, 255, UNKNOWN]),
        ("cityscapes-19", "train-ids", [0, 18, 255, 19], [0, 18, 255, UNKNOWN]),
        ("cityscapes-20", "label-ids", [7, 33, 0, 3, 30], [0, 18, 19, 19, 19]),
        ("cityscapes-20", "train-ids", [0, 18, 255], [0, 18, 19]),
        ("camvid-11", "train-ids", [0, 10, 11, 255, 12], [0, 10, 255, 255, UNKNOWN]),
        ("voc-21", "train-ids", [0, 20, 255, 21], [0, 20, 255, UNKNOWN]),
        ("ade20k-150", "label-ids", [0, 1, 150, 151], [255, 0, 149, UNKNOWN]),
        ("ade20k-150", "train-ids", [0, 149, 255], [0, 149, 255]),
        ("coco-stuff-171", "label-ids", [0, 10, 11, 12, 89, 90, 91, 181, 255],
         [0, 10, UNKNOWN, 11, 79, UNKNOWN, 80, 170, 255]),
        (3, "train-ids", [0, 2, 3, 255], [0, 2, UNKNOWN, UNKNOWN]),
    ],
)  # fmt: skip
def test_stored_values_become_class_numbers(
    name: str | int, coding: str, stored: list[int], numbers: list[int]
) -> None:
    found = next(c for c in class_set(name).codings if c.name == coding)
    assert found.table[stored].tolist() == numbers


def test_the_twentieth_class_of_cityscapes_is_void_and_nothing_is_ignored() -> None:
    classes = class_set("cityscapes-20")
    assert (classes.void, classes.classes[19]) == (19, "void")
    assert classes.classes[:19] == class_set("cityscapes-19").classes
    assert not any(coding.ignored for coding in classes.codings)
    assert class_set("cityscapes-19").void is None


def test_declared_values_are_ignored_even_if_they_were_a_class() -> None:
    coding = class_set(3).codings[0].ignoring([2, 255])
    assert coding.table[[0, 1, 2, 255, 3]].tolist() == [0, 1, IGNORE, IGNORE, UNKNOWN]


def test_colours_are_the_data_sets_own() -> None:
    cityscapes, camvid, voc = (class_set(n) for n in ("cityscapes-19", "camvid-11", "voc-21"))
    assert cityscapes.palette[0] == (128, 64, 128)
    assert cityscapes.palette[18] == (119, 11, 32)
    assert camvid.palette[4] == (60, 40, 222)
    assert voc.palette[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert voc.palette[20] == (0, 64, 128)
    assert class_set("ade20k-150").palette[2] == (6, 230, 230)


@pytest.mark.parametrize("name", ["cityscape-19", 1, 255])
def test_unknown_sets_are_refused(name: str | int) -> None:
    with pytest.raises(InputError, match=r"did you mean 'cityscapes-19'|2 to 254"):
        class_set(name)


def test_class_sets_need_no_torch() -> None:
    code = "import sys, anban.tasks.segment.classes as c; c.class_set('ade20k-150'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not REAL.is_dir(), reason="ANBAN_DATA is not set, or holds no segmentation")
def test_tables_of_the_real_data_agree() -> None:
    with (REAL / "cityscapes" / "label_ids.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["name"]: int(row["labelId"]) for row in rows} == LABEL_IDS
    table = class_set("cityscapes-19").codings[0].table
    assert [int(row["trainId"]) for row in rows] == table[: len(rows)].tolist()
    with (REAL / "camvid" / "classes.csv").open() as file:
        names = [row["name"].lower() for row in csv.DictReader(file)]
    assert [name.replace(" ", "") for name in class_set("camvid-11").classes] == names[:11]


@pytest.mark.skipif(not REAL.is_dir(), reason="ANBAN_DATA is not set, or holds no segmentation")
def test_voc_colours_are_those_its_files_carry() -> None:
    from PIL import Image

    with Image.open(REAL / "pascal_labelme" / "SegmentationClass" / "2011_000003.png") as image:
        stored = np.array(image.getpalette("RGB")).reshape(-1, 3)
    assert stored[:21].tolist() == [list(colour) for colour in class_set("voc-21").palette]
