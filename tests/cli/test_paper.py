"""What a paper needs beside scores: the table of the data, the formulas, and where official weights go."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import anban
from anban.cli.formulas import sections_of, to_latex, to_markdown
from anban.cli.main import app
from anban.errors import InputError
from anban.formulas import formulas, number
from anban.losses import __all__ as losses
from anban.metrics import SCORES, binary_scores
from anban.study.study import load_plan
from anban.tasks.change.loss import LOSSES

PAGE = Path(__file__).parents[2] / "docs" / "formulas.md"


def printed(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


# ---- the table of the data -------------------------------------------------------------------------------------------


def test_the_table_of_data_sets_is_counted_from_their_files(demo_data: Path, tmp_path: Path) -> None:
    text = printed("data", demo_data, f"Twice={demo_data}", "--out", tmp_path)
    assert (tmp_path / "data.md").read_text(encoding="utf-8") in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "data.csv").read_text(encoding="utf-8"))))
    assert [(row["data"], row["split"], row["pairs"]) for row in rows] == [
        (name, split, count)
        for name in (demo_data.name, "Twice")
        for split, count in (("train", "4"), ("val", "2"), ("test", "2"))
    ]
    assert {row["size"] for row in rows} == {"64x64"}
    assert {row["labels"] for row in rows} == {"0/255"}
    assert all(0 < float(row["foreground"]) < 1 for row in rows)
    shown = f"{100 * float(rows[0]['foreground']):.2f}"
    assert f"& train & 4 & 64x64 & 0/255 & {shown} &" in (tmp_path / "data.tex").read_text(encoding="utf-8")


def test_a_folder_without_data_and_a_name_used_twice_are_refused(demo_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no layout that a task knows[\s\S]*--task with one of .*change"):
        printed("data", tmp_path, "--out", tmp_path)
    with pytest.raises(InputError, match="no known layout"):
        printed("data", tmp_path, "--task", "change", "--out", tmp_path)
    for name in ("A", "B", "label"):
        (tmp_path / "train" / name).mkdir(parents=True)
    with pytest.raises(InputError, match="pairs to describe"):
        printed("data", tmp_path, "--out", tmp_path)
    with pytest.raises(InputError, match="Two data sets are called"):
        printed("data", demo_data, demo_data, "--out", tmp_path)


# ---- formulas --------------------------------------------------------------------------------------------------------


def test_every_loss_and_every_score_states_its_formula() -> None:
    for name in losses:
        (formula,) = formulas(getattr(anban.losses, name).__doc__)
        assert formula.tex.count("{") == formula.tex.count("}")
    assert {address.rpartition(":")[2] for address in LOSSES.values()} == set(losses)
    assert [formula.name for formula in formulas(binary_scores.__doc__)] == list(SCORES)


def test_a_stated_formula_is_read_with_its_symbols() -> None:
    (formula,) = formulas(
        r"""Something.

        Formula: $\sum_i w$, of the $y_i = 1$
        alone; $w$ = weight, $v$ = other (None: $v = 2$).

        Args:
            weight: a number.
        """
    )
    assert (formula.tex, formula.remark) == (r"\sum_i w", ", of the $y_i = 1$ alone")
    assert formula.legend == "$w$ = weight, $v$ = other (None: $v = 2$)"
    values = {"weight": 1e-5, "other": None, "kind": "area", "flag": False}
    assert formula.values(values) == "$w = 10^{-5}$, $v = 2$, kind = area, flag = no"
    assert (number(0.5), number(2.5e-7), number([1, 0.8])) == ("0.5", r"2.5 \cdot 10^{-7}", "(1, 0.8)")


def test_the_page_of_formulas_is_what_the_command_prints() -> None:
    assert to_markdown(sections_of("change")) in PAGE.read_text(encoding="utf-8")


def test_a_study_has_the_losses_that_its_arms_use_with_their_parameters(tmp_path: Path) -> None:
    methods = {arm.title: arm.recipe.config for arm in load_plan("change/demo", []).arms}
    of_methods, used, _ = sections_of("change", methods)
    assert [term for term, _ in used.items] == ["bce", "dice"]
    assert [titles for titles, _ in of_methods.items] == [
        "fc-siam-diff; FC-Siam-diff, no photometric augmentation; TinyCD",
        "FC-Siam-diff, BCE alone",
    ]
    assert "dice: $s = 1$, per_image = yes, empty = area" in of_methods.items[0][1]
    printed("formulas", "change/levir-mambabcd", "loss.bce.pos_weight=3", "--out", tmp_path)
    tex = (tmp_path / "formulas.tex").read_text(encoding="utf-8")
    assert (
        r"$\mathcal{L} = \mathcal{L}_{\text{bce}} + 0.75 \mathcal{L}_{\text{lovasz-sigmoid}}$; bce: $w = 3$"
        in tex
    )
    assert r"per\_image = no" in tex
    assert to_latex([]).startswith("% needs")


# ---- official weights ------------------------------------------------------------------------------------------------


def test_keys_prints_the_map_and_loads(tmp_path: Path) -> None:
    model = anban.create_model("change/snunet", width=8, head="sides")
    state = {name.replace("nodes.0_0.", "conv0_0."): tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    options = ("change/snunet", tmp_path / "weights.pth", "model.width=8", "model.head=sides")
    text = printed("keys", *options)
    assert re.search(r"^conv0_0\.conv1\.weight +renamed +nodes\.0_0\.conv1\.weight$", text, re.MULTILINE)
    assert f"loaded: all {len(state)} tensors" in text
    lines = json.loads(printed("keys", *options, "--json"))
    assert {line["how"] for line in lines} == {"same", "renamed"}
    assert len(lines) == len(state)
    with pytest.raises(InputError, match="do not fit"):
        printed("keys", "change/snunet", tmp_path / "weights.pth", "model.width=8")
