"""One training step of `anban.engine.loop.Loop` against one of the plainest loop that PyTorch allows.

Both train the same network with AdamW and binary cross entropy on the same batches, drawn from the same dataset
object (demo scenes of 128 pixels, crops of 64, flips and light, batches of 8, no workers). The plain loop has no
schedule, no log, no seeds, no average: what it lacks is what the ratio shows. It keeps torch's ordinary memory layout;
`machine.channels_last` is tried both ways. The last case writes what a real run does (JSON lines, TensorBoard), at every
step instead of every tenth. Validation and checkpoints lie outside the measured steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import anban
from anban.engine.loop import Loop
from anban.engine.run import prepare
from anban.engine.stream import StepSampler
from anban.recipe import Recipe, load_recipe
from anban.record import RunFolder
from anban.tasks.change.demo import write_demo
from anban.tasks.change.loss import margin
from benchmarks.timing import Clock, Row, Taken

NETWORKS = {"FC-Siam-diff": "change/demo-fc-siam-diff", "TinyCD": "change/demo-tinycd"}
WARM = 2  # steps of each thrown away
CASES = {
    "channels_last off": ["machine.channels_last=false"],
    "channels_last on": ["machine.channels_last=true"],
    "channels_last off, records": ["machine.channels_last=false", "machine.log_every=1"],
}


def run(rounds: int) -> list[Row]:
    """A row per network and case; a pair is one step of each, so there are twice `rounds` of them."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = write_demo(Path(scratch, "data"), train=32, val=4, test=4, size=128)
        for network, name in NETWORKS.items():
            for case, overrides in CASES.items():
                recipe = _recipe(name, data, 2 * rounds, overrides)
                _, loop = prepare(recipe, torch.device("cpu"))
                if "records" in case:
                    loop.run = RunFolder.create(
                        Path(scratch, "runs"), recipe.id, seed=0, info={"hash": recipe.hash}
                    )
                ours, plain = _turn_by_turn(loop, plain_loop(recipe, loop))
                rows.append(Row(f"a step, {network}, {case}", "our loop", "plain loop", ours, plain))
    return rows


def _recipe(name: str, data: Path, steps: int, overrides: list[str]) -> Recipe:
    # One step more than is measured: validation, at the end, counts into the last one.
    iterations = f"train.iterations={WARM + steps + 1}"
    ends = ["train.eval_every=100000", "eval.splits=[test]", "loss.dice=null"]
    return load_recipe(name, [f"data.root={data}", iterations, *ends, *overrides])


def plain_loop(recipe: Recipe, loop: Loop) -> Iterator[None]:
    """Training as a first tutorial writes it; goes on by one step at each `next`."""
    config = recipe.config
    network = anban.create_model(config["model"]["name"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=config["optimizer"]["lr"])
    same = StepSampler(len(loop.data), config["train"]["batch_size"], recipe.config["seed"], 0, loop.total)  # type: ignore[arg-type]
    for batch in DataLoader(loop.data, batch_sampler=list(same)):
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
        ours.append(clock.taken())
        clock = Clock()
        next(plain)
        theirs.append(clock.taken())
        clock = Clock()
        return False

    loop.stop = ask
    loop.train()
    return ours[WARM:-1], theirs[WARM:-1]
