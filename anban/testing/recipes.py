"""What the tests of all tasks' recipes share: recipes made from a notebook, held against the catalogue of the notebooks.

The catalogue lies outside the repository: ANBAN_CATALOGUE is its folder. Ids are given without their task's prefix.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from anban.recipe import Recipe, flatten, load_recipe
from anban.recipe.recipe import recipe_files
from anban.recipe.yamlfile import read

Config = dict[str, Any]

#: What a recipe keeps of its entry as it stands there.
WORDS = ("note", "original", "recorded", "finding")

#: Loading a recipe takes milliseconds, and the tests ask for hundreds of them again and again.
load = cache(load_recipe)


def key(path: str) -> Callable[[Config], Any]:
    """What a configuration says under a dotted key."""
    return lambda config: dict(flatten(config))[path]


def noted(prefix: str) -> dict[str, Recipe]:
    """The recipes of a task that name lines of a notebook."""
    named = {n for n, file in recipe_files().items() if n.startswith(f"{prefix}/") and "note" in read(file)}
    return {name.removeprefix(f"{prefix}/"): load(name) for name in sorted(named)}


def catalogue(prefix: str, file: str) -> dict[str, Config]:
    """The entries of one file of the catalogue; the test is skipped where there is no catalogue."""
    folder = os.environ.get("ANBAN_CATALOGUE")
    if not folder:
        import pytest  # only tests come here

        pytest.skip(
            "ANBAN_CATALOGUE is not set: recipes are not compared with the catalogue of the notebooks"
        )
    entries = yaml.safe_load((Path(folder) / file).read_text(encoding="utf-8"))
    return {entry["id"].removeprefix(f"{prefix}/"): entry for entry in entries}


def say_the_same(
    recipes: Mapping[str, Recipe], entries: Mapping[str, Config], base: str | None = None
) -> None:
    """Assert that there is a recipe for each entry, in its words, and that an ambiguous one says what was decided.

    Args:
        base: what the recipes of entries without a base stand on.
    """
    assert set(recipes) == set(entries)
    for name, entry in entries.items():
        recipe = recipes[name]
        for word in WORDS:
            assert recipe.description.get(word) == entry.get(word), f"{name}, {word}"
        assert recipe.base == (entry["base"] or base), name
        if "ambiguity" in entry:
            assert recipe.description.get("decision"), name
