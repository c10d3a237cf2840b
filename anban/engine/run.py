"""From a recipe to a finished run folder: the one path behind `anban run`, `anban study` and `anban check`."""

from __future__ import annotations

import contextlib
import importlib
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import nn

from anban.data.draws import derive, seed_everything
from anban.engine import checkpoint, memory, parallel
from anban.engine.evaluate import Evaluation, record
from anban.engine.health import Finding, Health, diagnosed
from anban.engine.loop import Loop
from anban.engine.profile import profile
from anban.engine.settings import Machine, Train
from anban.engine.stop import Interrupted, stop_signal
from anban.errors import InputError
from anban.recipe import Recipe, differences, from_config, task_package
from anban.recipe.recipe import task_sections
from anban.recipe.schema import Arguments, pick
from anban.recipe.yamlfile import read
from anban.record import Ledger, RunFolder
from anban.ssm.backends import used
from anban.tasks.contract import OPTIMIZERS, SCHEDULES, Task

#: What may be changed when a run is continued: how long it is, and how it is carried out.
RESUMABLE = ("train.iterations", "train.epochs")


def make_task(recipe: Recipe) -> Task:
    """The task of a recipe, its data and networks not yet touched."""
    task: Task = task_class(recipe.task)(recipe.config)
    return task


def task_class(name: str) -> type[Task]:
    """The class of a task, the TASK of its module."""
    found: type[Task] = importlib.import_module(f"{task_package(name)}.task").TASK
    return found


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
        place(module, device, config["machine"]["channels_last"])
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


def place(module: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """The module on its device. Convolution weights with their channels last make the pictures follow by themselves."""
    module.to(device)
    if channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def plan(recipe: Recipe, out: Path, *, remark: str | None = None) -> RunFolder:
    """Write a run down for later, in the state `planned`; `execute(..., resume=...)` begins it in that folder."""
    run = RunFolder.create(
        out, recipe.id, seed=recipe.config["seed"], info=_identity(recipe, remark), state="planned"
    )
    run.write_recipe(recipe.to_yaml())
    return run


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
        resume: the folder of an unfinished run of this recipe to go on with, or of one that was only planned.

    Raises:
        InputError: the data cannot be used; the run's row says why.
        Interrupted: stopped by the user; the run can be resumed.
        Exception: whatever else ended the run, after its row has been written.
    """
    target = parallel.start(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    again = parallel.any_true(parallel.restarts() > 0)
    run = None
    with contextlib.ExitStack() as stack:
        if parallel.rank() == 0:
            resume = resume or (_begun(recipe, out) if again else None)
            run = resume or RunFolder.create(
                out, recipe.id, seed=recipe.config["seed"], info=_identity(recipe, remark)
            )
            stack.enter_context(run.lock())
            for stale in run.path.glob("failed-rank*.txt"):
                stale.unlink()
        path = Path(parallel.share(str(run.path) if run else ""))
        processes = parallel.processes()
        try:
            with stop_signal() as stop:
                if run is not None:
                    if resume is not None:
                        run.resume(
                            hash=recipe.hash,
                            difference={**run.info["difference"], **recipe.difference},
                            **Health().told(),
                        )
                    run.update(device=_device_name(target))
                    run.write_recipe(recipe.to_yaml())
                    stack.callback(logger.remove, logger.add(run.path / "log.txt", level="DEBUG"))
                    logger.info(f"run {path}")
                _train_and_evaluate(recipe, target, run, path, stop)
        except BaseException as error:
            setattr(error, "run", path)  # noqa: B010 - a study lists the folder of a failed run as well
            interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
            why = str(error) or "stopped by the user" if interrupted else _why(error)
            if parallel.world() > 1 and not interrupted:
                why = parallel.first_failure(error, why, path, processes)
                if run is None and parallel.is_gone(processes[0]):  # which keeps the record
                    RunFolder.open(path).finish("failed", why)
            if run is not None and interrupted:
                run.finish("interrupted", why)
            elif run is not None:
                _failed(run, error, why, recipe.config, memory.peak_mb(target))
            if parallel.left(error):
                raise SystemExit(1) from error  # whoever failed has said why
            raise
        if run is not None:
            run.finish("finished")
    return run if run is not None else RunFolder.open(path)


def _train_and_evaluate(
    recipe: Recipe, device: torch.device, run: RunFolder | None, path: Path, stop: Any
) -> None:
    config = recipe.config
    used.clear()
    task = make_task(recipe)
    data = task.check_data()
    for text in data.get("warnings") or []:
        logger.warning(f"the data: {text}")
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
    state = checkpoint.newest(path / "checkpoints", device)
    if state is not None:
        loop.restore(state)
        if loop.done.step > loop.total:
            raise InputError(f"The run has done {loop.done.step} steps already.", where=path,
                             expected=f"a length of at least that, not {loop.total}")  # fmt: skip
        logger.info(f"going on from step {loop.done.step}")
    loop.train()
    best = path / "checkpoints" / "best.pt"
    if best.is_file():
        loop.model.load_state_dict(checkpoint.load(best, device)["state_dict"])
    else:
        logger.warning(
            f"there was no validation with a defined {task.select}; the last weights are evaluated"
        )
    _final_scores(task, loop, config["eval"], run, "best" if best.is_file() else "last")
    if run is not None and used:
        run.update(scan=dict(used))
    if run is not None and loop.machine.profile:
        try:
            run.update(efficiency=profile(loop.model, task.example(), device=device, runs=10, warmup=2))
        except Exception as error:  # the scores are there; a figure of cost is not worth losing them
            logger.warning(f"the network's cost could not be measured: {error}")


def _final_scores(
    task: Task, loop: Loop, settings: dict[str, Any], run: RunFolder | None, which: str
) -> None:
    results: dict[tuple[str, str], Evaluation] = {}
    for number, split in enumerate(settings["splits"]):
        for protocol in settings["protocols"]:
            stamp = task.stamp(protocol, split)
            main = number == 0 and protocol == settings["protocols"][0]
            result = loop.evaluate(split, stamp["name"], task.shown(split) if main else [])
            results[split, stamp["name"]] = result
            if run is None:
                continue
            record(run, which, stamp, result)
            place = f"{split} ({stamp['name']}, {which})"
            if main:
                task.draw(run.figures, split, result.shown, stamp["name"])
            told = (f"{n} {'–' if v is None else f'{task.scale * v:.2f}'}" for n, v in result.scores.items())
            logger.info(f"{place}  {'  '.join(told)}")
    loop.done.health.evaluated(loop.done.step, task, results, which)
    if run is not None:
        run.update(**loop.done.health.told())


def _identity(recipe: Recipe, remark: str | None) -> dict[str, Any]:
    return {
        "recipe": recipe.id,
        "title": recipe.title,
        "task": recipe.task,
        "select": task_class(recipe.task).select,
        "hash": recipe.hash,
        "base": recipe.base,
        "difference": recipe.difference,
        "remark": remark,
        "launch": parallel.launch(),
        "command": shlex.join(["anban", *sys.argv[1:]]),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _failed(run: RunFolder, error: BaseException, why: str, config: dict[str, Any], peak_mb: float) -> None:
    logger.opt(exception=None if isinstance(error, InputError) else error).debug("the run ended early")
    health = Health([Finding(**finding) for finding in run.info.get("findings") or []])
    step = (run.info.get("progress") or {}).get("step") or 0
    parameters = (run.info.get("model") or {}).get("parameters") or 0
    health.add(diagnosed(error, why, config, peak_mb, parameters), step)
    run.finish("failed", why, **health.told())


def _why(error: BaseException) -> str:
    named = isinstance(error, InputError | OSError)
    return (str(error) if named else f"{type(error).__name__}: {error}").strip()


# Going on with a run --------------------------------------------------------------------------------------------


def _begun(recipe: Recipe, out: Path) -> RunFolder | None:
    """The run that this launch of torchrun has begun, before it started its processes anew; None if not so far."""
    rows = Ledger(out).rows(hash=recipe.hash, seed=recipe.config["seed"])
    folders = (out / str(row["path"]) for row in rows)
    runs = (RunFolder.open(folder) for folder in folders if (folder / "run.json").is_file())
    return next((run for run in runs if run.info.get("launch") == parallel.launch()), None)


def open_run(path: Path, overrides: list[str]) -> tuple[RunFolder, Recipe]:
    """A run folder and its recipe, ready to go on with `execute(..., resume=...)`.

    Raises:
        InputError: a finished run, or overrides that would make it another experiment.
    """
    run = RunFolder.open(path)
    stored = from_config(read(run.path / "recipe.yaml"), run.path / "recipe.yaml")
    recipe = from_config(read(run.path / "recipe.yaml"), run.path / "recipe.yaml", overrides)
    changes = {k: new for k, (_, new) in differences(stored.config, recipe.config).items()}
    changed = {
        k: new for k, new in changes.items() if not k.startswith("machine.") and k not in _means(recipe)
    }
    if refused := [key for key in changed if key not in RESUMABLE]:
        raise InputError(f"A run cannot change {', '.join(refused)} half way.", where=run.path,
                         expected=f"changes of {', '.join(RESUMABLE)}, machine.* and where the data lie only",
                         do="start a new run with these values")  # fmt: skip
    if run.info["state"] == "finished" and not changed:
        raise InputError("This run is finished.", where=run.path,
                         do="give train.iterations or train.epochs to extend it")  # fmt: skip
    if changed:
        logger.info(f"extending the run: {', '.join(f'{key}={value}' for key, value in changed.items())}")
    return run, replace(recipe, difference=changed)


def _means(recipe: Recipe) -> set[str]:
    """Keys that say how or from where, not what: the data may have moved (their fingerprint is checked)."""
    sections = task_sections(recipe.task).items()
    return {f"{n}.{key}" for n, s in sections if isinstance(s, Arguments) for key in (*s.places, *s.means)}


def latest_unfinished(recipe: Recipe, out: Path) -> Path | None:
    """The newest run of this very experiment and seed that has not finished and is not superseded, or None."""
    for row in Ledger(out).rows(hash=recipe.hash, seed=recipe.config["seed"]):
        folder = out / str(row["path"])
        if row["state"] not in ("finished", "superseded") and (folder / "run.json").is_file():
            return folder
    return None
