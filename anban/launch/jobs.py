"""What the jobs of a study do on a cluster: go on with one run, and when all have ended write the report.

A job finds everything in folders: the run's own, and the study's. `python -m anban.launch.jobs run FOLDER` and
`... report STUDY_JSON` do the same from a script.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from anban.engine.stop import Interrupted, stop_signal
from anban.record import RunFolder
from anban.record.process import job


@dataclass(frozen=True)
class RunJob:
    """Begins the run written down in a folder, or goes on with it; asked to stop, it goes back into the queue.

    Attributes:
        device: `cpu` or `cuda`; None takes a GPU if there is one.
    """

    device: str | None = None

    def __call__(self, folder: str) -> None:
        """Carry the run to its end.

        Raises:
            SystemExit: with 130 after a signal; everything up to the last step is in the run's checkpoint.
            Exception: whatever ended the run.
        """
        try:
            with stop_signal() as stop:  # from here on: to import torch takes a while
                self._go_on(Path(folder), stop)
        except Interrupted:
            _queue_again(RunFolder.open(folder))
            sys.exit(130)

    def _go_on(self, path: Path, stop: Callable[[], bool]) -> None:
        from anban.engine.progress import Console
        from anban.engine.run import execute, open_run

        Console.to(sys.stderr)
        if RunFolder.open(path).state == "finished":
            logger.info(f"{path} is finished")
            return
        run, recipe = open_run(path, [])
        if stop():
            raise Interrupted("stopped before it went on")
        execute(recipe, run.out or path.parent, device=self.device, resume=run)

    def checkpoint(self, folder: str) -> Any:
        """What submitit puts into the queue again after a signal outside of `__call__`: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, folder)


def _queue_again(run: RunFolder) -> None:
    """Put this job back into the queue, unless somebody else has decided about it: a user who cancelled it, or SLURM."""
    number = job()
    if number is None:
        return
    asked = ["squeue", "--noheader", f"--jobs={number}", "--format=%T"]
    if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() != "RUNNING":
        return
    run.update(state="queued", why=None, ended=None)
    subprocess.run(["scontrol", "requeue", number], check=True)


def report_job(study: str) -> None:
    """Bring study.json up to date with its runs and write the report beside it."""
    from anban.report import write_report
    from anban.study.study import refresh_study

    file = Path(study)
    refresh_study(file)
    logger.info(f"report {write_report(file, file.parent / 'report')}")


if __name__ == "__main__":
    what, path, *device = sys.argv[1:]
    if what == "run":
        RunJob(*device)(path)
    else:
        report_job(path)
