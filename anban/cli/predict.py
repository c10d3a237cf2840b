"""`anban predict`: maps for pictures that have no label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anban.cli.run import Device


def predict(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="a run folder, or a .pt file of one")
    ],
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="what a sample of the task is made of: picture files, or folders that hold them",
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder for the maps")],
    protocol: Annotated[
        str | None, typer.Option(help="as in anban eval; the recipe's own by default")
    ] = None,
    device: Device = None,
) -> None:
    """Predict without labels, and write for every input the maps that its task makes."""
    from anban.cli.run import check_device, log_to_stderr
    from anban.engine.trained import load_trained

    log_to_stderr()
    check_device(device)
    trained = load_trained(source, [], device)
    name = protocol or trained.recipe.config["eval"]["protocols"][0]
    for path in trained.task.predict(trained.model, inputs, out, name, trained.device):
        print(path)
