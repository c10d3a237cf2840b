"""A run of a few steps: records, scores from records, pictures, predictions, resume, and other weights to begin with."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from anban.engine.run import execute, open_run
from anban.engine.stop import Interrupted
from anban.engine.trained import evaluate_trained, load_trained
from anban.errors import InputError
from anban.recipe import Recipe, load_recipe
from anban.record import RunFolder
from anban.tasks.detect.debug import debug
from anban.tasks.detect.metric import SCORES, sample_record, summary
from anban.tasks.detect.models.retinanet import PVTRetinaNet
from anban.tasks.detect.models.settings import Detector, Pyramid
from anban.tasks.detect.start import start_from
from anban.tasks.detect.task import DetectTask


def small(folder: Path, *overrides: str) -> Recipe:
    """The demo's recipe at debug size, two steps."""
    given = debug(load_recipe("det/demo-pvt").config, folder)
    # a fresh network's scores are about 0.01: let some boxes through
    more = ["train.iterations=2", "model.detector.score=0.005", "model.detector.detections=5", "eval.splits=[test]",
            "eval.score=0", "machine.profile=false", "machine.train_samples=0"]  # fmt: skip
    return load_recipe("det/demo-pvt", [*given, *more, *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("detect")


@pytest.fixture(scope="module")
def run(folder: Path) -> RunFolder:
    return execute(small(folder), folder / "runs", device="cpu")


def test_scores_of_a_split_follow_from_its_records(run: RunFolder) -> None:
    records = run.samples("test", "whole", run.info["scores"][0]["checkpoint"])
    assert len(records) == 2
    assert all(len(each["found"]["boxes"]) <= 5 for each in records)
    told = {line["name"]: line["value"] for line in run.info["scores"]}
    assert set(told) == set(SCORES)
    assert told == summary(records, 3, 0.0)


def test_pictures_and_the_stamp_are_kept(run: RunFolder) -> None:
    index = json.loads((run.figures / "samples" / "index.json").read_text(encoding="utf-8"))
    assert (index["view"], index["classes"]) == ("boxes", ["disc", "ring", "rod"])
    place = run.figures / "samples" / index["samples"][0]["folder"]
    assert {path.name for path in place.iterdir()} == {"image.png", "truth.png", "prediction.png"}
    stamp = run.stamp("test", "whole")
    assert stamp is not None
    assert {key: stamp[key] for key in ("size", "score", "overlap", "detections")} == {
        "size": "64x64",
        "score": 0.005,
        "overlap": 0.5,
        "detections": 5,
    }


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    run: RunFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def once(self: DetectTask, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted("stopped")
        return whole(self, batch)

    whole = DetectTask.loss
    monkeypatch.setattr(DetectTask, "loss", once)
    with pytest.raises(Interrupted) as caught:
        execute(
            small(folder, "machine.checkpoint_every=1", "train.eval_every=1"),
            folder / "stopped",
            device="cpu",
        )
    monkeypatch.setattr(DetectTask, "loss", whole)
    half, recipe = open_run(caught.value.run, [])  # type: ignore[attr-defined]
    resumed = execute(recipe, folder / "stopped", device="cpu", resume=half)
    ours, theirs = (
        torch.load(each.checkpoints / "last.pt", weights_only=True)["modules"]["model"]
        for each in (resumed, run)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_predictions_are_pictures_and_coco_results(run: RunFolder, folder: Path) -> None:
    trained = load_trained(run.path, [], "cpu")
    images = folder / "detect" / "images" / "test"
    written = list(trained.task.predict(trained.model, [images], folder / "out", "whole", trained.device))
    assert [path.name for path in written] == ["000000.png", "000001.png", "results.json"]
    results = json.loads(written[-1].read_text(encoding="utf-8"))
    assert results
    assert {each["image_id"] for each in results} <= {0, 1}
    data = COCO()
    data.dataset = {
        "images": [{"id": 0}, {"id": 1}],
        "annotations": [],
        "categories": [{"id": i} for i in (1, 2, 3)],
    }
    data.createIndex()
    assert len(data.loadRes(results).getAnnIds()) == len(results)
    with pytest.raises(InputError, match="no picture in this folder"):
        list(
            trained.task.predict(
                trained.model, [folder / "detect/annotations"], folder, "whole", trained.device
            )
        )


def test_an_evaluation_leaves_coco_results_and_pictures(run: RunFolder, folder: Path) -> None:
    trained = load_trained(run.path, [], "cpu")
    out, drawn = folder / "eval" / "results.json", folder / "eval" / "pictures"
    (row,) = evaluate_trained(trained, ["whole"], "test", results=out, pictures=drawn)
    annotations = folder / "detect" / "annotations" / "test.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(out)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert row["scores"]["ap"] == pytest.approx(evaluation.stats[0], abs=1e-6)
    assert row["scores"]["ar100"] == pytest.approx(evaluation.stats[8], abs=1e-6)
    index = json.loads((drawn / "whole" / "samples" / "index.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in index["samples"]] == ["000000.png", "000001.png"]
    assert (drawn / "whole" / "samples" / "000001" / "prediction.png").is_file()
    with pytest.raises(InputError, match="2 protocols do not go into one file"):
        evaluate_trained(trained, ["whole", "size-32"], "test", results=out)


def test_a_network_that_finds_nothing_is_told(folder: Path) -> None:
    task = DetectTask(small(folder).config)
    truth = {"boxes": [[0, 0, 9, 9]], "labels": [0], "ignored": [False], "areas": [81]}
    nothing: dict[str, Any] = {"boxes": np.zeros((0, 4)), "labels": [], "scores": []}
    blind = sample_record("a", truth, nothing, 3, 0.3)
    assert [symptom.kind for symptom in task.health([blind])] == ["collapse"]
    seen = {"boxes": [[0, 0, 9, 9]], "labels": [0], "scores": [0.9]}
    seeing = sample_record("b", truth, seen, 3, 0.3)
    assert task.health([blind, seeing]) == []
    assert seeing["scores"] == {"mean_iou": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert seeing["boxes"] == {"right": 1, "found": 1, "objects": 1, "overlap": 1.0}


def test_classes_of_network_and_data_have_to_agree(folder: Path) -> None:
    task = DetectTask(small(folder, "model.classes=4").config)
    with pytest.raises(InputError, match="The network has 4 classes, the data 3"):
        task.check_data()


TINY = Pyramid(widths=(8, 8, 8, 8), heads=(1, 1, 1, 1), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))


def tiny(classes: int) -> PVTRetinaNet:
    return PVTRetinaNet(classes, TINY, Detector(width=8, depth=1))


def test_a_detector_starts_from_another_as_far_as_it_fits(tmp_path: Path) -> None:
    torch.save({"state_dict": (other := tiny(5)).state_dict()}, tmp_path / "other.pt")
    model = tiny(2)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    taken = start_from(model, tmp_path / "other.pt")
    assert list(taken.reshaped) == ["head.score.2.weight", "head.score.2.bias"]
    assert taken.drawn == taken.left == []
    assert (
        taken.growth
        == sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in other.parameters())
        < 0
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name in taken.reshaped else other.state_dict()[name])


def test_what_is_taken_and_how_the_network_has_grown_is_told(tmp_path: Path) -> None:
    torch.save((old := nn.Linear(3, 2)).state_dict() | {"gone": torch.zeros(4)}, tmp_path / "old.pt")
    old.weight = nn.Parameter(torch.zeros(5, 3))
    old.scale = nn.Parameter(torch.ones(()))
    assert str(start_from(old, tmp_path / "old.pt")).split("\n  ") == [
        "1 of 3 tensors of the network are taken from the file, 11.1 % of its parameters",
        "the network has 18 parameters, the file 12: +6 (+50.0 %)",
        "1 drawn anew, of another shape in the file: weight (5x3, in the file 2x3)",
        "1 drawn anew, not in the file: scale",
        "1 not used, in the file alone: gone",
    ]


def test_files_that_hold_no_fitting_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        start_from(tiny(2), tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(InputError, match="holds no weights"):
        start_from(tiny(2), tmp_path / "text.pt")
    torch.save({"something": torch.zeros(3)}, tmp_path / "strange.pt")
    with pytest.raises(InputError, match="No tensor of the file fits"):
        start_from(tiny(2), tmp_path / "strange.pt")
