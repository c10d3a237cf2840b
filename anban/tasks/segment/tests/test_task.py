"""The segmentation task as the loop and the command line use it, on pictures of a few pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from anban.data.images import read_label
from anban.errors import InputError
from anban.recipe import load_recipe
from anban.tasks.contract import Diverged
from anban.tasks.segment.classes import IGNORE
from anban.tasks.segment.task import Evaluation, SegmentTask

RECIPE = "seg/demo-bisenet"
SIDE = 32


class Stripes(nn.Module):
    """Scores that say class `left` in the left half of every picture and `right` in the other."""

    def __init__(self, classes: int, left: int, right: int):
        super().__init__()
        self.classes, self.left, self.right = classes, left, right

    def forward(self, image: Tensor) -> Tensor:
        scores = torch.zeros(len(image), self.classes, *image.shape[-2:])
        half = image.shape[-1] // 2
        scores[:, self.left, :, :half] = 1.0
        scores[:, self.right, :, half:] = 1.0
        return scores


def label() -> np.ndarray:
    """Left half class 0, right half class 1, and one ignored row."""
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[:, SIDE // 2 :] = 1
    values[0] = IGNORE
    return values


@pytest.fixture
def root(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for sub in ("images", "labels"):
            (tmp_path / "set" / sub / split).mkdir(parents=True)
        for number in range(2):
            picture = noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "set" / "images" / split / f"{number}.png")
            Image.fromarray(label()).save(tmp_path / "set" / "labels" / split / f"{number}.png")
    return tmp_path / "set"


def make(root: Path, *overrides: str) -> SegmentTask:
    given = [f"data.root={root}", "data.classes=3", "data.ignore=[255]", "model.classes=3", "data.test=null",
             "eval.splits=[val]"]  # fmt: skip
    return SegmentTask(load_recipe(RECIPE, [*given, *overrides]).config)


def batch(task: SegmentTask) -> Any:
    data = task.evaluation_data("val")
    return task.collate([data[0], data[1]])


def test_a_record_keeps_the_confusion_matrix_of_the_pixels_that_count(root: Path) -> None:
    task = make(root)
    records = task.evaluate(Stripes(3, 0, 2), batch(task), "ss")
    half = (SIDE - 1) * SIDE // 2
    assert records[0][0]["confusion"] == [[half, 0, 0], [0, 0, half], [0, 0, 0]]
    assert records[0][0]["scores"]["pixel_acc"] == 0.5
    assert records[0][0]["scores"]["miou"] == pytest.approx(1 / 3)
    scores = task.summary([record for record, _ in records])
    assert set(scores) == set(task.scores)
    assert scores["pixel_acc"] == 0.5


def test_void_is_learnt_but_neither_predicted_nor_scored(root: Path) -> None:
    given = ("data.classes=cityscapes-20", "model.classes=20", "data.ignore=null", "data.labels=train-ids")
    task = make(root, *given)
    seen = batch(task)
    assert (seen["label"][:, 0] == 19).all()  # what the data ignore is a class of the network
    record, predicted = task.evaluate(Stripes(20, 0, 19), seen, "ss")[0]
    assert np.shape(record["confusion"]) == (19, 19)
    assert sum(map(sum, record["confusion"])) == (SIDE - 1) * SIDE
    assert not (predicted == 19).any()
    assert len(task.stamp("ss", "val")["classes"]) == 19
    scored = make(root, *given, "eval.void=true")
    record, predicted = scored.evaluate(Stripes(20, 0, 19), seen, "ss")[0]
    assert record["confusion"][19][0] == record["confusion"][19][19] == SIDE // 2
    assert (predicted[:, SIDE // 2 :] == 19).all()


def test_the_loss_leaves_ignored_pixels_out(root: Path) -> None:
    task = make(root)
    scores = torch.zeros(2, 3, SIDE, SIDE, requires_grad=True)
    task.forward["model"] = lambda image: scores
    loss, parts = task.loss(batch(task))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(3))
    assert set(parts) == {"ce"}
    assert scores.grad is not None
    assert not scores.grad[:, :, 0].any()
    assert scores.grad[:, :, 1:].any()


def test_networks_and_data_must_agree_on_the_classes(root: Path) -> None:
    with pytest.raises(InputError, match=r"19 classes, the data 3(.|\n)*model\.classes=3"):
        make(root, "model.classes=19")
    task = make(root)
    with pytest.raises(InputError, match="gives 5 classes, the data have 3"):
        task.evaluate(Stripes(5, 0, 1), batch(task), "ss")


def test_a_protocol_is_given_once() -> None:
    with pytest.raises(InputError, match="same protocol"):
        Evaluation(protocols=["mscf", "msfc-1024-2/3"])


def test_one_class_everywhere_is_a_collapse(root: Path) -> None:
    task = make(root)
    records = [record for record, _ in task.evaluate(Stripes(3, 1, 1), batch(task), "ss")]
    (symptom,) = task.health(records)
    assert symptom.kind == "collapse"
    assert "class 1" in symptom.what
    assert not task.health([record for record, _ in task.evaluate(Stripes(3, 0, 1), batch(task), "ss")])


@pytest.mark.parametrize(("others", "kinds"), [(0, ["collapse"]), (9, ["collapse"]), (10, [])])
def test_next_to_nothing_but_one_class_is_a_collapse_as_well(
    others: int, kinds: list[str], root: Path
) -> None:
    matrix = [[5000, 0, 0], [6000 - others, others, 0], [4000, 0, 0]]
    assert [symptom.kind for symptom in make(root).health([{"confusion": matrix}])] == kinds


def test_scores_that_are_no_numbers_end_the_run(root: Path) -> None:
    task = make(root)

    class Broken(Stripes):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) * torch.nan

    with pytest.raises(Diverged, match=r"NaN for 0\.png"):
        task.evaluate(Broken(3, 0, 1), batch(task), "ss")


@pytest.mark.parametrize("protocol", ["ss", "ss+size-64x64+labels", "ssc-16-2/3", "msf"])
def test_pictures_are_kept_in_the_label_s_size(root: Path, tmp_path: Path, protocol: str) -> None:
    task = make(root, f"eval.protocols=[{protocol}]")
    data = task.evaluation_data("val")
    shown = task.shown("val")
    assert shown == [0, 1]
    maps = [m for _, m in task.evaluate(Stripes(3, 0, 1), task.collate([data[i] for i in shown]), protocol)]
    task.draw(tmp_path / "figures", "val", list(zip(shown, maps, strict=True)), protocol)
    index = json.loads((tmp_path / "figures" / "samples" / "index.json").read_text())
    assert index["view"] == "classes"
    assert index["classes"] == ["class 0", "class 1", "class 2"]
    folder = tmp_path / "figures" / "samples" / index["samples"][0]["folder"]
    assert np.array_equal(read_label(folder / "label.png", ordered=False), label())
    with Image.open(folder / "prediction.png") as drawn:
        assert (drawn.mode, drawn.size) == ("P", (SIDE, SIDE))
    picture = task.picture("val", 0, maps[0])
    assert picture is not None
    assert picture.shape == (SIDE, 3 * SIDE, 3)


def test_pictures_without_labels_are_predicted(root: Path, tmp_path: Path) -> None:
    task = make(root)
    out = tmp_path / "maps"
    inputs = [root / "images" / "val"]
    files = list(task.predict(Stripes(3, 0, 2), inputs, out, "ss", torch.device("cpu")))
    assert [file.name for file in files] == ["0.png", "0_overlay.png", "1.png", "1_overlay.png"]
    numbers = read_label(out / "0.png", ordered=False)
    assert set(np.unique(numbers[:, : SIDE // 2])) == {0}
    assert set(np.unique(numbers[:, SIDE // 2 :])) == {2}
    with pytest.raises(InputError, match="Several pictures are called '0'"):
        list(
            task.predict(
                Stripes(3, 0, 2), [*inputs, root / "images" / "train"], out, "ss", torch.device("cpu")
            )
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no picture in this folder"):
        list(task.predict(Stripes(3, 0, 2), [tmp_path / "empty"], out, "ss", torch.device("cpu")))
