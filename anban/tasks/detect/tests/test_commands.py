"""The real commands on bad annotations: exit status 2 and one message, with the file, what was found, what was expected and what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anban.cli.main import main
from anban.tasks.detect.tests.test_annotations import OBJECT, content, write, write_voc, xml

SMALL = ["data.val=train", "data.test=null", "data.overlap=warn", "data.classes=[dog,toothbrush]", "model.classes=2",
         "model.backbone.widths=[8,8,8,8]", "model.backbone.heads=[1,1,1,1]", "model.detector.width=8",
         "model.detector.score=0", "train.iterations=1", "train.batch_size=2", "train.eval_every=null", "eval.splits=[val]",
         "eval.shown=0", "machine.workers=0", "machine.profile=false", "machine.images=0", "machine.train_samples=0"]  # fmt: skip

Anban = Callable[..., tuple[int, str]]


@pytest.fixture
def anban(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Anban:
    """The command in this process: its exit status, and all that it prints."""

    def command(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["anban", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out + told.err

    return command


def run(root: Path, out: Path) -> list[object]:
    return ["run", "det/demo-pvt", f"data.root={root}", *SMALL, "--out", out, "--device", "cpu"]


def coco(**changes: Any) -> dict[str, Any]:
    """A set with a change to its first annotation."""
    changed = content()
    changed["annotations"][0].update(changes)
    return changed


def twice(key: str) -> dict[str, Any]:
    """A set that gives an entry twice."""
    changed = content()
    changed[key].append(dict(changed[key][0]))
    return changed


def without_picture() -> dict[str, Any]:
    changed = content()
    changed["images"][0]["file_name"] = "gone.png"
    return changed


DOG = OBJECT.format(5, 6, 20, 25, name="dog", more="")
ENTITY = '<!DOCTYPE a [<!ENTITY dog SYSTEM "file:///etc/hostname">]>'

FAULTS: dict[str, tuple[dict[str, Any] | str, str]] = {
    "outside": (coco(bbox=[30, 2, 20, 20]), "leaves its picture of 40x30 pixels"),
    "no area": (coco(bbox=[3, 2, 0, 20]), "the box (3, 2, 3, 22) has no area"),
    "unknown class": (coco(category_id=5), "'category 5' is none of the classes"),
    "no box": (coco(bbox=None), "an entry of annotations has no bbox that could be read"),
    "no picture": (without_picture(), "the picture is missing"),
    "image twice": (twice("images"), "the image id 7 is given more than once"),
    "object twice": (twice("annotations"), "the annotation id 3 is given more than once"),
    "empty": ("", "the annotation file is empty"),
    "voc, outside": (xml(OBJECT.format(5, 6, 90, 25, name="dog", more="")), "leaves its picture of 40x30 pixels"),
    "voc, unknown class": (xml(DOG.replace("dog", "bird")), "'bird' is none of the classes"),
    "voc, entity": (xml(DOG.replace("dog", "&dog;"), head=ENTITY), "the xml declares the entity 'dog'"),
    "voc, no xml": ("<annotation>", "no xml (no element found"),
}  # fmt: skip


def bad_set(fault: str, root: Path) -> Path:
    what = FAULTS[fault][0]
    return write_voc(root, str(what)) if fault.startswith("voc") else write(root, what)


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_annotations_end_a_run_with_one_message(fault: str, tmp_path: Path, anban: Anban) -> None:
    root = bad_set(fault, tmp_path / "set")
    status, told = anban(*run(root, tmp_path / "runs"))
    assert status == 2
    assert told.count("anban: ") == 1
    assert FAULTS[fault][1] in told
    assert str(root) in told.partition("where:")[2].partition("\n")[0]
    assert "expected: " in told
    assert "do: " in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "fault", [each for each in FAULTS if each != "voc, unknown class"]
)  # it is told no classes
def test_the_doctor_finds_bad_annotations(fault: str, tmp_path: Path, anban: Anban) -> None:
    status, told = anban("doctor", bad_set(fault, tmp_path / "set"), "--task", "detect")
    assert status == 1
    assert FAULTS[fault][1] in told
    assert "no split 'train'" not in told


def test_the_data_tell_that_they_have_boxes(tmp_path: Path, anban: Anban) -> None:
    """Pictures with xml beside them are no segmentation data, as there are no label maps."""
    voc = write_voc(tmp_path / "voc", xml(DOG))
    renamed = write_voc(tmp_path / "renamed", xml(DOG))
    (renamed / "Annotations").rename(renamed / "annotations")
    (renamed / "JPEGImages").rename(renamed / "images")
    for root, layout in ((voc, "voc"), (renamed, "voc"), (write(tmp_path / "coco", content()), "coco")):
        status, told = anban("doctor", root)
        assert status == 0
        assert f"layout: {layout}" in told


def test_a_trained_network_is_not_scored_on_bad_annotations(tmp_path: Path, anban: Anban) -> None:
    status, told = anban(*run(write(tmp_path / "set", content()), tmp_path / "runs"))
    assert status == 0, told
    trained = next((tmp_path / "runs").glob("det/demo-pvt/*"))
    bad = write(tmp_path / "bad", coco(bbox=[3, 2, 0, 20]))
    status, told = anban("eval", trained, "--data", bad, "--split", "train")
    assert status == 2
    assert "has no area" in told
    assert str(bad / "annotations" / "train.json") in told
