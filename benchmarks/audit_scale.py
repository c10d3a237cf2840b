"""The audit of a hundred thousand small files without OCR: time, memory on the way, and a second pass.

The tree is written by code (see `audit_trees.small_files`): pictures of 32 to 96 pixels, texts and zips in nested folders.
`anban audit` runs in a process of its own with two workers and the check `quality`; four times a second its
resident memory, that of its largest worker and the number of files in its index are read. The second pass finds nothing
new. ANBAN_BENCH_SMALL sets the number of files.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from anban.audit import checks
from anban.audit.run import INDEX
from benchmarks.audit_trees import small_files
from benchmarks.timing import Findings, Unavailable, table

FILES = int(os.environ.get("ANBAN_BENCH_SMALL", "100000"))
WORKERS = 2
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)

#: What is put to the pictures: the others have speeds of their own, in `audit_speed`, and look at larger things.
CHECK = "quality"

#: OCR takes seconds per picture, and the user's classifier is not ours to time.
WITHOUT_TEXT = [name for name in checks.NAMES if name not in ("language", "content", "violation")]


class Sample(NamedTuple):
    """One moment: seconds since the start, files in the index, and resident MB."""

    seconds: float
    files: int
    parent: float
    worker: float


def run(rounds: int) -> Findings:
    """One pass over new files and one over known ones; more rounds would tell no more."""
    if not Path("/proc/self/statm").is_file():
        raise Unavailable("memory of other processes is read from /proc")
    with tempfile.TemporaryDirectory() as folder:
        tree, out = small_files(Path(folder) / "tree", FILES), Path(folder) / "out"
        first, samples = _pass(tree, out)
        index = sum(path.stat().st_size for path in out.glob(f"{INDEX}*"))
        second, again = _pass(tree, out)
        lines = (out / "findings.jsonl").read_bytes().count(b"\n")
        page = (out / "audit.html").stat().st_size
    details = {
        "files": first["files"],
        "workers": WORKERS,
        "check": CHECK,
        "first": _told(first, samples),
        "second": _told(second, again),
        "memory": _at_shares(samples, first["files"]),
        "index_bytes": index,
        "findings": lines,
        "page_bytes": page,
        "problems": first["problems"],
        "seconds_of_checks": first["pass"]["seconds_of_checks"],
    }
    return Findings([], details, _page(details))


def _pass(tree: Path, out: Path) -> tuple[dict[str, Any], list[Sample]]:
    """The audit's summary, and what was sampled while it ran."""
    begun, samples = time.perf_counter(), []
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(
            [sys.executable, "-m", "anban", "audit", str(tree), "--out", str(out),
             "--workers", str(WORKERS), "--checks", CHECK],
            stdout=nowhere, stderr=nowhere,
        )  # fmt: skip
        while process.poll() is None:
            samples.append(Sample(time.perf_counter() - begun, _indexed(out), *_memory(process.pid)))
            time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"the audit ended with {process.returncode}")
    samples.append(Sample(time.perf_counter() - begun, _indexed(out), 0, 0))
    return json.loads((out / "summary.json").read_text(encoding="utf-8")), samples


def _indexed(out: Path) -> int:
    if not (out / INDEX).is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{out / INDEX}?mode=ro", uri=True)) as base:
            return int(base.execute("SELECT max(id) FROM files").fetchone()[0] or 0)
    except sqlite3.Error:  # it is just being made
        return 0


def _memory(pid: int) -> tuple[float, float]:
    """Resident MB of a process, and of the largest of its children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return _resident(pid), max((_resident(int(child)) for child in children), default=0.0)


def _resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, IndexError):
        return 0.0


def _told(summary: dict[str, Any], samples: list[Sample]) -> dict[str, float]:
    """Looking and telling apart: the first is the pass over the files, the second what is said of all together."""
    whole, looking = samples[-1].seconds, summary["pass"]["seconds"]
    return {
        "looked_at": summary["pass"]["looked_at"],
        "seconds": round(whole, 1),
        "seconds_of_looking": round(looking, 1),
        "files_per_second": round(summary["files"] / whole),
        "files_per_second_of_looking": round(summary["files"] / looking),
        "most_parent_mb": round(max(sample.parent for sample in samples)),
        "most_worker_mb": round(max(sample.worker for sample in samples)),
    }


def _at_shares(samples: list[Sample], files: int) -> list[dict[str, float]]:
    """The largest memory until so many files are in the index; the last is that of looking, before all is told."""
    found = []
    for share in SHARES:
        until = [sample for sample in samples if 0 < sample.files <= share * files]
        whole = [sample for sample in until if sample.parent]
        found.append({
            "files": round(share * files),
            "parent_mb": round(max((sample.parent for sample in whole), default=0)),
            "worker_mb": round(max((sample.worker for sample in whole), default=0)),
            "seconds": round(max((sample.seconds for sample in until), default=0), 1),
        })  # fmt: skip
    return found


def _page(found: dict[str, Any]) -> str:
    memory = [
        [f"{each['files']:,}", f"{each['seconds']} s", f"{each['parent_mb']} MB", f"{each['worker_mb']} MB"]
        for each in found["memory"]
    ]
    passes = [
        [name, f"{one['looked_at']:,}", f"{one['seconds']} s", f"{one['seconds_of_looking']} s",
         f"{one['files_per_second']:,}", f"{one['most_parent_mb']} MB", f"{one['most_worker_mb']} MB"]
        for name, one in (("first", found["first"]), ("second", found["second"]))
    ]  # fmt: skip
    spent = [[name, f"{seconds:.1f} s"] for name, seconds in found["seconds_of_checks"].items()]
    lines = [
        "# A hundred thousand small files",
        "",
        f"{found['files']:,} files, {found['workers']} workers, check: {found['check']}.",
        "",
        *table(
            ("pass", "looked at", "whole", "of it looking", "files per second", "parent", "largest worker"),
            passes,
        ),
        "",
        "Largest resident memory until so many files were in the index (the last line: until the end of the run):",
        "",
        *table(("files", "after", "parent", "largest worker"), memory),
        "",
        "Seconds of the workers by what they were spent on:",
        "",
        *table(("what", "time"), spent),
        "",
        f"The index has {found['index_bytes'] / 1e6:.1f} MB, the page {found['page_bytes'] / 1e6:.1f} MB, "
        f"findings.jsonl {found['findings']:,} lines.",
    ]
    return "\n".join(lines) + "\n"
