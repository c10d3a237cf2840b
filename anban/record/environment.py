"""What a run was made with: interpreter, packages, machine, and the commit of the code."""

from __future__ import annotations

import io
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

#: The largest patch that a run keeps.
PATCH_BYTES = 1_000_000


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


def patch(path: Path | str | None = None) -> str:
    """What `commit` calls dirty, as a patch that `git apply` takes at that commit; new text files included.

    Empty where nothing is changed or the folder is not kept in git. More than PATCH_BYTES are named, not kept.
    """
    folder = Path(path) if path is not None else Path(__file__).resolve().parents[1]
    if commit(folder) is None:
        return ""
    changed = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--binary", "--", ".") or ""
    new = (_git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--", ".") or "").split("\0")
    inside = (_git(folder, "rev-parse", "--show-prefix") or "").strip()
    text = changed + "".join(_added(folder / name, inside + name) for name in new if name)
    if len(text.encode()) <= PATCH_BYTES:
        return text
    names = (_git(folder, "diff", "HEAD", "--stat", "--no-color", "--", ".") or "").splitlines()
    return "".join(
        f"# {line}\n" for line in ["too large to be kept; changed and new files:", *names, *filter(None, new)]
    )


def _added(file: Path, name: str) -> str:
    """A new file as git would show it; nothing for one that is no text."""
    try:
        lines = list(io.StringIO(file.read_bytes().decode(), newline="\n")) if file.is_file() else []
    except (OSError, UnicodeDecodeError):
        return ""
    if not lines:
        return ""
    end = "" if lines[-1].endswith("\n") else "\n\\ No newline at end of file\n"
    head = f"diff --git a/{name} b/{name}\nnew file mode 100644\n--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n"
    return head + "".join(f"+{line}" for line in lines) + end


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
