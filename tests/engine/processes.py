"""Runs of two processes, for test_parallel.py: `python processes.py FOLDER` imports everything once and forks them all.

Under FOLDER it leaves `<task>-<settings>-<1 or 2>.pt`, what training comes to in one process and in two (see `outcome`),
and `<fault>/`, the runs of two processes of which one fails, with what each of them wrote to stderr and how it ended.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from anban.cli.main import main
from anban.engine.run import prepare
from anban.recipe import Recipe, load_recipe, task_package
from anban.tasks.contract import Task

#: A recipe of each task, without draws of each process's own and losses that are more than a mean over samples.
RECIPES = {
    "change": ("change/demo-fc-siam-diff", ["model.dropout=0"]),
    "segment": (
        "seg/demo-bisenet",
        ["model.head.dropout=0", "model.auxiliary.dropout=0", "augment.scale=null"],
    ),
    "detect": ("det/demo-pvt", ["model.backbone.drop_path=0"]),
    "denoise": ("ct/dis-gan", ["critic_optimizer.name=sgd", "critic_optimizer.lr=0.001"]),
}
STEPS = ["optimizer.name=sgd", "optimizer.lr=0.001", "schedule.warmup=0", "train.batch_size=4", "train.iterations=3",
         "machine.log_every=1", "machine.train_samples=0"]  # fmt: skip
SETTINGS = {
    "together": ["train.sync_batch_norm=true", "train.accumulate=2", "train.ema=0.5", "train.clip_norm=1"],
    "apart": ["train.sync_batch_norm=false"],
}


def debug(name: str, folder: Path) -> list[str]:
    """Overrides that shrink a recipe to invented data."""
    recipe = load_recipe(name)
    overrides: list[str] = importlib.import_module(f"{task_package(recipe.task)}.debug").debug(
        recipe.config, folder
    )
    return overrides


def count_every_pixel(folder: Path) -> None:
    """Call road what the classes leave out: the mean over a share's counted pixels would be another than the batch's."""
    for file in folder.glob("segment/gtFine/*/*/*_labelIds.png"):
        ids = np.array(Image.open(file))
        Image.fromarray(np.where(np.isin(ids, (*range(7), 9, 10, 14, 15, 16, 18, 29, 30)), 7, ids)).save(file)


def doubled(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {name: doubled(value) for name, value in batch.items()}
    return [doubled(value) for value in batch] if isinstance(batch, list) else batch


def outcome(recipe: Recipe) -> dict[str, Any]:
    """The records of an evaluation before training, the losses of its steps and all states of networks after it.

    In double precision: a norm of few values makes much of how they were rounded.
    """
    torch.set_default_dtype(torch.float64)
    task, loop = prepare(recipe, torch.device("cpu"))
    collate = task.collate
    task.collate = lambda samples: doubled(collate(samples))  # type: ignore[method-assign]
    split = "train" if task.has_split("train") else "test"
    records = loop.evaluate(split, recipe.config["eval"]["protocols"][0], []).records
    losses: list[float] = []

    def hear(step: int, split: str, protocol: str | None, values: Any) -> None:
        if split == "train":
            losses.append(values["loss"])

    loop.journal.record = hear  # type: ignore[method-assign]
    loop.train()
    networks = {**task.modules, "evaluated": loop.model}
    states = {f"{n}.{key}": v for n, net in networks.items() for key, v in net.state_dict().items()}
    return {"records": json.dumps(records), "losses": losses, "states": states}


def compute(rank: int, world: int, folder: Path, recipes: dict[str, Recipe]) -> None:
    for name, recipe in recipes.items():
        found = outcome(recipe)
        if rank == 0:
            torch.save(found, folder / f"{name}-{world}.pt")


def fail(
    rank: int, world: int, folder: Path, overrides: list[str], who: int, how: Callable[[], None]
) -> None:
    """`anban run`, in which one process does something in its third step."""
    update = Task.update

    def updated(self: Task, *given: Any) -> Any:
        if rank == who and self.step == 2:
            how()
        return update(self, *given)

    Task.update = updated  # type: ignore[assignment, method-assign]
    os.dup2(os.open(folder / f"stderr-{rank}.txt", os.O_CREAT | os.O_WRONLY), 2)
    sys.argv = ["anban", "run", RECIPES["change"][0], *overrides, "--out", str(folder), "--device", "cpu"]
    main()


def be_ill() -> None:
    raise ValueError("one of two is ill")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {"error": (1, be_ill), "killed": (1, be_killed), "leader-killed": (0, be_killed)}


def member(rank: int, world: int, folder: Path, work: Callable[..., None], *given: Any) -> None:
    """One process of several, as torchrun starts it."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    work(rank, world, folder, *given)


def begin(world: int, folder: Path, work: Callable[..., None], *given: Any) -> list[Any]:
    folder.mkdir(exist_ok=True)
    fork = multiprocessing.get_context("fork")  # this process has no threads yet
    ranks = [fork.Process(target=member, args=(rank, world, folder, work, *given)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    return ranks


def ends(ranks: list[Any]) -> list[int]:
    for rank in ranks:
        rank.join()
    return [rank.exitcode for rank in ranks]


def everything(folder: Path) -> None:
    recipes = {}
    for task, (name, own) in RECIPES.items():
        shrunk = [*debug(name, folder), *own, *STEPS]
        for settings, more in SETTINGS.items():
            recipes[f"{task}-{settings}"] = load_recipe(name, [*shrunk, *more])
    count_every_pixel(folder)
    groups = [begin(world, folder, compute, recipes) for world in (1, 2)]
    assert [ends(group) for group in groups] == [[0], [0, 0]]
    small = [*debug(RECIPES["change"][0], folder), "train.iterations=4", "train.eval_every=2", "machine.checkpoint_every=1",
             "machine.profile=false"]  # fmt: skip
    begun = {name: begin(2, folder / name, fail, small, *fault) for name, fault in FAULTS.items()}
    for name, ranks in begun.items():
        (folder / name / "ends.json").write_text(json.dumps(ends(ranks)))


if __name__ == "__main__":
    everything(Path(sys.argv[1]))
