"""Reports on class maps: the IoU of each class, confusion, sheets of overlays and errors, expected gains."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_classes import ARMS, COLOURS, IGNORE, STREET, ClassArm, write_class_study
from fake_study import edit_json

from anban.errors import InputError
from anban.metrics import class_iou, class_scores
from anban.report import classwise, figures, sheets, write_report
from anban.report.page import cautions
from anban.report.records import open_study, protocol_text
from anban.report.tables import comparison_table, expectations_table, to_csv, to_markdown
from anban.report.views.classes import IGNORED, OPACITY, RIGHT, WRONG, errors, overlay
from anban.study.records import Study


@pytest.fixture(scope="module")
def class_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_study(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def study(class_file: Path) -> Study:
    return open_study(class_file)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small study of one's own."""

    def small(arms: tuple[ClassArm, ...] = ARMS[:2], **options: Any) -> Path:
        return write_class_study(tmp_path / "runs", arms, **{"images": 3, "pictured": 1, **options})

    return small


def matrices_of(path: Path) -> np.ndarray:
    lines = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    return np.asarray([line["confusion"] for line in lines])


def test_scores_are_those_of_the_summed_matrices(study: Study) -> None:
    assert (study.counted, study.metric) == ("confusion", "miou")
    table = comparison_table(study)
    assert [column.title for column in table.columns] == ["Method", "n", "mIoU", "PA", "mAcc", "FWIoU", "mF1"]
    for arm, row in zip(study.arms, table.rows, strict=True):
        scores = [class_scores(matrices_of(run.path).sum(axis=0)) for run in arm.runs]
        for name in scores[0]:
            assert row.cells[name].value == pytest.approx(np.mean([each[name] for each in scores]))
    difference = study.arms[1].results["miou"].difference
    assert difference is not None
    assert difference.verdict == "better"
    assert difference.low is not None
    assert 0 < difference.low < float(difference.value or 0)


def test_the_iou_of_each_class_has_mean_spread_and_marks(study: Study) -> None:
    table = classwise.class_table(study)
    assert table is not None
    assert [column.title for column in table.columns] == ["Method", *STREET[:5]]
    arm = study.arms[0]
    each = [class_iou(matrices_of(run.path).sum(axis=0)) for run in arm.runs]
    for number, name in enumerate(STREET[:5]):
        cell = table.rows[0].cells[f"iou:{name}"]
        values = [float(iou[number]) for iou in each]
        assert cell.value == pytest.approx(np.mean(values))
        assert cell.spread == pytest.approx(np.std(values, ddof=1))
        assert cell.each == pytest.approx(values)
    marks = [[row.cells[f"iou:{name}"].mark for row in table.rows] for name in STREET[:5]]
    assert all(column.count("best") == 1 for column in marks)
    assert "| **" in to_markdown(table)


def test_many_classes_are_rows(write: Callable[..., Path]) -> None:
    table = classwise.class_table(open_study(write(classes=19, size=(96, 192))))
    assert table is not None
    assert [row.cells["class"].value for row in table.rows] == list(STREET)
    assert [column.title for column in table.columns] == ["Class", "U-shape", "with FFM"]
    for row in table.rows:
        values = {arm: row.cells[arm].value for arm in ("ushape", "ffm")}
        best = max(values, key=lambda arm: round(100 * float(values[arm]), 1))  # type: ignore[arg-type]
        assert row.cells[best].mark == "best"
    rows = list(csv.DictReader(to_csv(table).splitlines()))
    assert (rows[0]["row"], rows[0]["split"], float(rows[0]["ffm"])) == (
        "iou:road",
        "val",
        table.rows[0].cells["ffm"].value,
    )


def test_a_class_that_is_nowhere_has_no_iou(write: Callable[..., Path]) -> None:
    file = write()
    for arm in json.loads(file.read_text())["arms"]:
        for run in arm["runs"]:
            path = Path(file.parent, run["path"], "samples.jsonl")
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for line in lines:  # nothing is the last class, nor taken for it
                line["confusion"] = [[*row[:4], 0] for row in line["confusion"][:4]] + [[0] * 5]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    study = open_study(file)
    table = classwise.class_table(study)
    assert table is not None
    assert table.rows[0].cells[f"iou:{STREET[4]}"].value is None
    assert "Neither labelled nor predicted." in to_markdown(table)
    figure = classwise.confusion(study)
    assert figure is not None
    assert len(figure.axes[0].get_xticks()) == 5


def test_confusion_is_shown_in_percent_of_each_class(study: Study) -> None:
    figure = classwise.confusion(study)
    assert figure is not None
    first = figure.axes[0]
    each = [matrices_of(run.path).sum(axis=0) for run in study.arms[0].runs]
    share = np.mean([matrix / matrix.sum(axis=1, keepdims=True) for matrix in each], axis=0)
    texts = [text.get_text() for text in first.texts]
    assert texts == [f"{100 * value:.0f}" if value >= 0.005 else "" for value in share.flat]
    assert [label.get_text() for label in first.get_yticklabels()] == list(STREET[:5])
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == list(STREET[:5])


def test_nineteen_classes_are_readable(write: Callable[..., Path]) -> None:
    figure = classwise.confusion(open_study(write(classes=19)))
    assert figure is not None
    assert figure.get_size_inches()[0] <= figures.PAGE
    numbers = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(numbers) >= 19
    assert min(text.get_fontsize() for text in numbers) >= 4
    cell = figure.axes[0].get_window_extent().width / 19
    assert max(text.get_window_extent().width for text in numbers) < cell
    labels = figure.axes[0].get_yticklabels()
    assert min(label.get_fontsize() for label in labels) >= 5


def test_overlay_and_errors_pixel_by_pixel() -> None:
    image = np.full((1, 3, 3), 100, dtype=np.uint8)
    palette = np.asarray([(0, 0, 0), (200, 0, 100)], dtype=np.uint8)
    drawn = overlay(image, np.asarray([[0, 1, IGNORE]], dtype=np.uint8), palette)
    dark = round(100 * (1 - OPACITY))
    assert drawn[0].tolist() == [[dark] * 3, [165, dark, 100], [100] * 3]
    label = np.asarray([[0, 1, IGNORE]], dtype=np.uint8)
    assert [tuple(p) for p in errors(np.zeros_like(label), label, IGNORE)[0].tolist()] == [
        RIGHT,
        WRONG,
        IGNORED,
    ]
    with pytest.raises(InputError, match="pixels and its class map"):
        overlay(image, label[:, :2], palette)


def test_a_scene_has_the_picture_over_the_truth_and_predictions_over_errors(study: Study) -> None:
    sheet = sheets.sheet_of(study)
    assert sheet is not None
    assert sheet.columns == ("Picture, ground truth", *(arm.title for arm in ARMS))
    assert [scene.name for scene in sheet.scenes] == ["street_0.png", "street_1.png"]
    (picture, *predictions), (truth, *wrong) = sheet.scenes[0].lines
    assert picture.pixels.shape == truth.pixels.shape == (48, 96, 3)
    for arm, prediction, error in zip(study.arms, predictions, wrong, strict=True):
        run = arm.runs[0]
        line = json.loads((run.path / "samples.jsonl").read_text().splitlines()[0])
        matrix = np.asarray(line["confusion"])
        assert (prediction.run, error.run, prediction.score) == (run.id, run.id, "")
        assert error.score == f"mIoU {100 * line['scores']['miou']:.1f}"
        assert (error.pixels == WRONG).all(axis=2).sum() == matrix.sum() - np.trace(matrix)
        assert (error.pixels == RIGHT).all(axis=2).sum() == np.trace(matrix)
    texts = [swatch.text for swatch in sheet.legend]
    assert texts == [*STREET[:5], "right", "wrong", "ignored"]
    assert sheet.legend[1].colour == COLOURS[1]
    figure = sheets.draw(sheet)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == texts


def test_the_sheet_is_the_same_bytes_each_time(study: Study, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        sheet = sheets.sheet_of(study)
        assert sheet is not None
        made.append([path.read_bytes() for path in figures.save(sheets.draw(sheet), tmp_path / name)])
    assert made[0] == made[1]


def test_large_pictures_are_shrunk_and_the_sheet_says_so(write: Callable[..., Path]) -> None:
    sheet = sheets.sheet_of(open_study(write(size=(80, 1400), images=1, seeds=1)))
    assert sheet is not None
    assert all(tile.pixels.shape == (27, 467, 3) for line in sheet.scenes[0].lines for tile in line)
    assert "shrunk" in sheet.caption


def test_scenes_of_different_sizes_keep_their_proportions(study: Study) -> None:
    sheet = sheets.sheet_of(study)
    assert sheet is not None
    small = sheets.Scene("small", tuple(tuple(_cut(tile) for tile in line) for line in sheet.scenes[0].lines))
    figure = sheets.draw(sheets.Sheet((sheet.scenes[0], small), sheet.columns, sheet.legend, "x", ""))
    width, height = figure.get_size_inches()
    shapes = {
        round(a.get_position().width * width / (a.get_position().height * height), 2) for a in figure.axes
    }
    assert shapes == {2.0, 1.0}


def _cut(tile: sheets.Tile) -> sheets.Tile:
    return sheets.Tile(tile.title, tile.pixels[:40, :40])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view": "volumes"}, "of the kind volumes"),
        ({"palette": COLOURS[:4]}, "5 classes and 4 colours"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(
    write: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    file = write()
    for run in open_study(file).runs:
        edit_json(run[1].path / "figures" / "samples" / "index.json", **changes)
    with pytest.raises(InputError, match=message):
        sheets.sheet_of(open_study(file))


def test_class_maps_have_no_other_colours(study: Study) -> None:
    with pytest.raises(InputError, match="colours of their classes"):
        sheets.sheet_of(study, "opencd")


def test_the_page_speaks_of_classes_and_reproduces(
    class_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "save", lambda figure, stem: [])  # takes most of the time
    first, second = (write_report(class_file, tmp_path / name) for name in ("one", "two"))
    files = sorted(path.relative_to(first.parent) for path in first.parent.rglob("*") if path.is_file())
    assert Path("tables/classes.tex") in files
    assert Path("tables/expectations.csv") in files
    for file in files:
        assert (first.parent / file).read_bytes() == (second.parent / file).read_bytes(), file
    text = first.read_text(encoding="utf-8")
    assert "change" not in text.split("<body>")[1].split('<section id="recipes">')[0].lower()
    for words in ("Class maps of each method", "mIoU points", '<section id="classes">', "wrong", "5 classes"):
        assert words in text
    assert 'id="convention"' not in text


def test_predicting_one_class_alone_is_a_caution(write: Callable[..., Path]) -> None:
    found = cautions(
        open_study(write((ARMS[0], ClassArm("blind", "Blind", 0.5, {"model.join": "x"}, blind=True))))
    )
    assert any(
        caution.text.startswith("Blind predicted 'road' everywhere in 2 of 2 runs") for caution in found
    )


def test_expected_gains_stand_beside_the_measured_ones(study: Study) -> None:
    table = expectations_table(study)
    assert table is not None
    first, second = table.rows
    assert [row.cells["over"].value for row in table.rows] == ["U-shape", "with FFM"]
    arm, over = (study.arms[number].results["miou"].mean for number in (2, 1))
    assert second.cells["difference"].value == pytest.approx(float(arm or 0) - float(over or 0))
    assert first.cells["expected"].value == pytest.approx(0.014)
    low, high = first.cells["interval"].low, first.cells["interval"].high
    assert low is not None
    assert high is not None
    assert first.cells["inside"].value == (
        "yes" if low <= 0.014 <= high else "no, above" if low > 0.014 else "no, below"
    )
    assert second.cells["inside"].value == "no, below"  # nobody gains 60 points
    assert "| +60.00 |" in to_markdown(table)
    assert "note, line 349" in to_markdown(table)


def test_an_expectation_inside_the_interval_and_one_of_no_arm(write: Callable[..., Path]) -> None:
    file = write()
    difference = open_study(file).arms[1].results["miou"].difference
    assert difference is not None
    arms = json.loads(file.read_text())["arms"]
    arms[1]["expected"] = {"gain": 100 * float(difference.value or 0), "over": "ushape"}
    edit_json(file, arms=arms)
    table = expectations_table(open_study(file))
    assert table is not None
    assert table.rows[0].cells["inside"].value == "yes"
    arms[1]["expected"]["over"] = "nobody"
    edit_json(file, arms=arms)
    with pytest.raises(InputError, match="expected over 'nobody'"):
        open_study(file)


def test_a_study_without_expectations_has_no_table(write: Callable[..., Path]) -> None:
    assert expectations_table(open_study(write((ARMS[0], ClassArm("x", "X", 0.9))))) is None


def test_numbers_of_images_alone_make_a_report(write: Callable[..., Path], tmp_path: Path) -> None:
    """A third kind of records: no counts and no pictures, one number in dB and one that should be small per image."""
    file = write()
    values = {"ushape": 30.0, "ffm": 31.0}
    for arm in json.loads(file.read_text())["arms"]:
        for run in arm["runs"]:
            path = Path(file.parent, run["path"])
            place = {"split": "val", "protocol": "ss", "checkpoint": "best"}
            lines = [
                {**place, "name": f"{k}.png", "scores": {"psnr": values[arm["name"]] + k + run["seed"] / 10, "rmse": 5.0 - k}}
                for k in range(3)
            ]  # fmt: skip
            (path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            scores = [{**place, "name": name, "value": 1.0} for name in ("psnr", "rmse")]
            edit_json(path / "run.json", select="psnr", scores=scores)
            (path / "figures" / "samples" / "index.json").unlink()
    arms = json.loads(file.read_text())["arms"]
    edit_json(file, arms=[{**arm, "expected": None} for arm in arms])
    page = write_report(file, tmp_path / "out")
    table = (tmp_path / "out" / "tables" / "comparison.md").read_text(encoding="utf-8")
    assert "| Method | n | PSNR (dB) ↑ | RMSE (HU) ↓ |" in table
    assert "| U-shape | 2 | <u>31.05</u> ± 0.07 | **4.00** ± 0.00 |" in table
    assert "in percent" not in table
    assert "with FFM is better than U-shape by +1.00 PSNR (dB)" in page.read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "tables" / "classes.md").exists()
    assert not (tmp_path / "out" / "figures" / "sheet.png").exists()


def test_runs_of_different_classes_are_not_compared(write: Callable[..., Path], tmp_path: Path) -> None:
    file = write()
    other = write_class_study(tmp_path / "other", ARMS[:1], classes=4, images=3)
    arms = json.loads(file.read_text())["arms"]
    arms[1]["runs"] = [{**run, "path": str(Path(other.parent, run["path"]).resolve())}
                       for run in json.loads(other.read_text())["arms"][0]["runs"]]  # fmt: skip
    edit_json(file, arms=arms)
    with pytest.raises(InputError, match="do not count the same"):
        open_study(file, mix_protocols=True)


def test_protocols_are_told_with_all_they_hold() -> None:
    stamp = {"name": "ss", "size": "1024x1024", "tiling": "sliding", "stride": "2/3", "rule": "softmax", "border": None,
             "scales": [0.5, 1.0], "classes": list(STREET)}  # fmt: skip
    text = protocol_text(stamp)
    assert text == "input 1024x1024, tiling sliding with stride 2/3, scales 0.5, 1, 19 classes, rule softmax"


def test_a_report_of_class_maps_never_imports_torch(class_file: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from anban.report import figures, write_report; figures.save = lambda *_: []; "
        f"write_report({str(class_file)!r}, {str(tmp_path)!r}); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0
