"""`anban study`: arms times seeds, compared, reported; on this machine, or through the queue of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anban.cli.recipes import Overrides
from anban.cli.run import Device, Out

if TYPE_CHECKING:
    from anban.study.study import Plan

LAUNCHERS = ("local", "slurm")


def study(
    name: Annotated[str, typer.Argument(metavar="ID_OR_FILE", help="a study, a study file, or a recipe")],
    overrides: Overrides = None,
    out: Out = Path("runs"),
    seeds: Annotated[int | None, typer.Option(help="number of seeds, from 0", min=1)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="keep finished runs, go on with unfinished ones")
    ] = False,
    device: Device = None,
    launcher: Annotated[str, typer.Option(help="where the runs run: local or slurm")] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="of each run's job: time, partition, account, mem, cpus, gpus, parallel (runs at a time), grace "
            "(seconds from the signal to the time limit), and options of sbatch such as qos",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--print", help="with slurm: print the script that submits, and submit nothing")
    ] = False,
) -> None:
    """Run every arm of a study with every seed, compare them, and write the report."""
    from anban.cli.run import check_device, log_to_stderr
    from anban.engine.run import task_class
    from anban.errors import InputError
    from anban.recipe.schema import unknown
    from anban.study.study import load_plan

    log_to_stderr()
    if launcher not in LAUNCHERS:
        raise unknown("launcher", launcher, LAUNCHERS, "--launcher")
    if launcher == "local" and (slurm or show):
        raise InputError(
            "These runs go through no queue.", where="--slurm, --print", do="add --launcher slurm"
        )
    check_device(device, here=launcher == "local")
    plan = load_plan(name, list(overrides or []), seeds)
    known = task_class(plan.arms[0].recipe.task).scores
    if plan.compare["metric"] and plan.compare["metric"] not in known:
        raise unknown("score", plan.compare["metric"], known, f"{name}, compare.metric")
    if launcher == "local":
        _run_here(plan, out, resume, device)
    else:
        _hand_over(plan, out, resume, device, list(slurm or []), show)


def _run_here(plan: Plan, out: Path, resume: bool, device: str | None) -> None:
    from loguru import logger

    from anban.cli.run import is_leader
    from anban.engine import parallel
    from anban.engine.run import execute, latest_unfinished, open_run
    from anban.recipe import Recipe
    from anban.record import RunFolder
    from anban.report import write_report
    from anban.study.study import run_study

    def train(recipe: Recipe) -> RunFolder:
        unfinished = latest_unfinished(recipe, out) if resume else None
        if unfinished is None:
            return execute(recipe, out, device=device)
        earlier, recipe = open_run(unfinished, [])
        return execute(recipe, out, device=device, resume=earlier)

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


def _hand_over(plan: Plan, out: Path, resume: bool, device: str | None, words: list[str], show: bool) -> None:
    from anban.engine.run import latest_unfinished
    from anban.engine.run import plan as write_down
    from anban.launch import slurm
    from anban.recipe import Recipe
    from anban.record import RunFolder
    from anban.study.study import run_study

    options, queue = slurm.read_options(words), slurm.in_queue()
    runs: list[RunFolder] = []

    def wait(recipe: Recipe) -> RunFolder:
        unfinished = latest_unfinished(recipe, out) if resume else None
        run = RunFolder.open(unfinished) if unfinished is not None else write_down(recipe, out)
        if not slurm.is_waited_for(run, queue):
            runs.append(run)
        return run

    file = run_study(plan, out, wait, resume=resume)
    if not runs:
        print(f"nothing to submit: all runs of {file} are finished, or on their way")
    elif show:
        print(slurm.script(file, runs, options, device=device))
    else:
        array, report = slurm.submit(file, runs, options, device=device)
        print(
            f"job {array} has {len(runs)} runs, job {report} writes {file.parent / 'report' / 'report.html'}"
        )
