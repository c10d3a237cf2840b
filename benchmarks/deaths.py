"""A hundred short runs that end in every way a run can end, each in a process of its own that is forked from a warm one.

Signals come at a random time after a random step; the other deaths are injected into the real engine at a random step.
Then the ledger must say of each what has become of it, also after a rebuild from the folders and after the file was
deleted, and every checkpoint that was left behind must be readable.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from loguru import logger

from anban.engine import checkpoint
from anban.engine.run import execute
from anban.recipe import load_recipe
from anban.record import Ledger
from anban.record import run as run_module
from anban.tasks.change.debug import debug
from anban.tasks.contract import Task
from benchmarks.forked import Forked

COUNT = 100
RECIPE = "change/demo-fc-siam-diff"
FULL = OSError(28, "No space left on device")

Inside = Callable[[Task, Path], None]


@dataclass(frozen=True)
class Death:
    """One way to end.

    Attributes:
        state, why: what the ledger must say; the reason as a regular expression, None for no reason.
        signals: sent from outside, one after the other.
        inside: done in the run's own process before a step, given its task and the folder of its data.
        outcome: what the ledger must give as outcome, if anything.
    """

    name: str
    state: str
    why: str | None = None
    signals: tuple[signal.Signals, ...] = ()
    inside: Inside | None = None
    outcome: str | None = None


def _raise(error: BaseException) -> Inside:
    def inside(task: Task, data: Path) -> None:
        raise error

    return inside


def _damage(task: Task, data: Path) -> None:
    for file in data.glob("train/A/*.png"):
        file.write_bytes(b"no picture")


def _delete(task: Task, data: Path) -> None:
    for file in data.glob("train/B/*.png"):
        file.unlink(missing_ok=True)


def _fill(*places: str) -> Inside:
    def inside(task: Task, data: Path) -> None:
        if "checkpoint" in places:
            torch.save = _full
        if "metrics" in places:
            run_module.append = _full
        if "record" in places:
            run_module.write_atomically = _full

    return inside


def _full(*_: Any) -> Any:
    raise FULL


def _spoil(task: Task, data: Path) -> None:
    next(task.modules["model"].parameters()).data.fill_(float("nan"))


DEATHS = (
    Death("SIGKILL", "lost", signals=(signal.SIGKILL,)),
    Death("SIGTERM", "interrupted", r"stopped", (signal.SIGTERM,)),
    Death("Ctrl-C", "interrupted", r"stopped", (signal.SIGINT,)),
    Death("Ctrl-C twice", "interrupted", r"stopped", (signal.SIGINT, signal.SIGINT)),
    Death("an exception in the loss", "failed", r"^ValueError: one channel too many$",
          inside=_raise(ValueError("one channel too many")), outcome="error"),
    Death("a loss that is NaN", "failed", r"^Diverged: the loss is nan at step \d+ \(seed \d+; samples train_", inside=_spoil,
          outcome="diverged"),
    Death("a picture becomes unreadable", "failed", r"train/A/train_\d+\.png", inside=_damage, outcome="error"),
    Death("a picture is deleted", "failed", r"no such file[^$]*train/B/train_\d+\.png", inside=_delete, outcome="error"),
    Death("CUDA out of memory", "failed", r"CUDA out of memory",
          inside=_raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")), outcome="out-of-memory"),
    Death("disk full at a checkpoint", "failed", r"(last|best)\.pt could not be written: .*No space left", outcome="error",
          inside=_fill("checkpoint")),
    Death("disk full at metrics.jsonl", "failed", r"No space left", outcome="error", inside=_fill("metrics")),
    Death("disk full to the end", "lost", inside=_fill("checkpoint", "metrics", "record")),
    Death("abort", "lost", inside=lambda task, data: os.abort()),
    Death("segmentation fault", "lost", inside=lambda task, data: os.kill(os.getpid(), signal.SIGSEGV)),
    Death("exit in the middle", "lost", inside=lambda task, data: os._exit(3)),
)  # fmt: skip


def trial(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Let `count` runs die; what the ledger says of them."""
    logger.remove()
    torch.set_num_threads(1)
    draw = random.Random(f"deaths {seed}")
    out = folder / "runs"
    changes = [*debug(load_recipe(RECIPE).config, folder), "data.cache=false", "train.iterations=100000",
               "train.eval_every=4", "machine.checkpoint_every=2", "machine.log_every=1", "machine.train_samples=0",
               "machine.profile=false"]  # fmt: skip
    deaths = [DEATHS[number % len(DEATHS)] for number in range(count)]
    draw.shuffle(deaths)
    for number, death in enumerate(deaths):
        data = folder / f"data-{number}"
        shutil.copytree(folder / "change", data)
        _die(death, [*changes, f"data.root={data}"], out, number, draw)
        shutil.rmtree(data)
    rows = Ledger(out).rows()
    wrong = _wrong(deaths, rows)
    Ledger(out).rebuild()
    wrong += ["the rebuilt ledger differs"] * (Ledger(out).rows() != rows)
    for file in out.glob("ledger.sqlite*"):
        file.unlink()
    wrong += ["the ledger made anew differs"] * (Ledger(out).rows() != rows)
    read = 0
    for file in out.glob("*/*/*/checkpoints/*.pt"):
        checkpoint.load(file)
        read += 1
    told = {row["remark"]: row for row in rows}
    table = [_line(death, deaths, told) for death in DEATHS if death in deaths]
    return {
        "rows": table,
        "verdict": f"ok: {len(rows)} deaths, {len(rows)} true rows, also rebuilt; {read} checkpoints left behind, all readable"
        if not wrong
        else f"wrong: {'; '.join(wrong)}",
    }


def _die(death: Death, changes: list[str], out: Path, number: int, draw: random.Random) -> None:
    """Fork a run and see it end."""
    recipe = load_recipe(RECIPE, changes, seed=number)
    data, step = Path(recipe.config["data"]["root"]), draw.randint(1, 6)
    child = Forked(lambda: _live(death, recipe, out, number, data, step))
    folder = None
    limit = time.monotonic() + 120
    while death.signals and time.monotonic() < limit:
        for file in out.glob("*/*/*/metrics.jsonl"):
            if file.parent.name.split("-")[2] == f"s{number}":
                folder = file.parent
        if folder and (folder / "metrics.jsonl").read_text().count('"loss"') >= step:
            break
        time.sleep(0.005)
    for sent in death.signals:
        time.sleep(draw.uniform(0, 0.2))
        os.kill(child.pid, sent)  # not yet waited for, it is there even if it has ended
    child.wait(limit=120)


def _live(death: Death, recipe: Any, out: Path, number: int, data: Path, step: int) -> None:
    update = Task.update

    def dying(self: Task, batches: Any, updater: Any) -> Any:
        if death.inside is not None and self.step + 1 == step:
            death.inside(self, data)
        return update(self, batches, updater)

    with patch.object(Task, "update", dying):
        execute(recipe, out, device="cpu", remark=f"{number}")


def _wrong(deaths: list[Death], rows: list[dict[str, Any]]) -> list[str]:
    """What the ledger does not say as it was."""
    told = {row["remark"]: row for row in rows}
    found = [] if len(rows) == len(deaths) else [f"{len(rows)} rows of {len(deaths)} deaths"]
    for number, death in enumerate(deaths):
        row = told.get(f"{number}")
        if row is None:
            found.append(f"no row of {number} ({death.name})")
            continue
        reason = (
            row["why"] is None if death.why is None else re.search(death.why, row["why"] or "", re.DOTALL)
        )
        outcome = death.outcome in (None, row["outcome"])
        if row["state"] != death.state or not reason or not outcome:
            found.append(f"{number} ({death.name}): {row['state']}, {row['outcome']}, {row['why']}")
    return found


def _line(death: Death, deaths: list[Death], told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    mine = [told[f"{n}"] for n, each in enumerate(deaths) if each == death and f"{n}" in told]
    states = ", ".join(sorted({row["state"] for row in mine}))
    reasons = [" ".join(re.sub(r"/\S*/(?=\S)", "", row["why"]).split()) for row in mine if row["why"]]
    return {"death": death.name, "runs": len(mine), "state": states, "why": next(iter(reasons), "–")}
