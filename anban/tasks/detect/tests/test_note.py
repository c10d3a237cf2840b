"""What note 003 asks of a run as a whole: its length is the recipe's own, and it tells as much as it is told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from anban.engine.run import execute, prepare
from anban.recipe import Recipe, load_recipe
from anban.tasks.detect.demo import write_demo

SMALL = ["model.backbone.widths=[8,16,24,32]", "model.backbone.heads=[1,2,3,4]", "model.detector.width=8",
         "model.detector.depth=1", "train.batch_size=2", "machine.profile=false", "machine.images=0", "machine.workers=0",
         "machine.train_samples=0", "eval.shown=0", "eval.splits=[test]"]  # fmt: skip


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("cells"), train=4, val=1, test=1, size=32)


def recipe(cells: Path, *changes: str) -> Recipe:
    return load_recipe("det/demo-pvt", [f"data.root={cells}", *SMALL, *changes])


def test_weights_to_start_from_leave_the_recipes_length_and_rate_alone(cells: Path, tmp_path: Path) -> None:
    first = execute(recipe(cells, "train.iterations=3", "train.eval_every=3"), tmp_path, device="cpu")
    given = ["train.iterations=null", "train.epochs=5", "optimizer.lr=3e-4"]
    start = f"init.path={first.checkpoints / 'last.pt'}"
    plain, started = (prepare(recipe(cells, *given, *more), torch.device("cpu"))[1] for more in ([], [start]))
    assert started.total == plain.total == 10
    assert started.done.step == 0
    assert started.peaks == plain.peaks == {"model": [3e-4] * len(plain.peaks["model"])}
    weights = torch.load(first.checkpoints / "last.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in started.model.state_dict().items())


def test_a_run_tells_its_loss_as_often_as_it_is_told(cells: Path, tmp_path: Path) -> None:
    told = {}
    for every in (1, 4):
        run = execute(recipe(cells, "train.iterations=4", "train.eval_every=4", f"machine.log_every={every}"),
                      tmp_path, device="cpu")  # fmt: skip
        lines = map(json.loads, (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        told[every] = [line["step"] for line in lines if (line["split"], line["name"]) == ("train", "loss")]
    assert told == {1: [1, 2, 3, 4], 4: [4]}
