"""What is made from a run's record, and anchors for a data set."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from anban.errors import InputError
from anban.tasks.detect import analyse as tool
from anban.tasks.detect.anchors import best_overlaps, evolve, k_means, recall, retinanet_shapes, shapes_of
from anban.tasks.detect.data import DetectData
from anban.tasks.detect.demo import write_demo
from anban.tasks.detect.metric import sample_record


def write_run(folder: Path) -> Path:
    """A run's record: of two pictures one is found, the other taken for something else."""
    folder.mkdir()
    truth = {"boxes": [[0, 0, 9, 9]], "labels": [0], "ignored": [False], "areas": [81]}
    lines = []
    for name, label in (("a.png", 0), ("b.png", 1)):
        found = {"boxes": [[0, 0, 9, 9]], "labels": [label], "scores": [0.8]}
        lines.append(sample_record(name, truth, found, 2, 0.5) | {"split": "val", "protocol": "whole"})
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    stamp = {"classes": ["cat", "dog"], "pairs": "IoU 0.5, score 0.5"}
    (folder / "run.json").write_text(json.dumps({"protocols": {"val/whole": stamp}}), encoding="utf-8")
    return folder


def test_a_record_is_analysed_without_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    analysis = tool.analyse(run)
    assert analysis.confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert analysis.rows()[1] == ["cat", "2", "50.50", "50.00", "0", "0", "0", "0", "0", "0"]
    assert analysis.rows()[2] == ["dog", "0", "–", "–", "1", "0", "0", "0", "0", "0"]
    tool.main([str(run), str(tmp_path / "out")])
    assert "cat" in capsys.readouterr().out
    names = {"classes.csv", "confusion.csv", "confusion.png", "precision-recall.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    with (tmp_path / "out" / "confusion.csv").open(encoding="utf-8") as file:
        assert list(csv.reader(file))[1] == ["cat", "1", "1", "0"]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run that was evaluated"):
        tool.analyse(tmp_path)
    run = write_run(tmp_path / "run")
    line = {"name": "a", "split": "val", "protocol": "whole", "scores": {}}
    (run / "samples.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="has no boxes"):
        tool.analyse(run)


def test_overlaps_of_shapes_worked_by_hand() -> None:
    shapes, anchors = np.array([[10.0, 10.0], [20.0, 5.0]]), np.array([[10.0, 10.0], [40.0, 5.0]])
    assert best_overlaps(shapes, anchors).tolist() == [1.0, 0.5]
    assert recall(shapes, anchors, iou=0.6) == 0.5


def test_shapes_of_retinanet_have_the_area_and_ratio_asked_for() -> None:
    shapes = retinanet_shapes([16.0], 2, [0.5, 2.0])
    np.testing.assert_allclose(sorted(shapes.prod(axis=1)), [256, 256, 512, 512], rtol=1e-5)
    np.testing.assert_allclose(sorted(shapes[:, 1] / shapes[:, 0]), [0.5, 0.5, 2, 2], rtol=1e-5)


def invented() -> np.ndarray:
    """Two kinds of boxes, small wide ones and large high ones."""
    draw = np.random.default_rng(0)
    kinds = np.array([[30.0, 10.0]] * 60 + [[40.0, 120.0]] * 60)
    return kinds * draw.uniform(0.9, 1.1, kinds.shape)


def test_k_means_finds_the_kinds_of_boxes() -> None:
    np.testing.assert_allclose(k_means(invented(), 2), [[30, 10], [40, 120]], rtol=0.05)


def test_evolved_anchors_fit_better_than_the_usual_ones_and_are_repeatable() -> None:
    shapes = invented()
    sizes, ratios = evolve(shapes, levels=2, octaves=1, ratios=2, generations=15)
    usual = retinanet_shapes([32.0, 64.0], 1, [0.5, 2.0])
    assert (
        best_overlaps(shapes, retinanet_shapes(sizes, 1, ratios)).mean()
        > best_overlaps(shapes, usual).mean() + 0.1
    )
    assert evolve(shapes, 2, 1, 2, generations=15) == (sizes, ratios)


def test_boxes_are_measured_in_the_pixels_of_the_network(tmp_path: Path) -> None:
    data = DetectData(str(write_demo(tmp_path / "cells", train=2, val=0, test=0, size=64)), val=None)
    whole, doubled = (shapes_of(data, "train", protocol) for protocol in ("whole", "size-64x128"))
    np.testing.assert_allclose(doubled, whole * [2, 1])
