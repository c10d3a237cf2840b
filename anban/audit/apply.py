"""Acting on an audit: a list of what is fit, a folder of links to it, or the unfit moved aside. Nothing is ever deleted.

Before a file is moved or a link made, the undo file says so; `undo` takes everything in it back, however far it went.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from anban.audit import telling
from anban.audit.index import Index, Known
from anban.audit.run import INDEX
from anban.audit.walk import File
from anban.errors import InputError
from anban.record.files import append, to_json

Way = Literal["list", "move", "link"]


def apply(way: Way, root: Path, out: Path, limits: telling.Limits) -> dict[str, Any]:
    """Make the clean subset of an audited tree.

    * `list` writes `out`/clean.txt, the paths of all fit files below the root, one a line.
    * `link` makes `out`/clean, a tree of symbolic links to them.
    * `move` moves every unfit file to `out`/unfit/<problem>/<its path>, by its first problem that keeps it out. Empty
      folders stay where they are.

    Args:
        root, out: of an audit that has run.
        limits: what makes a file unfit.

    Returns:
        `way`, `done` (files), `skipped` (path -> why: it has changed since the audit, or the place is taken), and `undo`,
        the file for `undo` (None for a list).

    Raises:
        InputError: there is no audit in `out`, or `move` would have to copy to another file system.
    """
    if not (out / INDEX).is_file():
        raise InputError("There is no audit there.", where=out, do="run anban audit DIR --out DIR first")
    root, out = root.resolve(), out.resolve()
    if way == "move" and os.stat(root).st_dev != os.stat(out).st_dev:
        raise InputError("Moving there would be copying and deleting: it is another file system.", where=out,
                         expected="an output folder on the file system of the tree", do="--apply link")  # fmt: skip
    try:
        with FileLock(out / ".lock", timeout=0), closing(Index(out / INDEX, os.fsencode(root), "")) as index:
            if way == "list":
                return _list(index, out, limits)
            return _carry(way, root, out, index, limits)
    except Timeout:
        raise InputError("An audit is writing there.", where=out, do="wait for its end") from None


def _list(index: Index, out: Path, limits: telling.Limits) -> dict[str, Any]:
    done = 0
    with open(out / "clean.txt", "wb") as file:
        for known in index.files():
            if telling.is_fit(known, limits):
                file.write(known.path + b"\n")
                done += 1
    return {"way": "list", "done": done, "skipped": {}, "undo": None}


def _carry(way: Way, root: Path, out: Path, index: Index, limits: telling.Limits) -> dict[str, Any]:
    log = out / f"undo-{datetime.now():%Y%m%d-%H%M%S-%f}.jsonl"
    append(log, (to_json({"way": way, "root": str(root), "out": str(out)}) + "\n").encode())
    done, skipped = 0, {}
    for known, target in _targets(way, index, out, limits):
        source = root / known.name
        why = _unready(index, known, source, target)
        if why:
            skipped[known.name] = why
            continue
        append(log, (json.dumps({"from": os.fspath(source), "to": os.fspath(target)}) + "\n").encode())
        target.parent.mkdir(parents=True, exist_ok=True)
        if way == "link":
            target.symlink_to(source)
        else:
            source.rename(target)
        done += 1
    return {"way": way, "done": done, "skipped": skipped, "undo": str(log)}


def _targets(way: Way, index: Index, out: Path, limits: telling.Limits) -> Iterator[tuple[Known, Path]]:
    """The files to act on, and where they go."""
    for known in index.files():
        if way == "link" and telling.is_fit(known, limits):
            yield known, out / "clean" / known.name
        elif way == "move" and not telling.is_fit(known, limits):
            against = [each.problem for each in known.findings if limits.condemns(each.problem)]
            yield known, out / "unfit" / (against[0] if against else "no_picture") / known.name


def _unready(index: Index, known: Known, source: Path, target: Path) -> str:
    """Why a file cannot be acted on; empty if it can."""
    try:
        status = os.lstat(source)
    except OSError as error:
        return str(error.strerror)
    if File(known.path, status.st_size, status.st_mtime_ns, status.st_ino) != index.stored(known.path):
        return "it has changed since the audit"
    return "the place is taken" if os.path.lexists(target) else ""


def undo(log: Path) -> dict[str, Any]:
    """Take back what an undo file says was done: files go back to their places, links go.

    Nothing is overwritten: where something else stands at the old place by now, the file stays where it is.

    Returns:
        `done` (files), `skipped` (path -> why).

    Raises:
        InputError: the file is no undo file.
    """
    try:
        lines = [
            json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")
        ]
        way = lines[0]["way"]
        steps = [(Path(step["from"]), Path(step["to"])) for step in lines[1:]]
    except (OSError, UnicodeDecodeError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"This is no undo file: {error!r}.", where=log,
                         expected="an undo-*.jsonl that --apply has written") from None  # fmt: skip
    done, skipped = 0, {}
    for source, target in reversed(steps):
        if not os.path.lexists(target):
            continue  # the step was written down and never taken, or is undone
        if way == "link" and target.is_symlink() and target.readlink() == source:
            target.unlink()
        elif way == "move" and not os.path.lexists(source):
            source.parent.mkdir(parents=True, exist_ok=True)
            target.rename(source)
        else:
            skipped[os.fspath(target)] = "something else stands in its place"
            continue
        done += 1
    return {"done": done, "skipped": skipped}
