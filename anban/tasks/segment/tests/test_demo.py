"""Generated streets: pure functions of their seed, with all classes, which colour alone does not tell apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anban.errors import InputError
from anban.tasks.segment.classes import IGNORE, LABEL_IDS, class_set
from anban.tasks.segment.demo import SPLITS, make_scene, scene_seed, write_demo
from anban.tasks.segment.labels import decode_label
from anban.tasks.segment.layouts import find_scenes

CLASSES = class_set("demo-19")
SMALL = (64, 128)


def many(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, H, W, 3) and class numbers (N, H, W)."""
    scenes = [make_scene(scene_seed(0, split, index), SMALL) for index in range(count)]
    numbers = [decode_label(values, CLASSES.codings[0]) for _, values in scenes]
    return np.stack([image for image, _ in scenes]), np.stack(numbers)


@pytest.fixture(scope="module")
def train() -> tuple[np.ndarray, np.ndarray]:
    return many("train", 48)


@pytest.mark.parametrize("size", [(32, 32), (50, 77), (128, 256)])
def test_a_scene_is_a_colour_picture_and_label_ids_of_the_size_asked_for(size: tuple[int, int]) -> None:
    image, values = make_scene(scene_seed(0, "train", 1), size)
    assert (image.shape, values.shape) == ((*size, 3), size)
    assert image.dtype == values.dtype == np.uint8
    assert set(np.unique(values)) <= set(LABEL_IDS.values())
    assert (values[0] == LABEL_IDS["out of roi"]).all()


def test_a_scene_depends_on_its_seed_only() -> None:
    first = make_scene(7, SMALL)
    make_scene(8, SMALL)
    again = make_scene(7, SMALL)
    assert all(x.tobytes() == y.tobytes() for x, y in zip(first, again, strict=True))
    assert first[1].tobytes() != make_scene(8, SMALL)[1].tobytes()


def test_every_class_and_ignored_ground_appear(train: tuple[np.ndarray, np.ndarray]) -> None:
    shares = np.bincount(train[1].ravel(), minlength=256) / train[1].size
    named = dict(zip(CLASSES.classes, shares, strict=False))
    assert min(named.values()) > 0.0005, named
    assert named["road"] > 0.2
    assert 0.01 < shares[IGNORE] < 0.15


def test_scenes_are_built_like_streets(train: tuple[np.ndarray, np.ndarray]) -> None:
    mean = {name: np.nonzero(train[1] == number)[1].mean() for number, name in enumerate(CLASSES.classes)}
    assert mean["sky"] < mean["building"] < mean["car"] < mean["road"]
    assert mean["traffic light"] < mean["person"] < mean["sidewalk"]
    assert mean["sky"] < mean["vegetation"] < mean["terrain"]


def test_the_colour_of_a_pixel_says_little_about_its_class(train: tuple[np.ndarray, np.ndarray]) -> None:
    def cells(images: np.ndarray) -> np.ndarray:
        red, green, blue = (images[..., channel].astype(np.int64) >> 4 for channel in range(3))
        return 256 * red + 16 * green + blue

    images, numbers = train
    seen = np.zeros((16**3, len(CLASSES)))
    counted = numbers != IGNORE
    np.add.at(seen, (cells(images)[counted], numbers[counted]), 1)
    images, numbers = many("val", 12)
    counted = numbers != IGNORE
    matrix = np.zeros((len(CLASSES), len(CLASSES)))
    np.add.at(matrix, (numbers[counted], seen.argmax(axis=1)[cells(images)[counted]]), 1)
    hit = np.diag(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hit
    assert (hit[union > 0] / union[union > 0]).mean() < 0.2


def test_the_folder_has_the_layout_of_cityscapes_and_is_written_once(tmp_path: Path) -> None:
    root = write_demo(tmp_path / "streets", train=3, val=1, test=1, size=SMALL, seed=5)
    assert [len(find_scenes(root, split, "cityscapes")) for split in SPLITS] == [3, 1, 1]
    image, values = make_scene(scene_seed(5, "val", 0), SMALL)
    (scene,) = find_scenes(root, "val")
    assert scene.name == "demo_000000_000000_leftImg8bit.png"
    assert scene.label is not None
    assert np.array_equal(np.asarray(Image.open(scene.pictures[0])), image)
    assert np.array_equal(np.asarray(Image.open(scene.label)), values)
    note = json.loads((root / "demo.json").read_text())
    assert (note["seed"], note["splits"], note["size"]) == (5, {"train": 3, "val": 1, "test": 1}, list(SMALL))

    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    write_demo(root, train=3, val=1, test=1, size=SMALL, seed=5)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == times
    write_demo(root, train=1, val=1, test=0, size=SMALL, seed=5)
    assert len(list(root.rglob("*.png"))) == 4


def test_wrong_numbers_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="val is -1"):
        write_demo(tmp_path / "x", val=-1)
    with pytest.raises(InputError, match="at least 32"):
        make_scene(0, (16, 64))
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(InputError, match="holds something else"):
        write_demo(tmp_path, train=1, val=0, test=0, size=SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "do not touch"
