"""What a loop writes down while it trains: metrics.jsonl, TensorBoard, and where it stands in run.json."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from anban.engine import memory
from anban.engine.evaluate import Evaluation
from anban.engine.progress import Progress
from anban.engine.state import Progressed
from anban.record import RunFolder
from anban.tasks.contract import Task


class Journal:
    """The writing of one loop; without a run folder (in all processes but the first) it writes nothing.

    Args:
        total, per_epoch: steps of the run and of an epoch.
    """

    def __init__(self, run: RunFolder | None, total: int, per_epoch: int, device: torch.device):
        self.run, self.total, self.per_epoch, self.device = run, total, per_epoch, device
        self.board: Any = None

    @contextlib.contextmanager
    def open(self, done: Progressed) -> Iterator[Progress]:
        """Write from step `done.step` on; what TensorBoard has of later steps is repeated and vanishes."""
        if self.run is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.run.path), purge_step=done.step + 1 if done.step else None)
            self.report(done)  # how long it is to be; the next report comes with a validation
        try:
            with Progress(self.total, done.step, shown=self.run is not None) as progress:
                yield progress
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk must not hide what went wrong
                self._close(done)
            raise
        self._close(done)

    def _close(self, done: Progressed) -> None:
        if self.board is not None:
            self.board.close()
        self.report(done)

    def record(self, step: int, split: str, protocol: str | None, values: Mapping[str, float | None]) -> None:
        """Append values to metrics.jsonl and TensorBoard."""
        if self.run is None:
            return
        self.run.log_metrics(step, round(step / self.per_epoch, 6), split, protocol, values)
        for name, value in values.items():
            if value is not None and self.board is not None:
                self.board.add_scalar(f"{split}/{name}", value, step)

    def pictures(self, task: Task, result: Evaluation, step: int) -> None:
        """Show the samples of an evaluation in TensorBoard."""
        if self.board is None:
            return
        for index, prediction in result.shown:
            picture = task.picture(result.split, index, prediction)
            if picture is not None:
                self.board.add_image(f"{result.split}/{index}", picture, step, dataformats="HWC")

    def report(self, done: Progressed) -> None:
        """Bring run.json up to date."""
        if self.run is None:
            return
        steps = max(1, done.step)
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
