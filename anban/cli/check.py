"""`anban check`: does every recipe build, train a step and evaluate?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from anban.cli.recipes import AsJson
from anban.cli.show import as_json


def check(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="every recipe there is")] = False,
    json: AsJson = False,
) -> None:
    """Build recipes at a debug size on invented data; take a real training step and a real evaluation step."""
    import tempfile
    from pathlib import Path

    from anban.engine.debug import check_recipe
    from anban.errors import InputError
    from anban.recipe.recipe import recipe_files

    names = list(recipe_files()) if every else list(ids or [])
    if not names:
        raise InputError("No recipe is given.", where="anban check", expected="ids, or --all")
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
