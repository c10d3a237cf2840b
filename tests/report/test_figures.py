from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_study import DEMO, FakeArm
from PIL import Image

from anban.errors import InputError
from anban.record import RunFolder
from anban.report import classwise, figures, sheets
from anban.report.figures import smoothed
from anban.report.records import open_study
from anban.report.views.change import CONVENTIONS, change_map
from anban.study.records import Arm, Run, Study

WHITE, BLACK, RED, GREEN = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0)


@pytest.mark.parametrize(
    ("name", "tp", "tn", "fp", "fn"),
    [
        ("fp-red-fn-green", WHITE, BLACK, RED, GREEN),
        ("fp-green-fn-red", WHITE, BLACK, GREEN, RED),
        ("opencd", GREEN, BLACK, (255, 255, 0), RED),
        ("fp-red-fn-blue", WHITE, BLACK, RED, (0, 0, 255)),
        ("fp-red-fn-cyan", WHITE, BLACK, RED, (0, 255, 255)),
        ("colour-blind", WHITE, BLACK, (230, 159, 0), (0, 114, 178)),
    ],
)
def test_change_map_of_one_pixel_each(name: str, tp: object, tn: object, fp: object, fn: object) -> None:
    prediction, label = np.array([[1, 0], [1, 0]]), np.array([[255, 0], [0, 255]], dtype=np.uint8)
    drawn = change_map(prediction, label, name)
    assert drawn.dtype == np.uint8
    assert [[tuple(pixel) for pixel in row] for row in drawn.tolist()] == [[tp, tn], [fp, fn]]


def test_every_convention_is_tested_above_and_tells_four_outcomes_apart() -> None:
    assert len(CONVENTIONS) == 6
    for colours in CONVENTIONS.values():
        assert len({colours.tp, colours.tn, colours.fp, colours.fn}) == 4


def test_the_colour_blind_convention_differs_in_lightness() -> None:
    def lightness(colour: tuple[int, int, int]) -> float:
        """CIE L* of an sRGB colour."""
        part = np.asarray(colour) / 255
        linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
        y = float(linear @ [0.2126, 0.7152, 0.0722])
        return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y

    colours = CONVENTIONS["colour-blind"]
    steps = sorted(lightness(colour) for colour in (colours.tp, colours.tn, colours.fp, colours.fn))
    assert min(np.diff(steps)) > 20


def test_probabilities_are_change_above_the_threshold_only() -> None:
    label = np.zeros((1, 3))
    drawn = change_map(np.array([[0.5, 0.51, 0.9]]), label)
    assert drawn.tolist() == [[list(BLACK), list(RED), list(RED)]]
    assert change_map(np.array([[0.5, 0.51, 0.9]]), label, threshold=0.6).tolist() == [
        [[0] * 3, [0] * 3, list(RED)]
    ]


def test_change_map_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(InputError, match=r"\(2, 2\) and the label \(2, 3\)"):
        change_map(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(InputError, match="holds the values"):
        change_map(np.array([[3, 200]], dtype=np.uint8), np.zeros((1, 2)))  # an 8-bit probability by mistake
    with pytest.raises(InputError, match="colour-blind"):
        change_map(np.zeros((2, 2)), np.zeros((2, 2)), "rainbow")


def test_smoothing_starts_at_the_first_value_and_passes_over_undefined_ones() -> None:
    assert smoothed(np.array([2.0, 4.0]), 1).tolist() == [2.0, 4.0]
    # span 2 keeps half: (2 * 1/4 + 4 * 1/2) / (3/4) = 10/3
    out = smoothed(np.array([2.0, np.nan, 4.0]), 2)
    assert out[0] == 2.0
    assert np.isnan(out[1])
    assert out[2] == pytest.approx(10 / 3)


def test_the_axis_of_differences_is_not_stretched_by_one_outlier() -> None:
    assert figures._reach([0.05, 0.02, 0.9]) == 0.05
    assert figures._reach([0.05, 0.02, 0.15]) == 0.15
    assert figures._reach([0.0]) > 0


def test_scenes_show_dates_truth_and_each_method_with_its_f1(study_file: Path) -> None:
    study = open_study(study_file)
    sheet = sheets.sheet_of(study)
    assert sheet is not None
    assert [scene.name for scene in sheet.scenes] == ["test_01.png", "test_02.png"]
    assert sheet.columns == ("T1", "T2", "Ground truth", *(arm.title for arm in DEMO))
    first, second = (scene.lines[0] for scene in sheet.scenes)
    assert tuple(tile.title for tile in first) == sheet.columns
    blind = first[-1]
    truth = first[2].pixels[..., 0] > 0
    assert (blind.pixels[truth] == GREEN).all()
    assert (blind.pixels[~truth] == BLACK).all()
    tile = second[3]
    run = study.arm("tinycd").runs[0]
    f1 = run.image_score("test", "whole", "test_02.png", "f1")
    assert (tile.run, tile.score) == (run.id, f"F1 {100 * f1:.1f}")
    # The map, counted pixel by pixel, is the recorded confusion matrix.
    counted = {
        name: int((tile.pixels == getattr(CONVENTIONS["fp-red-fn-green"], name)).all(axis=2).sum())
        for name in ("tn", "fp", "fn", "tp")
    }
    lines = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert counted == lines[1]["counts"]


def test_the_saved_sheet_keeps_every_pixel(small: Callable[..., Path], tmp_path: Path) -> None:
    sheet = sheets.sheet_of(open_study(small(size=80)))
    assert sheet is not None
    figures.save(sheets.draw(sheet), tmp_path / "sheet")
    saved = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    factor = 240 // 80
    for tile in sheet.scenes[0].lines[0]:
        big = np.kron(tile.pixels, np.ones((factor, factor, 1), dtype=np.uint8))
        assert _contains(saved, big), tile.title


def _contains(image: np.ndarray, part: np.ndarray) -> bool:
    """Whether `part` stands somewhere in `image`, pixel for pixel."""
    h, w = part.shape[:2]
    # Comparing the middle row and column first leaves few places to compare in full.
    fits = np.ones((image.shape[0] - h + 1, image.shape[1] - w + 1), dtype=bool)
    for y, x in [
        (0, 0),
        (h // 2, w // 2),
        (h - 1, w - 1),
        (h // 3, w // 4),
        (h // 4, w // 2),
        (h // 2, w // 5),
    ]:
        window = image[y : y + fits.shape[0], x : x + fits.shape[1]]
        fits &= (window == part[y, x]).all(axis=2)
    return any((image[y : y + h, x : x + w] == part).all() for y, x in zip(*np.nonzero(fits), strict=True))


def test_the_legend_names_outcome_and_colour(study_file: Path) -> None:
    sheet = sheets.sheet_of(open_study(study_file), "opencd")
    assert sheet is not None
    labels = [text.get_text() for text in sheets.draw(sheet).legends[0].get_texts()]
    assert labels == ["TP true positive (green)", "TN true negative (black)", "FP false positive (yellow)",
                      "FN false negative (red)"]  # fmt: skip


def test_sheet_prints_its_legend_and_the_scores(study_file: Path) -> None:
    sheet = sheets.sheet_of(open_study(study_file), "fp-red-fn-blue")
    assert sheet is not None
    figure = sheets.draw(sheet)
    texts = [text.get_text() for text in figure.texts]
    assert "FN false negative (blue)" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "test_01" in texts
    assert sum(text.startswith("F1 ") for text in texts) == 2 * len(DEMO)


def test_curves_show_each_seed_faintly_and_the_mean_over_finished_ones(study_file: Path) -> None:
    study = open_study(study_file)
    figure = figures.curves(study)
    assert figure is not None
    score = figure.axes[1]
    assert score.get_title(loc="left") == "Validation F1 (%)"
    strong = [line for line in score.get_lines() if line.get_alpha() is None]
    values = np.mean([run.series("val", "f1")[1] for run in study.arm("tinycd").finished], axis=0)
    assert np.allclose(np.asarray(strong[0].get_ydata(), dtype=float), 100 * values)
    faint = [line for line in score.get_lines() if line.get_alpha() is not None]
    assert len(faint) == 18  # the failed run's part is shown too
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [arm.title for arm in DEMO]


def test_the_terms_of_a_loss_have_a_panel_each(tmp_path: Path) -> None:
    def arm(name: str, terms: dict[str, float]) -> Arm:
        (tmp_path / name).mkdir()
        lines = [{"split": "train", "protocol": None, "name": term, "step": step, "value": value / step}
                 for step in (1, 2, 3) for term, value in {"loss": 5.0, "lr": 0.1, "gradient_norm": 1.0, **terms}.items()]  # fmt: skip
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        record = RunFolder(tmp_path / name, {"id": name, "recipe": "r"})
        return Arm(name, name, "r", {}, (Run(tmp_path / name, 0, "finished", record=record),))

    one, two = arm("one", {"classes": 3.0, "boxes": 2.0}), arm("two", {"classes": 4.0, "boxes": 1.0})
    figure = figures.loss_terms(Study("i", "t", "q", "test", "whole", "f1", "one", (one, two)))
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["classes", "boxes"]
    strong = [line for line in figure.axes[0].get_lines() if line.get_alpha() is None]
    assert [list(line.get_ydata()) for line in strong] == [[3.0, 1.5, 1.0], [4.0, 2.0, 4 / 3]]  # type: ignore[arg-type]
    single = Study("i", "t", "q", "test", "whole", "f1", "three", (arm("three", {"classes": 3.0}),))
    assert figures.loss_terms(single) is None


def test_the_last_of_repeated_lines_counts(tmp_path: Path) -> None:
    line = {"split": "train", "protocol": None, "name": "loss"}
    points = ((5, 9.0), (5, 1.0), (1, None))
    lines = [json.dumps({**line, "step": step, "value": value}) for step, value in points]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = Run(tmp_path, 0, "finished", record=RunFolder(tmp_path, {"id": "x", "recipe": "r"}))
    steps, values = run.series("train", "loss")
    assert steps.tolist() == [1, 5]
    assert np.isnan(values[0])
    assert values[1] == 1.0


def test_arms_keep_different_lines_however_many_there_are() -> None:
    arms = tuple(Arm(f"a{n}", f"A{n}", "r", {}, ()) for n in range(20))
    styles = figures.arm_styles(Study("i", "t", "q", "test", "whole", "f1", "a3", arms))
    assert len(set(styles.values())) == 20
    assert styles["a3"] == (figures.INK, "-")


def test_differences_tell_the_verdict_in_words_and_shape(study_file: Path) -> None:
    figure = figures.differences(open_study(study_file))
    assert figure is not None
    axes, words = figure.axes
    assert [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()] == [
        arm.title for arm in DEMO[1:]
    ]
    texts = [text.get_text() for text in words.texts]
    assert texts[1] == "better"
    assert texts[0].startswith("+")
    markers = [line.get_marker() for line in axes.get_lines() if line.get_marker() not in ("None", "", None)]
    assert "^" in markers
    assert "v" in markers


def test_confusion_shares_by_hand(tmp_path: Path) -> None:
    def run(**counts: int) -> Run:
        folder = tmp_path / "-".join(map(str, counts.values()))
        folder.mkdir()
        place = {"split": "test", "protocol": "whole", "checkpoint": "best"}
        record = RunFolder(folder, {"id": folder.name, "recipe": "r", "scores": [{**place, "name": "f1"}]})
        lines = [{**place, "name": "x", "counts": counts}]
        # Those of another checkpoint are not what the scores say.
        record.log_samples([*lines, {**lines[0], "checkpoint": "last", "counts": dict.fromkeys(counts, 9)}])
        return Run(folder, 0, "finished", record=record)

    arm = Arm("a", "A", "r", {}, (run(tn=6, fp=2, fn=1, tp=3), run(tn=8, fp=0, fn=3, tp=1)))
    study = Study("i", "t", "q", "test", "whole", "f1", "a", (arm,))
    matrices = [run.matrix("test", "whole") for run in arm.runs]
    assert classwise.shares([m for m in matrices if m is not None]).tolist() == [[0.875, 0.125], [0.5, 0.5]]
    figure = classwise.confusion(study)
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["87.5 %", "12.5 %", "50.0 %", "50.0 %"]


def test_nothing_recorded_gives_no_figure(tmp_path: Path) -> None:
    study = Study(
        "i", "t", "q", "test", "whole", "f1", "a", (Arm("a", "A", "r", {}, (Run(tmp_path, 0, "failed"),)),)
    )
    assert figures.curves(study) is None
    assert figures.differences(study) is None
    assert classwise.confusion(study) is None
    assert classwise.class_table(study) is None
    assert sheets.sheet_of(study) is None


def test_figures_are_the_same_bytes_each_time(small: Callable[..., Path], tmp_path: Path) -> None:
    study = open_study(
        small((FakeArm("one", "One", 0.6, "change/one"), FakeArm("two", "Two", 0.7, "change/one")))
    )
    first, second = (classwise.confusion(study) for _ in range(2))
    assert first is not None
    assert second is not None
    for one, two in zip(
        figures.save(first, tmp_path / "1"), figures.save(second, tmp_path / "2"), strict=True
    ):
        assert one.read_bytes() == two.read_bytes()
    assert figures.svg(first) == figures.svg(second)
