"""Walking a tree as a stream: files with what tells whether they have changed, and what lies in each folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple


class File(NamedTuple):
    """A regular file.

    Attributes:
        path: below the root, as the file system has it, with `/`.
        size, mtime, inode: bytes, nanoseconds, number: the same three mean the same content.
    """

    path: bytes
    size: int
    mtime: int
    inode: int


class Folder(NamedTuple):
    """A folder; it comes after all that is below it.

    Attributes:
        path: below the root; empty for the root.
        entries: how many things lie directly in it; -1 where it cannot be listed.
    """

    path: bytes
    entries: int


def walk(root: bytes) -> Iterator[File | Folder]:
    """All files and folders below `root`, those of a folder in the order of their names.

    Symbolic links are not followed, and nothing but regular files is ever opened. Whatever vanishes meanwhile is left out.
    """
    yield from _walk(root, b"")


def _walk(root: bytes, below: bytes) -> Iterator[File | Folder]:
    # A stack of its own: Python's would end at trees a thousand folders deep.
    stack = [(below, _listed(os.path.join(root, below)))]
    sizes = [len(stack[0][1] or ()) if stack[0][1] is not None else -1]
    while stack:
        path, entries = stack[-1]
        if not entries:
            stack.pop()
            yield Folder(path, sizes.pop())
            continue
        entry = entries.pop()
        name = os.path.join(path, entry.name)
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode):
            inner = _listed(entry.path)
            stack.append((name, inner))
            sizes.append(-1 if inner is None else len(inner))
        elif stat.S_ISREG(status.st_mode):
            yield File(name, status.st_size, status.st_mtime_ns, status.st_ino)


def _listed(folder: bytes) -> list[os.DirEntry[bytes]] | None:
    """The entries, last name first; None where they cannot be listed."""
    try:
        with os.scandir(folder) as listing:
            return sorted(listing, key=lambda entry: entry.name, reverse=True)
    except OSError:
        return None
