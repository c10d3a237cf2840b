"""An audit from the first file to the page: walk, look, compare, tell."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from anban import __version__
from anban.audit import checks, telling
from anban.audit.index import Index
from anban.audit.joint import joint_findings
from anban.audit.launchers import LAUNCHERS, Work
from anban.audit.limits import fingerprint, read_limits
from anban.audit.look import Plan, Seen, died, look
from anban.audit.page import write_page
from anban.audit.walk import File, Folder, walk
from anban.errors import InputError
from anban.recipe.schema import Count, unknown

#: The index of an audit in its output folder.
INDEX = "audit.sqlite"


@dataclass(frozen=True)
class Limits:
    """How the work is divided; see limits.yaml."""

    chunk: Count
    sample: Count
    worker_bytes: Count


@dataclass(frozen=True)
class Audit:
    """What is to be done.

    Attributes:
        root: the tree to look at; nothing in it is written.
        out: folder of the outputs, outside of the tree.
        checks: names of those to put to pictures; None for all.
        changes: a YAML file with other limits.
        passwords: to try on archives, in their order.
        workers: processes; 0 does the work in this one, None takes all cores.
        launcher: `local` or `ray`.
    """

    root: Path
    out: Path
    checks: Sequence[str] | None = None
    changes: Path | None = None
    passwords: tuple[str, ...] = ()
    workers: int | None = None
    launcher: str = "local"


def audit(what: Audit) -> dict[str, Any]:
    """Look at what is new in the tree, and tell of all of it.

    Writes into `out`: `audit.sqlite` (see `index`), `findings.jsonl`, `findings.csv`, `summary.json`, `audit.html`.
    After a kill, or when the tree has changed, the next call looks at the missing files only.

    Returns:
        what summary.json holds.

    Raises:
        InputError: there is no such folder, `out` lies in it, another audit writes to `out`, a wrong limit or check, or a
            library that a check needs is not installed.
    """
    root, out = what.root.resolve(), what.out.resolve()
    if not root.is_dir():
        raise InputError("There is no such folder.", where=what.root, expected="a folder to audit")
    if out.is_relative_to(root):
        raise InputError("The outputs would lie in the audited tree.", where=what.out,
                         expected="a folder outside of it", do="name another --out")  # fmt: skip
    if what.launcher not in LAUNCHERS:
        raise unknown("launcher", what.launcher, LAUNCHERS, "--launcher")
    limits = read_limits(what.changes)
    asked, not_run = _choose(what.checks, limits)
    plan = Plan(os.fsencode(root), limits, asked, what.passwords)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            index = Index(out / INDEX, plan.root, _fingerprint(plan))
            try:
                spent = _look(what, plan, index)
                _compare(what, plan, index)
                index.set_joint(joint_findings(index, plan.root, limits["duplicates"], "watermark" in asked))
                summary = telling.write(index, out, limits["clean"])
                summary |= {"root": str(root), "checks": list(asked), "not_run": not_run, "pass": spent}
                telling.write_summary(out, summary)
                write_page(index, out, summary, limits["page"], limits["clean"])
            finally:
                index.close()
    except Timeout:
        raise InputError("Another audit is writing there.", where=what.out, do="wait for its end") from None
    return summary


def _choose(wanted: Sequence[str] | None, limits: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The checks to carry out, and why the others are not: name -> reason."""
    for name in wanted or ():
        if name not in checks.NAMES:
            raise unknown("check", name, checks.NAMES, "--checks")
    chosen, not_run = [], {}
    for name in checks.NAMES:
        if wanted is not None and name not in wanted:
            not_run[name] = "not asked for"
        elif (why := checks.unavailable(name, limits[name])) is not None:
            not_run[name] = why
        else:
            chosen.append(name)
    return tuple(chosen), not_run


def _fingerprint(plan: Plan) -> str:
    """Whatever the findings of a single file depend on."""
    sections = ("picture", "archives", "duplicates", *plan.checks)
    return fingerprint({
        "version": __version__,
        "limits": {name: asdict(plan.limits[name]) for name in sections},
        "checks": plan.checks,
        "passwords": plan.passwords,
    })  # fmt: skip


def _look(what: Audit, plan: Plan, index: Index) -> dict[str, Any]:
    """Bring the index up to date with the tree; what the pass has cost."""
    limits: Limits = plan.limits["run"]
    begun = time.perf_counter()
    progress = Progress()
    seconds: Counter[str] = Counter()
    chunks = _chunks(plan.root, index, limits.chunk, progress)
    for looks in _launched(what, plan, Work(look, died), chunks):
        index.add(looks)
        progress.looked(looks)
        for seen in looks:
            seconds.update(seen.seconds)
    index.walked()
    progress.end()
    return {
        "files": progress.met,
        "looked_at": progress.new,
        "seconds": round(time.perf_counter() - begun, 2),
        "seconds_of_checks": {name: round(spent, 2) for name, spent in seconds.items()},
        "workers": _workers(what),
    }


def _compare(what: Audit, plan: Plan, index: Index) -> None:
    """Bring up to date what the pictures of each folder tell together."""
    if "watermark" not in plan.checks:
        return
    from anban.audit.folders import Compared, compare

    tasks = ([folder] for folder in index.uncompared(plan.limits["run"].sample))
    for done in _launched(what, plan, Work(compare, Compared), tasks):
        index.add_compared(done)


def _launched(what: Audit, plan: Plan, work: Work, chunks: Iterator[list[Any]]) -> Iterator[list[Any]]:
    launcher = LAUNCHERS[what.launcher]
    return launcher(plan, work, chunks, _workers(what), plan.limits["run"].worker_bytes)


def _workers(what: Audit) -> int:
    return os.cpu_count() or 1 if what.workers is None else what.workers


def _chunks(root: bytes, index: Index, size: int, progress: Progress) -> Iterator[list[File]]:
    """What the index does not know, as a stream."""
    files: list[File] = []
    for each in walk(root):
        if isinstance(each, Folder):
            index.add_folder(each)
            continue
        files.append(each)
        if len(files) == size:
            progress.met += size
            if wanted := index.unknown(files):
                yield wanted
            files = []
    progress.met += len(files)
    if wanted := index.unknown(files):
        yield wanted


class Progress:
    """Tells on stderr how far the walk is: on a terminal in one line, elsewhere twice a minute.

    Attributes:
        met: files of the tree so far.
        new: those of them that were looked at in this pass.
    """

    def __init__(self) -> None:
        self.met = self.new = self.found = 0
        self.live = sys.stderr.isatty()
        self.begun = self.told = time.monotonic()

    def looked(self, looks: list[Seen]) -> None:
        self.new += len(looks)
        self.found += sum(len(seen.findings) for seen in looks)
        if time.monotonic() - self.told > (0.5 if self.live else 30):
            self.tell("\r" if self.live else "\n")

    def tell(self, end: str) -> None:
        self.told = time.monotonic()
        speed = self.new / max(self.told - self.begun, 1e-6)
        text = f"{self.met} files met, {self.new} looked at ({speed:.0f} per second), {self.found} findings"
        print(text.ljust(79) if self.live else text, end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.live:
            self.tell("\n")
