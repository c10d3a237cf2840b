"""One training step of `anban.engine.loop.Loop` against one of the plainest loop that PyTorch allows.

Both train the same network with AdamW and binary cross entropy on the same batches, drawn from the same dataset
object (demo scenes of 128 pixels, crops of 64, flips and light, batches of 8, no workers). The plain loop has no
schedule, no log, no seeds, no average: what it lacks is what the ratio shows. It keeps torch's ordinary memory layout;
`machine.channels_last` is tried both ways. "records" writes what a real run does (JSON lines, TensorBoard), at every step
instead of every tenth. "batches only" leaves the update out of both loops, which shows the loop's own milliseconds
that a whole step hides in its noise. Validation and checkpoints lie outside the measured steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import anban
from anban.engine.loop import Loop
from anban.engine.run import prepare
from anban.engine.stream import StepSampler
from anban.recipe import load_recipe
from anban.record import RunFolder
from anban.tasks.change.demo import write_demo
from anban.tasks.change.loss import margin
from benchmarks.timing import Clock, Row, Taken

NETWORKS = {"FC-Siam-diff": "change/demo-fc-siam-diff", "TinyCD": "change/demo-tinycd"}
WARM = 2  # steps of each thrown away
BUILDS = 2  # where weights happen to lie in memory moves a step by a few per cent, so each case is built more than once


@dataclass(frozen=True)
class Case:
    """What is switched on in our loop; without `update`, neither loop goes on from the batch."""

    name: str
    channels_last: bool = False
    records: bool = False
    update: bool = True


CASES = (
    Case("channels_last off"),
    Case("channels_last on", channels_last=True),
    Case("channels_last off, records", records=True),
    Case("batches only", update=False),
)


def run(rounds: int) -> list[Row]:
    """A row per network and case; a pair is one step of each, `rounds` of them in each of two builds."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = write_demo(Path(scratch, "data"), train=32, val=4, test=4, size=128)
        for network, name in NETWORKS.items():
            for case in CASES:
                ours: list[Taken] = []
                theirs: list[Taken] = []
                for _ in range(BUILDS):
                    loop = _our_loop(name, case, data, Path(scratch, "runs"), WARM + rounds + 1)
                    some = _turn_by_turn(loop, plain_loop(loop, update=case.update))
                    ours, theirs = ours + some[0], theirs + some[1]
                rows.append(Row(f"a step, {network}, {case.name}", "our loop", "plain loop", ours, theirs))
    return rows


def _our_loop(name: str, case: Case, data: Path, runs: Path, steps: int) -> Loop:
    overrides = {
        "data.root": data,
        "loss.dice": "null",
        "train.iterations": steps,
        "train.eval_every": 100000,
        "machine.channels_last": str(case.channels_last).lower(),
        "machine.log_every": 1 if case.records else 10,
    }
    recipe = load_recipe(name, [f"{key}={value}" for key, value in overrides.items()])
    task, loop = prepare(recipe, torch.device("cpu"))
    if case.records:
        loop.run = RunFolder.create(runs, recipe.id, seed=0, info={"hash": recipe.hash})
    if not case.update:
        nothing = {"loss": torch.zeros(())}
        task.update = lambda batches, updater: nothing  # type: ignore[method-assign]
    return loop


def plain_loop(loop: Loop, *, update: bool = True) -> Iterator[None]:
    """Training as a first tutorial writes it; goes on by one step at each `next`."""
    config = loop.task.config
    network = anban.create_model(config["model"]["name"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=config["optimizer"]["lr"])
    same = StepSampler(len(loop.data), config["train"]["batch_size"], config["seed"], 0, loop.total)  # type: ignore[arg-type]
    for batch in DataLoader(loop.data, batch_sampler=list(same)):
        if update:
            optimizer.zero_grad()
            logit = margin(network(batch["a"], batch["b"]))
            loss = F.binary_cross_entropy_with_logits(logit, batch["label"][:, None].float())
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        yield


def _turn_by_turn(loop: Loop, plain: Iterator[None]) -> tuple[list[Taken], list[Taken]]:
    """A step of ours, a plain one, and so on: our loop asks after each of its steps whether to stop."""
    ours: list[Taken] = []
    theirs: list[Taken] = []
    clock = Clock()

    def ask() -> bool:
        nonlocal clock
        if loop.done.step < loop.total:  # it also asks during the validation that follows the last step
            ours.append(clock.taken())
            clock = Clock()
            next(plain)
            theirs.append(clock.taken())
            clock = Clock()
        return False

    loop.stop = ask
    loop.train()
    return ours[WARM:], theirs[WARM:]
