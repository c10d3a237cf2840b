"""What the loop expects of a task, and nothing about any one of them.

A task turns a recipe's configuration into data, networks, losses and scores. The loop calls the methods below and
knows no batch, no network and no metric by name. Most tasks keep the ordinary `update`; one with several
networks (a generator and a critic) fills `modules` and `optimizers` with them and writes its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from anban.recipe.schema import Arguments, Choice, Section

OPTIMIZERS = {name: f"anban.engine.optim:{name}" for name in ("sgd", "adam", "adamw")}
SCHEDULES = {
    name: f"anban.engine.schedule:{name.title()}"
    for name in ("constant", "poly", "step", "cosine", "plateau")
}

#: Sections that the loop itself reads; a task adds its own to them.
LOOP_SECTIONS: dict[str, Section] = {
    "optimizer": Choice(OPTIMIZERS),
    "schedule": Choice(SCHEDULES),
    "train": Arguments("anban.engine.settings:Train"),
    "machine": Arguments("anban.engine.settings:Machine"),
}


#: A class is as good as never answered when fewer pixels are given to it than this share of those that belong to it.
NEGLIGIBLE = 0.001


class Diverged(RuntimeError):
    """A loss, a gradient, a weight or a prediction is no longer a finite number."""


class Symptom(NamedTuple):
    """Something that looks wrong.

    Attributes:
        kind: one word for it, under which runs are listed, such as `collapse`.
        what: what is seen, with its numbers.
        cause: what most likely lies behind it, as a sentence.
        remedy: what to try, as a sentence that names keys of the recipe.
    """

    kind: str
    what: str
    cause: str
    remedy: str


class Updater(Protocol):
    """The loop's hand on precision, accumulation, clipping and the optimisers, given to `Task.update`."""

    def autocast(self) -> AbstractContextManager[Any]: ...
    def backward(self, loss: Tensor, *names: str) -> None: ...
    def step(self, name: str = "model") -> None: ...


class Task(ABC):
    """One kind of problem, built from the configuration of one recipe.

    Besides LOOP_SECTIONS its recipes have a section `eval` with at least `splits` and `protocols`, the first of each
    being the result. Beside the class's module stands `debug.py` with `debug(config, folder) -> overrides`, which
    shrinks any recipe of the task to invented data for `anban check`.

    Attributes:
        config: the recipe's complete configuration.
        modules: every network with weights to keep; `model` is the one that is evaluated, averaged and exported.
        optimized: which module each optimiser section trains: module name -> section of the recipe.
        optimizers: made from those sections, under the module's name; their groups' `lr` at creation is the peak
            rate that the schedule scales.
        forward: how `update` calls the networks: the same objects, wrapped for several processes where needed.
        step: steps done before the `update` at hand, over all parts of a run that was resumed.
        select: name of the score that picks the best checkpoint.
        higher_is_better: which way `select` improves.
        scores: names of the scores that `summary` gives.
        scale: what a score is multiplied by where it is printed for a person (100 for shares).
        gap: by how much `select` may be better on training samples than on others before the run is told so.
    """

    select: str = "score"
    higher_is_better: bool = True
    scores: Sequence[str] = ("score",)
    scale: float = 1.0
    gap: float = 0.2
    optimized: Mapping[str, str] = {"model": "optimizer"}

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.forward: dict[str, Callable[..., Any]] = {}
        self.step = 0

    @abstractmethod
    def check_data(self) -> dict[str, Any]:
        """Read enough of the data to know it can be used: root, fingerprint, label coding, size of each split.

        Raises:
            InputError: anything about the data that would spoil the run.
        """

    @abstractmethod
    def build_networks(self) -> None:
        """Fill `modules` (weights drawn from torch's global generator, which the loop has seeded)."""

    @abstractmethod
    def training_data(self) -> Dataset[Any]:
        """Samples indexed by (epoch, index); every random draw a pure function of (seed, epoch, index)."""

    @abstractmethod
    def evaluation_data(self, split: str) -> Dataset[Any]:
        """Samples of a split indexed by number, without any random draw."""

    def has_split(self, split: str) -> bool:
        """Whether there is such a split to score.

        A task without `val` trains without validation and keeps its last weights; one whose training samples cannot
        be scored has no `train`.
        """
        return True

    @staticmethod
    @abstractmethod
    def collate(samples: Sequence[Any]) -> Any:
        """The one place that turns samples into a batch of tensors (on the CPU); it is sent to worker processes."""

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (a mean over its samples) and its named parts for the log."""

    def update(self, batches: Sequence[Any], updater: Updater) -> dict[str, Tensor]:
        """One step of the optimisers over the micro-batches of one batch.

        Returns:
            scalar tensors to log, among them `loss`; one that is not finite ends the run.
        """
        logged: dict[str, Tensor] = {}
        for batch in batches:
            with updater.autocast():
                loss, parts = self.loss(batch)
            updater.backward(loss / len(batches), "model")
            for name, value in {"loss": loss, **parts}.items():
                logged[name] = logged.get(name, torch.zeros((), device=value.device)) + value.detach() / len(
                    batches
                )
        updater.step("model")
        return logged

    @abstractmethod
    def evaluate(
        self, model: nn.Module, batch: Any, protocol: str
    ) -> list[tuple[dict[str, Any], np.ndarray]]:
        """Per sample of the batch: a record for `samples.jsonl` and the prediction that `draw` can show."""

    @abstractmethod
    def summary(self, records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
        """The scores of a split from its samples' records; None where a score is undefined."""

    @abstractmethod
    def stamp(self, protocol: str, split: str) -> dict[str, Any]:
        """Everything that must agree before a number under this protocol may be compared with another."""

    def health(self, records: Sequence[dict[str, Any]]) -> list[Symptom]:
        """What looks wrong in a split's records; predictions that are all one class are the kind `collapse`."""
        return []

    def shown(self, split: str) -> list[int]:
        """Numbers of the few samples of a split whose predictions are kept as pictures."""
        return []

    def results(self, split: str, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What an evaluation found, as a list that goes into a JSON file: the records, or what the field's tools read.

        Args:
            records: of all samples of the split, in its order.
        """
        return list(records)

    def draw(self, folder: Path, split: str, shown: Sequence[tuple[int, np.ndarray]], protocol: str) -> None:  # noqa: B027
        """Keep pictures of a few samples under `folder`, so that reports need no data set."""

    def picture(self, split: str, index: int, prediction: np.ndarray) -> np.ndarray | None:
        """One sample as an RGB image (H, W, 3, uint8) for TensorBoard."""
        return None

    @abstractmethod
    def predict(
        self, model: nn.Module, inputs: Sequence[Path], out: Path, protocol: str, device: torch.device
    ) -> Iterator[Path]:
        """Predict files that have no label and write the results under `out`, yielding their paths.

        Raises:
            InputError: inputs that are not what the task predicts.
        """

    @staticmethod
    def inputs(model: nn.Module) -> tuple[Tensor, ...]:
        """Inputs for a network of the task's table outside of any recipe, (1, C, H, W) each.

        One RGB picture for each argument that `forward` needs; a task whose networks take something else says so.
        """
        parameters = signature(model.forward).parameters.values()
        needed = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
        return tuple(torch.randn(1, 3, 256, 256) for _ in needed)

    @abstractmethod
    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the network at the size the efficiency figures are stated for."""
