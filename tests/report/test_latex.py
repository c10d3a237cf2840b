"""The LaTeX tables and formulas compile (`make test-latex`; needs pdflatex or tectonic)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_classes import ARMS, write_class_study
from fake_study import DEMO

from anban.cli.formulas import sections_of
from anban.cli.formulas import to_latex as formulas_to_latex
from anban.report.classwise import class_table
from anban.report.records import open_study
from anban.report.tables import (
    ablation_table,
    comparison_table,
    effects_table,
    efficiency_table,
    expectations_table,
    to_latex,
)
from anban.study.effects import effects
from anban.study.quoted import Quoted, Source
from anban.study.study import load_plan

pytestmark = pytest.mark.latex

DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{amsmath, booktabs, amssymb, graphicx}
\begin{document}
%s
\end{document}
"""


def compile_in(folder: Path, content: str) -> str:
    """Makes page.pdf of the content and returns what LaTeX had to say."""
    tool = shutil.which("pdflatex") or shutil.which("tectonic")
    assert tool, "neither pdflatex nor tectonic is installed"
    (folder / "page.tex").write_text(DOCUMENT % content, encoding="utf-8")
    options = [] if "tectonic" in tool else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run(
        [tool, *options, "page.tex"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (folder / "page.pdf").stat().st_size > 1000
    return done.stdout


def test_formulas_compile(tmp_path: Path) -> None:
    methods = {arm.title: arm.recipe.config for arm in load_plan("change/comparison", []).arms}
    compile_in(tmp_path, formulas_to_latex([*sections_of("change", methods), *sections_of("change")]))


def test_tables_compile(small: Callable[..., Path], tmp_path: Path) -> None:
    arms = (replace(DEMO[0], title=r"100% \evil{name}_1 & $co ~ #2 ^ <x> [y]"), *DEMO[1:])
    study = open_study(small(arms))
    quoted = Quoted("BIT_1", "LEVIR-CD", {"f1": 0.9}, Source("A & B 2021", 2, arxiv="2103.00208"), "100% _ ^")
    of_effects = effects([run.record for _, run in study.finished if run.record], "f1")
    made = [comparison_table(study, [quoted]), ablation_table(study), efficiency_table(study)]
    tables = [table for table in (*made, *map(effects_table, of_effects)) if table]
    assert len(tables) == 4
    compile_in(tmp_path, "\n".join(map(to_latex, tables)))


@pytest.mark.parametrize("classes", [5, 12, 19])
def test_tables_of_classes_fit_the_line(tmp_path: Path, classes: int) -> None:
    study = open_study(write_class_study(tmp_path / "runs", ARMS, classes=classes, images=3, pictured=0))
    tables = [table for table in (class_table(study), expectations_table(study)) if table]
    assert len(tables) == 2
    told = compile_in(tmp_path, "\n".join(map(to_latex, tables)))
    assert "Overfull" not in told
