"""`anban study`: arms times seeds, compared, reported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anban.cli.recipes import Overrides
from anban.cli.run import Device, Out


def study(
    name: Annotated[str, typer.Argument(metavar="ID_OR_FILE", help="a study, a study file, or a recipe")],
    overrides: Overrides = None,
    out: Out = Path("runs"),
    seeds: Annotated[int | None, typer.Option(help="number of seeds, from 0", min=1)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="keep finished runs, go on with unfinished ones")
    ] = False,
    device: Device = None,
) -> None:
    """Run every arm of a study with every seed, compare them, and write the report."""
    from loguru import logger

    from anban.cli.run import check_device, is_leader, log_to_stderr
    from anban.engine import parallel
    from anban.engine.run import execute, latest_unfinished, open_run, task_class
    from anban.recipe import Recipe
    from anban.recipe.schema import unknown
    from anban.record import RunFolder
    from anban.report import write_report
    from anban.study.study import load_plan, run_study

    log_to_stderr()
    check_device(device)

    def train(recipe: Recipe) -> RunFolder:
        unfinished = latest_unfinished(recipe, out) if resume else None
        if unfinished is None:
            return execute(recipe, out, device=device)
        earlier, recipe = open_run(unfinished, [])
        return execute(recipe, out, device=device, resume=earlier)

    plan = load_plan(name, list(overrides or []), seeds)
    known = task_class(plan.arms[0].recipe.task).scores
    if plan.compare["metric"] and plan.compare["metric"] not in known:
        raise unknown("score", plan.compare["metric"], known, f"{name}, compare.metric")
    file = run_study(plan, out, train, resume=resume, leader=is_leader())
    parallel.stop()
    if not is_leader():
        return
    page = write_report(file, file.parent / "report")
    logger.info("study finished")
    headline = file.parent / "report" / "tables" / "comparison.md"
    if headline.is_file():
        print(headline.read_text(encoding="utf-8"))
    print(page.absolute())
