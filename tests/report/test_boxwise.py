"""Studies and reports of detection runs: average precision with intervals, classes, errors, curves, confusion."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from anban.metrics.detection import Detected, coco, errors
from anban.report import boxwise, write_report
from anban.report.records import open_study
from anban.report.tables import ablation_table, comparison_table
from anban.study.compare import compare
from anban.study.records import Study, load_study
from anban.tasks.detect.metric import sample_record, summary

CLASSES = ["cat", "dog", "yak"]  # no picture has a yak
PLACE = {"split": "test", "protocol": "whole", "checkpoint": "best"}
PICTURES = 24


def lines_of(skill: float, seed: int) -> list[dict[str, Any]]:
    """What a run finds: boxes that lie off by less, and of the right class more often, the more skill it has."""
    lines = []
    for number in range(PICTURES):
        scene, noise = np.random.default_rng(number), np.random.default_rng([number, seed])
        count = int(scene.integers(1, 5))
        corner = scene.uniform(0, 200, (count, 2))
        truth = np.concatenate([corner, corner + scene.choice([20, 60, 120], (count, 1))], axis=1)
        labels = scene.integers(0, 2, count)
        boxes = truth + noise.normal(0, 12 * (1 - skill), truth.shape)
        given = np.where(noise.random(count) < 0.5 + skill / 2, labels, 1 - labels)
        found = {
            "boxes": [*boxes.tolist(), [300, 300, 320, 330]],
            "labels": [*given.tolist(), 0],
            "scores": [*noise.uniform(0.5, 1, count).tolist(), 0.4],
        }
        given_truth = {"boxes": truth, "labels": labels, "ignored": [False] * count,
                       "areas": (truth[:, 2] - truth[:, 0]) ** 2}  # fmt: skip
        lines.append({**PLACE, **sample_record(f"{number}.png", given_truth, found, len(CLASSES), 0.3)})
    return lines


def write_study(root: Path, arms: dict[str, float], seeds: int = 2) -> Path:
    """Run folders of arms of these skills, and the study's folder."""
    entries = []
    for name, skill in arms.items():
        runs = []
        for seed in range(seeds):
            folder = root / f"{name}-{seed}"
            folder.mkdir(parents=True)
            lines = lines_of(skill, seed)
            scores = summary(lines, len(CLASSES), 0.3)
            (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": {"name": "det/x", "skill": skill}}))
            info = {
                "format": "anban-run/1", "id": folder.name, "recipe": "det/x", "title": name.title(), "task": "detect",
                "select": "ap", "hash": name, "base": None, "difference": {}, "state": "finished", "why": None,
                "seed": seed, "data": {"root": "d", "fingerprint": "abc", "splits": {"test": PICTURES}},
                "protocols": {"test/whole": {"name": "whole", "classes": CLASSES, "least_score": 0.3}},
                "scores": [{**PLACE, "name": score, "value": value} for score, value in scores.items()],
            }  # fmt: skip
            (folder / "run.json").write_text(json.dumps(info))
            runs.append({"seed": seed, "path": f"../{folder.name}", "state": "finished", "why": None})
        entries.append(
            {"name": name, "title": name.title(), "recipe": "det/x", "difference": {}, "runs": runs}
        )
    (root / "study").mkdir()
    study = {
        "format": "anban-study/1", "id": "det/one", "title": "One", "question": "Which?", "split": "test",
        "protocol": "whole", "metric": "", "base": next(iter(arms)), "arms": entries,
    }  # fmt: skip
    (root / "study" / "study.json").write_text(json.dumps(study))
    return root / "study"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("runs"), {"plain": 0.5, "good": 0.85, "same": 0.5})


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return open_study(folder)


def found_by(skill: float, seed: int) -> list[Detected]:
    return [Detected.of(line["truth"], line["found"]) for line in lines_of(skill, seed)]


def test_average_precision_decides_and_is_compared_with_intervals(folder: Path) -> None:
    result = compare(load_study(folder), resamples=300)
    assert result["metric"] == "ap"
    plain, good, same = (arm["metrics"]["ap"] for arm in result["arms"])
    for arm, skill in ((plain, 0.5), (good, 0.85)):
        expected = [coco(found_by(skill, seed), 3).scores["ap"] for seed in range(2)]
        assert arm["values"] == pytest.approx(expected, abs=1e-12)
    found = good["difference"]
    assert found["value"] == pytest.approx(good["mean"] - plain["mean"])
    assert 0 < found["low"] < found["value"] < found["high"]
    assert (found["verdict"], found["covers"], found["family"]) == ("better", "images and seeds", 2)
    assert found["p_adjusted"] == pytest.approx(min(1, 2 * found["p"]))
    assert same["difference"]["value"] == 0
    assert same["difference"]["verdict"] == "not distinguishable"
    assert (
        good["difference"]
        == compare(load_study(folder), ["ap"], resamples=300)["arms"][1]["metrics"]["ap"]["difference"]
    )


def test_every_recorded_score_is_that_of_the_run(folder: Path, study: Study) -> None:
    """What the report works out from the lines is what run.json says."""
    recorded = json.loads((folder.parent / "good-1" / "run.json").read_text())["scores"]
    results = study.arm("good").results
    for score in recorded:
        assert results[score["name"]].values[1] == pytest.approx(score["value"], abs=1e-9)


def test_tables_have_the_columns_of_papers(study: Study) -> None:
    titles = [column.title for column in comparison_table(study).columns]
    assert titles == ["Method", "n", "AP", "AP50", "AP75", "APs", "APm", "APl"]
    ablation = ablation_table(study)
    assert ablation is not None
    assert [column.title for column in ablation.columns][3:6] == ["AP", "AP50", "Δ AP"]
    classes = boxwise.class_table(study, boxwise.analyses(study))
    assert classes is not None
    assert [column.title for column in classes.columns] == ["Method", "cat", "dog", "yak"]
    cells = classes.rows[1].cells
    expected = np.mean([coco(found_by(0.85, seed), 3).per_class for seed in range(2)], axis=0)
    assert [cells[f"ap:{name}"].value for name in CLASSES[:2]] == pytest.approx(expected[:2])
    assert cells["ap:yak"].value is None
    assert cells["ap:yak"].note == "There is no object of this class."


def test_a_picture_has_a_score_of_its_own(study: Study) -> None:
    run = study.arm("good").runs[0]
    single = [coco([image], 3).scores["ap"] for image in found_by(0.85, 0)]
    assert [run.image_score("test", "whole", f"{n}.png", "ap") for n in range(PICTURES)] == pytest.approx(
        single
    )
    assert run.image_score("test", "whole", "0.png", "f1") == lines_of(0.85, 0)[0]["scores"]["f1"]
    assert run.image_score("test", "whole", "none.png", "ap") is None


def test_runs_without_a_study_are_decided_by_average_precision(folder: Path) -> None:
    runs = [folder.parent / name for name in ("plain-0", "good-0")]
    assert open_study(runs).metric == "ap"
    other = open_study(runs, metric="voc_ap50")
    assert [column.title for column in comparison_table(other).columns][-1] == "VOC AP"
    difference = other.arm("det/x (good)").results["voc_ap50"].difference
    assert difference is not None
    assert difference.covers == "images"


def test_errors_are_counted_by_kind_and_for_one_method_by_class(study: Study, tmp_path: Path) -> None:
    table = boxwise.error_table(study, boxwise.analyses(study))
    assert table is not None
    assert [row.cells["row"].value for row in table.rows] == ["Plain", "Good", "Same"]
    expected = [errors(found_by(0.85, seed), 3) for seed in range(2)]
    for kind in ("classification", "localisation", "background", "missed"):
        assert table.rows[1].cells[kind].value == np.mean([each[kind].sum() for each in expected])
    one = open_study(write_study(tmp_path, {"plain": 0.5}, seeds=1))
    alone = boxwise.error_table(one, boxwise.analyses(one))
    assert alone is not None
    assert [row.cells["row"].value for row in alone.rows] == [*CLASSES, "all"]
    kinds = alone.rows[-1].cells
    assert kinds["background"].value == sum(row.cells["background"].value for row in alone.rows[:-1])  # type: ignore[misc]


def test_curves_and_confusion_have_a_panel_or_matrix_each(study: Study) -> None:
    curves, confusion = boxwise.charts(study, boxwise.analyses(study))
    panels = [axes for axes in curves.figure.axes if axes.lines]
    assert [axes.get_title(loc="left") for axes in panels] == ["all", "cat", "dog"]
    shown = np.asarray(panels[1].lines[1].get_ydata())
    expected = np.mean([coco(found_by(0.85, seed), 3).precision[0] for seed in range(2)], axis=0)
    np.testing.assert_allclose(shown, 100 * expected)
    matrices = [axes.images[0].get_array() for axes in confusion.figure.axes if axes.images]
    assert len(matrices) == 3
    assert all(matrix is not None and matrix.shape == (4, 4) for matrix in matrices)
    assert [label.get_text() for label in confusion.figure.axes[0].get_yticklabels()] == [
        *CLASSES,
        "background",
    ]


def test_the_report_of_boxes(folder: Path, tmp_path: Path) -> None:
    page = write_report(folder, tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    for anchor in ("classes", "errors", "precision-recall", "confusion"):
        assert f'<section id="{anchor}">' in text
    assert {path.stem for path in (tmp_path / "report" / "figures").glob("*.pdf")} >= {
        "precision-recall",
        "confusion",
    }
    with (tmp_path / "report" / "tables" / "comparison.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = np.mean([coco(found_by(0.85, seed), 3).scores["ap_large"] for seed in range(2)])  # type: ignore[arg-type]
    assert float(rows[1]["ap_large"]) == pytest.approx(expected)
    assert "APl" in (tmp_path / "report" / "tables" / "comparison.tex").read_text(encoding="utf-8")
