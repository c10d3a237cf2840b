"""docs/coverage.csv: what it names exists. A row says how to see a requirement met, and which test guards it; or why not.

`how` is commands joined by ` && `, or `page.md, section`; either may end in a remark in parentheses.
The catalogue of requirements lies outside the repository: ANBAN_CATALOGUE is its folder.
"""

from __future__ import annotations

import ast
import csv
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from anban.cli.main import app
from anban.recipe import load_recipe
from anban.recipe.recipe import recipe_files
from anban.study.study import load_plan, study_files
from anban.tasks import model_table

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "coverage.csv").read_text(encoding="utf-8")
HEADER = ["id", "how", "test", "reason"]
ROWS = list(csv.DictReader(io.StringIO(TEXT), strict=True))
MET = [row for row in ROWS if not row["reason"]]
TASKS = {name.partition("/")[0] for name in recipe_files()}


def shown(row: dict[str, str]) -> str:
    return row["id"].removeprefix("req/")


def commands(how: str) -> Iterator[list[str]]:
    """The words of each command; nothing for a page."""
    for part in re.sub(r" \([^()]*\)$", "", how).split(" && "):
        words = shlex.split(part)
        if words[0] == "anban":
            yield words[1:]


def verbs(group: typer.Typer) -> set[str]:
    named = {command.name for command in group.registered_commands}
    return {name for name in named | {sub.name for sub in group.registered_groups} if isinstance(name, str)}


def functions(file: Path) -> set[str]:
    """`name` of each function of a file, `Class::name` of each method."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return found


def test_the_file_is_sorted_and_quoted_by_the_book() -> None:
    written = io.StringIO()
    writer = csv.DictWriter(written, HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(ROWS, key=lambda row: row["id"]))
    assert written.getvalue() == TEXT


def test_every_id_is_a_requirement_and_stands_once() -> None:
    ids = [row["id"] for row in ROWS]
    assert ids
    assert [name for name in ids if not re.fullmatch(r"req/[a-z0-9]+(-[a-z0-9]+)*", name)] == []
    assert len(set(ids)) == len(ids)


def test_a_row_is_met_and_guarded_or_says_why_not() -> None:
    for row in ROWS:
        filled = [bool(row[key].strip()) for key in HEADER[1:]]
        assert filled in ([True, True, False], [False, False, True]), row["id"]


@pytest.mark.parametrize("row", MET, ids=shown)
def test_the_guarding_test_exists(row: dict[str, str]) -> None:
    path, _, name = row["test"].partition("::")
    assert (ROOT / path).is_file(), path
    assert name.rpartition("::")[2].startswith("test_"), name
    assert name in functions(ROOT / path), row["test"]


@pytest.mark.parametrize("row", MET, ids=shown)
def test_how_to_see_it_exists(row: dict[str, str]) -> None:
    found = list(commands(row["how"]))
    if not found:
        page = re.fullmatch(r"(\S+\.md), (.+?)(?: \([^()]*\))?", row["how"])
        assert page, f"neither a command nor a page with its section: {row['how']}"
        assert page[2] in (ROOT / page[1]).read_text(encoding="utf-8"), row["how"]
    for verb, *words in found:
        assert verb in verbs(app)
        for group in (sub.typer_instance for sub in app.registered_groups if sub.name == verb):
            assert words[0] in verbs(group), words[0]
        names = [word for word in words if word.partition("/")[0] in TASKS and "=" not in word]
        known = recipe_files().keys() | (study_files().keys() if verb == "study" else set())
        if verb == "profile":
            known |= model_table().keys()
        assert set(names) <= known
        changes = [word for word in words if "=" in word and not word.startswith("-")]
        if verb in ("run", "show") and names:
            load_recipe(names[0], changes)
        elif verb == "study" and names:
            load_plan(names[0], changes)


@pytest.mark.skipif("ANBAN_CATALOGUE" not in os.environ, reason="ANBAN_CATALOGUE is not set")
def test_the_catalogue_and_the_file_have_the_same_ids() -> None:
    file = Path(os.environ["ANBAN_CATALOGUE"]) / "requirements.yaml"
    known = {entry["id"] for entry in yaml.safe_load(file.read_text(encoding="utf-8"))}
    assert [row["id"] for row in ROWS if row["id"] not in known] == []
    assert sorted(known - {row["id"] for row in ROWS}) == [], "requirements without a row"
