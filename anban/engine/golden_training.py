"""A recipe's training steps on given batches, to stand beside those of an official training script."""

from __future__ import annotations

from unittest.mock import patch

import torch
from torch import Tensor

from anban.engine.run import make_task
from anban.engine.settings import Train
from anban.engine.update import Updater
from anban.official import load_official
from anban.recipe import Recipe, load_recipe
from anban.recipe.schema import pick
from anban.tasks.contract import OPTIMIZERS, SCHEDULES
from anban.testing.golden import Adapter, Case, Outputs, labelled


class Training:
    """What a segmentation recipe trains, and how; its data are not read. The network is in training mode.

    Args:
        recipe: its schedule runs over train.iterations.
        dtype: of the network.
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype = torch.float32):
        config = recipe.config
        self._task = task = make_task(recipe)
        task.build_networks()
        task.forward = dict(task.modules)
        self.network = task.modules["model"].to(dtype).train()
        optimizer, schedule = dict(config["optimizer"]), dict(config["schedule"])
        self.optimizer: torch.optim.Optimizer = pick(OPTIMIZERS, optimizer.pop("name"), "optimizer.name")(
            self.network, **optimizer
        )
        task.optimizers["model"] = self.optimizer
        self._schedule = pick(SCHEDULES, schedule.pop("name"), "schedule.name")(**schedule)
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        settings = Train(**config["train"])
        self._total = settings.total_steps(0)
        self._updater = Updater(task.optimizers, settings, torch.device("cpu"))

    def step(self, image: Tensor, label: Tensor) -> Tensor:
        """One step of the optimiser; the loss before it. Image (B, 3, H, W), label (B, H, W), 255 where none counts."""
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = self._schedule.rate(peak, self._task.step, self._total, 1)
        loss = self._updater.apply(self._task, [{"image": image, "label": label}])["loss"]
        self._task.step += 1
        return loss


def case_recipe(case: Case) -> Recipe:
    """The recipe that a training case names, with the changes that it lists."""
    return load_recipe(case.data["recipe"], case.data["overrides"])


def case_batches(case: Case, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """The images and labels of each step of a training case, which are stored as (steps, B, ...)."""
    inputs = case.inputs(dtype)
    return list(zip(inputs["x"], labelled(case, inputs), strict=True))


def training_losses(case: Case, dtype: torch.dtype | None = None) -> Tensor:
    """The loss of every step of a training case, (steps,) float64: weights by name, then the case's batches in order.

    Args:
        dtype: of network and losses; by default the case's.
    """
    dtype = dtype or case.dtype
    training = Training(case_recipe(case), dtype)
    load_official(training.network, case.weights(dtype=dtype))
    # Losses turn to float32 whatever they are given. Training amplifies that rounding 20,000 times in four steps, where
    # batch norm sees two values, so that a comparison in float64 has to keep it out.
    with patch.object(Tensor, "float", lambda tensor: tensor.to(dtype)):
        return torch.stack([training.step(*batch).double() for batch in case_batches(case, dtype)])


def _losses(case: Case) -> Outputs:
    return {"loss": training_losses(case)}


TRAINING: dict[tuple[str, str], Adapter] = {("CoinCheung/BiSeNet", "train"): _losses}
