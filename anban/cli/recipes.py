"""`anban recipes`, `anban show`, `anban diff`: what experiments there are, and what exactly each one is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from anban.cli.show import as_json, as_table

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, on top of the recipe", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def recipes(
    task: Annotated[str | None, typer.Option(help="only this task")] = None,
    json: AsJson = False,
) -> None:
    """List the recipes."""
    from anban.recipe import list_recipes

    rows = list(list_recipes(task))
    if json:
        as_json(rows)
        return
    as_table([(r["id"], r["base"] or "", r["title"] or "") for r in rows], ("id", "base", "title"))


def show(
    recipe: Annotated[str, typer.Argument(metavar="ID", help="a recipe's id, or a YAML file")],
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Print the complete recipe, each value with where it comes from."""
    from anban.recipe import flatten, load_recipe

    loaded = load_recipe(recipe, overrides or [])
    values = {key: {"value": value, "source": loaded.sources[key]} for key, value in flatten(loaded.config)}
    if json:
        head = {"id": loaded.id, "base": loaded.base, "title": loaded.title, "hash": loaded.hash}
        as_json({**head, **loaded.description, "difference": loaded.difference, "config": loaded.config,
                 "sources": loaded.sources})  # fmt: skip
        return
    print(
        f"{loaded.id}  {loaded.title}\nhash {loaded.hash}" + (f", base {loaded.base}" if loaded.base else "")
    )
    for key in ("note", "original", "recorded", "finding", "decision", "expected", "command"):
        if loaded.description.get(key):
            _paragraph(key, loaded.description[key])
    print()
    as_table([(key, _yaml(v["value"]), v["source"]) for key, v in values.items()], ("key", "value", "from"))


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="a recipe's id, a YAML file or a run folder")],
    b: Annotated[str, typer.Argument(metavar="B")],
    json: AsJson = False,
) -> None:
    """Print exactly what differs between two recipes or runs."""
    from anban.recipe import differences

    found = differences(_config(a), _config(b))
    if json:
        as_json({key: {"a": old, "b": new} for key, (old, new) in found.items()})
    elif found:
        as_table([(key, _yaml(old), _yaml(new)) for key, (old, new) in found.items()], ("key", a, b))
    else:
        print("no difference")


def _paragraph(key: str, value: Any) -> None:
    """A part of the description: maps as words, the note's own lines line by line, all else folded."""
    import textwrap

    if key == "note" and isinstance(value, dict) and isinstance(value.get("lines"), list):
        word = "line" if len(value["lines"]) == 1 else "lines"
        value = f"{value.get('file')}, {word} {_ranges(value['lines'])}"
    elif isinstance(value, dict):
        value = ", ".join(f"{name} {_yaml(own)}" for name, own in value.items())
    lines = str(value).splitlines() if key == "original" else textwrap.wrap(str(value), 96)
    for number, line in enumerate(lines):
        print(f"{'' if number else key:<10}{line}".rstrip())


def _ranges(numbers: list[int]) -> str:
    """[2, 3, 4, 7] as "2-4, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _config(name: str) -> dict[str, Any]:
    from anban.recipe import from_config, load_recipe
    from anban.recipe.yamlfile import read

    file = Path(name) / "recipe.yaml"
    return from_config(read(file), file).config if file.is_file() else load_recipe(name).config


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
