"""`anban eval`: the same weights under one or more protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anban.cli.recipes import AsJson
from anban.cli.run import Device
from anban.cli.show import as_json, as_score, as_table


def evaluate(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="a run folder, or a .pt file of one")
    ],
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="a protocol of the task, such as whole or sliding-256-128+flip; repeatable or comma-separated"
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="split to evaluate; the recipe's first by default")
    ] = None,
    data: Annotated[str | None, typer.Option(help="another data folder than the one trained on")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON file for what is found in each sample; of boxes a list as COCO's tools read it"
        ),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="folder for pictures of all samples, as reports show them of a few")
    ] = None,
    device: Device = None,
    json: AsJson = False,
) -> None:
    """Evaluate a trained network; every row says how it was measured. Rows on the run's own data join its record."""
    from json import dumps as quoted

    from anban.cli.run import check_device, log_to_stderr
    from anban.engine.run import task_class
    from anban.engine.trained import evaluate_trained, load_trained
    from anban.report.records import protocol_text

    log_to_stderr()
    check_device(device)
    overrides = [f"data.root={quoted(data)}"] if data else []
    overrides += [f"eval.splits=[{quoted(split)}]"] if split else []
    trained = load_trained(source, overrides, device)
    settings = trained.recipe.config["eval"]
    names = [name for given in (protocol or []) for name in given.split(",")] or settings["protocols"]
    rows = evaluate_trained(trained, names, split or settings["splits"][0], results=out, pictures=pictures)
    if json:
        as_json(rows)
        return
    table = [
        (
            row["protocol"]["name"],
            row["protocol"]["split"],
            row["images"],
            *(as_score(*score) for score in row["scores"].items()),
        )
        for row in rows
    ]
    as_table(table, ("protocol", "split", "images", *rows[0]["scores"]))
    for row in rows:
        print(f"{row['protocol']['name']}: {protocol_text(row['protocol'])}")
    shares = "; shares x100" if task_class(trained.recipe.task).scale == 100 else ""
    print(f"{trained.recipe.id}, {trained.which}.pt, data {rows[0]['data']}{shares}")
