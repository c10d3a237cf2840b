"""`anban attention`: what a trained network attends to in a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anban.cli.recipes import Overrides


def attention(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="a run folder, a checkpoint, or a recipe: it has its first weights"
        ),
    ],
    picture: Annotated[Path, typer.Argument(help="the picture that the network sees")],
    out: Annotated[Path, typer.Option(help="folder for the figures; it is made if it is not there")],
    overrides: Overrides = None,
    stage: Annotated[int, typer.Option(help="stage of the network, from 0", min=0)] = 0,
    block: Annotated[int, typer.Option(help="block of the stage, from 0", min=0)] = 0,
    head: Annotated[str, typer.Option(help="a head's number from 0, all, or mean")] = "all",
    query: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y", help="pixel of the picture that asks, any number of times; its centre by default"
        ),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="how the picture is resized; the recipe's first protocol by default")
    ] = None,
) -> None:
    """Draw the attention of a block over a picture: that of chosen pixels, head by head, and what all attend to."""
    import importlib.util

    from anban.cli.networks import build
    from anban.errors import InputError
    from anban.recipe import task_package
    from anban.tasks import task_names

    heads = int(head) if head.isdecimal() else head
    if not isinstance(heads, int) and heads not in ("all", "mean"):
        raise InputError(f"There is no head '{head}'.", where="--head", expected="a number, all or mean")
    built = build(name, overrides or [])
    package = "" if built.task is None else type(built.task).__module__.rpartition(".")[0]
    if not package or importlib.util.find_spec(f"{package}.attention") is None:
        able = [task for task in task_names() if importlib.util.find_spec(f"{task_package(task)}.attention")]
        raise InputError("There is no drawing of this network's attention.", where=name,
                         expected=f"a run or a recipe of {', '.join(able)}")  # fmt: skip
    drawing = importlib.import_module(f"{package}.attention")
    files = drawing.draw(
        built.task,
        built.model.eval(),
        picture,
        out,
        stage=stage,
        block=block,
        head=heads,
        queries=[_point(each) for each in query or []],
        protocol=protocol,
    )
    for file in files:
        print(file)


def _point(text: str) -> tuple[float, float]:
    from anban.errors import InputError

    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise InputError(f"'{text}' is no point.", where="--query", expected="X,Y in pixels, such as 120,80") from None  # fmt: skip
    return x, y
