"""The audit under kills, damaged files and hostile archives.

* `kills`: `anban audit` with two workers is ended with SIGKILL ten times, each time when a number of files drawn at random
  is in its index (all of them in the last two) and a random time later, and begun again. In the end findings.jsonl has to be that of a pass that was
  left alone, line by line, no worker may outlive its parent, and the tree has to be what it was: content, mode and time of
  every file and folder. Trees: the samples of ANBAN_DATA, and 3,000 generated files.
* `damage`: five thousand files made by flipping, cutting and splicing sound ones, generated and from the samples.
* `hostile`: archives and pictures made to harm whoever opens them (see `audit_hostile`).

In the last two parts every file is looked at in a process that may address 4 GiB (RLIMIT_AS), with a clock, and then the
real command goes over the tree under the same limit. Nothing may end but with findings, and nothing may be written beside
the output folder.

`python -m benchmarks.audit_kill [PART ...]`; results of other parts are kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from anban.audit.limits import read_limits
from anban.audit.look import Plan, look
from anban.audit.run import INDEX
from anban.audit.walk import File, walk
from anban.record.environment import commit
from benchmarks.audit_hostile import hostile_files
from benchmarks.audit_scale import WITHOUT_TEXT
from benchmarks.audit_trees import samples, small_files, state
from benchmarks.timing import line, machine, table
from tests.audit.test_fuzz import damaged, seeds

KILLS, GENERATED, DAMAGED = 10, 3000, 5000
MEMORY = 4 << 30
PASSWORDS = ("wrong", "secret")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit_kill")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = chosen.out / "audit_kill.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for part in chosen.parts or PARTS:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[part](Path(folder), chosen.seed)
        found |= {
            "seconds": round(time.perf_counter() - begun),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": commit(),
            "machine": machine(),
        }
        known[part] = found
        file.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (chosen.out / "audit_kill.md").write_text(page(known), encoding="utf-8")
        print(f"{part}: {found['verdict']}", flush=True)
    sys.exit(any(found["verdict"] != "ok" for found in known.values()))


def command(tree: Path, out: Path, checks: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """`anban audit` of a tree with two workers; its own words go to a file beside `out`."""
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "anban", "audit", str(tree), "--out", str(out), "--workers", "2",
             "--checks", ",".join(checks)], stdout=log, stderr=log, **options,
        )  # fmt: skip


# Kills ----------------------------------------------------------------------------------------------------------


def kills_of_samples(folder: Path, seed: int) -> dict[str, Any]:
    return kill(samples(folder), folder, seed)


def kills_of_many(folder: Path, seed: int) -> dict[str, Any]:
    return kill(small_files(folder / "tree", GENERATED), folder, seed)


def kill(tree: Path, folder: Path, seed: int) -> dict[str, Any]:
    """One pass left alone, one killed; how they compare."""
    before = state(tree)
    if command(tree, folder / "whole", WITHOUT_TEXT).wait():
        raise SystemExit((folder / "whole.log").read_text())
    files = json.loads((folder / "whole" / "summary.json").read_text())["files"]
    draw, out = random.Random(seed), folder / "killed"
    at, orphans, by_itself = [], 0, 0
    targets = sorted(draw.randrange(files) for _ in range(KILLS - 2))
    for target in (*targets, files, files):  # the last two: while the findings are told
        process = command(tree, out, WITHOUT_TEXT)
        while process.poll() is None and not (out / INDEX).exists():
            time.sleep(0.001)
        while process.poll() is None and indexed(out) < target:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.4 if target < files else 2))
        workers = children(process.pid)
        by_itself += process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        at.append(indexed(out))
        orphans += left(workers)
    if command(tree, out, WITHOUT_TEXT).wait():
        raise SystemExit((folder / "killed.log").read_text())
    whole, killed = ((folder / name / "findings.jsonl").read_text() for name in ("whole", "killed"))
    passed = {
        "the findings are those of the undisturbed pass": whole == killed,
        "the tree is what it was": state(tree) == before,
        "every worker ended with its parent": not orphans,
        "every kill met a running process": not by_itself,
    }
    return {
        "files": files,
        "kills": KILLS,
        "in_index_at_kills": at,
        "looked_at_in_last_pass": json.loads((out / "summary.json").read_text())["pass"]["looked_at"],
        "findings": whole.count("\n"),
        "orphans": orphans,
        **judged(passed),
    }


def judged(passed: dict[str, bool]) -> dict[str, Any]:
    failed = [name for name, good in passed.items() if not good]
    return {"passed": passed, "verdict": "ok" if not failed else f"not so: {'; '.join(failed)}"}


def indexed(out: Path) -> int:
    """Files in the index."""
    if not (out / INDEX).is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{out / INDEX}?mode=ro", uri=True)) as base:
            return int(base.execute("SELECT count(*) FROM files").fetchone()[0])
    except sqlite3.Error:  # it is just being made
        return 0


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def left(pids: list[int], limit: float = 10) -> int:
    """How many of the processes still live after a while; they are ended."""
    until = time.monotonic() + limit
    while (alive := [pid for pid in pids if lives(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    return len(alive)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Damage ---------------------------------------------------------------------------------------------------------


def damage(folder: Path, seed: int) -> dict[str, Any]:
    tree = folder / "tree"
    draw = random.Random(seed)
    sound = seeds() + [
        (path.name, path.read_bytes()) for path in _files(samples(folder)) if path.stat().st_size
    ]
    for number in range(DAMAGED):
        (name, content), (_, other) = draw.choice(sound), draw.choice(sound)
        place = tree / f"{number // 200:02}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:04} {name}").write_bytes(damaged(content, other, draw))
    return survive(tree, folder)


def hostile(folder: Path, seed: int) -> dict[str, Any]:
    tree = folder / "tree"
    tree.mkdir()
    for name, content in hostile_files():
        (tree / name).write_bytes(content)
    (tree / "loop").symlink_to(tree)
    (tree / "leads out.png").symlink_to("/etc/passwd")
    os.mkfifo(tree / "pipe.zip")
    return survive(tree, folder)


def survive(tree: Path, folder: Path) -> dict[str, Any]:
    """Look at every file under a limit of memory, one by one and by the real command."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    before, outside = state(tree), set(os.listdir(tempfile.gettempdir()))
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=each_alone, args=(tree, elsewhere, theirs))
    process.start()
    theirs.close()
    seen = list(received(ours))
    process.join()
    if not seen:
        raise SystemExit("nothing was looked at")
    spent = {name: seconds for name, seconds, _, _ in seen}
    slowest = sorted(spent, key=lambda name: -spent[name])[:5]
    problems = Counter(problem for _, _, told, _ in seen for problem in told)
    begun = time.perf_counter()
    environment = {**os.environ, "TMPDIR": str(elsewhere), "HOME": str(elsewhere), "PYTHONPATH": os.getcwd()}
    whole = command(tree, folder / "out", WITHOUT_TEXT, cwd=elsewhere, env=environment, preexec_fn=limited)
    status = whole.wait()
    took = time.perf_counter() - begun
    passed = {
        "the process that looks at all files ended well": process.exitcode == 0,
        "the command ended well": status == 0,
        "no check broke off": not problems["check_failed"],
        "the tree is what it was": state(tree) == before,
        "nothing was written elsewhere": not any(elsewhere.iterdir())
        and not {
            name for name in set(os.listdir(tempfile.gettempdir())) - outside if name.startswith("anban")
        },
    }
    return {
        "files": len(seen),
        "memory_limit": MEMORY,
        "peak_mb": round(seen[-1][3]),
        "seconds_alone": round(sum(spent.values()), 1),
        "milliseconds_median": round(1e3 * statistics.median(spent.values()), 1),
        "slowest": {name: round(spent[name], 2) for name in slowest},
        "seconds_of_command": round(took, 1),
        "problems": dict(problems.most_common()),
        "elsewhere": sorted(str(path.relative_to(elsewhere)) for path in elsewhere.rglob("*"))[:20],
        "told": {name: list(told) for name, _, told, _ in seen} if len(seen) < 100 else {},
        **judged(passed),
    }


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def each_alone(tree: Path, elsewhere: Path, pipe: Connection) -> None:
    """Look at each file; tells its name, the processor seconds, the problems, and the peak of memory so far in MB."""
    os.chdir(elsewhere)
    tempfile.tempdir = str(elsewhere)
    limited()
    plan = Plan(os.fsencode(tree), read_limits(), tuple(WITHOUT_TEXT), PASSWORDS)
    for file in walk(plan.root):
        if isinstance(file, File):
            begun = time.process_time()  # a wait for a core is no fault of the file
            problems = [finding.problem for finding in look(plan, file).findings]
            took = time.process_time() - begun
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            pipe.send((os.fsdecode(file.path), took, problems, peak))
    pipe.close()


def received(pipe: Connection) -> Iterator[tuple[str, float, list[str], float]]:
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


def _files(tree: Path) -> list[Path]:
    return sorted(path for path in tree.rglob("*") if path.is_file())


# Results --------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "kills, samples": kills_of_samples,
    "kills, generated": kills_of_many,
    "damage": damage,
    "hostile": hostile,
}


def page(known: dict[str, Any]) -> str:
    lines = [line(["part", "files", "what", "seconds", "verdict", "date"]), line(["---"] * 6)]
    for part, found in known.items():
        if "kills" in found:
            what = f"{found['kills']} kills, with {', '.join(map(str, found['in_index_at_kills']))} files in the index"
        else:
            name, slowest = next(iter(found["slowest"].items()))
            what = (
                f"{found['milliseconds_median']} ms of processor time a file, at most {slowest} s ('{name}'); "
                f"{found['peak_mb']} MB of {found['memory_limit'] >> 20} allowed"
            )
        row = [part, f"{found['files']:,}", what, str(found["seconds"]), found["verdict"], found["date"]]
        lines.append(line(row))
    text = "# The audit under kills, damaged files and hostile archives\n\n" + "\n".join(lines) + "\n"
    for part, found in known.items():
        text += f"\n## {part}\n\n" + "".join(
            f"- {name}: {'yes' if good else 'NO'}\n" for name, good in found["passed"].items()
        )
        if found.get("problems"):
            text += (
                "\n"
                + "\n".join(table(("problem", "files"), [[a, str(b)] for a, b in found["problems"].items()]))
                + "\n"
            )
        if found.get("told"):
            rows = [[name, ", ".join(told)] for name, told in found["told"].items()]
            text += "\n" + "\n".join(table(("file", "told"), rows)) + "\n"
    return text


if __name__ == "__main__":
    main()
