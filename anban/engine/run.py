"""From a recipe to a finished run folder: the one path behind `anban run`, `anban study` and `anban check`."""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from anban.data.draws import derive, seed_everything
from anban.engine import checkpoint, parallel
from anban.engine.loop import Interrupted, Loop
from anban.engine.profile import profile
from anban.engine.settings import Machine, Train
from anban.errors import InputError
from anban.recipe import Recipe, differences, from_config
from anban.recipe.schema import pick, plugins
from anban.recipe.yamlfile import read
from anban.record import RunFolder, find_runs
from anban.tasks.contract import OPTIMIZERS, SCHEDULES, Task

#: What may be changed when a run is continued: how long it is, and how it is carried out.
RESUMABLE = ("train.iterations", "train.epochs")


def make_task(recipe: Recipe) -> Task:
    """The task of a recipe, its data and networks not yet touched."""
    package = plugins().get(recipe.task, f"anban.tasks.{recipe.task}")
    task: Task = importlib.import_module(f"{package}.task").TASK(recipe.config)
    return task


def prepare(recipe: Recipe, device: torch.device) -> tuple[Task, Loop]:
    """Task and loop without a run folder: what `anban check` needs for a real step."""
    task = make_task(recipe)
    task.check_data()
    return task, _loop(recipe, task, device, None, lambda: False)


def _loop(recipe: Recipe, task: Task, device: torch.device, run: RunFolder | None, stop: Any) -> Loop:
    config = recipe.config
    seed_everything(derive(config["seed"], "weights"))
    task.build_networks()
    for module in task.modules.values():
        module.to(device)
        if config["machine"]["channels_last"]:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, section in task.optimized.items():
        settings = dict(config[section])
        make = pick(OPTIMIZERS, settings.pop("name"), f"{section}.name")
        task.optimizers[name] = make(task.modules[name], **settings)
    schedule = dict(config["schedule"])
    return Loop(
        task,
        seed=config["seed"],
        train=Train(**config["train"]),
        machine=Machine(**config["machine"]),
        schedule=pick(SCHEDULES, schedule.pop("name"), "schedule.name")(**schedule),
        device=device,
        run=run,
        stop=stop,
    )


def execute(
    recipe: Recipe,
    out: Path,
    *,
    device: str | None = None,
    resume: RunFolder | None = None,
    remark: str | None = None,
) -> RunFolder:
    """Train, evaluate and record one run.

    Args:
        recipe: the experiment, with its seed.
        out: folder of runs; the run goes to `<out>/<recipe id>/<run id>`.
        device: `cpu` or `cuda`; None takes a GPU if there is one.
        remark: a word of the user's on this run, kept in its record.
        resume: the folder of an unfinished run of this recipe to go on with.

    Raises:
        InputError: the data cannot be used; the run's row says why.
        Interrupted: stopped by the user; the run can be resumed.
        Exception: whatever else ended the run, after its row has been written.
    """
    target = parallel.start(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = None
    if parallel.rank() == 0:
        run = resume or RunFolder.create(
            out, recipe.id, seed=recipe.config["seed"], info=_identity(recipe, remark)
        )
    path = Path(parallel.share(str(run.path) if run else ""))
    with contextlib.ExitStack() as stack:
        if run is not None:
            stack.enter_context(run.lock())
        try:
            with stop_signal() as stop:
                if run is not None:
                    if resume is not None:
                        run.resume(hash=recipe.hash)
                    run.update(device=_device_name(target))
                    run.write_recipe(recipe.to_yaml())
                    stack.callback(logger.remove, logger.add(run.path / "log.txt", level="DEBUG"))
                    logger.info(f"run {path}")
                _train_and_evaluate(recipe, target, run, path, stop)
        except BaseException as error:
            if run is not None:
                _ended_early(run, error)
            raise
        if run is not None:
            run.finish("finished")
    return run if run is not None else RunFolder.open(path)


def _train_and_evaluate(
    recipe: Recipe, device: torch.device, run: RunFolder | None, path: Path, stop: Any
) -> None:
    config = recipe.config
    task = make_task(recipe)
    data = task.check_data()
    if run is not None:
        known = (run.info.get("data") or {}).get("fingerprint")
        if known not in (None, data.get("fingerprint")):
            raise InputError("The data has changed since this run was started.", where=data.get("root"),
                             expected=f"fingerprint {known}", do="start a new run")  # fmt: skip
        run.update(data=data)
    loop = _loop(recipe, task, device, run, stop)
    parameters = sum(p.numel() for p in task.modules["model"].parameters())
    if run is not None:
        run.update(model={"name": config.get("model", {}).get("name"), "parameters": parameters})
    last = path / "checkpoints" / "last.pt"
    if last.is_file():
        loop.restore(last)
        logger.info(f"going on from step {loop.done.step}")
    loop.train()
    best = path / "checkpoints" / "best.pt"
    if best.is_file():
        loop.model.load_state_dict(checkpoint.load(best, device)["state_dict"])
    else:
        logger.warning(f"val {task.select} was never defined; the last weights are evaluated")
    evaluation = config["eval"]
    _final_scores(task, loop, evaluation, run, "best" if best.is_file() else "last")
    if run is not None and loop.machine.profile:
        run.update(efficiency=profile(loop.model, task.example(), device=device, runs=10, warmup=2))


def _final_scores(
    task: Task, loop: Loop, settings: dict[str, Any], run: RunFolder | None, which: str
) -> None:
    scores: list[dict[str, Any]] = []
    stamps: dict[str, Any] = {}
    main_split, main_protocol = settings["splits"][0], settings["protocols"][0]
    for split in settings["splits"]:
        for protocol in settings["protocols"]:
            main = (split, protocol) == (main_split, main_protocol)
            result = loop.evaluate(split, protocol, task.shown(split) if main else [])
            if run is None:
                continue
            stamps.setdefault(protocol, task.stamp(protocol, main_split))
            for name, value in result.scores.items():
                line = {
                    "split": split,
                    "protocol": protocol,
                    "checkpoint": which,
                    "name": name,
                    "value": value,
                }
                scores.append(line)
            run.log_samples(result.records)
            for warning in result.warnings:
                logger.warning(f"{split} ({protocol}): {warning}")
                run.update(warnings=[*run.info.get("warnings", []), f"{split} ({protocol}): {warning}"])
            if main:
                task.draw(run.figures, split, result.shown, protocol)
            told = "  ".join(
                f"{n} {'–' if v is None else f'{100 * v:.2f}'}" for n, v in result.scores.items()
            )
            logger.info(f"{split} ({protocol}, {which})  {told}")
    if run is not None:
        run.update(scores=scores, protocols=stamps)


def _identity(recipe: Recipe, remark: str | None) -> dict[str, Any]:
    return {
        "recipe": recipe.id,
        "title": recipe.title,
        "task": recipe.task,
        "hash": recipe.hash,
        "base": recipe.base,
        "difference": recipe.difference,
        "remark": remark,
        "job": os.environ.get("SLURM_JOB_ID"),
        "command": shlex.join(["anban", *sys.argv[1:]]),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _ended_early(run: RunFolder, error: BaseException) -> None:
    if isinstance(error, Interrupted | KeyboardInterrupt):
        run.finish("interrupted", str(error) or "stopped by the user")
    else:
        why = str(error) if isinstance(error, InputError | OSError) else f"{type(error).__name__}: {error}"
        logger.opt(exception=None if isinstance(error, InputError) else error).debug("the run ended early")
        run.finish("failed", why.strip())


@contextlib.contextmanager
def stop_signal() -> Iterator[Any]:
    """A function that says whether Ctrl-C or a termination came; a second Ctrl-C stops at once."""
    asked = threading.Event()

    def ask(number: int, _: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()
        logger.warning("stopping after this step; again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    kept = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


# Going on with a run --------------------------------------------------------------------------------------------


def open_run(path: Path, overrides: list[str]) -> tuple[RunFolder, Recipe]:
    """A run folder and its recipe, ready to go on with `execute(..., resume=...)`.

    Raises:
        InputError: a finished run, or overrides that would make it another experiment.
    """
    run = RunFolder.open(path)
    stored = from_config(read(run.path / "recipe.yaml"), run.path / "recipe.yaml")
    recipe = from_config(read(run.path / "recipe.yaml"), run.path / "recipe.yaml", overrides)
    changed = [k for k in differences(stored.config, recipe.config) if not k.startswith("machine.")]
    if refused := [key for key in changed if key not in RESUMABLE]:
        raise InputError(f"A run cannot change {', '.join(refused)} half way.", where=run.path,
                         expected=f"changes of {', '.join(RESUMABLE)} and machine.* only",
                         do="start a new run with these values")  # fmt: skip
    if run.info["state"] == "finished" and not changed:
        raise InputError(
            "This run is finished.", where=run.path, do="give train.iterations or train.epochs to extend it"
        )
    if changed:
        logger.info(
            f"extending the run: {', '.join(f'{k}={differences(stored.config, recipe.config)[k][1]}' for k in changed)}"
        )
    return run, recipe


def latest_unfinished(recipe: Recipe, out: Path) -> Path:
    """The newest run of this very experiment that has not finished.

    Raises:
        InputError: there is none.
    """
    for path in sorted(find_runs(out), key=lambda p: p.name, reverse=True):
        info = RunFolder.open(path).info
        if (
            info["hash"] == recipe.hash
            and info["seed"] == recipe.config["seed"]
            and info["state"] != "finished"
        ):
            return path
    raise InputError(f"There is no unfinished run of {recipe.id} (hash {recipe.hash}).", where=out,
                     do="leave --resume out, or name the run folder: --resume RUN")  # fmt: skip
