"""The run folder: what one training or evaluation leaves behind, readable while it runs and after any end.

Layout: recipe.yaml, run.json, metrics.jsonl, samples.jsonl, log.txt, checkpoints/, figures/; code.patch where the code
differed from its commit, faults/ where numbers were not finite. The folder is the truth; the ledger beside it only
repeats run.json.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from loguru import logger

from anban.errors import InputError
from anban.record.environment import commit, environment, patch
from anban.record.files import RUN_FILE, append, find_runs, now, plain, read_info, to_json, write_atomically
from anban.record.ledger import FILE as LEDGER_FILE
from anban.record.ledger import Ledger
from anban.record.process import identity, shown_state
from anban.record.shapes import EACH, NUMBER, Maybe, Shape, misfit

__all__ = ["RunFolder", "find_runs", "readable"]

FORMAT = "anban-run/1"
ENDS = ("finished", "failed", "interrupted")
WAITING = ("planned", "queued")  # written down before it begins: for later, or for a cluster's queue
ID_PART = re.compile(r"[^\W_][\w.+=-]*")  # letters and digits of any script
# What readers count on.
SHAPE: dict[str, Shape] = {
    **dict.fromkeys(("title", "hash", "base", "why", "outcome", "commit", "device", "command"), Maybe(str)),
    "seed": Maybe(int),
    "seconds": Maybe(NUMBER),
    "difference": Maybe(dict),
    "data": Maybe({"fingerprint": Maybe(str), "splits": Maybe(dict), "warnings": Maybe([str])}),
    "model": Maybe({"name": Maybe(str), "parameters": Maybe(int)}),
    "environment": Maybe({"torch": Maybe(str), "packages": Maybe(dict)}),
    "progress": Maybe({"step": Maybe(int), "steps": Maybe(int), "best": Maybe({"step": Maybe(int), "value": Maybe(NUMBER)})}),
    "time": Maybe({"seconds_per_step": Maybe(NUMBER), "data_wait_share": Maybe(NUMBER)}),
    "protocols": Maybe({EACH: {"scales": Maybe([NUMBER]), "threshold": Maybe(NUMBER), "classes": Maybe(list)}}),
    "scores": Maybe([{"split": str, "protocol": str, "checkpoint": str, "name": str, "value": Maybe(NUMBER)}]),
    "findings": Maybe([{"kind": str, "step": int, "what": str, "cause": str, "remedy": str, "ended": Maybe(int)}]),
    "efficiency": Maybe({
        **dict.fromkeys(("parameters", "macs", "flops", "fps", "peak_memory_mb"), Maybe(NUMBER)),
        "latency_ms": Maybe({"p50": Maybe(NUMBER)}),
        "uncounted": Maybe([str]),
    }),
}  # fmt: skip
METRIC: dict[str, Shape] = {
    "step": int,
    "epoch": Maybe(NUMBER),
    "split": str,
    "protocol": Maybe(str),
    "name": str,
    "value": Maybe(NUMBER),
    "time": Maybe(NUMBER),
}
SAMPLE: dict[str, Shape] = {
    "split": str,
    "protocol": str,
    "checkpoint": Maybe(str),
    "name": str,
    "patient": Maybe(str),
    "scores": Maybe({EACH: Maybe(NUMBER)}),
}


class RunFolder:
    """One run: its folder, its run.json (`info`) and its lines.

    Make one with `create` or `open`. The process that trains holds `lock()` meanwhile.
    """

    def __init__(self, path: Path, info: dict[str, Any]):
        self.path = path
        self.info = info
        self._out = _out_of(path, info)
        self._writes_time = False
        self._before = float(info.get("seconds") or 0.0)
        self._since = time.monotonic()

    # --- making and opening ---------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, out: Path | str, recipe_id: str, *, seed: int, info: Mapping[str, Any], state: str = "running"
    ) -> RunFolder:
        """Make `<out>/<recipe id>/<run id>/` with its run.json, and its row in the ledger, before anything can fail.

        Args:
            out: folder of all runs; made if missing.
            recipe_id: e.g. `change/demo-tinycd`; parts of letters and digits (of any script) and `._+=-`.
            seed: of the run; part of its id.
            info: further keys of run.json (title, task, hash, base, difference, device, data, model, ...); `commit`,
                `environment` and `command` may be given in place of what is found here.
            state: running, for a run that begins now; planned or queued for one that `resume` begins later.

        Raises:
            InputError: the recipe id cannot be a folder name, or `out` cannot be written to.
            ValueError: `info` sets a key that belongs to the record itself.
        """
        if state not in ("running", *WAITING):
            raise ValueError(f"a run is made running, {' or '.join(WAITING)}, not {state!r}")
        out = Path(out)
        parts = recipe_id.split("/")
        if not all(ID_PART.fullmatch(part) for part in parts):
            raise InputError(
                f"The recipe id {recipe_id!r} cannot name a folder.",
                expected="parts of letters, digits and . _ + = -, each beginning with a letter or digit, joined by /",
                do="rename the recipe",
            )
        started = datetime.now(UTC)
        own: dict[str, Any] = {
            "format": FORMAT,
            "id": None,  # known once the folder is made
            "recipe": recipe_id,
            "state": state,
            "why": None,
            "seed": seed,
            "started": started.isoformat(timespec="milliseconds"),
            "ended": None,
            "seconds": None,
            **identity(),
        }
        if taken := [key for key in own if key in info and info[key] != own[key]]:
            raise ValueError(f"info may not set {', '.join(taken)}: the record does")
        rest: dict[str, Any] = {
            "title": recipe_id,
            "task": parts[0] if len(parts) > 1 else None,
            "hash": None,
            "base": None,
            "difference": {},
            "device": None,
            "remark": None,
            "commit": info["commit"] if "commit" in info else commit(),
            "environment": info["environment"] if "environment" in info else environment(),
            "command": info["command"] if "command" in info else _command(),
            "data": None,
            "model": None,
            "efficiency": None,
            "progress": None,
            "time": None,
            "outcome": None,
            "findings": [],
            "protocols": {},
            "scores": [],
        }
        try:
            path = _new_folder(out.joinpath(*parts), started, seed)
        except OSError as error:
            raise InputError(
                f"No run folder can be made: {error.strerror or error}.",
                where=out,
                do="give --out a folder of yours",
            ) from error
        run = cls(path, plain({**own, **rest, **info, "id": path.name}))
        run._writes_time = state == "running"
        run._out = out
        run._store()
        run._keep_code("code.patch", run.info["commit"])
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """The run in folder `path` (or of that run.json), to read it, add to it, or `resume` it.

        Raises:
            InputError: it is no run folder, or its run.json cannot be read; names the file.
        """
        folder = Path(path)
        folder = folder.parent if folder.name == RUN_FILE else folder
        try:
            info = read_info(folder)
            if wrong := misfit(info, SHAPE):
                raise ValueError(f"it has no usable value under {wrong}")
        except FileNotFoundError:
            raise InputError(
                "This is no run folder: it has no run.json.",
                where=folder,
                expected="a folder made by anban run",
                do="anban runs list shows them",
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(
                f"The run's record cannot be read: {error}.",
                where=folder / RUN_FILE,
                expected=f"a JSON object of format {FORMAT}",
                do="restore the file from a copy, or move the folder away and run again",
            ) from error
        if info.get("format") != FORMAT:
            raise InputError(
                f"The run's record has format {info.get('format')!r}.",
                where=folder / RUN_FILE,
                expected=FORMAT,
            )
        return cls(folder, info)

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return str(self.info["id"])

    @property
    def out(self) -> Path | None:
        """The folder of all runs this one belongs to; None for a run folder that was copied away alone."""
        return self._out

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def recipe_file(self) -> Path:
        """recipe.yaml, the complete effective recipe."""
        return self.path / "recipe.yaml"

    @property
    def state(self) -> str:
        """The stored state, or 'lost' for a run stored as running whose process is gone from this host."""
        get = self.info.get
        return shown_state(self.info["state"], get("host"), get("pid"), get("process"))

    def stamp(self, split: str, protocol: str) -> dict[str, Any] | None:
        """How the numbers of this split and protocol were measured; None where run.json does not say."""
        found = (self.info.get("protocols") or {}).get(f"{split}/{protocol}")
        return found if isinstance(found, dict) else None

    def scored_checkpoint(self, split: str, protocol: str) -> str | None:
        """The checkpoint whose scores count: "best" where it was evaluated so, else the last one the scores name."""
        scores = self.info.get("scores") or []
        found = [s["checkpoint"] for s in scores if (s["split"], s["protocol"]) == (split, protocol)]
        return "best" if "best" in found else found[-1] if found else None

    @property
    def elapsed(self) -> float:
        """Seconds of wall time of all parts of the run so far."""
        return self._before + time.monotonic() - self._since

    # --- run.json -------------------------------------------------------------------------------------------------

    def update(self, **changes: Any) -> None:
        """Set top-level keys of run.json (a nested value is replaced whole) and of the ledger's row."""
        try:  # another process may have added its part, e.g. a further evaluation
            self.info = read_info(self.path)
        except (OSError, ValueError):
            logger.warning("{} was unreadable and is written anew", self.path / RUN_FILE)
        self.info.update(plain(changes))
        if self._writes_time:
            self.info["seconds"] = round(self.elapsed, 3)
        self._store()

    def finish(self, state: str, why: str | None = None, **changes: Any) -> None:
        """Record the end: `state` is finished, failed or interrupted, `why` one message for a person.

        Further `changes` of run.json are stored with it.

        Where the disk does not take it, a failed or interrupted end is only logged: what ended the run is the
        message to see.
        """
        if state not in ENDS:
            raise ValueError(f"a run ends as one of {', '.join(ENDS)}, not {state!r}")
        self._writes_time = True
        try:
            self.update(state=state, why=why, ended=now(), **changes)
        except OSError as error:
            if state == "finished":
                raise
            logger.warning("{} could not record that the run {}: {}", self.path / RUN_FILE, state, error)
        finally:
            self._writes_time = False

    def resume(self, **changes: Any) -> None:
        """Record that this process goes on with the run: running again, time counted on from where it stopped.

        Call it while holding `lock()`. The first part's commit and environment stay; those of each further part are
        listed under `resumed`. A run that was only written down begins here, and its record says so.
        """
        self.info = read_info(self.path)
        begins = self.info["state"] in WAITING and self.info.get("seconds") is None
        self._before = max(float(self.info.get("seconds") or 0.0), self._last_time())
        self._since = time.monotonic()
        self._writes_time = True
        code = commit()
        made: dict[str, Any] = {"commit": code, "command": _command()}
        if begins:
            made |= {"started": now(), "environment": environment()}
        else:
            part = {"at": now(), **{key: identity()[key] for key in ("host", "job")}, **made}
            made = {"resumed": [*(self.info.get("resumed") or []), part]}
        self.update(state="running", why=None, ended=None, **made, **identity(), **changes)
        for left in (
            *self.path.glob(".*.tmp"),
            *self.checkpoints.glob(".*.part"),
        ):  # by a kill in the middle of a write
            left.unlink()
        self._keep_code(f"code-{len(self.info.get('resumed') or []) + 1}.patch", code)

    def write_recipe(self, text: str) -> None:
        """Write recipe.yaml: the complete effective recipe, as YAML text."""
        write_atomically(self.recipe_file, text)

    def _keep_code(self, name: str, of: Any) -> None:
        """The changes of the code against its commit, where there are any and no part of the run has kept the same."""
        text = patch() if str(of).endswith("+dirty") else ""
        try:
            if text and all(
                file.read_text(encoding="utf-8") != text for file in self.path.glob("code*.patch")
            ):
                write_atomically(self.path / name, text)
        except OSError as error:
            logger.warning("the changes of the code are not kept: {}", error)

    def _store(self) -> None:
        write_atomically(self.path / RUN_FILE, to_json(self.info, indent=1) + "\n")
        if self._out is not None:
            Ledger(self._out).write(self.path, self.info)

    # --- metrics.jsonl --------------------------------------------------------------------------------------------

    def log_metrics(
        self, step: int, epoch: float, split: str, protocol: str | None, values: Mapping[str, Any]
    ) -> None:
        """Append one line per value (a number; None, NaN and infinities are stored as null), in a single write."""
        seconds = round(self.elapsed, 3)
        where = {"step": int(step), "epoch": float(epoch), "split": split, "protocol": protocol}
        lines = [
            {**where, "name": name, "value": None if value is None else float(value), "time": seconds}
            for name, value in values.items()
        ]
        text = "".join(to_json(line) + "\n" for line in lines)
        append(self.path / "metrics.jsonl", text.encode())

    def metrics(self, dedupe: bool = True) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: dicts of step, epoch, split, protocol, name, value, time.

        With `dedupe`, of lines with the same step, split, protocol and name the last counts (a resumed run repeats
        the steps after its checkpoint). A line cut off by a kill is passed over.

        Raises:
            InputError: a line is no such dict.
        """
        lines = [dict.fromkeys(METRIC) | line for line in _lines(self.path / "metrics.jsonl", METRIC)]
        if not dedupe:
            return lines
        last = {(line["step"], line["split"], line["protocol"], line["name"]): line for line in lines}
        return list(last.values())

    def latest(self) -> list[dict[str, Any]]:
        """The last lines of metrics.jsonl, from the end of the file only: it may be long."""
        try:
            with open(self.path / "metrics.jsonl", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                tail = file.read().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in tail:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):  # cut off
                continue
            if misfit(value, METRIC) is None:
                found.append(value)
        return found

    def _last_time(self) -> float:
        """The latest `time` in metrics.jsonl."""
        times = [line["time"] for line in self.latest() if line.get("time") is not None]
        return float(times[-1]) if times else 0.0

    # --- samples.jsonl --------------------------------------------------------------------------------------------

    def log_samples(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Store per-sample lines, each with split, protocol, checkpoint and name.

        Earlier lines of the same split, protocol and checkpoint go.
        """
        new = [dict(line) for line in lines]
        replaced = {_evaluation(line) for line in new}
        kept = [line for line in self.samples() if _evaluation(line) not in replaced]
        write_atomically(self.path / "samples.jsonl", "".join(to_json(line) + "\n" for line in [*kept, *new]))

    def samples(
        self, split: str | None = None, protocol: str | None = None, checkpoint: str | None = None
    ) -> list[dict[str, Any]]:
        """The lines of samples.jsonl, all or those of one split, protocol or checkpoint.

        Raises:
            InputError: a line has no split, protocol and name, or scores that are no numbers.
        """
        wanted = (split, protocol, checkpoint)
        return [
            line
            for line in _lines(self.path / "samples.jsonl", SAMPLE)
            if all(want in (None, found) for want, found in zip(wanted, _evaluation(line), strict=True))
        ]

    # --- one writer -----------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; the system lets go when the process ends, however it ends.

        Raises:
            InputError: another process holds it; names the folder, the process and its host.
        """
        lock = FileLock(self.path / "run.lock")
        holder = self.path / "run.lock.json"  # beside it: some locks cannot be read while they are held
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"Another process uses this run: {_holder(holder)}.",
                where=self.path,
                do="wait for it or end it; a new run (without --resume) gets its own folder",
            ) from None
        try:
            write_atomically(holder, to_json({**identity(), "since": now()}))
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def readable(paths: Iterable[Path | str]) -> Iterator[RunFolder]:
    """The runs in these folders. One with a damaged run.json is passed over with a warning that names the file.

    Raises:
        InputError: a path has no run.json at all.
    """
    for path in paths:
        try:
            yield RunFolder.open(path)
        except InputError as error:
            folder = Path(path)
            if not (folder / RUN_FILE).is_file() and folder.name != RUN_FILE:
                raise
            logger.warning("passed over: {}", " ".join(str(error).split()))


def _new_folder(parent: Path, started: datetime, seed: int) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        path = parent / f"{started:%Y%m%d-%H%M%S}-s{seed}-{secrets.token_hex(2)}"
        try:
            path.mkdir()
        except FileExistsError:  # a run of the same second drew the same four digits
            continue
        return path


def _out_of(path: Path, info: Mapping[str, Any]) -> Path | None:
    """The folder of all runs: where the run's own ids lead up to, else the nearest above that has a ledger."""
    path = path.resolve()
    inner = (*info["recipe"].split("/"), info["id"])
    if path.parts[-len(inner) :] == inner:
        return path.parents[len(inner) - 1]
    return next((folder for folder in path.parents if (folder / LEDGER_FILE).is_file()), None)


def _command() -> str:
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name or "python", *sys.argv[1:]])


def _holder(file: Path) -> str:
    try:
        who = json.loads(file.read_text())
        text = f"pid {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its name is not recorded"
    gone = shown_state("running", who["host"], who["pid"], who.get("process")) == "lost"
    return text + (" (it has ended; a process it started may still be there)" if gone else "")


def _evaluation(line: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return line["split"], line["protocol"], line.get("checkpoint")


def _lines(file: Path, shape: Shape) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return
    for number, line in enumerate(text.split(b"\n"), start=1):
        try:
            value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            logger.debug("{} line {} was cut off and is passed over", file, number)
            continue
        if not isinstance(value, dict):
            continue
        if wrong := misfit(value, shape):
            raise InputError(
                f"Line {number} has no usable value under {wrong}.",
                where=file,
                do="restore the file from a copy",
            )
        yield value
