"""Evaluation: every sample of a split counted once, by however many processes there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from anban.data.draws import derive, drawing_from
from anban.engine import parallel
from anban.engine.stop import Interrupted
from anban.engine.stream import batches, to_device
from anban.engine.update import autocast
from anban.record import RunFolder
from anban.tasks.contract import Symptom, Task


@dataclass
class Evaluation:
    """Scores of one split under one protocol; `shown` holds (sample number, prediction) of the samples to draw."""

    split: str
    protocol: str
    scores: dict[str, float | None]
    records: list[dict[str, Any]]
    symptoms: list[Symptom]
    shown: list[tuple[int, np.ndarray]] = field(default_factory=list)


@torch.no_grad()  # not inference_mode: what a data set caches meanwhile must stay usable for training
def evaluate(
    task: Task,
    model: nn.Module,
    split: str,
    protocol: str,
    *,
    device: torch.device,
    precision: str = "fp32",
    batch: int = 8,
    shown: Sequence[int] = (),
    dataset: Dataset[Any] | None = None,
    workers: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Run `model` in eval mode over a split.

    Batches are cut from the whole list before processes share them out, so any number of processes computes the
    same numbers; the results are put back in the order of the split.
    """
    dataset = task.evaluation_data(split) if dataset is None else dataset
    total = len(dataset)  # type: ignore[arg-type]
    was_training = model.training
    model.eval()
    mine: list[tuple[int, dict[str, Any], np.ndarray | None]] = []
    with drawing_from(derive("evaluate")), autocast(precision, device):
        groups = [list(range(i, min(i + batch, total))) for i in range(0, total, batch)]
        groups = groups[parallel.rank() :: parallel.world()]
        loaded = batches(dataset, groups, list, workers=min(workers, len(groups)))
        for group, (picked,) in zip(groups, loaded, strict=True):
            if parallel.world() == 1 and stop():
                raise Interrupted("stopped while evaluating")
            for numbers, samples in _alike(list(zip(group, picked, strict=True))):
                inputs = to_device(task.collate(samples), device)
                for number, (record, prediction) in zip(
                    numbers, task.evaluate(model, inputs, protocol), strict=True
                ):
                    mine.append((number, record, prediction if number in shown else None))
    model.train(was_training)
    if parallel.any_true(stop()):
        raise Interrupted("stopped while evaluating")
    every = sorted(parallel.gather(mine), key=lambda item: item[0])
    records = [{"split": split, "protocol": protocol, **record} for _, record, _ in every]
    return Evaluation(
        split,
        protocol,
        task.summary(records),
        records,
        task.health(records),
        [(number, prediction) for number, _, prediction in every if prediction is not None],
    )


def record(run: RunFolder, which: str, stamp: dict[str, Any], result: Evaluation) -> None:
    """Put an evaluation into the run's record, in place of an earlier one of the same split, protocol and checkpoint."""
    place = {"split": result.split, "protocol": result.protocol, "checkpoint": which}
    kept = [line for line in run.info["scores"] if {key: line[key] for key in place} != place]
    new = [{**place, "name": name, "value": value} for name, value in result.scores.items()]
    run.log_samples([{**line, "checkpoint": which} for line in result.records])
    stamps = {**(run.info.get("protocols") or {}), f"{result.split}/{result.protocol}": stamp}
    run.update(scores=kept + new, protocols=stamps)


def _alike(samples: list[tuple[int, Any]]) -> Iterator[tuple[list[int], list[Any]]]:
    """Runs of samples whose tensors have one shape, so that they can be stacked."""
    numbers: list[int] = []
    alike: list[Any] = []
    for number, sample in samples:
        if alike and _shapes(sample) != _shapes(alike[0]):
            yield numbers, alike
            numbers, alike = [], []
        numbers.append(number)
        alike.append(sample)
    if alike:
        yield numbers, alike


def _shapes(sample: Any) -> list[tuple[int, ...]]:
    values = sample.values() if isinstance(sample, dict) else sample
    return [tuple(value.shape) for value in values if isinstance(value, torch.Tensor)]
