"""`anban run`: train, evaluate and record one recipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from anban.cli.recipes import Overrides

Out = Annotated[Path, typer.Option(help="folder of runs")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; a GPU if there is one", metavar="DEVICE")]


def run(
    recipe: Annotated[str | None, typer.Argument(metavar="ID", help="a recipe's id, or a YAML file")] = None,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    seed: Annotated[int | None, typer.Option(help="seed of every draw; the recipe's own by default")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="go on with a run: its folder or id; without a value the latest unfinished one",
            metavar="[RUN]",
        ),
    ] = None,
    device: Device = None,
    remark: Annotated[str | None, typer.Option(help="a word on this run, kept in its record")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="only write the run down; --resume RUN begins it")
    ] = False,
) -> None:
    """Train and evaluate a recipe; write a run folder and its row in the ledger."""
    from anban.engine import parallel
    from anban.engine.run import execute, open_run
    from anban.engine.run import plan as write_down
    from anban.errors import InputError
    from anban.recipe import load_recipe

    log_to_stderr()
    check_device(device)
    changes = list(overrides or [])
    if recipe is not None and "=" in recipe and not Path(recipe).exists():  # anban run --resume RUN key=value
        changes, recipe = [recipe, *changes], None
    if plan and resume is not None:
        raise InputError("There is nothing to plan in a run that exists.", where="--plan, --resume",
                         do="leave out either")  # fmt: skip
    if resume is None:
        if recipe is None:
            raise InputError("No recipe is given.", where="anban run", do="anban recipes lists them")
        loaded = load_recipe(recipe, changes, seed=seed)
        if plan:
            folder = write_down(loaded, out, remark=remark)
        else:
            folder = execute(loaded, out, device=device, remark=remark)
    else:
        earlier, loaded = open_run(_to_resume(recipe, changes, out, seed, resume), changes)
        for name, asked, has in (("recipe", recipe, loaded.id), ("seed", seed, loaded.config["seed"])):
            if asked is not None and asked != has and not (name == "recipe" and Path(str(asked)).is_file()):
                raise InputError(f"The {name} of that run is {has}, not {asked}.", where=earlier.path,
                                 do="leave it out, or start a new run")  # fmt: skip
        folder = execute(loaded, earlier.out or out, device=device, resume=earlier)
    parallel.stop()
    if is_leader():
        print(folder.path)


def _to_resume(recipe: str | None, changes: list[str], out: Path, seed: int | None, resume: str) -> Path:
    from anban.engine.run import latest_unfinished
    from anban.errors import InputError
    from anban.recipe import load_recipe
    from anban.record import Ledger

    if resume != "latest":
        return Path(resume) if Path(resume).is_dir() else Ledger(out).find(resume)
    if recipe is None:
        raise InputError("No recipe is given to look for.", where="--resume", do="anban run ID --resume")
    wanted = load_recipe(recipe, changes, seed=seed)
    path = latest_unfinished(wanted, out)
    if path is None:
        raise InputError(f"There is no unfinished run of {wanted.id} (hash {wanted.hash}).", where=out,
                         do="leave --resume out, or name the run folder: --resume RUN")  # fmt: skip
    return path


def log_to_stderr() -> None:
    """The program's log as short lines on stderr; standard output is for results."""
    from anban.engine.progress import Console

    Console.to(sys.stderr, level="INFO" if is_leader() else "ERROR")


def is_leader() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def check_device(device: str | None, *, here: bool = True) -> None:
    """Refuse a device that is none or, if it is to be used on this machine, that this machine has not."""
    from anban.errors import InputError

    if device not in (None, "cpu", "cuda"):
        raise InputError(f"Unknown device '{device}'.", where="--device", expected="cpu or cuda")
    if device == "cuda" and here:
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "No CUDA device can be used here.", where="--device", do="anban env says why; or --device cpu"
            )
