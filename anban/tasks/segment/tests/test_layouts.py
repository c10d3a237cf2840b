"""Folder layouts and the doctor, on tiny invented files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anban.errors import InputError
from anban.tasks.segment.doctor import doctor
from anban.tasks.segment.layouts import find_layout, find_scenes

REAL = Path(os.environ.get("ANBAN_DATA", "unset")) / "segmentation"
CITY = "aachen_00000{}_000019"


def picture(path: Path, size: tuple[int, int] = (4, 6), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def label(path: Path, values: Any = (7, 11, 26), size: tuple[int, int] = (4, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), size)).save(path)


def cityscapes(root: Path) -> None:
    for number, split in enumerate(("train", "train", "val")):
        stem = CITY.format(number)
        picture(root / "leftImg8bit" / split / "aachen" / f"{stem}_leftImg8bit.png")
        label(root / "gtFine" / split / "aachen" / f"{stem}_gtFine_labelIds.png")
        label(root / "gtFine" / split / "aachen" / f"{stem}_gtFine_labelTrainIds.png", (0, 2, 13, 255))
        picture(root / "gtFine" / split / "aachen" / f"{stem}_gtFine_color.png")
        label(root / "gtFine" / split / "aachen" / f"{stem}_gtFine_instanceIds.png")


def camvid(root: Path) -> None:
    for number, split in enumerate(("train", "train", "val", "test")):
        picture(root / split / f"{number}.png")
        label(root / f"{split}annot" / f"{number}.png", (0, 3, 11))


def voc(root: Path) -> None:
    for name in ("2007_1", "2007_2", "2007_3", "unlabelled"):
        picture(root / "JPEGImages" / f"{name}.jpg")
    for name in ("2007_1", "2007_2", "2007_3"):
        label(root / "SegmentationClass" / f"{name}.png", (0, 15, 255))
    sets = root / "ImageSets" / "Segmentation"
    sets.mkdir(parents=True)
    for split, names in (
        ("train", "2007_1\n2007_2\n"),
        ("val", "2007_3\n"),
        ("trainval", "2007_1\n2007_3\n"),
    ):
        (sets / f"{split}.txt").write_text(names)


def ade20k(root: Path) -> None:
    for number, split in enumerate(("training", "training", "validation")):
        picture(root / "images" / split / f"ADE_{number}.jpg")
        label(root / "annotations" / split / f"ADE_{number}.png", (0, 1, 150))


def coco(root: Path) -> None:
    for number, split in enumerate(("train2017", "train2017", "val2017")):
        picture(root / "images" / split / f"{number:012}.jpg")
        label(root / "labels" / split / f"{number:012}.png", (0, 181, 255))
    picture(root / "images" / "test2017" / "000000000009.jpg")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text("{}")


def split_first(root: Path) -> None:
    for number, split in enumerate(("train", "train", "val")):
        picture(root / split / "images" / f"{number}.png")
        label(root / split / "masks" / f"{number}.tif", (0, 1))


def flat_with_lists(root: Path) -> None:
    for number in range(3):
        picture(root / "images" / f"{number}.jpg")
        label(root / "labels" / f"{number}.png", (0, 1))
    (root / "train.txt").write_text("0\n1.jpg\n")
    (root / "val.txt").write_text("2\n")


def lists(root: Path) -> None:
    for number in range(3):
        picture(root / "some" / f"{number}.jpg")
        label(root / "where" / f"{number}.png", (0, 1))
    (root / "train.txt").write_text("some/0.jpg,where/0.png\nsome/1.jpg, where/1.png\n\n")
    (root / "val.txt").write_text("some/2.jpg where/2.png\n")


LAYOUTS = [
    (cityscapes, "cityscapes", {"train": 2, "val": 1}),
    (camvid, "camvid", {"train": 2, "val": 1, "test": 1}),
    (voc, "voc", {"train": 2, "val": 1, "trainval": 2}),
    (ade20k, "folders", {"train": 2, "val": 1}),
    (split_first, "folders", {"train": 2, "val": 1}),
    (flat_with_lists, "folders", {"train": 2, "val": 1}),
    (lists, "lists", {"train": 2, "val": 1}),
]


@pytest.mark.parametrize(("make", "kind", "splits"), LAYOUTS)
def test_a_layout_is_recognised_and_its_scenes_are_found(
    tmp_path: Path, make: Any, kind: str, splits: dict[str, int]
) -> None:
    make(tmp_path)
    found = find_layout(tmp_path)
    assert (found.kind, found.splits) == (kind, list(splits))
    for split, count in splits.items():
        scenes = find_scenes(tmp_path, split)
        assert len(scenes) == count
        assert [scene.name for scene in scenes] == sorted(scene.name for scene in scenes)
        assert all(scene.size == (4, 6) and scene.name == scene.pictures[0].name for scene in scenes)


def test_coco_keeps_its_splits_under_their_years_and_needs_no_labels_to_be_predicted(tmp_path: Path) -> None:
    coco(tmp_path)
    assert find_layout(tmp_path).splits == ["train", "val", "test"]
    assert len(find_scenes(tmp_path, "train2017")) == len(find_scenes(tmp_path, "train")) == 2
    assert find_scenes(tmp_path, "test", labels=None)[0].label is None
    with pytest.raises(InputError, match="no label folder for test2017"):
        find_scenes(tmp_path, "test")


def test_pictures_without_label_maps_are_told_from_a_data_set(tmp_path: Path) -> None:
    """Boxes lie in xml files in a folder of the same name."""
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.xml").write_text("<annotation/>", encoding="utf-8")
    assert not find_layout(tmp_path).labelled
    label(tmp_path / "annotations" / "a.png")
    assert find_layout(tmp_path).labelled


def test_of_two_codings_of_one_map_the_one_asked_for_is_taken(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    for coding, ending in (("auto", "labelIds"), ("label-ids", "labelIds"), ("train-ids", "labelTrainIds")):
        scenes = find_scenes(tmp_path, "train", labels=coding)  # type: ignore[arg-type]
        assert {scene.label.stem.rpartition("_")[2] for scene in scenes if scene.label} == {ending}
    for path in tmp_path.rglob("*_labelIds.png"):
        path.unlink()
    assert all("labelTrainIds" in str(scene.label) for scene in find_scenes(tmp_path, "train"))


def test_a_list_names_files_below_the_data_folder_or_beside_itself(tmp_path: Path) -> None:
    cityscapes(tmp_path / "data")
    stem = CITY.format(0)
    line = (
        f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png,gtFine/train/aachen/{stem}_gtFine_labelTrainIds.png"
    )
    (tmp_path / "data" / "train.txt").write_text(line)
    assert len(find_scenes(tmp_path / "data", "train")) == 2  # the folders, which are there, go first
    (only,) = find_scenes(tmp_path / "data", "train", "lists")
    assert only.label is not None
    assert only.label.stem.endswith("labelTrainIds")
    picture(tmp_path / "other" / "x y.png")
    label(tmp_path / "other" / "m.png")
    (tmp_path / "other" / "mine.txt").write_text("x y.png,m.png")
    assert [s.name for s in find_scenes(tmp_path / "data", str(tmp_path / "other" / "mine.txt"))] == [
        "x y.png"
    ]


def test_scenes_of_one_file_name_are_named_by_their_folders_too(tmp_path: Path) -> None:
    for clip in ("a", "b"):
        picture(tmp_path / clip / "0001.png", seed=ord(clip))
        label(tmp_path / clip / "0001_map.png")
    (tmp_path / "train.txt").write_text("a/0001.png a/0001_map.png\nb/0001.png b/0001_map.png\n")
    assert [scene.name for scene in find_scenes(tmp_path, "train")] == ["a_0001.png", "b_0001.png"]


def remove_label(root: Path) -> None:
    next((root / "gtFine" / "train").rglob("*0_000019_gtFine_labelIds.png")).unlink()
    next((root / "gtFine" / "train").rglob("*0_000019_gtFine_labelTrainIds.png")).unlink()


def remove_picture(root: Path) -> None:
    next((root / "leftImg8bit" / "train").rglob("*1_000019*")).unlink()


def shrink_label(root: Path) -> None:
    label(next((root / "gtFine" / "train").rglob("*0_000019_gtFine_labelIds.png")), size=(4, 5))


def colour_label(root: Path) -> None:
    picture(next((root / "gtFine" / "train").rglob("*0_000019_gtFine_labelIds.png")))


def cut_picture(root: Path) -> None:
    path = next((root / "leftImg8bit" / "train").rglob("*0_000019*"))
    path.write_bytes(path.read_bytes()[:-30])


def double_picture(root: Path) -> None:
    picture(root / "leftImg8bit" / "train" / "bonn" / f"{CITY.format(0)}_leftImg8bit.png")


def share_picture(root: Path) -> None:
    stem = CITY.format(9)
    source = next((root / "leftImg8bit" / "train").rglob("*0_000019*"))
    (root / "leftImg8bit" / "val" / "aachen" / f"{stem}_leftImg8bit.png").write_bytes(source.read_bytes())
    label(root / "gtFine" / "val" / "aachen" / f"{stem}_gtFine_labelIds.png")


def swap_codings(root: Path) -> None:
    for path in root.rglob("*_labelIds.png"):
        label(path, (0, 2, 13, 255, 200))


DEFECTS = [
    (remove_label, r"missing label maps: 1 of 2, first 'aachen_000000_000019' \(2 pictures, 1 label maps\)"),
    (remove_picture, r"missing pictures: 1 of 2, first 'aachen_000001_000019'"),
    (shrink_label, r"differ in size.*_leftImg8bit.png 6x4.*_labelIds.png 5x4"),
    (colour_label, r"the label has 3 channels \(RGB\)"),
    (cut_picture, "truncated or damaged"),
    (double_picture, "duplicated name: aachen/aachen_000000_000019_leftImg8bit.png and bonn/"),
]


@pytest.mark.parametrize(("damage", "told"), DEFECTS)
def test_defects_are_refused_and_the_doctor_names_them(tmp_path: Path, damage: Any, told: str) -> None:
    cityscapes(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=told):
        find_scenes(tmp_path, "train")
    found = doctor(tmp_path)
    assert not found["ok"]
    assert any(re.search(told, f["what"]) for f in found["findings"] if f["level"] == "error")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (share_picture, "splits 'train' and 'val' share 1 pictures"),
        (swap_codings, "values that are neither a class nor ignored: "),
    ],
)
def test_the_doctor_sees_what_a_single_split_or_header_does_not_show(
    tmp_path: Path, damage: Any, told: str
) -> None:
    cityscapes(tmp_path)
    damage(tmp_path)
    errors = [finding["what"] for finding in doctor(tmp_path)["findings"] if finding["level"] == "error"]
    assert any(told in what for what in errors)


@pytest.mark.parametrize(
    ("make", "classes", "coding"),
    [
        (cityscapes, "cityscapes-19", "label-ids"),
        (camvid, "camvid-11", "train-ids"),
        (voc, "voc-21", "train-ids"),
        (split_first, 2, "train-ids"),
        (lists, 2, "train-ids"),
    ],
)
def test_the_doctor_proposes_the_section_that_reads_a_sound_folder(
    tmp_path: Path, make: Any, classes: str | int, coding: str
) -> None:
    make(tmp_path)
    found = doctor(tmp_path)
    assert found["ok"], found["findings"]
    assert (found["data"]["classes"], found["data"]["labels"]) == (classes, coding)
    assert found["data"]["train"] == "train"
    train = found["splits"]["train"]
    assert (train["scenes"], train["size"]) == (2, "4x6")
    assert sum(train["shares"].values()) == pytest.approx(1)


def test_the_doctor_knows_splits_without_labels(tmp_path: Path) -> None:
    coco(tmp_path)
    found = doctor(tmp_path, "coco-stuff-171")
    assert found["ok"], found["findings"]
    assert found["data"]["test"] is None
    assert any("split 'test' has no label maps" in finding["what"] for finding in found["findings"])


def test_the_doctor_takes_unknown_labels_for_numbered_classes(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    label(tmp_path / "labels" / "a.png", (0, 3, 255))
    found = doctor(tmp_path)
    assert (found["data"]["classes"], found["data"]["ignore"], found["data"]["test"]) == (4, [255], "all")
    assert any("taken for 4 numbered classes" in finding["what"] for finding in found["findings"])


def test_the_doctor_reports_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    found = doctor(tmp_path)
    assert (found["ok"], found["layout"], found["data"]) == (False, None, None)
    assert "no known layout; folders found: holiday" in found["findings"][0]["what"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the list is empty"),
        ("some/0.jpg,where/0.png\nsome/0.jpg,where/0.png\n", "repeated lines in the list: 1"),
        (
            "some/0.jpg,where/9.png\nsome/8.jpg,where/0.png\n",
            "files that are missing: 2, first 'where/9.png'",
        ),
        ("some/0.jpg\n", "a line without a label map: some/0.jpg"),
        ("some/0.jpg where/0.png 7\n", "a line that is not understood: some/0.jpg where/0.png 7"),
        ("some/0.jpg,where/0_instanceIds.png\n", "not a map of classes: 0_instanceIds.png"),
    ],
)
def test_lists_with_mistakes_are_refused(tmp_path: Path, text: str, told: str) -> None:
    lists(tmp_path)
    label(tmp_path / "where" / "0_instanceIds.png")
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(InputError, match=told):
        find_scenes(tmp_path, "train")


def test_names_that_a_list_and_the_folder_do_not_share_are_refused(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_3\nunlabelled\n")
    with pytest.raises(InputError, match="scenes that are missing: 1, first 'unlabelled'"):
        find_scenes(tmp_path, "val")


@pytest.mark.parametrize(
    ("split", "layout", "told"),
    [
        ("vall", "auto", r"(?s)no split 'vall'; found: train, val.*did you mean 'val'"),
        ("test", "auto", r"(?s)no split 'test'; found: train, val.*set data.test to one of them"),
        ("none.txt", "auto", "no such list file"),
        ("train", "voc", "laid out as 'cityscapes', not 'voc'"),
    ],
)
def test_unknown_splits_and_layouts_are_refused(tmp_path: Path, split: str, layout: Any, told: str) -> None:
    cityscapes(tmp_path)
    with pytest.raises(InputError, match=told):
        find_scenes(tmp_path, split, layout)


def test_folders_that_are_no_data_set_are_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)does not exist.*data.root"):
        find_layout(tmp_path / "nowhere")
    voc(tmp_path / "VOCdevkit" / "VOC2012")
    with pytest.raises(InputError, match=r"(?s)folders found: VOCdevkit.*data.root to .*VOC2012"):
        find_layout(tmp_path)
    (tmp_path / "x" / "images").mkdir(parents=True)
    for name in ("labels", "masks"):
        label(tmp_path / "x" / name / "0.png")
    with pytest.raises(InputError, match="more than one candidate: labels, masks"):
        find_layout(tmp_path / "x")


@pytest.mark.skipif(not REAL.is_dir(), reason="ANBAN_DATA is not set, or holds no segmentation")
def test_real_folders_are_found_sound() -> None:
    for name, kind, splits in (
        ("camvid", "camvid", {"train": 56, "val": 18}),
        ("cityscapes_small_256x128", "cityscapes", {"all": 1}),
        ("pascal_labelme", "voc", {"all": 2}),
    ):
        found = doctor(REAL / name)
        assert found["ok"], found["findings"]
        assert found["layout"] == kind
        assert {split: entry["scenes"] for split, entry in found["splits"].items()} == splits
    for split, count in (("train", 56), ("val", 18)):
        assert len(find_scenes(REAL / "camvid", split, "lists")) == count
    assert len(find_scenes(REAL / "cityscapes", "train", headers=False)) == 2
