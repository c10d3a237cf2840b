"""`anban draw`: a network as a figure for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from anban.cli.recipes import Overrides


def draw(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="a recipe (task/name), a network (task/model), a run folder or a checkpoint"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder for the drawing; it is made if it is not there")],
    overrides: Overrides = None,
    size: Annotated[int, typer.Option(help="height and width of the inputs in pixels", min=1)] = 256,
    figures: Annotated[
        bool, typer.Option("--figures", help="also what the network sees, with the weights it has")
    ] = False,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="a picture for --figures, once per input; generated ones by default"),
    ] = None,
) -> None:
    """Draw a network from its modules (SVG, PDF, PNG), with a table of its levels (Markdown, LaTeX, CSV)."""
    from anban.cli.networks import build
    from anban.errors import InputError

    if image and not figures:
        raise InputError(
            "A picture is given, and nothing that shows it.", where="--image", do="add --figures"
        )
    model = build(name, overrides or []).model
    wanted = ["drawing", *(["figures"] if figures else [])]
    modules = {what: _beside(type(model).__module__.rpartition(".")[0], what) for what in wanted}
    for what, module in modules.items():
        if module is None:
            raise InputError(f"There is no drawing of this network, {type(model).__name__}.", where=name,
                             expected=f"a module `{what}` beside the network's own, as {_drawn(what)} has it")  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    files = modules["drawing"].draw(model, out, size)
    if figures:
        files += modules["figures"].draw(model, out, image or [])
    for file in files:
        print(file)


def _beside(package: str, what: str) -> Any:
    """The module `what` of a package; None if it has none."""
    import importlib

    try:
        return importlib.import_module(f"{package}.{what}")
    except ModuleNotFoundError as error:
        if error.name != f"{package}.{what}":
            raise
        return None


def _drawn(what: str) -> str:
    """The networks of the table that have a module `what`."""
    from anban.tasks import model_table

    return ", ".join(
        name
        for name, address in model_table().items()
        if _beside(address.partition(":")[0], what) is not None
    )
