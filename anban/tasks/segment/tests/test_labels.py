"""Label codings: what is read, what is refused, and with which remedy."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anban.data.scenes import Scene
from anban.errors import InputError
from anban.tasks.segment.classes import IGNORE, class_set
from anban.tasks.segment.labels import decode_label, read_classes, sniff_labels

REAL = Path(os.environ.get("ANBAN_DATA", "unset")) / "segmentation"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="ANBAN_DATA is not set, or holds no segmentation"
)


def scenes(folder: Path, *values: list[int], name: str = "{}.png") -> list[Scene]:
    """A scene for each list of stored values, its label map one row of them."""
    found = []
    for number, row in enumerate(values):
        path = folder / name.format(number)
        Image.fromarray(np.array([row], np.uint8)).save(path)
        found.append(Scene(path.name, (path,), path))
    return found


def real(pattern: str) -> list[Scene]:
    return [Scene(path.name, (path,), path) for path in sorted(REAL.glob(pattern))]


@pytest.mark.parametrize(
    ("classes", "values", "coding"),
    [
        ("cityscapes-19", [0, 1, 7, 11, 23, 26], "label-ids"),
        ("cityscapes-19", [0, 1, 2, 18, 255], "train-ids"),
        ("ade20k-150", [0, 1, 150], "label-ids"),
        ("ade20k-150", [0, 1, 149, 255], "train-ids"),
        ("coco-stuff-171", [0, 12, 181, 255], "label-ids"),
        ("coco-stuff-171", [0, 11, 170, 255], "train-ids"),
        ("camvid-11", [0, 5, 11], "train-ids"),
        (4, [0, 3], "train-ids"),
    ],
)
def test_codings_are_told_apart(tmp_path: Path, classes: str | int, values: list[int], coding: str) -> None:
    assert sniff_labels(scenes(tmp_path, values), class_set(classes)).coding.name == coding


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    found = scenes(tmp_path, [7, 7, 7, 8], [0, 3, 7, 26], [0, 0, 0, 1])
    report = sniff_labels(found, class_set("cityscapes-19"))
    assert report.shares["road"] == pytest.approx(4 / 6)
    assert report.shares["car"] == pytest.approx(1 / 6)
    assert sum(report.shares.values()) == pytest.approx(1)
    assert report.ignored == pytest.approx(6 / 12)
    assert report.values == {0: 4, 1: 1, 3: 1, 7: 4, 8: 1, 26: 1}
    assert (report.scenes, report.unlabelled) == (3, ("2.png",))
    assert len(report.missing) == 16
    told = "\n".join(report.warnings)
    assert "16 of 19 classes have no pixel: building, wall" in told
    assert "1 scenes hold ignored pixels only, first 2.png" in told


def test_a_class_set_larger_than_the_values_is_accepted_with_the_missing_classes_named(
    tmp_path: Path,
) -> None:
    report = sniff_labels(scenes(tmp_path, [0, 1, 2]), class_set(5))
    assert report.missing == ("class 3", "class 4")
    assert report.warnings == ("2 of 5 classes have no pixel: class 3, class 4",)


@pytest.mark.parametrize(
    ("classes", "coding", "values", "told"),
    [
        ("cityscapes-19", "label-ids", [0, 5, 18, 255], r"(?s)train-ids, not label-ids.*255.*data.labels to train-ids"),
        ("cityscapes-19", "train-ids", [0, 7, 11, 33], r"(?s)label-ids, not train-ids.*33.*data.labels to label-ids"),
        ("cityscapes-19", "auto", [0, 7, 18], r"(?s)label-ids or train-ids.*no value tells them apart"),
        ("cityscapes-19", "auto", [0, 26, 255], r"(?s)neither a class nor ignored: 255.*label-ids of cityscapes-19"),
        ("cityscapes-19", "auto", [0, 7, 40, 200], r"neither a class nor ignored: 40, 200"),
        ("camvid-11", "label-ids", [0, 5], r"(?s)camvid-11 has no label-ids.*auto or train-ids"),
        ("camvid-11", "auto", [0, 12], r"(?s)neither a class nor ignored: 12.*0..10, ignored 11, 255"),
        (11, "auto", [0, 5, 11], r"(?s): 11;.*nothing ignored.*data.ignore to \[11\].*one class more"),
        (21, "auto", [0, 5, 255], r"(?s): 255;.*data.ignore to \[255\] if it means no class"),
        (10, "auto", [*range(14)], r"(?s): 10, 11, 12, 13;.*data.classes to the set these labels were made for"),
        (2, "auto", [0, 128], r"neither a class nor ignored: 128"),
        ("cityscapes-19", "auto", [0, 1, 3, 4], r"(?s)no value tells them apart"),
        ("cityscapes-19", "label-ids", [0, 1, 3, 4], r"(?s)every pixel of the 1 label maps is ignored.*test split"),
    ],
)  # fmt: skip
def test_wrong_codings_are_refused_with_a_remedy(
    tmp_path: Path, classes: str | int, coding: str, values: list[int], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        sniff_labels(scenes(tmp_path, values), class_set(classes), coding)  # type: ignore[arg-type]


def test_what_values_leave_open_the_file_names_may_say(tmp_path: Path) -> None:
    for name, coding in (("{}_labelIds.png", "label-ids"), ("{}_labelTrainIds.png", "train-ids")):
        found = scenes(tmp_path, [0, 7, 18], name=name)
        assert sniff_labels(found, class_set("cityscapes-19")).coding.name == coding


def test_a_coding_that_is_insisted_on_is_taken_with_a_warning_where_another_fits(tmp_path: Path) -> None:
    report = sniff_labels(scenes(tmp_path, [0, 7, 18]), class_set("cityscapes-19"), "train-ids")
    assert report.shares["car"] == 0
    assert any("no value tells train-ids from label-ids" in text for text in report.warnings)


def test_declared_values_are_ignored(tmp_path: Path) -> None:
    found = scenes(tmp_path, [0, 1, 255, 255])
    report = sniff_labels(found, class_set(2), ignore=[255])
    assert report.ignored == 0.5
    assert read_classes(tmp_path / "0.png", report.coding).tolist() == [[0, 1, IGNORE, IGNORE]]


def test_a_palette_is_read_by_its_indices(tmp_path: Path) -> None:
    image = Image.new("P", (4, 1))
    image.putdata([0, 5, 20, 255])
    # White for class 0, black for all others: the colours say the opposite of the indices.
    image.putpalette([255, 255, 255] + [0, 0, 0] * 255)
    image.save(tmp_path / "x.png")
    report = sniff_labels([Scene("x", (tmp_path / "x.png",), tmp_path / "x.png")], class_set("voc-21"))
    assert read_classes(tmp_path / "x.png", report.coding).tolist() == [[0, 5, 20, IGNORE]]


def test_label_maps_that_are_no_class_numbers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(np.full((2, 2), 26001, np.uint16)).save(tmp_path / "instance.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "lossy.jpg")
    for name, told in (
        ("colour.png", r"(?s)3 channels \(RGB\).*colour.png.*values, not colours"),
        ("instance.png", r"(?s)16-bit label.*instance.png"),
        ("lossy.jpg", r"(?s)stored as JPEG.*lossy.jpg"),
    ):
        with pytest.raises(InputError, match=told):
            sniff_labels([Scene(name, (), tmp_path / name)], class_set("cityscapes-19"))
    with pytest.raises(InputError, match="no labels to read"):
        sniff_labels([Scene("x", (), None)], class_set("cityscapes-19"))


def test_a_file_that_changed_since_is_refused_by_name(tmp_path: Path) -> None:
    found = scenes(tmp_path, [7, 26, 33])
    coding = pickle.loads(pickle.dumps(sniff_labels(found, class_set("cityscapes-19")).coding))
    assert decode_label(np.array([[7, 33, 0]], np.uint8), coding).tolist() == [[0, 18, IGNORE]]
    scenes(tmp_path, [7, 26, 77])
    with pytest.raises(InputError, match=r"(?s)values 77 in a label map of label-ids.*0\.png"):
        read_classes(tmp_path / "0.png", coding)


@needs_real_data
def test_real_label_maps_of_cityscapes_are_read_as_its_table_says() -> None:
    found = real("cityscapes/**/*_labelIds.png")
    report = sniff_labels(found, class_set("cityscapes-19"))
    assert (report.coding.name, report.scenes) == ("label-ids", 5)
    assert report.missing == ("truck", "bus", "train")
    assert report.shares["road"] == pytest.approx(0.4098, abs=1e-4)
    assert report.ignored == pytest.approx(0.0636, abs=1e-4)
    with pytest.raises(InputError, match="label-ids, not train-ids"):
        sniff_labels(found, class_set("cityscapes-19"), "train-ids")


@needs_real_data
def test_label_ids_and_train_ids_of_one_scene_agree() -> None:
    # Both files were shrunk by their source, each for itself: that leaves 0.23 % of the pixels apart.
    maps = []
    for kind in ("labelIds", "labelTrainIds"):
        found = real(f"cityscapes_small_256x128/gtFine/*_{kind}.png")
        assert found[0].label is not None
        maps.append(read_classes(found[0].label, sniff_labels(found, class_set("cityscapes-19")).coding))
    assert (maps[0] != maps[1]).mean() < 0.0024


@needs_real_data
def test_real_label_maps_of_camvid_and_voc_are_read() -> None:
    for pattern, name, missing in (
        ("camvid/trainannot/*", "camvid-11", 0),
        ("camvid/valannot/*", "camvid-11", 0),
        ("pascal_labelme/SegmentationClass/*", "voc-21", 16),
    ):
        report = sniff_labels(real(pattern), class_set(name))
        assert len(report.missing) == missing
        assert 0 < report.ignored < 0.04
