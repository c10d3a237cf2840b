"""The ledger: one SQLite file that answers questions about all runs of an output folder.

It is a cache. Every column is a function of a run's run.json and of where its folder lies, so the file may be
deleted, damaged or of another version at any time: it is then filled again from the folders.
"""

from __future__ import annotations

import difflib
import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from loguru import logger

from anban.errors import InputError
from anban.record.files import RUN_FILE, find_runs, plain, read_info, to_json
from anban.record.process import shown_state

T = TypeVar("T")

FILE = "ledger.sqlite"
SCHEMA = 5  # raise it with every change below; files of another version are filled anew
# How a damaged file shows: by what SQLite says, by a message of its that is no text, by a column that is not there.
DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError, LookupError)
PATIENCE = 60.0  # seconds a process waits for the others before it gives up

# column -> (type, how it is read from run.json); `path` is added from the folder's place.
COLUMNS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "id": ("TEXT PRIMARY KEY", lambda info: info["id"]),
    "recipe": ("TEXT", lambda info: info["recipe"]),
    "title": ("TEXT", lambda info: info.get("title")),
    "task": ("TEXT", lambda info: info.get("task")),
    "hash": ("TEXT", lambda info: info.get("hash")),
    "base": ("TEXT", lambda info: info.get("base")),
    "difference": ("TEXT", lambda info: info.get("difference")),
    "state": ("TEXT", lambda info: info["state"]),
    "why": ("TEXT", lambda info: info.get("why")),
    "outcome": ("TEXT", lambda info: info.get("outcome")),
    "cause": ("TEXT", lambda info: _of_outcome(info, "cause")),
    "remedy": ("TEXT", lambda info: _of_outcome(info, "remedy")),
    "seed": ("INTEGER", lambda info: info.get("seed")),
    "started": ("TEXT", lambda info: info.get("started")),
    "ended": ("TEXT", lambda info: info.get("ended")),
    "seconds": ("REAL", lambda info: info.get("seconds")),
    "commit": ("TEXT", lambda info: info.get("commit")),
    "device": ("TEXT", lambda info: info.get("device")),
    "remark": ("TEXT", lambda info: info.get("remark")),
    "job": ("TEXT", lambda info: info.get("job")),
    "host": ("TEXT", lambda info: info.get("host")),
    "pid": ("INTEGER", lambda info: info.get("pid")),
    "process": ("TEXT", lambda info: info.get("process")),
    "command": ("TEXT", lambda info: info.get("command")),
    "fingerprint": ("TEXT", lambda info: _inside(info, "data", "fingerprint")),
    "model": ("TEXT", lambda info: _inside(info, "model", "name")),
    "environment": ("TEXT", lambda info: info.get("environment")),
    # The score a run is known by, and where it was measured: "f1 (test, whole, best)".
    "result": ("REAL", lambda info: _result(info).get("value")),
    "result_of": ("TEXT", lambda info: _named(_result(info))),
}
SCORE_KEY = ("split", "protocol", "checkpoint", "name")

# States that a later finished run of the same experiment and seed makes `superseded`.
UNFINISHED = ("planned", "queued", "failed", "interrupted", "lost")
SUPERSEDED_BY = (
    "(SELECT later.id FROM runs AS later WHERE runs.state != 'finished' AND later.state = 'finished'"
    " AND later.hash = runs.hash AND later.seed = runs.seed AND later.started > runs.started"
    " ORDER BY later.started DESC LIMIT 1) AS superseded_by"
)

# Without row numbers a table's content has one order, whatever the order of writing was.
TABLES = (
    "CREATE TABLE runs ({}, path TEXT) WITHOUT ROWID".format(
        ", ".join(f'"{name}" {kind}' for name, (kind, _) in COLUMNS.items())
    ),
    "CREATE INDEX runs_by_start ON runs (started, id)",
    "CREATE INDEX runs_by_hash ON runs (hash, seed)",
    "CREATE TABLE scores (run TEXT, {keys}, value REAL, PRIMARY KEY (run, {keys})) WITHOUT ROWID".format(
        keys=", ".join(SCORE_KEY)
    ),
)

# SQLite's write-ahead log needs memory shared by all who open the file, which these do not give between machines.
NETWORK_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "fuse",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "afs",
    "glusterfs",
    "virtiofs",
)


class Ledger:
    """The runs under folder `out`. Opening it writes nothing; each call connects for itself and lets go at once."""

    def __init__(self, out: Path | str):
        self.out = Path(out)
        self.path = self.out / FILE

    def write(self, folder: Path, info: dict[str, Any]) -> bool:
        """Enter or replace the row of the run in `folder`.

        Never raises because the ledger is in trouble: the folder is the truth and `rebuild` reads it. Returns
        whether the row was written.
        """
        try:
            self._do(lambda connection: self._put(connection, folder, info), writing=True)
        except (*DAMAGE, OSError) as error:
            logger.warning(
                "run {} is not in the ledger {} ({}); its folder is complete, and `anban runs rebuild` enters it",
                info.get("id"),
                self.path,
                error,
            )
            return False
        return True

    def rebuild(self) -> int:
        """Fill the ledger again from the run folders; rows of folders that are gone vanish. Returns the row count."""
        if not self.out.is_dir():
            raise InputError(
                "There is no such folder of runs.",
                where=self.out,
                do="name the folder given to --out of anban run",
            )
        return self._do(self._fill, writing=True)

    def rows(
        self,
        *,
        id: str | None = None,
        recipe: str | None = None,
        state: str | None = None,
        task: str | None = None,
        hash: str | None = None,
        seed: int | None = None,
        since: str | datetime | None = None,
        limit: int | None = None,
        score: tuple[str, str, str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """The rows, newest first, as dicts of all columns (`difference` and `environment` as objects).

        Key `path` is the run's folder, relative to `out`; `superseded_by` the newest finished run of the same hash and
        seed that began after this one, which then counts as superseded, unless it runs or has finished itself.

        Args:
            id: the run's whole id.
            recipe: id or shell pattern (`change/*`).
            state: planned, queued, running, finished, failed, interrupted, superseded, or lost (see
                `anban.record.process.shown_state`).
            task: name of the task.
            hash: hash of the effective configuration, or its beginning.
            seed: of the run.
            since: earliest start: a date and time (a naive one is UTC), or ISO-8601 text or its beginning.
            limit: how many rows at most.
            score: (split, protocol, checkpoint, name); adds key `score`, None where the run has no such value.
        """
        conditions, values = ["TRUE"], list[Any]()
        if id is not None:
            conditions.append("runs.id = ?")
            values.append(id)
        if recipe is not None:
            conditions.append("recipe GLOB ?")
            values.append(recipe)
        if state == "superseded":
            conditions.append("superseded_by IS NOT NULL")
        elif state is not None:
            conditions.append("state = ?")
            values.append("running" if state == "lost" else state)
        if task is not None:
            conditions.append("task = ?")
            values.append(task)
        if hash is not None:
            conditions.append("hash >= ? AND hash < ?")  # as a range, the index answers
            values += [hash, hash + chr(sys.maxunicode)]
        if seed is not None:
            conditions.append("seed = ?")
            values.append(_cell(seed))
        if since is not None:
            conditions.append("started >= ?")
            values.append(_moment(since))
        query = (
            f"SELECT runs.*, {SUPERSEDED_BY}, scores.value AS score FROM runs LEFT JOIN scores ON scores.run = runs.id"
            " AND scores.split = ? AND scores.protocol = ? AND scores.checkpoint = ? AND scores.name = ?"
            f" WHERE {' AND '.join(conditions)} ORDER BY started DESC, id DESC"
        )

        def read(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            for record in connection.execute(query, [*(score or (None,) * len(SCORE_KEY)), *values]):
                if limit is not None and len(found) >= limit:
                    break
                row = dict(record)
                row["state"] = shown_state(row["state"], row["host"], row["pid"], row["process"])
                if row["superseded_by"] is not None and row["state"] in UNFINISHED:
                    row["state"] = "superseded"
                if state is not None and row["state"] != state:
                    continue
                for column in ("difference", "environment"):
                    row[column] = _parsed(row[column])
                if score is None:
                    del row["score"]
                found.append(row)
            return found

        return self._do(read) if self.out.is_dir() else []

    def scores(self, run: str) -> list[dict[str, Any]]:
        """The scores of the run with this whole id: dicts of split, protocol, checkpoint, name, value."""
        query = f"SELECT {', '.join(SCORE_KEY)}, value FROM scores WHERE run = ?"
        if not self.out.is_dir():
            return []
        return self._do(lambda connection: [dict(row) for row in connection.execute(query, (run,))])

    def find(self, run: str | Path) -> Path:
        """The folder of a run named by its id, the beginning of its id, or a path (also relative to `out`).

        Raises:
            InputError: no such run (names the nearest ids), several, or its folder is gone.
        """
        for folder in (Path(run), self.out / run):
            folder = folder.parent if folder.name == RUN_FILE else folder
            if (folder / RUN_FILE).is_file():
                return folder
        name = str(run)
        query = "SELECT id, recipe, path FROM runs ORDER BY started DESC, id DESC"
        rows: list[sqlite3.Row] = []
        if self.out.is_dir():
            rows = self._do(lambda connection: connection.execute(query).fetchall())
        exact = [row for row in rows if row["id"] == name]
        found = exact or [row for row in rows if name and row["id"].startswith(name)]
        if len(found) == 1:
            folder = self.out / str(found[0]["path"])
            if not (folder / RUN_FILE).is_file():
                raise InputError(
                    f"The folder of run {found[0]['id']} is gone.",
                    where=folder,
                    do="anban runs rebuild takes such runs out of the ledger",
                )
            return folder
        if found:
            raise InputError(
                f"{len(found)} runs begin with {name!r}: {_few([row['id'] for row in found])}.",
                where=self.out,
                do="give more of the id",
            )
        of_recipe = [row["id"] for row in rows if row["recipe"] == name]
        near = of_recipe or difflib.get_close_matches(name, [row["id"] for row in rows], n=3, cutoff=0.4)
        raise InputError(
            f"There is no run {name!r}.",
            where=self.out,
            expected="a run id, the beginning of one, or the path of a run folder",
            do=f"did you mean {_few(near)}?"
            if near
            else "anban runs list shows all (--out names their folder)",
        )

    # --- the file -------------------------------------------------------------------------------------------------

    def _do(self, action: Callable[[sqlite3.Connection], T], *, writing: bool = False) -> T:
        """Run `action` on a ready connection: waits for others, replaces a damaged file, reads without one."""
        deadline, replaced = time.monotonic() + PATIENCE, False
        while True:
            try:
                with self._connection() as connection:
                    if not writing:
                        return action(connection)
                    with _transaction(connection):
                        return action(connection)
            except DAMAGE as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
                if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() < deadline:
                    # The system's generator: a wait must not use up draws of the experiment's.
                    time.sleep(random.SystemRandom().uniform(0.005, 0.05))
                elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) and not replaced:
                    replaced = True
                    self._set_aside(error)
                elif writing:
                    raise
                else:
                    logger.warning(
                        "the ledger {} cannot be read ({}); reading the run folders", self.path, error
                    )
                    return self._without_file(action)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            connection.text_factory = partial(str, encoding="utf-8", errors="replace")
            # A power cut may cost the last rows, never the file; the folders still have them.
            connection.execute("PRAGMA synchronous = NORMAL")
            if not _is_ready(connection):
                self._use_log(connection)
                with _transaction(connection):
                    if not _is_ready(connection):  # another process may have been first
                        self._fill(connection)
            yield connection
        finally:
            connection.close()

    def _use_log(self, connection: sqlite3.Connection) -> None:
        """Let readers and a writer work side by side, where the file system can."""
        system = _file_system(self.out)
        if system.startswith(NETWORK_SYSTEMS):
            logger.info(
                "{} is on a network file system ({}): the ledger keeps SQLite's plain journal",
                self.out,
                system,
            )
            return
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            mode = str(error)
        if mode != "wal":
            logger.info(
                "{} has no write-ahead log ({}): the ledger keeps SQLite's plain journal", self.out, mode
            )

    def _fill(self, connection: sqlite3.Connection) -> int:
        for table in ("runs", "scores"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in TABLES:
            connection.execute(statement)
        read: dict[str, Path] = {}
        # Copies of a run share its id: the one that lies where its run.json says comes last and stays.
        for folder, info in sorted(self._folders(), key=lambda pair: _is_home(*pair)):
            if info["id"] in read:
                logger.warning("run {} is in two folders: {} and {}", info["id"], read[info["id"]], folder)
            read[info["id"]] = folder
            self._put(connection, folder, info)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        return len(read)

    def _folders(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for folder in find_runs(self.out):
            try:
                yield folder, read_info(folder)
            except (OSError, ValueError) as error:
                logger.warning("{} is left out of the ledger: {}", folder / RUN_FILE, error)

    def _put(self, connection: sqlite3.Connection, folder: Path, info: dict[str, Any]) -> None:
        values = [_cell(read(info)) for _, read in COLUMNS.values()]
        path = Path(os.path.relpath(folder, self.out)).as_posix()
        marks = ", ".join("?" * (len(values) + 1))
        connection.execute(f"INSERT OR REPLACE INTO runs VALUES ({marks})", [*values, path])
        connection.execute("DELETE FROM scores WHERE run = ?", (info["id"],))
        scores = info.get("scores")
        connection.executemany(
            "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?)",
            [
                (
                    info["id"],
                    *(plain(str(score.get(key) or "")) for key in SCORE_KEY),
                    _cell(score.get("value")),
                )
                for score in (scores if isinstance(scores, list) else [])
                if isinstance(score, dict)
            ],
        )

    def _set_aside(self, error: Exception) -> None:
        """Move a damaged file out of the way; the next connection fills a new one."""
        with FileLock(self.out / f".{FILE}.lock", timeout=PATIENCE):
            if _is_sound(self.path):  # another process has replaced it meanwhile
                return
            aside = self.path.with_name(f"{FILE}.broken-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
            logger.warning(
                "the ledger {} is damaged ({}); kept as {}, rebuilt from the runs", self.path, error, aside
            )
            for suffix in ("", "-wal", "-shm"):
                part = self.path.with_name(self.path.name + suffix)
                if part.exists():
                    part.replace(aside.with_name(aside.name + suffix))

    def _without_file(self, action: Callable[[sqlite3.Connection], T]) -> T:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            self._fill(connection)
            return action(connection)
        finally:
            connection.close()


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    # Immediate: a transaction that first reads and then asks to write can be refused without waiting.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _is_ready(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA)


def _is_sound(path: Path) -> bool:
    connection = sqlite3.connect(path)
    try:
        tables = {text for (text,) in connection.execute("SELECT sql FROM sqlite_master") if text}
        return bool(connection.execute("PRAGMA quick_check").fetchone()[0] == "ok") and tables == set(TABLES)
    except DAMAGE:
        return False
    finally:
        connection.close()


def _is_home(folder: Path, info: dict[str, Any]) -> bool:
    return folder.as_posix().endswith(f"/{info['recipe']}/{info['id']}")


def _file_system(folder: Path) -> str:
    """The kind of file system `folder` is on, '' when unknown."""
    place, best, kind = str(folder.resolve()), "", ""
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="replace")
    except OSError:
        return ""
    for line in mounts.splitlines():
        _, mount, system, *_ = line.split(" ")
        mount = mount.replace("\\040", " ")
        if (place == mount or place.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, system
    return kind


def _inside(info: Mapping[str, Any], *keys: str) -> Any:
    """What lies under keys one inside the other; None where one is missing."""
    value: Any = info
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _of_outcome(info: dict[str, Any], key: str) -> Any:
    """What the finding that is the run's outcome says under `key`; None for a healthy run."""
    findings = info.get("findings")
    for finding in findings if isinstance(findings, list) else []:
        if isinstance(finding, dict) and finding.get("kind") == info.get("outcome"):
            return finding.get(key)
    return None


def deciding_score(info: Mapping[str, Any]) -> str | None:
    """The name of the score that picks a run's checkpoints; a record of before it said so has its best validation."""
    name = info.get("select") or _inside(info, "progress", "best", "name")
    return str(name) if name else None


def _result(info: Mapping[str, Any]) -> dict[str, Any]:
    """The deciding score where it was measured first, of the best checkpoint if there are several; {} without scores."""
    scores = info.get("scores")
    found = [score for score in scores if isinstance(score, dict)] if isinstance(scores, list) else []
    if not found:
        return {}
    names = [score.get("name") for score in found]
    name = deciding_score(info)
    name = name if name in names else names[0]
    found = [score for score in found if score.get("name") == name]
    place = [found[0].get(key) for key in SCORE_KEY[:2]]
    there = [score for score in found if [score.get(key) for key in SCORE_KEY[:2]] == place]
    return next((score for score in there if score.get("checkpoint") == "best"), there[-1])


def _named(score: dict[str, Any]) -> str | None:
    return (
        f"{score.get('name')} ({', '.join(str(score.get(key)) for key in SCORE_KEY[:3])})" if score else None
    )


def _cell(value: Any) -> str | int | float | None:
    """`value` as a column can hold it: whole numbers of more than 64 bits become text, as do lists and objects."""
    if isinstance(value, Mapping | list):
        return to_json(value)
    value = plain(value)
    if value is None or isinstance(value, str | float):
        return value
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else to_json(value)


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) and text[:1] in "{[" else text
    except ValueError:  # words that begin so, or a damaged file
        return text


def _moment(since: str | datetime) -> str:
    if isinstance(since, str):
        return since
    moment = since.replace(tzinfo=UTC) if since.tzinfo is None else since.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds")


def _few(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
