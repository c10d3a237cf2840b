"""COCO's json and VOC's xml: what is read, what is refused and how, and the way from one to the other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anban.errors import InputError
from anban.tasks.detect.annotations import read_coco, read_voc
from anban.tasks.detect.classes import CLASS_SETS, class_set
from anban.tasks.detect.convert import convert
from anban.tasks.detect.data import DetectData
from anban.tasks.detect.doctor import doctor
from anban.tasks.detect.layouts import find_layout, read_split

DATA = os.environ.get("ANBAN_DATA")
WIDTH, HEIGHT = 40, 30
OBJECT = "<object><name>{name}</name>{more}<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"


def content() -> dict[str, Any]:
    """Two pictures with sparse numbers; an object, a crowd, and nothing in the second."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 900, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            {"id": 3, "image_id": 7, "category_id": 18, "bbox": [1, 2, 10, 20], "area": 150.0, "iscrowd": 0},
            {"id": 41, "image_id": 7, "category_id": 90, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 18, "name": "dog"}],
    }


def write(root: Path, what: dict[str, Any] | str) -> Path:
    """A COCO data set whose annotations are these."""
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(root / "images" / name)
    text = what if isinstance(what, str) else json.dumps(what)
    (root / "annotations" / "train.json").write_text(text, encoding="utf-8")
    return root


def xml(*objects: str, head: str = "") -> str:
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    return f"{head}<annotation><filename>a.png</filename>{size}{''.join(objects)}</annotation>"


def write_voc(root: Path, text: str) -> Path:
    """A VOC data set of one picture."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(root / "JPEGImages" / "a.png")
    (root / "Annotations" / "a.xml").write_text(text, encoding="utf-8")
    (root / "ImageSets/Main/train.txt").write_text("a\n", encoding="utf-8")
    return root


def test_sparse_numbers_crowds_and_empty_pictures_of_coco(tmp_path: Path) -> None:
    root = write(tmp_path / "set", content())
    found = read_coco(root / "annotations/train.json", root / "images")
    assert (found.classes.names, found.classes.ids) == (("dog", "toothbrush"), (18, 90))
    first, second = found.pictures
    assert first.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 40, 30]]
    assert first.labels.tolist() == [0, 1]
    assert first.ignored.tolist() == [False, True]
    assert first.areas.tolist() == [150, 1200]
    assert (second.id, second.boxes.shape) == (900, (0, 4))
    assert not found.problems + found.faulty


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(dict(c["images"][0])), "image id 7 is given more than once"),
        (
            lambda c: c["annotations"].append(dict(c["annotations"][0])),
            "annotation id 3 is given more than once",
        ),
        (
            lambda c: c["categories"].append({"id": 91, "name": "dog"}),
            "category name dog is given more than once",
        ),
        (lambda c: c["annotations"][0].update(bbox=[30, 2, 20, 20]), "leaves its picture of 40x30"),
        (lambda c: c["annotations"][0].update(bbox=[-9, 2, 20, 20]), "leaves its picture of 40x30"),
        (lambda c: c["annotations"][0].update(bbox=[3, 2, 0, 20]), "has no area"),
        (lambda c: c["annotations"][0].update(bbox=[3, 2, float("nan"), 20]), "is no four numbers"),
        (lambda c: c["annotations"][0].update(category_id=5), "'category 5' is none of the classes"),
        (lambda c: c["annotations"][0].update(image_id=8), "there is no image 8"),
        (lambda c: c["images"][1].update(file_name="c.png"), "the picture is missing"),
        (lambda c: c["images"].clear(), "lists no picture"),
        (lambda c: c["images"][1].update(file_name="a.png"), "image file_name a.png is given more than once"),
        (lambda c: c["images"][0].update(height=None), "images has no height that could be read"),
        (lambda c: c["annotations"][0].pop("bbox"), "has no bbox"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotations has no bbox that could be read"),
        (lambda c: c["annotations"][0].update(bbox="1 2 3 4"), "annotations has no bbox that could be read"),
        (lambda c: c["annotations"].append(3), "annotations has no image_id that could be read: 3"),
        (lambda c: c.pop("categories"), "no list of objects"),
    ],
)
def test_what_is_wrong_with_coco_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    changed = content()
    change(changed)
    data = DetectData(str(write(tmp_path / "set", changed)), val=None)
    with pytest.raises(InputError, match=message) as caught:
        data.check()
    assert "train.json" in str(caught.value.where)
    assert caught.value.expected
    assert caught.value.do


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "file is empty"), (" \n", "file is empty"), ("{", "no json"), ("[]", "no list"), ("{}", "no list")],
)
def test_files_that_are_no_annotations_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DetectData(str(write(tmp_path / "set", text)), val=None).check()


def test_a_class_outside_the_named_ones_is_refused_with_them(tmp_path: Path) -> None:
    data = DetectData(str(write(tmp_path / "set", content())), val=None, classes=["cat", "toothbrush"])
    with pytest.raises(InputError, match="'dog' is none of the classes") as caught:
        data.check()
    assert caught.value.expected == "cat, toothbrush"


def test_faulty_boxes_can_be_dropped_and_are_told(tmp_path: Path) -> None:
    changed = content()
    changed["annotations"][1]["bbox"] = [3, 2, 0, 20]
    report = DetectData(str(write(tmp_path / "set", changed)), val=None, faulty="drop").check()
    assert report["objects"]["train"] == {"dog": 1, "toothbrush": 0}
    assert "boxes that are left out: 1" in report["warnings"][0]


def test_a_box_a_hair_outside_is_cut(tmp_path: Path) -> None:
    changed = content()
    changed["annotations"][0]["bbox"] = [-0.5, 2, 41, 20]
    found = read_coco(write(tmp_path / "set", changed) / "annotations/train.json", tmp_path / "set/images")
    assert found.pictures[0].boxes[0].tolist() == [0, 2, 40, 22]


def test_a_picture_of_another_size_than_it_says_is_refused(tmp_path: Path) -> None:
    changed = content()
    changed["images"][0]["width"] = 41
    data = DetectData(str(write(tmp_path / "set", changed)), val=None)
    with pytest.raises(InputError, match="40x30 pixels, its annotation says 41x30"):
        data.dataset("train")[0]


def test_a_picture_in_two_splits_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "set", content())
    (root / "annotations/val.json").write_text(json.dumps(content()), encoding="utf-8")
    with pytest.raises(InputError, match="train and val share 2 pictures"):
        DetectData(str(root)).check()


def test_voc_is_read_from_either_first_pixel(tmp_path: Path) -> None:
    hard = OBJECT.format(1, 1, 40, 30, name="dog", more="<difficult>1</difficult>")
    root = write_voc(tmp_path / "set", xml(OBJECT.format(5, 6, 20, 25, name="cat", more=""), hard))
    layout = find_layout(root)
    assert (layout.kind, layout.splits) == ("voc", ["train"])
    found = read_split(layout, "train", first_pixel=1)
    assert found.classes.names == ("cat", "dog")
    assert found.pictures[0].boxes.tolist() == [[4, 5, 20, 25], [0, 0, 40, 30]]
    assert found.pictures[0].ignored.tolist() == [False, True]
    assert read_split(layout, "train").pictures[0].boxes[0].tolist() == [5, 6, 20, 25]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file is empty"),
        ("<annotation>", "no xml"),
        (xml().replace("<width>40", "<width>wide"), "<size> has height '30' and width 'wide'"),
        (xml(OBJECT.format(5, 6, "x", 25, name="cat", more="")), "<xmax> is 'x'"),
        (xml(OBJECT.format(5, 6, 5, 25, name="cat", more="")), "has no area"),
        (xml(OBJECT.format(5, 6, 90, 25, name="cat", more="")), "leaves its picture of 40x30"),
        (xml("<object><name>cat</name></object>"), "has no bndbox"),
        (xml(OBJECT.format(5, 6, 20, 25, name="bird", more="")), "'bird' is none of the classes"),
    ],
)
def test_what_is_wrong_with_voc_is_refused(tmp_path: Path, text: str, message: str) -> None:
    data = DetectData(str(write_voc(tmp_path / "set", text)), val=None, classes=["cat"])
    with pytest.raises(InputError, match=message) as caught:
        data.labelled("train")
    assert "a.xml" in str(caught.value.where)
    assert caught.value.expected
    assert caught.value.do


def test_a_file_that_names_a_missing_picture_is_about_the_one_of_its_own_name(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", xml().replace("a.png", "z.png"))
    assert DetectData(str(root), val=None, classes=["cat"]).labelled("train")[0].name == "a.png"


@pytest.mark.parametrize(
    "declared", ['<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">', '<!ENTITY a SYSTEM "file:///etc/hostname">']
)
def test_entities_are_refused_before_they_grow_or_read_files(tmp_path: Path, declared: str) -> None:
    text = xml(OBJECT.format(5, 6, 20, 25, name="&a;", more=""), head=f"<!DOCTYPE a [{declared}]>")
    with pytest.raises(InputError, match="declares the entity 'a'"):
        DetectData(str(write_voc(tmp_path / "set", text)), val=None, classes=["cat"]).labelled("train")


def test_a_picture_that_is_annotated_or_listed_twice_is_refused(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", xml())
    (root / "Annotations/b.xml").write_text(xml(), encoding="utf-8")
    listed = root / "ImageSets/Main/train.txt"
    listed.write_text("a\nb\n", encoding="utf-8")
    data = DetectData(str(root), val=None, classes=["cat"])
    with pytest.raises(InputError, match=r"a\.xml is about the same picture, a\.png"):
        data.labelled("train")
    listed.write_text("a\na\n", encoding="utf-8")
    with pytest.raises(InputError, match="the name a is given more than once"):
        data.labelled("train")


def test_missing_xml_files_and_empty_lists_are_refused(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", xml())
    listed = root / "ImageSets/Main/train.txt"
    listed.write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(InputError, match="1 listed files are missing, first b"):
        read_split(find_layout(root), "train")
    listed.write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="the list is empty"):
        read_split(find_layout(root), "ImageSets/Main/train.txt")


def test_folders_and_files_may_be_links(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "real", xml(OBJECT.format(5, 6, 20, 25, name="cat", more="")))
    linked = tmp_path / "linked"
    linked.mkdir()
    for folder in ("Annotations", "ImageSets"):
        (linked / folder).symlink_to(root / folder)
    (linked / "JPEGImages").mkdir()
    (linked / "JPEGImages/a.png").symlink_to(root / "JPEGImages/a.png")
    whole = tmp_path / "whole"
    whole.symlink_to(linked)
    assert [len(each.boxes) for each in read_split(find_layout(whole), "train").pictures] == [1]


def test_there_and_back_again(tmp_path: Path) -> None:
    root = write(tmp_path / "coco", content())
    convert(root, "train", root / "Annotations")
    voc = read_voc(sorted((root / "Annotations").glob("*.xml")), root / "images")
    assert voc.classes.names == ("dog", "toothbrush")
    assert len(voc.pictures) == 2
    convert(root, "all", tmp_path / "again" / "train.json")
    again = read_coco(tmp_path / "again" / "train.json", root / "images")
    before = read_coco(root / "annotations/train.json", root / "images")
    for one, other in zip(before.pictures, again.pictures, strict=True):
        assert one.boxes.tolist() == other.boxes.tolist()
        assert (one.labels.tolist(), one.ignored.tolist()) == (other.labels.tolist(), other.ignored.tolist())


def test_class_sets() -> None:
    coco = CLASS_SETS["coco"]
    assert len(coco) == 80
    assert coco.ids[coco.names.index("dog")] == 18
    assert len(CLASS_SETS["voc"]) == 20
    with pytest.raises(InputError, match="no class set 'cocoa'"):
        class_set("cocoa")


def test_the_doctor_tells_all_faults_and_what_the_boxes_are_like(tmp_path: Path) -> None:
    changed = content()
    changed["annotations"][0]["bbox"] = [3, 2, 0, 20]
    changed["images"][1]["file_name"] = "c.png"
    report = doctor(write(tmp_path / "set", changed))
    assert not report["ok"]
    errors = [each["what"] for each in report["findings"] if each["level"] == "error"]
    assert [any(word in each for each in errors) for word in ("has no area", "is missing")] == [True, True]
    summary = report["splits"]["train"]
    assert (summary["pictures"], summary["objects"], summary["ignored"]) == (1, 1, 1)
    assert summary["ratios"] == [0.75, 0.75, 0.75]
    assert report["data"]["faulty"] == "drop"


@pytest.mark.skipif(DATA is None, reason="needs ANBAN_DATA, a folder with real data sets")
@pytest.mark.parametrize(
    ("folder", "pictures", "objects", "faulty"),
    [("bccd_voc", 71, 976, 1), ("raccoon_voc", 24, 25, 0), ("coco_icevision", 6, 36, 0)],
)
def test_real_sets(folder: str, pictures: int, objects: int, faulty: int) -> None:
    layout = find_layout(Path(str(DATA)) / "detection" / folder)
    found = read_split(layout, layout.splits[0])
    assert not found.problems
    assert len(found.pictures) == pictures
    assert sum(len(each.boxes) for each in found.pictures) == objects
    assert len(found.faulty) == faulty
