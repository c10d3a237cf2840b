"""The audit of images: precision and recall per problem on the labelled sample tree (ANBAN_DATA/audit/labels.csv).

Every check that can be asked here is asked. The page lists every file that was missed, or told without being labelled, with
what was said of it, so that each can be judged by looking at it.
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anban.audit.finding import PROBLEMS
from anban.audit.run import Audit, audit
from benchmarks.timing import Findings, Unavailable, table

#: Label -> what of ours says the same, where it is not one of the same name. To the labels a picture that cannot be decoded
#: is no picture.
SAME: Mapping[str, tuple[str, ...]] = {"non_image_file": ("non_image_file", "corrupt")}

Told = dict[str, dict[str, str]]  # path -> problem -> what was seen


def run(rounds: int) -> Findings:
    """A page of its own; nothing is timed here."""
    data = Path(os.environ.get("ANBAN_DATA", "")) / "audit"
    if not (data / "labels.csv").is_file():
        raise Unavailable("ANBAN_DATA/audit/labels.csv is not there")
    with open(data / "labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "samples"
        shutil.copytree(data / "messy", tree / "messy", copy_function=shutil.copyfile)
        for line in (data / "empty_folders.txt").read_text(encoding="utf-8").splitlines():
            (tree / line).mkdir(parents=True, exist_ok=True)
        summary = audit(Audit(tree, Path(folder) / "out", workers=0))
        told = _told(Path(folder) / "out" / "findings.csv")
    found = {problem: _compare(problem, rows, told) for problem in _problems(rows)}
    return Findings([], {"problems": found, "not_run": summary["not_run"]}, _page(found, rows, told, summary))


def _problems(rows: list[dict[str, str]]) -> list[str]:
    named = {name for row in rows for name in row["problems"].split(";")}
    return [name for name in PROBLEMS if name in named]


def _told(file: Path) -> Told:
    told: Told = {}
    with open(file, encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            told.setdefault(line["path"], {})[line["problem"]] = line["what"]
    return told


def _compare(problem: str, rows: list[dict[str, str]], told: Told) -> dict[str, Any]:
    ours = SAME.get(problem, (problem,))
    right = {row["path"] for row in rows if problem in row["problems"].split(";")}
    said = {path for path, problems in told.items() if any(name in problems for name in ours)}
    both = len(right & said)
    return {
        "labelled": len(right),
        "told": len(said),
        "right": both,
        "precision": both / len(said) if said else None,
        "recall": both / len(right),
        "missed": sorted(right - said),
        "extra": sorted(said - right),
    }


def _page(
    found: Mapping[str, dict[str, Any]], rows: list[dict[str, str]], told: Told, summary: Mapping[str, Any]
) -> str:
    detail = {row["path"]: row["detail"] for row in rows}
    keys = ("labelled", "told", "right", "precision", "recall")
    cells = [[problem, *(_cell(one[key]) for key in keys)] for problem, one in found.items()]
    lines = ["# The audit of images: precision and recall", "", *table(("problem", *keys), cells)]
    lines += ["", "Counted together as `non_image_file`: " + ", ".join(SAME["non_image_file"]) + "."]
    lines += [f"Not run: {name} ({why})." for name, why in summary["not_run"].items()]
    for problem, one in found.items():
        missed = [f"- missed: `{path}` (label: {detail[path]})" for path in one["missed"]]
        extra = [
            f"- told: `{path}` (label: {detail.get(path, 'none')}; seen: {told[path].get(problem, '')})"
            for path in one["extra"]
        ]
        if missed or extra:
            lines += ["", f"## {problem}", "", *missed, *extra]
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
