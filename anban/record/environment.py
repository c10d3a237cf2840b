"""What a run was made with: interpreter, packages, machine, and the commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# Those whose version can change a number or a file; the lock file has the rest.
PACKAGES = (
    "anban",
    "torch",
    "torchvision",
    "timm",
    "torchmetrics",
    "numpy",
    "scipy",
    "pillow",
    "tifffile",
    "opencv-python-headless",
    "omegaconf",
    "triton",
    "llvmlite",
)


def environment() -> dict[str, Any]:
    """Python, platform, processors, package versions and, where torch already uses one, the GPU.

    Environment variables are left out on purpose: they hold tokens and keys. Torch is not imported, so that the
    tools that only read records stay quick.
    """
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "torch": versions["torch"],
        "platform": platform.platform(),
        "cpu": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": _gpu(),
        "packages": {name: version for name, version in versions.items() if version is not None},
    }


def commit(path: Path | str | None = None) -> str | None:
    """The git commit of the code in folder `path` (default: this package), with `+dirty` if that folder is changed.

    New files count as a change. None when the folder is not kept in git (a package installed into an ignored
    environment inside somebody's repository included), when nothing is committed yet, or without git.
    """
    folder = Path(path) if path is not None else Path(__file__).resolve().parents[1]
    if _git(folder, "check-ignore", "--quiet", ".") is not None:
        return None
    status = _git(folder, "status", "--porcelain=v2", "--branch", "--", ".")
    if status is None:
        return None
    lines = status.splitlines()
    head = next((line.split()[2] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    if head == "(initial)":
        return None
    return head + ("+dirty" if any(not line.startswith("#") for line in lines) else "")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_available():
            return None
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return {"names": names, "cuda": torch.version.cuda}
    except (RuntimeError, AttributeError):  # a driver in trouble, or torch half imported, must not stop a run
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None when it fails or is not there."""
    # Inside a git hook these variables would point git at the hook's repository.
    variables = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    variables["GIT_OPTIONAL_LOCKS"] = "0"  # looking must not disturb a git command of the user's
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
