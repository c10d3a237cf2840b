"""Generated pictures, augmentation that moves boxes along, batches, and the names of sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from anban.data.augment import build_augment
from anban.data.draws import drawing_from
from anban.errors import InputError
from anban.tasks.detect.data import DetectData
from anban.tasks.detect.demo import CLASSES, make_cells, paint, write_demo
from anban.tasks.detect.protocols import parse_protocol
from anban.tasks.detect.task import DetectTask
from anban.tasks.detect.transforms import AUGMENT_SECTION


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "cells", train=6, val=2, test=0, size=64)


def marked() -> dict[str, Any]:
    """A picture of 20 x 30 that is white inside its one box, of class 2."""
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[:, 4:10, 6:18] = 255
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor([[6.0, 4.0, 18.0, 10.0]]), format="XYXY", canvas_size=(20, 30)
    )
    return {"image": tv_tensors.Image(image), "boxes": boxes, "labels": torch.tensor([2])}


def white(image: torch.Tensor) -> list[float]:
    """The box around what is white."""
    rows, columns = torch.nonzero(image[0] > 127, as_tuple=True)
    return [float(x) for x in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


@pytest.mark.parametrize(
    "steps",
    [
        {"flip": {"horizontal": 1.0, "vertical": 0.0}},
        {"flip": {"horizontal": 0.0, "vertical": 1.0}},
        {"resize": {"size": [40, 90]}},
        {"resize": {"short": 40}},
        {"resize": {"short": [40, 60], "longest": 60}},
        {"crop": {"size": [16, 26], "visible": 0.0}},
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_boxes_move_with_what_they_are_around(steps: dict[str, Any], seed: int) -> None:
    with drawing_from(seed):
        sample = build_augment(steps, AUGMENT_SECTION)(marked())
    assert sample["boxes"][0].tolist() == pytest.approx(white(sample["image"]), abs=1)
    assert sample["labels"].tolist() == [2]


def test_a_crop_leaves_out_what_it_hardly_shows() -> None:
    crop = build_augment({"crop": {"size": 8, "visible": 0.9}}, AUGMENT_SECTION)
    with drawing_from(0):
        samples = [crop(marked()) for _ in range(20)]
    assert all(len(each["boxes"]) == 0 for each in samples)  # the box is wider than the window
    assert all(each["image"].shape == (3, 8, 8) and len(each["labels"]) == 0 for each in samples)


def test_cutout_blackens_and_keeps_the_boxes() -> None:
    whole = marked()
    with drawing_from(0):
        sample = build_augment({"cutout": {"holes": 3, "share": 0.8}}, AUGMENT_SECTION)(whole)
    assert sample["image"].sum() < whole["image"].sum()
    assert sample["boxes"].tolist() == whole["boxes"].tolist()


@pytest.mark.parametrize("given", [{}, {"size": 9, "short": 9}, {"size": 9, "longest": 9}, {"short": []}])
def test_resize_refuses_sizes_that_contradict_each_other(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="longest"):
        build_augment({"resize": given}, AUGMENT_SECTION)


def test_generated_boxes_are_those_of_the_drawn_pixels() -> None:
    cells = [cell for seed in range(12) for cell in make_cells(seed, 64)]
    assert {cell.kind for cell in cells} == set(range(len(CLASSES)))
    for cell in cells:
        rows, columns = np.nonzero(cell.pixels)
        assert cell.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    np.testing.assert_array_equal(paint(make_cells(5, 64), 5, 64), paint(make_cells(5, 64), 5, 64))


def test_the_generated_set_is_written_once_and_can_be_read(demo: Path) -> None:
    before = (demo / "annotations/train.json").stat().st_mtime_ns
    write_demo(demo, train=6, val=2, test=0, size=64)
    assert (demo / "annotations/train.json").stat().st_mtime_ns == before
    report = DetectData(str(demo)).check()
    assert (report["splits"], report["classes"]) == ({"train": 6, "val": 2}, list(CLASSES))


def test_samples_depend_on_seed_epoch_and_index_alone(demo: Path) -> None:
    data = DetectData(str(demo))
    augment = build_augment({"flip": {}, "photometric": {}}, AUGMENT_SECTION)
    one, other = data.dataset("train", augment, seed=3), data.dataset("train", augment, seed=3)
    other[0, 1]
    first, again, later = one[1, 2], other[1, 2], one[2, 2]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["target"]["boxes"], again["target"]["boxes"])
    assert not torch.equal(first["image"], later["image"])


def test_training_leaves_out_crowds_and_evaluation_keeps_them(demo: Path) -> None:
    data = DetectData(str(demo), limit=3)
    picture = next(each for each in data.labelled("train") if len(each.boxes) > 1)
    picture.ignored[0] = True
    dataset = data.dataset("train")
    number = dataset.pictures.index(picture)
    assert len(dataset[0, number]["target"]["boxes"]) == len(picture.boxes) - 1
    assert dataset[number]["target"]["ignored"].tolist() == picture.ignored.tolist()


def test_pictures_without_objects_can_be_left_out_of_training(demo: Path) -> None:
    data = DetectData(str(demo), empty=False)
    data.labelled("train")[0].ignored[:] = True
    augment = build_augment({}, AUGMENT_SECTION)
    assert len(data.dataset("train", augment)) == len(data.dataset("train")) - 1


def test_a_batch_is_padded_to_its_largest_picture() -> None:
    samples = [
        {"image": torch.ones(3, height, width), "target": {}, "name": "x"}
        for height, width in ((30, 40), (50, 20))
    ]
    batch = DetectTask.collate(samples)
    assert batch["image"].shape == (2, 3, 64, 64)
    assert batch["image"].sum(dim=(1, 2, 3)).tolist() == [3 * 30 * 40, 3 * 50 * 20]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("whole", (480, 640)),
        ("short-240", (240, 320)),
        ("short-800-1000", (750, 1000)),
        ("size-224", (224, 224)),
        ("size-224x320", (224, 320)),
    ],
)
def test_protocols_say_what_a_picture_becomes(name: str, size: tuple[int, int]) -> None:
    assert parse_protocol(name).of(480, 640) == size
    assert parse_protocol(name).name == name


@pytest.mark.parametrize("name", ["large", "short", "short-0", "size-12x", "whole-3"])
def test_other_protocols_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown protocol"):
        parse_protocol(name)


def test_a_picture_of_two_splits_is_told_by_its_content(tmp_path: Path) -> None:
    """Not by its name: every split numbers its pictures from 0."""
    root = write_demo(tmp_path / "cells", train=2, val=2, test=0, size=32)
    train, val = (root / "images" / split for split in ("train", "val"))
    data = DetectData(str(root), test=None)
    assert data.check()["warnings"] == []
    padded = max(path.stat().st_size for path in (train / "000000.png", val / "000000.png"))
    for path in (train / "000000.png", val / "000000.png"):  # equal in name and size, not in content
        path.write_bytes(path.read_bytes().ljust(padded, b"\0"))
    assert DetectData(str(root), test=None).check()["warnings"] == []
    (val / "000001.png").write_bytes((train / "000000.png").read_bytes())
    with pytest.raises(
        InputError, match=r"(?s)train and val share 1 pictures, first 000001\.png.*overlap=warn"
    ):
        DetectData(str(root), test=None).check()
    warned = DetectData(str(root), test=None, overlap="warn").check()["warnings"]
    assert warned == ["train and val share 1 pictures, first 000001.png"]
