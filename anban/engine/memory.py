"""Peak memory of one run, also when several runs follow each other in one process."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")

_UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_AMOUNT = r"([\d.]+) ?(bytes|[KMGTP]?i?B)"


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


def asked_for(refusal: str) -> float | None:
    """The bytes that an allocation asked for, as the message of its refusal says."""
    return _bytes(rf"(?:tried|unable) to allocate {_AMOUNT}", refusal)


def samples_that_fit(refusal: str, samples: int, fixed: float) -> int | None:
    """How many samples at once a GPU may hold, by what it said when it could not hold `samples`; at most so many.

    The step that was refused was not over, so a sample needs at least what it had taken by then.

    Args:
        refusal: the message of torch.OutOfMemoryError.
        samples: forwarded at once; all of them need the same.
        fixed: bytes of weights, gradients and optimiser states, which do not depend on the samples.

    Returns:
        the number, 0 to samples - 1; None where the message does not say how the memory is used.
    """
    allocated = _bytes(rf"{_AMOUNT} is allocated by PyTorch", refusal)
    reserved = _bytes(rf"{_AMOUNT} is reserved by PyTorch but unallocated", refusal)
    free = _bytes(rf"of which {_AMOUNT} is free", refusal)
    asked = asked_for(refusal)
    if allocated is None or reserved is None or free is None or asked is None:
        return None
    each = max(1.0, (allocated + asked - fixed) / samples)
    return max(0, min(samples - 1, int((allocated + reserved + free - fixed) / each)))


def _bytes(pattern: str, text: str) -> float | None:
    found = re.search(pattern, text, re.IGNORECASE)
    return float(found[1]) * _UNITS.get(found[2], 1) if found else None
