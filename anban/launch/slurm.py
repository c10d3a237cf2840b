"""A study on SLURM: one array of jobs, a run each, and one job after them that writes the report.

The run folders are made first, so that a job needs nothing but its folder; submitit writes the scripts and submits.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anban.errors import InputError
from anban.launch.jobs import RunJob, report_job
from anban.recipe.schema import unknown
from anban.record import RunFolder
from anban.study.study import refresh_study

try:
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError
except ImportError:
    raise InputError(
        "submitit is not installed.", where="--launcher slurm", do="pip install anban[slurm]"
    ) from None

WHERE = "--slurm"
REPORT_MINUTES = 60  # the report's job is given no more, however long the runs may take


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"'{text}' is no number of at least 1.", where=WHERE)
    return int(text)


def minutes(text: str) -> int:
    """A time as sbatch takes it (minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s) in minutes, rounded up."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise InputError(f"'{text}' is no time.", where=f"{WHERE} time",
                         expected="minutes, hours:minutes:seconds or days-hours:minutes:seconds")  # fmt: skip
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not days and len(parts) < 3:
        parts.insert(0, 0)
    hours, of_hour, seconds = [*parts, 0, 0][:3]
    return math.ceil((int(days or 0) * 24 + hours) * 60 + of_hour + seconds / 60)


#: Our words -> submitit's parameter, and how the value is read.
OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "time": ("time", minutes),
    "partition": ("partition", str),
    "account": ("account", str),
    "mem": ("mem", str),
    "cpus": ("cpus_per_task", _count),
    "gpus": ("gpus_per_node", str),
    "parallel": ("array_parallelism", _count),  # runs at a time
    "grace": ("signal_delay_s", _count),  # seconds between the signal and the time limit
}
#: Options of sbatch that are handed on as they are.
SBATCH = (
    "begin",
    "comment",
    "constraint",
    "exclude",
    "gres",
    "licenses",
    "mail-type",
    "mail-user",
    "mem-per-cpu",
    "nice",
    "nodelist",
    "qos",
    "reservation",
    "wckey",
)
# What the job of the report does not need.
OF_RUNS = ("gpus_per_node", "array_parallelism", "cpus_per_task", "srun_args", "mem", "mem-per-cpu", "gres")


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as parameters of a submitit executor.

    Raises:
        InputError: an unknown key, one given twice, a value that is none, or no time: SLURM ends what has none when it
            likes, and submitit after five minutes.
    """
    parameters: dict[str, Any] = {"additional_parameters": {"requeue": True}}
    seen: set[str] = set()
    for word in given:
        key, sign, value = word.partition("=")
        if key not in OPTIONS and key not in SBATCH:
            raise unknown("option of a job", key, [*OPTIONS, *SBATCH], WHERE)
        if not sign or not value or key in seen:
            raise InputError(f"Found '{word}'.", where=WHERE, expected="key=value, each key once")
        seen.add(key)
        if key in OPTIONS:
            name, read = OPTIONS[key]
            parameters[name] = read(value)
        else:
            parameters["additional_parameters"][key] = value
    if "time" not in parameters:
        raise InputError("A job needs a time limit.", where=WHERE, expected="time, e.g. --slurm time=12:00:00",
                         do="give what one run needs, or less: it goes on in the queue where it stopped")  # fmt: skip
    if "cpus_per_task" in parameters:  # srun does not take it from the script since SLURM 22.05
        parameters["srun_args"] = [f"--cpus-per-task={parameters['cpus_per_task']}"]
    return parameters


def in_queue() -> set[str]:
    """Numbers of this user's jobs that wait or run; elements of arrays as `<array>_<element>`."""
    if shutil.which("squeue") is None:
        return set()
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    return set(subprocess.run(command, capture_output=True, text=True, check=False).stdout.split())


def is_waited_for(run: RunFolder, queue: set[str]) -> bool:
    """Whether a job in the queue, or a process of its own, will carry this run on."""
    job = run.info.get("job")
    return run.state == "running" if job is None else job in queue


def submit(
    study: Path, runs: Sequence[RunFolder], parameters: Mapping[str, Any], *, device: str | None = None
) -> tuple[str, str]:
    """Submit the runs of a study as one array, and the job that reports on them.

    The array is held until every folder names its job and the report's job waits for it.

    Returns:
        the numbers of the array and of the report's job.

    Raises:
        InputError: there is no SLURM here, or it refuses; no job is left behind, and the runs are as before.
    """
    if shutil.which("sbatch") is None:
        raise InputError("There is no SLURM here: sbatch is not found.", where="--launcher slurm",
                         do="submit on a cluster's login node; --print shows the script")  # fmt: skip
    array = ""
    try:
        jobs = _executor(study, parameters, hold=True).map_array(
            RunJob(device), [str(run.path.resolve()) for run in runs]
        )
        array = jobs[0].job_id.partition("_")[0]
        after = _executor(study, _of_report(parameters), dependency=f"afterany:{array}")
        report = after.submit(report_job, str(study.resolve()))
    except (FailedJobError, FailedSubmissionError) as error:
        if array:
            subprocess.run(["scancel", array], check=False)
        raise InputError(f"SLURM did not take the job: {error}".strip(), where=WHERE) from error
    for run, job in zip(runs, jobs, strict=True):
        run.update(state="queued", why=None, ended=None, job=job.job_id)
    refresh_study(study)
    subprocess.run(["scontrol", "release", array], check=True)
    return array, str(report.job_id)


def script(
    study: Path, runs: Sequence[RunFolder], parameters: Mapping[str, Any], *, device: str | None = None
) -> str:
    """A shell script that submits the same two jobs without submitit: for `| bash`, or to be looked at and changed."""
    python = f"{shlex.quote(sys.executable)} -u -m anban.launch.jobs"
    folders = [f"  {shlex.quote(str(run.path.resolve()))}" for run in runs]
    array = _executor(study, {**parameters, "setup": ["runs=(", *folders, ")"]})
    array.parameters["map_count"] = len(runs)
    do_run = f'{python} run "${{runs[$SLURM_ARRAY_TASK_ID]}}" {device or ""}'.strip()
    after = _executor(study, _of_report(parameters))
    do_report = f"{python} report {shlex.quote(str(study.resolve()))}"
    return "\n".join(
        (
            "#!/bin/bash",
            f"# {len(runs)} runs, and their report when all have ended",
            "set -e",
            f"mkdir -p {shlex.quote(str(_folder(study)))}",
            "array=$(sbatch --parsable <<'END'",
            array._make_submission_file_text(do_run, ""),
            "END",
            ")",
            'echo "$array"',
            "sbatch --parsable --dependency=afterany:${array%%;*} <<'END'",
            after._make_submission_file_text(do_report, ""),
            "END",
        )
    )


class _Executor(submitit.SlurmExecutor):
    """submitit's own, which also writes scripts where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def _folder(study: Path) -> Path:
    """Where the jobs' scripts and logs go; SLURM ends a job whose log has no folder."""
    return study.resolve().parent / "slurm"


def _executor(
    study: Path, parameters: Mapping[str, Any], *, hold: bool = False, **more: Any
) -> submitit.SlurmExecutor:
    # A run that is always stopped by its time limit still comes to its end: it is never too often.
    executor = _Executor(_folder(study), max_num_timeout=sys.maxsize)
    passed_on = {**parameters["additional_parameters"], **({"hold": True} if hold else {})}
    executor.update_parameters(
        job_name=study.parent.name, **{**parameters, **more, "additional_parameters": passed_on}
    )
    return executor


def _of_report(parameters: Mapping[str, Any]) -> dict[str, Any]:
    kept, passed_on = (
        {key: value for key, value in given.items() if key not in OF_RUNS}
        for given in (parameters, parameters["additional_parameters"])
    )
    # It has nothing to save, so it is not told of its limit before the last second.
    own = {"time": min(parameters["time"], REPORT_MINUTES), "signal_delay_s": 1}
    return {**kept, "additional_parameters": passed_on, **own}
