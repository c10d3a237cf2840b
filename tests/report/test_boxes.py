"""Sheets of boxes: what a detection run keeps of a picture, method by method."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anban.errors import InputError
from anban.report.sheets import Shown
from anban.report.views.boxes import sheet
from anban.study.records import Arm, Run


def shown(folder: Path, title: str, grey: int) -> Shown:
    """A run with one picture, whose drawn boxes are of this grey."""
    place = folder / "figures" / "samples" / "a"
    place.mkdir(parents=True)
    for name, value in (("image", 10), ("truth", 20), ("prediction", grey)):
        Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(place / f"{name}.png")
    index = {
        "view": "boxes",
        "classes": ["cat", "dog"],
        "palette": [[255, 0, 0], [0, 0, 255]],
        "score": 0.3,
        "samples": [{"name": "a.png", "folder": "a"}],
    }
    (place.parent / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "run.json").write_text("{}", encoding="utf-8")
    run = Run(folder, 0, "finished")
    run.__dict__["info"] = {"id": title}  # the rest of a record does not matter here
    return Shown(Arm(title, title, "det/x", {}, (run,)), run)


def test_a_line_shows_the_picture_its_objects_and_what_each_method_found(tmp_path: Path) -> None:
    methods = [shown(tmp_path / "one", "one", 30), shown(tmp_path / "two", "two", 40)]
    drawn = sheet(methods, ["a.png"], lambda run, name: f"{run.id} {name}", None)
    assert drawn.columns == ("Picture", "Ground truth", "one", "two")
    ((tiles,),) = (scene.lines for scene in drawn.scenes)
    assert [int(tile.pixels[0, 0, 0]) for tile in tiles] == [10, 20, 30, 40]
    assert [tile.score for tile in tiles] == ["", "", "one a.png", "two a.png"]
    assert [(swatch.text, swatch.colour) for swatch in drawn.legend] == [
        ("cat", (255, 0, 0)),
        ("dog", (0, 0, 255)),
    ]
    assert "0.3" in drawn.caption


def test_boxes_have_no_convention_of_colours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the colours of their classes"):
        sheet([shown(tmp_path / "one", "one", 30)], ["a.png"], lambda run, name: "", "opencd")
