"""Peak memory of one run, also when several runs follow each other in one process."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def reset_peak(device: torch.device) -> None:
    """Forget earlier peaks (on the CPU where Linux lets us)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def clear_cache(device: torch.device) -> None:
    """Give memory that torch keeps for later back to the GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_mb(device: torch.device) -> float:
    """Most memory in use since `reset_peak`, in MB: allocated on the GPU, or resident in the process on the CPU.

    Where the system keeps no peak that can be reset, it is the process's own since its start (0 on Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
