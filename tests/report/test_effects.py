"""Effects in a report: of a study, and of all runs of a folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from fake_study import DEMO, edit_json
from typer.testing import CliRunner

from anban.cli.report import report as report_verb
from anban.errors import InputError
from anban.record import RunFolder, find_runs
from anban.report import figures, write_effects, write_report
from anban.report.tables import WRITERS, effects_table, to_latex, to_markdown
from anban.study.effects import effects

TOGETHER = (DEMO[0], replace(DEMO[1], difference={"model.fuse": "gated", "loss.dice": 1.0}))


def runs_of(file: Path) -> Path:
    return file.parents[2]


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


@pytest.fixture
def two_protocols(small: Callable[..., Path]) -> Path:
    """The runs of a small study, of which those of one seed were measured at another size."""
    root = runs_of(small(DEMO[:3], seeds=3))
    for path in find_runs(root):
        info = json.loads((path / "run.json").read_text())
        if info["seed"] == 2:
            protocols = {"test/whole": {**info["protocols"]["test/whole"], "size": "1024x1024"}}
            edit_json(path / "run.json", protocols=protocols)
    return root


def test_a_report_of_a_study_has_its_effects(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small(DEMO[:4], seeds=3)
    page = write_report(file, tmp_path / "out", with_effects=True)
    names = {path.name for path in (tmp_path / "out").rglob("effects.*")}
    assert names == {"effects.md", "effects.tex", "effects.csv", "effects.png", "effects.pdf"}
    text = page.read_text(encoding="utf-8")
    assert '<section id="effects">' in text
    assert '<a href="#effects">Effects</a>' in text
    rows = rows_of(tmp_path / "out" / "tables" / "effects.csv")
    assert [(row["switch"], row["change"], row["n"]) for row in rows] == [
        ("model.fuse", "concat → gated", "5"), ("loss.dice", "0.0 → 1.0", "5")
    ]  # fmt: skip
    assert len(rows[0]["runs"].split()) == 5
    assert float(rows[0]["interval_low"]) < float(rows[0]["effect"]) < float(rows[0]["interval_high"])
    write_report(file, tmp_path / "again", with_effects=True)
    for path in (tmp_path / "out").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes()


def test_inseparable_switches_are_told_in_every_format(small: Callable[..., Path], tmp_path: Path) -> None:
    page = write_effects(runs_of(small(TOGETHER)), tmp_path / "out")
    sentence = "model.fuse and loss.dice were always changed together in these 4 runs; their joint effect is"
    for file in (page, *((tmp_path / "out" / "tables").glob("effects.[mt]*"))):
        assert sentence in file.read_text(encoding="utf-8")
    (row,) = rows_of(tmp_path / "out" / "tables" / "effects.csv")
    assert (row["switch"], row["change"]) == ("model.fuse + loss.dice", "concat → gated; 0.0 → 1.0")
    assert (tmp_path / "out" / "figures" / "effects.png").stat().st_size > 1000


def test_runs_of_two_protocols_have_two_tables(two_protocols: Path, tmp_path: Path) -> None:
    page = write_effects(two_protocols, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("effects", "effects-2") for kind in ("png", "pdf")
    }
    first, second = (
        (tmp_path / "out" / "tables" / f"{name}.md").read_text() for name in ("effects", "effects-2")
    )
    assert "6 runs of 3 settings" in first
    assert "256x256" in first
    assert "3 runs of 3 settings" in second
    assert "1024x1024" in second
    assert "there are 2 tables of effects" in first
    assert "No run is left to estimate the spread from" in second
    assert page.read_text(encoding="utf-8").count('<section id="effects') == 2
    assert write_effects(two_protocols, tmp_path / "two").read_bytes() == page.read_bytes()


def test_tables_and_plot_show_the_same_numbers(small: Callable[..., Path]) -> None:
    runs = [RunFolder.open(path) for path in find_runs(runs_of(small(DEMO[:3], seeds=3)))]
    (found,) = effects(runs, "f1")
    table = effects_table(found)
    assert [row.cells["effect"].value for row in table.rows] == [effect.value for effect in found.effects]
    assert "2 effects together" in to_markdown(table)
    assert r"concat $\to$ gated" in to_latex(table)
    figure = figures.effects_plot(found)
    assert figure is not None
    axes, words = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "model.fuse: concat → gated", "loss.dice: 0.0 → 1.0"
    ]  # fmt: skip
    verdicts = [effect.verdict for effect in found.effects]
    texts = [text.get_text() for text in words.texts]
    assert [text for text in texts if text in ("better", "worse", "not distinguishable")] == verdicts
    assert "verdict of 2 together (Holm)" in texts
    for write in WRITERS.values():
        assert write(table) == write(effects_table(effects(runs, "f1")[0]))


def invoke(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(report_verb)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_the_command_takes_all_runs_of_a_task(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small(TOGETHER)
    root, out = runs_of(file), tmp_path / "out"
    assert Path(invoke("--effects", "--runs", root, "--out", out)) == out / "report.html"
    with pytest.raises(InputError, match="no finished run"):
        invoke("--effects", "--runs", root, "--task", "seg", "--out", out)
    with pytest.raises(InputError, match="under protocol 'tiles-9'"):
        invoke("--effects", "--runs", root, "--protocol", "tiles-9", "--out", out)
    with pytest.raises(InputError, match="Nothing to report"):
        invoke("--out", out)
    with pytest.raises(InputError, match="stand for all runs"):
        invoke(file, "--effects", "--runs", root, "--out", out)
    with pytest.raises(InputError, match="Quoted numbers"):
        invoke("--effects", "--runs", root, "--quoted", file, "--out", out)
    run = find_runs(root)[0] / "run.json"
    edit_json(run, task="seg")
    (root / "ledger.sqlite").unlink()
    with pytest.raises(InputError, match="runs of change, seg"):
        invoke("--effects", "--runs", root, "--out", out)
    invoke("--effects", "--runs", root, "--task", "change", "--out", out)
