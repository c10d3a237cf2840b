"""`anban check`: does every recipe build, train a step and evaluate?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from anban.cli.recipes import AsJson
from anban.cli.show import as_json


def check(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="every recipe (of the task)")] = False,
    task: Annotated[str | None, typer.Option(help="every recipe of this task")] = None,
    json: AsJson = False,
) -> None:
    """Build recipes at a debug size on invented data; take a real training step and a real evaluation step."""
    import tempfile
    from pathlib import Path

    import torch

    from anban.engine.debug import check_recipe
    from anban.errors import InputError
    from anban.recipe import list_recipes
    from anban.recipe.schema import unknown

    if bool(ids) == (every or task is not None):
        found = "Ids are given, and --all or --task as well." if ids else "No recipe is given."
        raise InputError(found, where="anban check", expected="ids, or else --all or --task")
    names = ids or [recipe["id"] for recipe in list_recipes(task)]
    if not names:
        raise unknown("task", task, {recipe["task"] for recipe in list_recipes()}, "--task")
    torch.set_num_threads(1)  # debug sizes are too small for more, which would only wait for each other
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            results.append(check_recipe(name, Path(folder)))
            if not json:
                line = results[-1]
                print(
                    f"{line['status']:<7} {name}" + (f"\n  {line['error']}" if line["error"] else ""),
                    flush=True,
                )
    if json:
        as_json(results)
    if any(line["status"] != "ok" for line in results):
        raise typer.Exit(1)
