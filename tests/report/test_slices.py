"""Reports on denoised slices: the low dose as the first row, and sheets in one window of Hounsfield units."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_study import write_json
from PIL import Image

from anban.errors import InputError
from anban.report import sheets
from anban.report.records import open_study
from anban.report.tables import comparison_table, to_markdown
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
    for stem, pixels in {"low": truth + 100, "truth": truth, "image": truth - 50}.items():
        Image.fromarray((pixels + OFFSET).astype(np.uint16)).save(samples / "one" / f"{stem}.png")
    write_json(samples / "index.json", {
        "view": "slices", "window": "soft-tissue", "range": [-160, 240], "offset": OFFSET, "split": "test",
        "protocol": "whole", "samples": [{"name": "P1/0", "folder": "one", "inset": [4, 6, 4, 6]}],
    })  # fmt: skip
    lines = []
    for number in range(4):
        scores = {
            "low_dose_psnr": 30.0 + number,
            "psnr": ARMS[name] + number + 0.1 * seed,
            "rmse": 40.0 - number,
        }
        lines.append({**place, "name": f"P1/{number}", "patient": "P1", "scores": scores})
    means = {key: float(np.mean([line["scores"][key] for line in lines])) for key in lines[0]["scores"]}  # type: ignore[index]
    (root / relative / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / relative / "metrics.jsonl").write_text("")
    (root / relative / "recipe.yaml").write_text(yaml.safe_dump({"model": {"name": name}}))
    write_json(root / relative / "run.json", {
        "format": "anban-run/1", "id": Path(relative).name, "recipe": "ct/twin", "title": name, "task": "denoise",
        "select": "psnr", "hash": name.encode().hex()[:12], "base": None, "difference": {"model.name": name},
        "state": "finished", "why": None, "seed": seed, "commit": "3f1c2ab9d0e4", "device": "cpu",
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
    assert [column.title for column in table.columns] == ["Method", "n", "PSNR (dB)", "RMSE (HU)"]
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
    wholes, parts, residuals = scene.lines
    assert {tile.pixels.shape for line in scene.lines for tile in line} == {(16, 24, 3)}
    grey = {tile.title: int(tile.pixels[8, 12, 0]) for tile in (*wholes, *residuals)}
    assert grey["Full dose"] == round(255 * 200 / 400)
    assert grey["Low dose"] == round(255 * 300 / 400)
    assert grey["Residual, Full dose"] == round(255 * 0.5)
    assert grey["Residual, bare"] == round(255 * 150 / 400)
    assert (parts[1].pixels == grey["Full dose"]).all(), "a part within the body"
    assert residuals[2].score == "PSNR 35.00"
    with pytest.raises(InputError, match="shown in grey"):
        sheets.sheet_of(study, "opencd")
    assert sheets.draw(sheet).axes


def test_shades_and_parts() -> None:
    shades = shaded(np.array([[-500.0, -160.0, 240.0, 900.0]]), -160, 240)
    assert shades[0, :, 0].tolist() == [0, 0, 255, 255]
    picture = np.arange(8 * 8 * 3).reshape(8, 8, 3).astype(np.uint8)
    part = enlarged(picture, (2, 4, 2, 2))
    assert part.shape == picture.shape
    assert (part[:4, :4] == picture[2, 4]).all()
