"""Reports on denoised slices: the low dose as the first row, and sheets in one window of Hounsfield units."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_study import write_json
from PIL import Image

from anban.errors import InputError
from anban.report import sheets, write_report
from anban.report.patients import patient_table, slice_table
from anban.report.records import open_study
from anban.report.tables import Cell, comparison_table, gradient_table, to_csv, to_latex, to_markdown
from anban.report.views.slices import enlarged, shaded
from anban.study.records import Study
from anban.study.scores import score_named

OFFSET = 32768
ARMS = {"bare": 35.0, "attentive": 37.5}  # PSNR in dB; the low dose has 30


def write_run(root: Path, name: str, seed: int) -> str:
    """A run folder of four slices, one of them pictured."""
    relative = f"ct/twin/20261120-1000{10 + seed}-s{seed}-{name[:2].encode().hex()}"
    place = {"split": "test", "protocol": "whole", "checkpoint": "last"}
    samples = root / relative / "figures" / "samples"
    (samples / "one").mkdir(parents=True)
    truth = np.full((16, 24), -1000)
    truth[4:12, 6:18] = 40
    noise = np.random.default_rng(seed).normal(0, 20, truth.shape).round().astype(int)
    pictures = {
        "low": truth + 100,
        "truth": truth,
        "image": truth - 50,
        "content": -3 * truth,
        "noise": noise,
    }
    for stem, pixels in pictures.items():
        Image.fromarray((pixels + OFFSET).astype(np.uint16)).save(samples / "one" / f"{stem}.png")
    write_json(samples / "index.json", {
        "view": "slices", "window": "soft-tissue", "range": [-160, 240], "offset": OFFSET, "split": "test",
        "protocol": "whole", "samples": [{"name": "P1/0", "folder": "one", "inset": [4, 6, 8, 12]}],
    })  # fmt: skip
    lines = []
    for number in range(4):
        scores = {
            "low_dose_psnr": 30.0 + number,
            "psnr": ARMS[name] + number + 0.1 * seed,
            "rmse": 40.0 - number,
        }
        patient = "P1" if number < 3 else "P2"
        lines.append({**place, "name": f"{patient}/{number}", "patient": patient, "scores": scores})
    means = {key: float(np.mean([line["scores"][key] for line in lines])) for key in lines[0]["scores"]}  # type: ignore[index]
    (root / relative / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shares = [{"step": step, "split": "train", "protocol": None, "name": f"gradient of {branch}/{term}", "value": value}
              for step in (1, 2) for branch, term, value in
              (("content", "image/l1", 1.0), ("noise", "image/l1", 0.2 * step), ("noise", "noise/l1", 1 - 0.2 * step))]  # fmt: skip
    (root / relative / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shares))
    (root / relative / "recipe.yaml").write_text(yaml.safe_dump({"model": {"name": name}}))
    write_json(root / relative / "run.json", {
        "format": "anban-run/1", "id": Path(relative).name, "recipe": "ct/twin", "title": name, "task": "denoise",
        "select": "psnr", "hash": name.encode().hex()[:12], "base": None, "difference": {"model.name": name},
        "state": "finished", "why": None, "seed": seed, "commit": "3f1c2ab9d0e4", "device": "cpu",
        "model": {"name": "ct/twin", "parameters": 1_250_000 if name == "bare" else 1_500_000},
        "data": {"root": "/data/ct", "fingerprint": "8d1f00c3b7aa", "splits": {"test": 4}},
        "protocols": {"test/whole": {"name": "whole", "split": "test", "size": "16x24",
                                     "data_range": "4096 HU (-1024..3072)", "averaging": "mean over slices"}},
        "scores": [{**place, "name": key, "value": value} for key, value in means.items()],
    })  # fmt: skip
    return relative


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("runs")
    arms = [
        {"name": name, "title": name, "recipe": "ct/twin", "difference": {"model.name": name}, "runs": [
            {"seed": seed, "path": f"../{write_run(root, name, seed)}", "state": "finished", "why": None}
            for seed in (0, 1)
        ]}
        for name in ARMS
    ]  # fmt: skip
    (root / "study").mkdir()
    write_json(root / "study" / "study.json", {
        "format": "anban-study/1", "id": "ct/demo", "title": "Where the branches meet", "question": "Early?",
        "split": "test", "protocol": "whole", "metric": "", "base": "bare", "arms": arms,
    })  # fmt: skip
    return open_study(root / "study" / "study.json")


def test_the_low_dose_is_the_first_row_and_is_not_ranked(study: Study) -> None:
    table = comparison_table(study)
    assert [column.title for column in table.columns] == [
        "Method",
        "n",
        "PSNR (dB)",
        "RMSE (HU)",
        "Params (M)",
    ]
    assert [row.cells.get("parameters", Cell(None)).value for row in table.rows] == [
        None,
        1_250_000,
        1_500_000,
    ]
    first, *methods = table.rows
    assert (first.cells["method"].value, first.cells["psnr"].value) == ("Low dose", pytest.approx(31.5))
    assert first.cells["rmse"].value is None, "these runs did not score it"
    assert first.cells["psnr"].mark is None
    assert [row.cells["psnr"].mark for row in methods] == ["second", "best"]
    assert "\n| Low dose" in to_markdown(table)
    assert score_named("low_dose_psnr").heading == "Low dose: PSNR (dB)"


def test_a_sheet_shows_slices_parts_and_residuals(study: Study) -> None:
    sheet = sheets.sheet_of(study)
    assert sheet is not None
    assert sheet.columns == ("Low dose", "Full dose", "bare", "attentive")
    (scene,) = sheet.scenes
    wholes, parts, noises, contents, residuals = scene.lines
    assert {tile.pixels.shape for line in scene.lines for tile in line} == {(16, 24, 3)}
    grey = {tile.title: int(tile.pixels[8, 12, 0]) for tile in (*wholes, *residuals)}
    assert grey["Full dose"] == round(255 * 200 / 400)
    assert grey["Low dose"] == round(255 * 300 / 400)
    assert grey["Residual, Full dose"] == round(255 * 0.5)
    assert grey["Residual, bare"] == round(255 * 50 / 200)
    assert (parts[1].pixels == grey["Full dose"]).all(), "a part within the body"
    assert residuals[2].score == "PSNR 35.00"
    assert int(noises[0].pixels[8, 12, 0]) == round(255 * 200 / 200), "of the low dose its true noise"
    assert (noises[1].pixels == round(255 * 0.5)).all()
    assert len(np.unique(contents[2].pixels)) == 2, "a branch of another sign and scale still shows its edges"
    with pytest.raises(InputError, match="shown in grey"):
        sheets.sheet_of(study, "opencd")
    assert sheets.draw(sheet).axes


def test_the_branches_are_seen_beside_the_true_noise(study: Study) -> None:
    sheet = sheets.sheet_of(study)
    assert sheet is not None
    noise, profile = sheet.charts
    spectrum, histogram = noise.figure.axes
    assert [line.get_label() for line in spectrum.lines] == ["true noise", "bare", "attentive"]
    (frequencies, power) = spectrum.lines[1].get_data()
    assert np.mean(power) == pytest.approx(400, rel=0.3), "white noise of 20 HU"
    assert 0 < min(frequencies) < max(frequencies) < 0.5
    (places, density) = histogram.lines[1].get_data()
    assert 0.9 < np.sum(density) * (places[1] - places[0]) <= 1, "all but what leaves the picture"
    (row,) = profile.figure.axes
    assert [line.get_label() for line in row.lines] == ["Low dose", "Full dose", "bare", "attentive"]
    assert list(row.lines[2].get_ydata()) == [-10.0] * 12


def test_patients_and_slices_have_their_own_scores(study: Study, tmp_path: Path) -> None:
    """P1 has three slices and P2 one: the two means differ, and each is called what it is."""
    table = patient_table(study)
    assert table is not None
    found = {(row.cells["patient"].value, row.cells["method"].value): row.cells["psnr"] for row in table.rows}
    wanted = {"P1": 36.05, "P2": 38.05, "Mean over patients": 37.05, "Mean over slices": 36.55}
    for place, psnr in wanted.items():
        assert found[place, "bare"].value == pytest.approx(psnr)
        assert found[place, "bare"].spread == pytest.approx(0.1 / 2**0.5)
        assert found[place, "Low dose"].value == pytest.approx(psnr - 5.05)
    assert study.arm("bare").results["psnr"].mean == pytest.approx(wanted["Mean over slices"])
    slices = slice_table(study)
    assert slices is not None
    assert [row.cells["slice"].value for row in slices.rows[::3]] == ["P1/0", "P1/1", "P1/2", "P2/3"]
    rows = csv.DictReader(io.StringIO(to_csv(slices)))
    (last,) = (row for row in rows if (row["slice"], row["method"]) == ("P2/3", "attentive"))
    assert (last["patient"], float(last["psnr"]), float(last["rmse"])) == ("P2", pytest.approx(40.55), 37)
    many = to_latex(replace(slices, rows=slices.rows * 5))
    assert r"\begin{longtable}" in many
    assert r"\begin{table}" not in many
    write_report(study.finished[0][1].path.parents[2] / "study", tmp_path)
    assert {"patients.csv", "slices.csv"} <= {file.name for file in (tmp_path / "tables").iterdir()}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(
        text in page for text in ("Mean over patients", "Mean over slices", 'id="slices"', "Line profile")
    )


def test_the_terms_that_move_a_branch_stand_in_a_table(study: Study) -> None:
    table = gradient_table(study)
    assert table is not None
    assert [column.title for column in table.columns] == ["Method", "Branch", "image/l1", "noise/l1"]
    content, noise = table.rows[:2]
    assert (content.cells["part"].value, content.cells["image/l1"].value) == ("content", 1.0)
    assert noise.cells["image/l1"].value == pytest.approx(0.3)
    assert noise.cells["noise/l1"].value == pytest.approx(0.7)


def test_shades_and_parts() -> None:
    shades = shaded(np.array([[-500.0, -160.0, 240.0, 900.0]]), -160, 240)
    assert shades[0, :, 0].tolist() == [0, 0, 255, 255]
    picture = np.arange(8 * 8 * 3).reshape(8, 8, 3).astype(np.uint8)
    part = enlarged(picture, (2, 4, 2, 2))
    assert part.shape == picture.shape
    assert (part[:4, :4] == picture[2, 4]).all()
