"""The training loop: plain PyTorch, one file, no task known by name.

Everything random in step N is drawn from generators set by (seed, N), and the samples of step N are a function of
(seed, N); so a run continued from any checkpoint repeats, bit for bit on a CPU, what it would have done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, Subset

from anban.data.draws import derive, seed_everything
from anban.engine import checkpoint, faults, memory, parallel
from anban.engine.evaluate import Evaluation, evaluate
from anban.engine.journal import Journal
from anban.engine.progress import Progress
from anban.engine.schedule import Schedule
from anban.engine.settings import Machine, Train
from anban.engine.state import Progressed
from anban.engine.stop import Interrupted
from anban.engine.stream import StepSampler, batches, to_device
from anban.engine.sync_norm import synchronise
from anban.engine.update import GRADIENT_NORM, Updater
from anban.errors import InputError
from anban.record import RunFolder
from anban.tasks.contract import Diverged, Task


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
        share, parts = min(train.batch_size, samples), parallel.world() * train.accumulate
        if parallel.world() > 1 and (share < parts or (share == train.batch_size and share % parts)):
            raise InputError(f"A batch of {share} cannot be shared by {parallel.world()} processes, "
                             f"each in {train.accumulate} equal parts.",
                             where="train.batch_size", expected=f"a multiple of {parts}")  # fmt: skip
        self.rolls_back = train.non_finite == "roll-back"
        if self.rolls_back and parallel.world() > 1:
            raise InputError("Several processes cannot go back together.", where="train.non_finite",
                             expected="stop or skip, or one process")  # fmt: skip
        self.updater = Updater(task.optimizers, train, device)
        self.peaks = {n: [group["lr"] for group in o.param_groups] for n, o in task.optimizers.items()}
        if train.sync_batch_norm:
            for module in task.modules.values():
                synchronise(module, device)
        task.forward = {name: parallel.wrap(module, device) for name, module in task.modules.items()}
        self.average: AveragedModel | None = None
        if train.ema is not None:
            average = get_ema_multi_avg_fn(train.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(task.modules["model"], multi_avg_fn=average, use_buffers=True)
        self.done = Progressed()
        self.validates = task.has_split("val")
        self.validation_data = task.evaluation_data("val") if self.validates else None
        self.training_samples = self._training_samples()
        self.journal = Journal(run, self.total, self.per_epoch, device)
        self._saved: int | None = None  # the step of last.pt
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
            Diverged: a loss, a gradient or a weight became infinite or not a number, and `train.non_finite` is `stop`, or
                its other way did not help.
        """
        memory.reset_peak(self.device)
        if self.rolls_back and self.done.step == 0:
            self.save(checkpoint.ROLL_BACK)
        while True:
            try:
                with self.journal.open(self.done) as progress:
                    self._steps(progress)
                return
            except Diverged as error:
                self._roll_back(error)

    def _steps(self, progress: Progress) -> None:
        eval_every = self.settings.eval_every or self.per_epoch
        save_every = self.machine.checkpoint_every or eval_every
        stream = self._stream()
        while self.done.step < self.total:
            begun = time.perf_counter()
            micro_batches = [to_device(part, self.device) for part in next(stream)]
            ready = time.perf_counter()
            step = self.task.step = self.done.step
            self._set_rates(step)
            seed_everything(derive(self.draws, "step", step, parallel.rank()))
            for module in self.task.modules.values():
                if not module.training:
                    module.train()
            try:
                values = self.updater.apply(self.task, micro_batches)
                if self.average is not None:
                    self.average.update_parameters(self.task.modules["model"])
            except faults.NonFinite as fault:
                self._skip(step + 1, fault)
                values = {}
            self.done.step += 1
            self._log_step(values, progress)
            self.done.waited += ready - begun
            self.done.seconds += time.perf_counter() - begun
            clear = {"never": 0, "epoch": self.per_epoch, "step": 1}[self.machine.clear_cache]
            if clear and self.done.step % clear == 0:
                memory.clear_cache(self.device)
            last = self.done.step == self.total
            if self.done.step % eval_every == 0 or last:
                if self.validates:
                    self._validate(progress)
                if self.rolls_back:
                    self.save(checkpoint.ROLL_BACK)
            stopping = parallel.any_true(bool(self.stop()))
            if self.done.step % save_every == 0 or last or stopping:
                self.save("last.pt")
            if self.machine.keep_every and self.done.step % self.machine.keep_every == 0:
                self.save(f"step-{self.done.step}.pt")
            if stopping:
                raise Interrupted(f"stopped after step {self.done.step} of {self.total}")

    @property
    def draws(self) -> int:
        """The seed of the order of samples and of the steps' draws: the run's, another one each time it has gone back."""
        tries = len(self.done.rolled_back)
        return derive(self.seed, "roll-back", tries) if tries else self.seed

    def _stream(self) -> Iterator[list[Any]]:
        return batches(
            self.data,
            self._sampler(self.done.step, self.total, parallel.rank(), parallel.world()),
            self.task.collate,
            parts=self.settings.accumulate,
            workers=self.machine.workers,
            pin=self.device.type == "cuda",
        )

    def _sampler(self, first: int, last: int, rank: int, world: int) -> StepSampler:
        samples = len(self.data)  # type: ignore[arg-type]
        size, parts = self.settings.batch_size, self.settings.accumulate
        return StepSampler(samples, size, self.draws, first, last, rank, world, parts)

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
        """Of the step just done; without values it was left out."""
        if values:
            self._pending.append((self.done.step, values))
        if self.done.step % self.machine.log_every and self.done.step != self.total:
            return
        latest = self._collect()
        if self.done.window:
            rate = next(iter(self.task.optimizers.values())).param_groups[0]["lr"]
            mean = sum(self.done.window) / len(self.done.window)
            told = {**(latest if values else {}), "loss": mean, "lr": rate}
            self.journal.record(self.done.step, "train", None, told)
            progress.advance(self.done.step, mean, rate)
            self.done.window.clear()

    def _collect(self) -> dict[str, float]:
        """Fetch the values of the steps since the last call, all at once: no step waits for the device by itself.

        Returns:
            the values of the latest step, by name (empty if there was none).
        """
        if not self._pending:
            return {}
        flat = torch.stack([v.detach().float() for _, values in self._pending for v in values.values()])
        numbers, pending = iter(parallel.mean(flat).tolist()), self._pending
        self._pending = []
        latest: dict[str, float] = {}
        for step, values in pending:
            latest = {name: next(numbers) for name in values}
            for name, value in latest.items():
                skipped = name == GRADIENT_NORM and self.updater.scaler.is_enabled()
                if not math.isfinite(value) and not skipped:
                    raise self._diverged(f"the {name} is {value}", step, latest)
            self.done.window.append(latest["loss"])
            self.done.health.hear(latest["loss"])
        return latest

    def _check_finite(self) -> None:
        """Raise Diverged for a loss of the steps so far, or a weight, that is no finite number.

        A gradient that is not finite leaves such a weight, also where the loss of its step was in order.
        """
        latest = self._collect()
        for module in self.task.modules.values():
            if not get_total_norm(module.parameters(), norm_type=math.inf).isfinite():
                name = next(n for n, p in module.named_parameters() if not p.isfinite().all())
                raise self._diverged(f"the weight {name} is not finite after", self.done.step, latest)

    # Faults -------------------------------------------------------------------------------------------------------

    def _diverged(self, what: str, step: int, values: dict[str, float]) -> Diverged:
        """The error, once it is written down what had part in that step."""
        place = f"{what} step {step}" if what.endswith("after") else f"{what} at step {step}"
        samples, file = self._keep_fault(place, step, values)
        return Diverged(f"{place} (seed {self.seed}; samples {faults.told(samples)}{file})")

    def _keep_fault(self, what: str, step: int, values: dict[str, float]) -> tuple[list[dict[str, Any]], str]:
        """The samples of a step, and in how many words the file of the fault is named."""
        samples = faults.named(self.data, next(iter(self._sampler(step - 1, step, 0, 1))))
        if self.run is None:
            return samples, ""
        tries = len(self.done.rolled_back)
        fault = {
            "what": what,
            "step": step,
            "epoch": (step - 1) / self.per_epoch,
            "non_finite": self.settings.non_finite,
            "seed": self.seed,
            "tries": tries + 1,
            "rates": {n: [group["lr"] for group in o.param_groups] for n, o in self.task.optimizers.items()},
            "values": values,
            "samples": samples,
            "checkpoint": self._saved,
        }
        return samples, f"; {faults.keep(self.run, step, tries, fault)}"

    def _skip(self, step: int, fault: faults.NonFinite) -> None:
        self.done.skipped.append(step)
        samples, file = self._keep_fault(str(fault), step, {})
        told = f"{fault} (samples {faults.told(samples)}{file})"
        self.done.health.add(faults.skipped(self.done.skipped, told), step)
        in_a_row = self.done.skipped[-faults.MOST_SKIPPED :]
        if len(in_a_row) == faults.MOST_SKIPPED == step - in_a_row[0] + 1:
            raise Diverged(f"{faults.MOST_SKIPPED} steps in a row were left out; at step {step} {told}")

    def _roll_back(self, error: Diverged) -> None:
        """Go back to the last validation, to go on from there with other draws; where that is no help raise the error."""
        tries = [*self.done.rolled_back, self.done.step]
        if not self.rolls_back or self.run is None or len(tries) > faults.MOST_ROLLED_BACK:
            raise error
        self._pending = []
        self.restore(checkpoint.load(self.run.checkpoints / checkpoint.ROLL_BACK, self.device))
        self.done.rolled_back = tries
        self.done.health.add(faults.rolled_back(tries, self.done.step, str(error)), self.done.step)

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
        self.journal.record(self.done.step, "val", result.protocol, result.scores)
        self._examine(result)
        self.journal.pictures(self.task, result, self.done.step)
        progress.validated(self.done.step, result.scores.get(self.task.select), self.done.best, self.task)
        self.done.seconds += time.perf_counter() - begun
        self.journal.report(self.done)

    def _examine(self, result: Evaluation) -> None:
        trained = None
        if self.training_samples is not None:
            scores = self.evaluate("train", result.protocol, [], self.training_samples).scores
            trained = scores.get(self.task.select)
            self.journal.record(self.done.step, "train-samples", result.protocol, {self.task.select: trained})
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
        if name == "last.pt":
            self._saved = self.done.step
        if name.startswith("step-") and self.machine.keep_last is not None:
            for old in checkpoint.kept(self.run.checkpoints)[self.machine.keep_last :]:
                old.unlink()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint of this run."""
        for name, module in self.task.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.task.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.schedule.load_state_dict(state["schedule"])
        self.updater.scaler.load_state_dict(state["scaler"])
        self.done = Progressed.restored(state["progress"])
        self._saved = self.done.step
