"""The training loop: plain PyTorch, one file, no task known by name.

Everything random in step N is drawn from generators set by (seed, N), and the samples of step N are a function of
(seed, N); so a run continued from any checkpoint repeats, bit for bit on a CPU, what it would have done.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, Subset

from anban.data.draws import derive, seed_everything
from anban.engine import checkpoint, memory, parallel
from anban.engine.evaluate import Evaluation, evaluate
from anban.engine.health import Health
from anban.engine.progress import Progress
from anban.engine.schedule import Schedule
from anban.engine.settings import Machine, Train
from anban.engine.stop import Interrupted
from anban.engine.stream import StepSampler, batches, to_device
from anban.engine.update import GRADIENT_NORM, Updater
from anban.errors import InputError
from anban.record import RunFolder
from anban.tasks.contract import Diverged, Task


@dataclass
class Progressed:
    """Where a run stands; all of it is kept in the checkpoint.

    Attributes:
        step: optimiser steps done.
        seconds: wall time of training so far, over all its parts.
        waited: part of it spent waiting for data.
        window: losses since the last logged line.
        best: step, score name and value of the best validation.
        last_rise: step at which the validation score last rose.
        rate_changed: step at which the learning rate last changed; `rate_changes` lists them for schedules that
            change it only now and then.
        health: what has gone wrong, and what its watch remembers.
    """

    step: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    window: list[float] = field(default_factory=list)
    best: dict[str, Any] | None = None
    last_rise: int | None = None
    rate_changed: int | None = None
    rate_changes: list[int] = field(default_factory=list)
    health: Health = field(default_factory=Health)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Progressed:
        """From a checkpoint; one written before runs had a health has none."""
        known = {key: value for key, value in state.items() if key in cls.__dataclass_fields__}
        return cls(**known | {"health": Health.restored(state["health"]) if "health" in state else Health()})


class Loop:
    """Trains one task's networks.

    Args:
        task: built, its modules on `device` and its optimisers made.
        run: the run folder, in the first process only.
        stop: asked after every step whether someone wants the run to end.
    """

    def __init__(
        self,
        task: Task,
        *,
        seed: int,
        train: Train,
        machine: Machine,
        schedule: Schedule,
        device: torch.device,
        run: RunFolder | None,
        stop: Any = lambda: False,
    ):
        self.task, self.seed, self.settings, self.machine = task, seed, train, machine
        self.schedule, self.device, self.run, self.stop = schedule, device, run, stop
        self.data = task.training_data()
        samples = len(self.data)  # type: ignore[arg-type]
        self.total = train.total_steps(samples)
        self.per_epoch = train.steps_per_epoch(samples)
        share = min(train.batch_size, samples)
        if share % parallel.world():
            raise InputError(f"A batch of {share} cannot be shared by {parallel.world()} processes.",
                             where="train.batch_size", expected=f"a multiple of {parallel.world()}")  # fmt: skip
        self.updater = Updater(task.optimizers, train, device)
        self.peaks = {n: [group["lr"] for group in o.param_groups] for n, o in task.optimizers.items()}
        task.forward = {name: parallel.wrap(module, device) for name, module in task.modules.items()}
        self.average: AveragedModel | None = None
        if train.ema is not None:
            average = get_ema_multi_avg_fn(train.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(task.modules["model"], multi_avg_fn=average, use_buffers=True)
        self.done = Progressed()
        self.validates = task.has_split("val")
        self.validation_data = task.evaluation_data("val") if self.validates else None
        self.training_samples = self._training_samples()
        self.board: Any = None
        self._pending: list[tuple[int, dict[str, torch.Tensor]]] = []

    @property
    def model(self) -> nn.Module:
        """The network that is evaluated: the averaged one where there is an average."""
        return self.average.module if self.average is not None else self.task.modules["model"]

    # The loop -------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train from where we stand to the end; validate, keep the best and the last.

        Raises:
            Interrupted: `stop` said so; the run can be resumed.
            Diverged: a loss, a gradient or a weight became infinite or not a number.
        """
        eval_every = self.settings.eval_every or self.per_epoch
        save_every = self.machine.checkpoint_every or eval_every
        memory.reset_peak(self.device)
        with self._open() as progress:
            stream = self._stream()
            while self.done.step < self.total:
                begun = time.perf_counter()
                micro_batches = [to_device(part, self.device) for part in next(stream)]
                ready = time.perf_counter()
                step = self.task.step = self.done.step
                self._set_rates(step)
                seed_everything(derive(self.seed, "step", step, parallel.rank()))
                for module in self.task.modules.values():
                    if not module.training:
                        module.train()
                values = self.updater.apply(self.task, micro_batches)
                if self.average is not None:
                    self.average.update_parameters(self.task.modules["model"])
                self.done.step += 1
                self._log_step(values, progress)
                self.done.waited += ready - begun
                self.done.seconds += time.perf_counter() - begun
                clear = {"never": 0, "epoch": self.per_epoch, "step": 1}[self.machine.clear_cache]
                if clear and self.done.step % clear == 0:
                    memory.clear_cache(self.device)
                last = self.done.step == self.total
                if self.validates and (self.done.step % eval_every == 0 or last):
                    self._validate(progress)
                stopping = parallel.any_true(bool(self.stop()), self.device)
                if self.done.step % save_every == 0 or last or stopping:
                    self.save("last.pt")
                if self.machine.keep_every and self.done.step % self.machine.keep_every == 0:
                    self.save(f"step-{self.done.step}.pt")
                if stopping:
                    raise Interrupted(f"stopped after step {self.done.step} of {self.total}")

    def _stream(self) -> Iterator[list[Any]]:
        sampler = StepSampler(
            len(self.data),  # type: ignore[arg-type]
            self.settings.batch_size,
            self.seed,
            self.done.step,
            self.total,
            parallel.rank(),
            parallel.world(),
            self.settings.accumulate,
        )
        return batches(
            self.data,
            sampler,
            self.task.collate,
            parts=self.settings.accumulate,
            workers=self.machine.workers,
            pin=self.device.type == "cuda",
        )

    def _set_rates(self, step: int) -> None:
        changed = False
        for name, optimizer in self.task.optimizers.items():
            for group, peak in zip(optimizer.param_groups, self.peaks[name], strict=True):
                rate = self.schedule.rate(peak, step, self.total, self.per_epoch)
                changed |= rate != group["lr"]
                group["lr"] = rate
        if changed and step > 0:
            self.done.rate_changed = step
            if self.schedule.discrete and step > self.schedule.warmup:
                self.done.rate_changes.append(step)

    def _log_step(self, values: dict[str, torch.Tensor], progress: Progress) -> None:
        self._pending.append((self.done.step, values))
        if self.done.step % self.machine.log_every and self.done.step != self.total:
            return
        latest = self._collect()
        rate = next(iter(self.task.optimizers.values())).param_groups[0]["lr"]
        mean = sum(self.done.window) / len(self.done.window)
        self._record("train", None, {**latest, "loss": mean, "lr": rate})
        progress.advance(self.done.step, mean, rate)
        self.done.window.clear()

    def _collect(self) -> dict[str, float]:
        """Fetch the values of the steps since the last call, all at once: no step waits for the device by itself.

        Returns:
            the values of the latest step, by name (empty if there was none).
        """
        if not self._pending:
            return {}
        flat = (
            torch.stack([v.detach().float() for _, values in self._pending for v in values.values()])
            .cpu()
            .tolist()
        )
        numbers = iter(flat)
        latest: dict[str, float] = {}
        for step, values in self._pending:
            latest = {name: next(numbers) for name in values}
            for name, value in latest.items():
                skipped = name == GRADIENT_NORM and self.updater.scaler.is_enabled()
                if not math.isfinite(value) and not skipped:
                    self._pending.clear()
                    raise Diverged(f"the {name} is {value} at step {step} (seed {self.seed})")
            self.done.window.append(latest["loss"])
            self.done.health.hear(latest["loss"])
        self._pending.clear()
        return latest

    def _check_finite(self) -> None:
        """Raise Diverged for a loss of the steps so far, or a weight, that is no finite number.

        A gradient that is not finite leaves such a weight, also where the loss of its step was in order.
        """
        self._collect()
        for module in self.task.modules.values():
            if not get_total_norm(module.parameters(), norm_type=math.inf).isfinite():
                name = next(n for n, p in module.named_parameters() if not p.isfinite().all())
                step = self.done.step
                raise Diverged(f"the weight {name} is not finite after step {step} (seed {self.seed})")

    # Validation and checkpoints ---------------------------------------------------------------------------------

    def _training_samples(self) -> Dataset[Any] | None:
        """A few training samples as evaluation sees them, evenly spread, for comparison with the validation's."""
        if self.validation_data is None or not self.machine.train_samples or not self.task.has_split("train"):
            return None
        data = self.task.evaluation_data("train")
        total = len(data)  # type: ignore[arg-type]
        count = min(self.machine.train_samples, total, len(self.validation_data))  # type: ignore[arg-type]
        return Subset(data, [i * total // count for i in range(count)])

    def _validate(self, progress: Progress) -> None:
        begun = time.perf_counter()
        self._check_finite()
        parallel.align(self.model)
        shown = self.task.shown("val")[: self.machine.images]
        result = self.evaluate("val", self.settings.validate, shown)
        score = result.scores.get(self.task.select)
        self.schedule.observe(score, self.task.higher_is_better)
        best = self.done.best["value"] if self.done.best else None
        sign = 1 if self.task.higher_is_better else -1
        if score is not None and (best is None or sign * score > sign * best):
            self.done.best = {
                "step": self.done.step,
                "split": "val",
                "protocol": result.protocol,
                "name": self.task.select,
                "value": score,
            }
            self.done.last_rise = self.done.step
            self.save("best.pt")
        self._record("val", result.protocol, result.scores)
        self._examine(result)
        self._pictures(result)
        progress.validated(self.done.step, result.scores.get(self.task.select), self.done.best, self.task)
        self._report(time.perf_counter() - begun)

    def _examine(self, result: Evaluation) -> None:
        trained = None
        if self.training_samples is not None:
            scores = self.evaluate("train", result.protocol, [], self.training_samples).scores
            trained = scores.get(self.task.select)
            self._record("train-samples", result.protocol, {self.task.select: trained})
        self.done.health.validated(
            self.done.step,
            self.task,
            symptoms=result.symptoms,
            score=result.scores.get(self.task.select),
            trained=trained,
            best=self.done.best,
            schedule=self.schedule,
            peaks=[peak for peaks in self.peaks.values() for peak in peaks],
        )

    def evaluate(
        self, split: str, protocol: str, shown: list[int], dataset: Dataset[Any] | None = None
    ) -> Evaluation:
        """Score a split, or the few samples of it that `dataset` holds (no workers: their start costs more)."""
        workers = self.machine.workers if dataset is None else 0
        if dataset is None and split == "val":
            dataset = self.validation_data
        return evaluate(
            self.task,
            self.model,
            split,
            protocol,
            device=self.device,
            precision=self.settings.precision,
            batch=self.machine.eval_batch,
            shown=shown,
            dataset=dataset,
            workers=workers,
            stop=self.stop,
        )

    def save(self, name: str) -> None:
        """Write a checkpoint (first process only); never one of a run that has diverged."""
        self._check_finite()
        if self.run is None:
            return
        state: dict[str, Any] = {
            "recipe": self.run.info.get("recipe"),
            "hash": self.run.info.get("hash"),
            "config": self.task.config,
            "seed": self.seed,
            "step": self.done.step,
            "score": self.done.best,
            "state_dict": self.model.state_dict(),
        }
        if name != "best.pt":
            state |= {
                "modules": {n: module.state_dict() for n, module in self.task.modules.items()},
                "average": self.average.state_dict() if self.average is not None else None,
                "optimizers": {n: o.state_dict() for n, o in self.task.optimizers.items()},
                "schedule": self.schedule.state_dict(),
                "scaler": self.updater.scaler.state_dict(),
                "progress": asdict(self.done),
            }
        checkpoint.save(self.run.checkpoints / name, state)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of this run."""
        state = checkpoint.load(path, self.device)
        for name, module in self.task.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.task.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.schedule.load_state_dict(state["schedule"])
        self.updater.scaler.load_state_dict(state["scaler"])
        self.done = Progressed.restored(state["progress"])

    # What is written down ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open(self) -> Iterator[Progress]:
        if self.run is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(
                str(self.run.path), purge_step=self.done.step + 1 if self.done.step else None
            )
        try:
            with Progress(self.total, self.done.step, shown=self.run is not None) as progress:
                yield progress
        finally:
            if self.board is not None:
                self.board.close()
            self._report(0.0)

    def _record(self, split: str, protocol: str | None, values: dict[str, float | None]) -> None:
        if self.run is None:
            return
        step, epoch = self.done.step, self.done.step / self.per_epoch
        self.run.log_metrics(step, round(epoch, 6), split, protocol, values)
        for name, value in values.items():
            if value is not None and self.board is not None:
                self.board.add_scalar(f"{split}/{name}", value, step)

    def _pictures(self, result: Evaluation) -> None:
        if self.board is None:
            return
        for index, prediction in result.shown:
            picture = self.task.picture(result.split, index, prediction)
            if picture is not None:
                self.board.add_image(f"{result.split}/{index}", picture, self.done.step, dataformats="HWC")

    def _report(self, evaluated: float) -> None:
        """Bring run.json up to date."""
        self.done.seconds += evaluated
        if self.run is None:
            return
        done, steps = self.done, max(1, self.done.step)
        self.run.update(
            progress={
                "step": done.step,
                "steps": self.total,
                "epoch": round(done.step / self.per_epoch, 4),
                "best": done.best,
                "last_rise": done.last_rise,
                "rate_changed": done.rate_changed,
                "rate_changes": done.rate_changes,
            },
            time={
                "seconds_per_step": done.seconds / steps,
                "seconds_per_epoch": done.seconds / steps * self.per_epoch,
                "data_wait_share": done.waited / done.seconds if done.seconds else 0.0,
                "peak_memory_mb": memory.peak_mb(self.device),
            },
            **done.health.told(),
        )
