"""Writing generated data sets: a folder is there complete or not at all, and is written once."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from anban.errors import InputError

NOTE = "demo.json"
_FORMAT = "anban-demo/1"
_ENDINGS = (".png", ".json")

Job = TypeVar("Job")


def write_generated(
    root: Path,
    made_from: dict[str, Any],
    folders: Sequence[str],
    jobs: Sequence[Job],
    files: Callable[[Job], Sequence[str]],
    write: Callable[[Job, Sequence[Path]], None],
) -> Path:
    """Write pictures (PNG) and annotations (JSON) below `root`, and `root/demo.json` with what they were made from.

    If the folder is there already, made from the same and with every picture, nothing is written; made from
    something else (or with pictures missing) it is replaced, as long as it holds nothing but such files.

    Args:
        root: the folder to write; its parents are made.
        made_from: whatever the pictures depend on, as JSON can hold it.
        folders: all folders that may hold such files, relative to `root`; those of them that stay empty are made, too.
        jobs: what to write, in a few threads.
        files: the files of a job, relative to `root`.
        write: writes the files of a job to these paths.

    Returns:
        `root`.

    Raises:
        InputError: `root` is a file, or a folder with anything else in it.
    """
    # Through JSON and back, so that tuples compare as the lists they are read as.
    note = json.loads(json.dumps({"format": _FORMAT, **made_from}))
    wanted = {name for job in jobs for name in files(job)}
    if _read_note(root, folders) == note and _files(root) == wanted:
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the final rename stays on one file system.
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        new = work / "new"
        for folder in folders:
            (new / folder).mkdir(parents=True)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda job: write(job, [new / name for name in files(job)]), jobs))
        (new / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        if root.exists():
            root.rename(work / "old")
        new.rename(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root


def _files(root: Path) -> set[str]:
    """Every file below `root` but its note, as "train/A/name"."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()} - {NOTE}


def _read_note(root: Path, folders: Sequence[str]) -> Any:
    """What the note says; None where there is nothing yet. InputError if `root` is not ours to replace."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None

    def refuse(what: str) -> InputError:
        return InputError(
            what,
            where=root,
            expected="no folder, an empty one, or one that holds only demo data written before",
            do="name another folder, or move this one away",
        )

    if not root.is_dir():
        raise refuse("The place for the demo data is a file")
    try:
        note = json.loads((root / NOTE).read_text(encoding="utf-8"))
        ours = str(note["format"]).startswith("anban-demo/")
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise refuse("The folder for the demo data holds something else")
    strange = sorted(
        name for name in _files(root) if name.rpartition("/")[0] not in folders or not name.endswith(_ENDINGS)
    )
    if strange:
        raise refuse(f"The folder for the demo data also holds {strange[0]}")
    return note
