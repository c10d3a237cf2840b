"""The index of an audit: one SQLite file with what is known of every file, so that nothing is looked at twice.

A chunk of files is one transaction: after a kill the next pass goes on with the files that are not in it, and a pass over
a tree that has changed looks only at what is new. Everything that is told in the end is read from here, sorted by path.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anban.audit import folders
from anban.audit.finding import Finding
from anban.audit.look import Seen
from anban.audit.walk import File, Folder
from anban.errors import InputError
from anban.record.files import to_json

FORMAT = "anban-audit/1"

_TABLES = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS files (
  id INTEGER PRIMARY KEY, folder BLOB, path BLOB UNIQUE, size INTEGER, mtime INTEGER, inode INTEGER,
  asked TEXT,            -- fingerprint of the checks and limits that it was looked at with
  pass INTEGER,          -- the last walk that met it
  format TEXT, kind TEXT, width INTEGER, height INTEGER, findings TEXT,
  digest BLOB, hash INTEGER, small BLOB);
CREATE INDEX IF NOT EXISTS by_size ON files (size);
CREATE INDEX IF NOT EXISTS by_digest ON files (digest);
CREATE INDEX IF NOT EXISTS by_folder ON files (folder, path);
CREATE TABLE IF NOT EXISTS compared (folder BLOB PRIMARY KEY, state TEXT, findings TEXT);
CREATE TABLE IF NOT EXISTS folders (path BLOB PRIMARY KEY, entries INTEGER, pass INTEGER);
CREATE TABLE IF NOT EXISTS joint (file INTEGER, finding TEXT);  -- what only all files together tell
CREATE INDEX IF NOT EXISTS by_file ON joint (file);
"""


class Known(NamedTuple):
    """A file or folder as the outputs tell of it.

    Attributes:
        path: below the root; folders end in `/`.
        format, group: by content; "folder" for folders.
        size: width and height, None of what is no picture.
        bytes: of the file.
        entries: things directly in a folder, -1 if it cannot be listed; None of a file.
    """

    path: bytes
    format: str
    group: str
    size: tuple[int, int] | None
    bytes: int
    findings: list[Finding]
    entries: int | None = None

    @property
    def name(self) -> str:
        return os.fsdecode(self.path)


class Index:
    """See the module.

    Args:
        path: of the SQLite file.
        root: the audited tree; an index is of one tree.
        asked: fingerprint of checks and limits; a file that was looked at with others is looked at again. Empty to read
            only: then no pass begins.

    Raises:
        InputError: the file is the index of another tree, or no index.
    """

    def __init__(self, path: Path, root: bytes, asked: str):
        self.asked = asked
        self.base = sqlite3.connect(path)
        try:
            # In WAL mode a transaction that was told as done outlives the process; a power cut may cost the last ones.
            self.base.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _TABLES)
            about = dict(self.base.execute("SELECT key, value FROM about"))
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"This is no index of an audit: {error}.", where=path, do="name another --out"
            ) from None
        mine = {"format": FORMAT, "root": root.hex()}
        if about and {key: about.get(key) for key in mine} != mine:
            told = os.fsdecode(bytes.fromhex(about.get("root") or ""))
            raise InputError(
                f"This folder holds the audit of {told}.", where=path.parent, do="name another --out"
            )
        self.number = int(about.get("pass", 0)) + bool(asked)
        with self.base:
            rows = {**mine, "pass": str(self.number)}.items()
            self.base.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)

    def close(self) -> None:
        self.base.close()

    # Looking ----------------------------------------------------------------------------------------------------

    def unknown(self, files: Sequence[File]) -> list[File]:
        """Those that are new or have changed; the others are noted as met."""
        wanted, met = [], []
        for file in files:
            row = self.base.execute(
                "SELECT id, size, mtime, inode, asked FROM files WHERE path = ?", (file.path,)
            ).fetchone()
            if row is not None and row[1:] == (*file[1:], self.asked):
                met.append((self.number, row[0]))
            else:
                wanted.append(file)
        if met:
            with self.base:
                self.base.executemany("UPDATE files SET pass = ? WHERE id = ?", met)
        return wanted

    def add(self, looks: Iterable[Seen]) -> None:
        """Store what was seen of some files, all or nothing."""
        with self.base:
            self.base.executemany(
                "INSERT OR REPLACE INTO files (folder, path, size, mtime, inode, asked, pass, format, kind, width, height, "
                "findings, digest, hash, small) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [self._row(seen) for seen in looks],
            )

    def _row(self, seen: Seen) -> tuple[Any, ...]:
        width, height = seen.size or (None, None)
        findings = to_json([finding.told() for finding in seen.findings])
        mark = seen.print
        hashed = (None, None) if mark is None else (_signed(mark.hash), mark.small)
        told = (seen.format, seen.group, width, height, findings, seen.digest)
        return (os.path.dirname(seen.file.path), *seen.file, self.asked, self.number, *told, *hashed)

    def add_folder(self, folder: Folder) -> None:
        """Store a folder; it becomes lasting with the next files or at the end of the walk."""
        self.base.execute("INSERT OR REPLACE INTO folders VALUES (?, ?, ?)", (*folder, self.number))

    def walked(self) -> None:
        """The walk is complete: forget what it has not met."""
        with self.base:
            self.base.execute("DELETE FROM files WHERE pass != ?", (self.number,))
            self.base.execute("DELETE FROM folders WHERE pass != ?", (self.number,))
            self.base.execute("DELETE FROM compared WHERE folder NOT IN (SELECT folder FROM files)")

    # Folders ------------------------------------------------------------------------------------------------------

    def uncompared(self, sample: int) -> Iterator[folders.Folder]:
        """Folders of several pictures that have not been compared as they are now, with so large a sample."""
        rows = self.base.execute(
            "SELECT folder, path, hash, size, mtime FROM files WHERE hash NOT NULL ORDER BY folder, path"
        )
        for path, group in itertools.groupby(rows, key=lambda row: row[0]):
            held = list(group)
            state = hashlib.sha256(repr((self.asked, sample, [row[1:] for row in held])).encode()).hexdigest()
            known = self.base.execute("SELECT state FROM compared WHERE folder = ?", (path,)).fetchone()
            if len(held) > 1 and known != (state,):
                members = tuple(folders.Member(row[1], row[2] & _MASK) for row in held)
                yield folders.Folder(path, members, state)

    def add_compared(self, done: Iterable[folders.Compared]) -> None:
        """Store what folders have told."""
        rows = [
            (
                each.folder.path,
                each.folder.state,
                to_json([(path.hex(), finding.told()) for path, finding in each.findings.items()]),
            )
            for each in done
        ]
        with self.base:
            self.base.executemany("INSERT OR REPLACE INTO compared VALUES (?, ?, ?)", rows)

    def compared(self) -> Iterator[tuple[int, Finding]]:
        """(id of a file, finding) of all that folders have told."""
        for (text,) in self.base.execute(
            "SELECT findings FROM compared WHERE findings != '[]' ORDER BY folder"
        ):
            for path, told in json.loads(text):
                row = self.base.execute(
                    "SELECT id FROM files WHERE path = ?", (bytes.fromhex(path),)
                ).fetchone()
                if row is not None:
                    yield row[0], Finding.of(told)

    # All files together -------------------------------------------------------------------------------------------

    def same_size_undigested(self, most: int = 50_000) -> Iterator[list[tuple[int, bytes]]]:
        """(id, path) of files that have no digest and the size of another file, so many at a time; empty files are alike."""
        last = 0
        while rows := self.base.execute(
            "SELECT id, path FROM files WHERE id > ? AND digest IS NULL AND size > 0 AND size IN "
            "(SELECT size FROM files GROUP BY size HAVING count(*) > 1) ORDER BY id LIMIT ?",
            (last, most),
        ).fetchall():
            yield rows
            last = rows[-1][0]

    def set_digests(self, digests: Iterable[tuple[bytes | None, int]]) -> None:
        with self.base:
            self.base.executemany("UPDATE files SET digest = ? WHERE id = ?", digests)

    def same_digest(self) -> Iterator[list[tuple[int, bytes]]]:
        """Groups of files with the same bytes: (id, path), the first path first."""
        group: list[tuple[int, bytes]] = []
        last = None
        for digest, number, path in self.base.execute(
            "SELECT digest, id, path FROM files WHERE digest IN "
            "(SELECT digest FROM files WHERE digest NOT NULL GROUP BY digest HAVING count(*) > 1) ORDER BY digest, path"
        ):
            if digest != last and group:
                yield group
                group = []
            last = digest
            group.append((number, path))
        if group:
            yield group

    def hashed(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Ids and hashes of the pictures that have a print, the best first: most pixels, most bytes, first path."""
        rows = self.base.execute(
            "SELECT id, hash FROM files WHERE hash NOT NULL ORDER BY width * height DESC, size DESC, path"
        )
        found = np.fromiter(rows, np.dtype([("id", np.int64), ("hash", np.int64)]))
        return np.asarray(found["id"]), np.asarray(found["hash"]).astype(np.uint64)

    def small(self, number: int) -> bytes:
        """The small picture of a file's print."""
        found: bytes = self.base.execute("SELECT small FROM files WHERE id = ?", (number,)).fetchone()[0]
        return found

    def path(self, number: int) -> bytes:
        found: bytes = self.base.execute("SELECT path FROM files WHERE id = ?", (number,)).fetchone()[0]
        return found

    def set_joint(self, findings: Iterable[tuple[int, Finding]]) -> None:
        """Replace what all files together tell: (id of a file, finding)."""
        with self.base:
            self.base.execute("DELETE FROM joint")
            self.base.executemany(
                "INSERT INTO joint VALUES (?, ?)",
                ((number, to_json(each.told())) for number, each in findings),
            )

    # Telling ------------------------------------------------------------------------------------------------------

    def files(self) -> Iterator[Known]:
        """Every file, by path."""
        extra = self.base.cursor()
        for number, path, form, group, width, height, size, findings in self.base.execute(
            "SELECT id, path, format, kind, width, height, size, findings FROM files ORDER BY path"
        ):
            found = [Finding.of(told) for told in json.loads(findings)]
            for (told,) in extra.execute(
                "SELECT finding FROM joint WHERE file = ? ORDER BY rowid", (number,)
            ):
                found.append(Finding.of(json.loads(told)))
            yield Known(path, form, group, (width, height) if width else None, size, found)

    def folders(self) -> Iterator[tuple[bytes, int]]:
        """(path, things directly in it) of every folder, by path."""
        yield from self.base.execute("SELECT path, entries FROM folders ORDER BY path")

    def stored(self, path: bytes) -> File | None:
        """The file as it was when it was looked at."""
        row = self.base.execute(
            "SELECT path, size, mtime, inode FROM files WHERE path = ?", (path,)
        ).fetchone()
        return None if row is None else File(*row)


_MASK = 0xFFFF_FFFF_FFFF_FFFF


def _signed(value: int) -> int:
    """SQLite's integers have a sign."""
    return value - (1 << 64) if value >= 1 << 63 else value
