"""The loop carries a task it has never heard of: two networks, two optimisers, an update rule of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from anban.data.draws import derive, drawing_from
from anban.engine import checkpoint
from anban.engine.loop import Loop
from anban.engine.optim import adam, sgd
from anban.engine.schedule import Poly
from anban.engine.settings import Machine, Train
from anban.record import RunFolder
from anban.tasks.contract import Task


class Points(Dataset[Any]):
    """Noisy points around 2."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: Any) -> Tensor:
        epoch, index = key if isinstance(key, tuple) else (-1, key)
        with drawing_from(derive("points", epoch, index)):
            return 2 + 0.1 * torch.randn(3)


class Twins(Task):
    """A generator that learns the points, and a critic that tells them apart; each with its own optimiser."""

    select = "distance"
    higher_is_better = False

    def check_data(self) -> dict[str, Any]:
        return {}

    def build_networks(self) -> None:
        self.modules = {"model": nn.Linear(3, 3), "critic": nn.Linear(3, 1)}

    def training_data(self) -> Dataset[Any]:
        return Points()

    def evaluation_data(self, split: str) -> Dataset[Any]:
        return Points()

    @staticmethod
    def collate(samples: Sequence[Any]) -> Any:
        return torch.stack(list(samples))

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        raise AssertionError("its own update does not use this")

    def update(self, batches: Sequence[Any], updater: Any) -> dict[str, Tensor]:
        noise = torch.randn_like(batches[0])
        with updater.autocast():
            made = self.forward["model"](noise)
            critic = self.forward["critic"](batches[0]).mean() - self.forward["critic"](made.detach()).mean()
        updater.backward(-critic, "critic")
        updater.step("critic")
        with updater.autocast():
            generator = (made - batches[0]).square().mean() - 0.01 * self.forward["critic"](made).mean()
        updater.backward(generator, "model")
        assert all(p.grad is None for p in self.modules["critic"].parameters()), "left by the generator"
        updater.step("model")
        return {"loss": generator.detach(), "critic": critic.detach()}

    def evaluate(
        self, model: nn.Module, batch: Any, protocol: str
    ) -> list[tuple[dict[str, Any], np.ndarray]]:
        made = model(torch.zeros_like(batch))
        return [
            ({"name": str(i), "d": float((m - b).abs().mean())}, np.zeros(1))
            for i, (m, b) in enumerate(zip(made, batch, strict=True))
        ]

    def summary(self, records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
        return {"distance": sum(r["d"] for r in records) / len(records)}

    def stamp(self, protocol: str, split: str) -> dict[str, Any]:
        return {"name": protocol}

    def predict(self, *arguments: Any) -> Iterator[Path]:
        yield from ()

    def example(self) -> tuple[Tensor, ...]:
        return (torch.zeros(1, 3),)


def loop(run: RunFolder, steps: int, precision: Any = "fp32") -> Loop:
    torch.manual_seed(0)
    task = Twins({})
    task.build_networks()
    task.optimizers = {
        "model": adam(task.modules["model"], lr=0.05),
        "critic": sgd(task.modules["critic"], lr=0.01),
    }
    train = Train(iterations=steps, batch_size=4, eval_every=2, clip_norm=1.0, precision=precision)
    return Loop(
        task,
        seed=5,
        train=train,
        machine=Machine(log_every=1),
        schedule=Poly(),
        device=torch.device("cpu"),
        run=run,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_optimisers_train_and_resume_exactly(tmp_path: Path, precision: Any) -> None:
    whole = RunFolder.create(tmp_path, "toy/twins", seed=5, info={})
    loop(whole, 8, precision).train()
    assert whole.info["progress"]["best"]["name"] == "distance"
    values = [m["value"] for m in whole.metrics() if (m["split"], m["name"]) == ("val", "distance")]
    assert values[-1] < values[0]
    assert whole.info["progress"]["best"]["value"] == min(values)
    part = RunFolder.create(tmp_path, "toy/twins", seed=5, info={})
    first = loop(part, 8, precision)
    first.stop = lambda: first.done.step == 5
    with pytest.raises(Exception, match="stopped after step 5"):
        first.train()
    second = loop(part, 8, precision)
    second.restore(checkpoint.load(part.checkpoints / "last.pt"))
    second.train()

    def told(run: RunFolder) -> list[tuple[Any, ...]]:
        return [(m["step"], m["split"], m["name"], m["value"]) for m in run.metrics()]

    assert sorted(told(part), key=str) == sorted(told(whole), key=str)
    assert {m["name"] for m in whole.metrics() if m["split"] == "train"} == {
        "loss",
        "critic",
        "lr",
        "gradient_norm",
    }
