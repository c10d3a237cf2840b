"""What an audit writes for programs: findings.jsonl, findings.csv, summary.json; and what is fit to keep."""

from __future__ import annotations

import contextlib
import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from anban.audit.finding import PROBLEMS, Finding
from anban.audit.index import Index, Known
from anban.recipe.schema import unknown
from anban.record.files import plain, to_json, write_atomically

_COLUMNS = ("path", "problem", "number", "unfit", "score", "what", "format", "width", "height", "bytes")


@dataclass(frozen=True)
class Limits:
    """What makes a file unfit; see limits.yaml."""

    unfit: list[str] | None

    def __post_init__(self) -> None:
        for name in self.unfit or ():
            if name not in PROBLEMS:
                raise unknown("problem", name, PROBLEMS, "clean.unfit")

    def condemns(self, problem: str) -> bool:
        return PROBLEMS[problem].unfit if self.unfit is None else problem in self.unfit


def is_fit(known: Known, limits: Limits) -> bool:
    """Whether a file belongs to the clean subset: a picture that could be decoded, with nothing against it."""
    return known.size is not None and not any(limits.condemns(each.problem) for each in known.findings)


def everything(index: Index, limits: Limits) -> Iterator[Known]:
    """All files by path, then those folders by path that have a finding."""
    below: dict[bytes, int] = {}  # folder -> fit files in it or below
    for known in index.files():
        if is_fit(known, limits):
            for folder in _above(known.path):
                below[folder] = below.get(folder, 0) + 1
        yield known
    barren: set[bytes] = set()
    for path, entries in index.folders():
        findings = []
        if entries == 0:
            findings.append(Finding("empty_folder", "there is nothing in it"))
        elif entries < 0:
            findings.append(Finding("check_failed", "the folder cannot be listed"))
        elif not below.get(path):
            barren.add(path)
            if not path or os.path.dirname(path) not in barren:  # its parent's finding speaks for it
                what = f"{entries} things lie in it; here and below no file is fit"
                findings.append(Finding("nothing_usable", what))
        if findings:
            yield Known(path + b"/" if path else b"./", "folder", "folder", None, 0, findings, entries)


def _above(path: bytes) -> Iterator[bytes]:
    """The folders that a path lies in, up to the root."""
    while path:
        path = os.path.dirname(path)
        yield path


def write(index: Index, out: Path, limits: Limits) -> dict[str, Any]:
    """Write findings.jsonl (one finding a line, with its evidence) and findings.csv; count what there is.

    Returns:
        `files`, `bytes`, `fit`, `formats` (name -> files), `problems` (name -> files or folders that have it).
    """
    formats: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    size = fit = 0
    with _replaced(out / "findings.jsonl") as lines, _replaced(out / "findings.csv") as table:
        rows = csv.writer(table)
        rows.writerow(_COLUMNS)
        for known in everything(index, limits):
            if known.entries is None:
                formats[known.format] += 1
                size += known.bytes
                fit += is_fit(known, limits)
            problems.update({finding.problem for finding in known.findings})
            for finding in known.findings:
                line = plain(_line(known, finding, limits))
                lines.write(to_json(line) + "\n")
                rows.writerow(_row(known, line))
    return {
        "files": formats.total(),
        "bytes": size,
        "fit": fit,
        "formats": dict(sorted(formats.items())),
        "problems": {name: problems[name] for name in PROBLEMS if problems[name]},
    }


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    write_atomically(out / "summary.json", to_json(summary, indent=1) + "\n")


def _line(known: Known, finding: Finding, limits: Limits) -> dict[str, Any]:
    problem = PROBLEMS[finding.problem]
    return {
        "path": known.name,
        "problem": finding.problem,
        "number": problem.number,
        "unfit": limits.condemns(finding.problem),
        "format": known.format,
        "size": known.size,
        **finding.told(),
    }


def _row(known: Known, line: dict[str, Any]) -> list[Any]:
    width, height = known.size or ("", "")
    told = ["" if line[key] is None else line[key] for key in _COLUMNS[:6]]
    return [*told, known.format, width, height, known.bytes]


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` when it is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        yield file
    os.replace(temporary, path)
