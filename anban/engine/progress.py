"""What a run tells while it works: a bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from loguru import logger

from anban.tasks.contract import Task

LINE = "{time:HH:mm:ss} {level: <7} {message}"


class Console:
    """Send the log to stderr as short lines (through Rich where a bar is shown)."""

    _sink: int | None = None

    @classmethod
    def to(cls, write: Any, *, colour: bool = False, level: str = "INFO") -> None:
        if cls._sink is None:
            logger.remove()  # loguru's own default sink, or an earlier one of ours
        else:
            logger.remove(cls._sink)
        cls._sink = logger.add(write, format=LINE, level=level, colorize=colour)


class Progress:
    """Training progress; `shown=False` (other processes) says nothing."""

    def __init__(self, total: int, start: int, *, shown: bool):
        self.total, self.start, self.shown = total, start, shown
        self.bar: Any = None
        self.every = max(1, total // 20)

    def __enter__(self) -> Progress:
        if self.shown and sys.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            console = RichConsole(stderr=True)
            columns = ("[bold]train", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, TextColumn("{task.fields[text]}"), console=console, transient=True)
            self.bar.start()
            self.job = self.bar.add_task("train", total=self.total, completed=self.start, text="")
            Console.to(lambda message: console.print(message, end="", markup=False, highlight=False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
            Console.to(sys.stderr)

    def advance(self, step: int, loss: float, rate: float) -> None:
        text = f"loss {loss:.4f}  lr {rate:.2e}"
        if self.bar is not None:
            self.bar.update(self.job, completed=step, text=text)
        elif self.shown and (step // self.every > (step - 1) // self.every or step == self.total):
            logger.info(f"step {step}/{self.total}  {text}")

    def validated(self, step: int, score: float | None, best: dict[str, Any] | None, task: Task) -> None:
        if self.shown:
            told = "undefined" if score is None else f"{task.scale * score:.2f}"
            top = f"  best {task.scale * best['value']:.2f} at step {best['step']}" if best else ""
            logger.info(f"step {step}/{self.total}  val {task.select} {told}{top}")
