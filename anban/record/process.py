"""Which process writes a run, and whether it still lives."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Any


def identity() -> dict[str, Any]:
    """Of this process: `host`, `pid`, `process` (a mark that a later one with the same pid does not have) and `job`."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "process": _mark(os.getpid()), "job": job()}


def job() -> str | None:
    """SLURM's number of the job that this process belongs to; an element of an array is `<array>_<element>`."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def shown_state(state: str, host: Any, pid: Any, process: Any) -> str:
    """The state to show: a run stored as 'running' whose process is gone from this host is 'lost'.

    On another host, or where the system cannot tell, the stored state is shown.
    """
    if state != "running" or host != socket.gethostname() or not isinstance(pid, int) or pid < 1:
        return state
    mark = _mark(pid)
    reused = bool(mark) and bool(process) and mark != process
    return "lost" if mark is None or reused else state


def _mark(pid: int) -> str | None:
    """Boot and start time of process `pid`; '' when it lives but these are unknown; None when there is none."""
    if os.name != "posix":  # there, os.kill would end the process instead of asking after it
        return ""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:  # it lives and is somebody else's
        pass
    try:
        # The command name, in brackets, may hold spaces and brackets itself: read from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        state, start = fields[0], fields[19]
    except (OSError, IndexError):
        return ""
    return None if state in "ZX" else f"{_boot()}:{start}"


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return ""
