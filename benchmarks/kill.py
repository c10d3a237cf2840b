"""Runs that are killed twenty times and go on: the same numbers, bit for bit, as a run that was left alone.

For each task a short run on generated data is done once without disturbance. Then the same run is begun anew and its
process is ended with SIGKILL twenty times, each time after a step drawn at random, and taken up again by the real
command, `anban run --resume`, in a new process (forked from one that has imported everything and computed nothing; the
ordinary tests do it with interpreters started anew). A kill comes in one of four ways: as soon as the step is in the log, a random time later,
while a checkpoint is being written, or in a validation. In the end every value in metrics.jsonl (also the repeated
ones), every sample's record, every score and all that last.pt and best.pt hold are compared.

`python -m benchmarks.kill [PART ...]`; parts are the cases, `far` (the first step after a resume at step 100,000) and
`deaths` (see benchmarks.deaths). Results of other parts are kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.tensorboard import SummaryWriter  # noqa: F401 - as well

from anban.engine import checkpoint
from anban.engine.run import execute  # noqa: F401 - what every run needs is imported once, here
from anban.recipe import load_recipe
from anban.record import RunFolder
from anban.record.environment import commit
from benchmarks import deaths
from benchmarks.forked import Forked, command
from benchmarks.timing import line, machine

KILLS, STEPS, SAVE_EVERY = 20, 40, 3


class Case(NamedTuple):
    """A recipe, and what is set beside the debug size of its task; starting data workers for a validation takes long."""

    recipe: str
    more: Sequence[str] = ()
    workers: int = 0
    eval_every: int = 5


CASES = {
    "change": Case("change/demo-fc-siam-diff", ["model.width=4"]),
    "segment": Case("seg/demo-bisenet", ["augment.crop.size=[64,64]"]),
    "detect": Case(
        "det/demo-pvt", ["model.detector.score=0.005", "model.detector.detections=5", "eval.score=0"]
    ),
    "denoise": Case("ct/demo-cncl", ["adversarial.loss=lsgan", "alternation.generator_steps=2"]),
    "workers": Case("change/demo-fc-siam-diff", ["model.width=4"], workers=2, eval_every=20),
}
WAYS = ("step", "delay", "checkpoint", "validation")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill")
    parts = (*CASES, "far", "deaths")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)} (default: all)")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--deaths", type=int, default=deaths.COUNT)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    file = chosen.out / "kill.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for part in chosen.parts or parts:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            if part in CASES:
                found = kill(part, Path(folder), chosen.kills, chosen.seed)
            elif part == "far":
                found = far(Path(folder))
            else:
                found = deaths.trial(Path(folder), chosen.deaths, chosen.seed)
        found |= {
            "seconds": round(time.perf_counter() - begun),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": commit(),
            "machine": machine(),
        }
        known[part] = found
        file.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (chosen.out / "kill.md").write_text(page(known), encoding="utf-8")
        print(f"{part}: {found['verdict']}", flush=True)
    sys.exit(any(not found["verdict"].startswith("ok") for found in known.values()))


# Kills ----------------------------------------------------------------------------------------------------------


def overrides(case: Case, folder: Path) -> list[str]:
    """What shrinks the recipe of a case."""
    recipe = load_recipe(case.recipe)
    debug: Callable[..., list[str]] = importlib.import_module(f"anban.tasks.{recipe.task}.debug").debug
    return [*debug(recipe.config, folder / "data"), *case.more, f"train.iterations={STEPS}",
            f"train.eval_every={case.eval_every}", "train.ema=0.9", f"machine.checkpoint_every={SAVE_EVERY}",
            "machine.log_every=1", f"machine.workers={case.workers}", "machine.profile=false"]  # fmt: skip


def kill(name: str, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """One run left alone, one killed; how they compare."""
    case = CASES[name]
    start = ["run", case.recipe, *overrides(case, folder), "--device", "cpu", "--out"]
    if command([*start, str(folder / "whole")]).wait() != 0:
        raise SystemExit(f"{name}: the run that is left alone fails")
    whole = only_run(folder / "whole")
    draw = random.Random(f"{name} {seed}")
    steps = sorted(draw.sample(range(1, STEPS), min(kills, STEPS - 1)))
    landed: Counter[str] = Counter()
    words = [*start, str(folder / "killed")]
    for number, step in enumerate(steps):
        process = command(words)  # its first line comes long after this one
        wait_for(process, folder / "killed", step, WAYS[number % len(WAYS)], case.eval_every, draw)
        if process.poll() is not None:
            raise SystemExit(
                f"{name}: the run ended by itself with {process.returncode} before kill {number + 1}"
            )
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        run = only_run(folder / "killed")
        landed[place(run, case.eval_every)] += 1
        words = ["run", "--resume", str(run.path), "--device", "cpu"]
    command(words).wait()
    killed = only_run(folder / "killed")
    differences = compare(whole, killed)
    return {
        "case": f"{case.recipe}, {case.workers} workers, {STEPS} steps",
        "kills": len(steps),
        "landed": dict(landed.most_common()),
        "repeated": len(killed.metrics(dedupe=False)) - len(killed.metrics()),
        "verdict": "ok: the same bit for bit" if not differences else f"different: {', '.join(differences)}",
    }


def only_run(out: Path) -> RunFolder:
    (file,) = out.glob("*/*/*/run.json")
    return RunFolder.open(file)


def wait_for(process: Forked, out: Path, step: int, way: str, eval_every: int, draw: random.Random) -> None:
    """Return at the moment of the kill, or when the process has ended by itself."""
    if (
        way == "validation"
    ):  # there is one after the last step as well, but the run may be over before it is killed
        step = min(-(-step // eval_every) * eval_every, STEPS - eval_every)

    before = {file.parent: file.stat().st_size for file in out.glob("*/*/*/metrics.jsonl")}

    def there() -> bool:
        return any(
            reached(file.parent, step, before.get(file.parent, 0)) for file in out.glob("*/*/*/metrics.jsonl")
        )

    def writing() -> bool:
        return any(out.glob("*/*/*/checkpoints/.*.part"))

    until(there, process)
    if way == "delay":
        time.sleep(draw.uniform(0, 0.3))
    elif way == "checkpoint":
        until(writing, process)
    elif way == "validation":
        time.sleep(draw.uniform(0, 0.02))


def until(happens: Callable[[], bool], process: Forked | subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not happens():
        time.sleep(0.0005)


def reached(folder: Path, step: int, since: int = 0) -> bool:
    """Whether the loss of a step, or of a later one, is in the log, after so many bytes of it."""
    try:
        text = (folder / "metrics.jsonl").read_bytes()[since:]
    except FileNotFoundError:
        return False
    steps = [
        json.loads(t)["step"] for t in text.splitlines()[-40:] if t.startswith(b"{") and t.endswith(b"}")
    ]
    return max(steps, default=0) >= step


def place(run: RunFolder, eval_every: int) -> str:
    """What a killed run was doing, by what it has left."""
    if list(run.path.glob("checkpoints/.*.part")):
        return "the writing of a checkpoint"
    if list(run.path.glob(".*.tmp")):
        return "the writing of run.json"
    lines = run.metrics(dedupe=False)
    if lines and lines[-1]["split"] != "train":
        return "a validation, its scores just written"
    if lines and lines[-1]["step"] % eval_every == 0:
        return "a validation"
    return "a step"


def compare(whole: RunFolder, killed: RunFolder) -> list[str]:
    """Names of what differs."""
    key = ("step", "split", "protocol", "name")
    values = {tuple(m[k] for k in key): m["value"] for m in whole.metrics()}
    every = [(tuple(m[k] for k in key), m["value"]) for m in killed.metrics(dedupe=False)]
    different = []
    if {place for place, _ in every} != values.keys() or any(
        values[place] != value for place, value in every
    ):
        different.append("metrics.jsonl")
    if whole.samples() != killed.samples():
        different.append("samples.jsonl")
    different += [
        k for k in ("scores", "protocols", "outcome", "findings") if whole.info[k] != killed.info[k]
    ]
    for name in ("last.pt", "best.pt"):
        files = [run.checkpoints / name for run in (whole, killed)]
        if files[0].is_file() != files[1].is_file():
            different.append(name)
        elif files[0].is_file():
            states = [checkpoint.load(file) for file in files]
            different += [f"{name}: {place}" for place in differing(*states)]
    return different


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """The places at which two states differ, but for the clock."""
    if place in ("progress.seconds", "progress.waited"):
        return []
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [place]
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return [place]
        return [p for k in one for p in differing(one[k], other[k], f"{place}.{k}".lstrip("."))]
    if isinstance(one, list | tuple):
        if type(one) is not type(other) or len(one) != len(other):
            return [place]
        return [
            p
            for n, (a, b) in enumerate(zip(one, other, strict=True))
            for p in differing(a, b, f"{place}[{n}]")
        ]
    return [] if one == other else [place]


# A resume far into a run ------------------------------------------------------------------------------------------


def far(folder: Path) -> dict[str, Any]:
    """Seconds to the first step done, at step 10 and at step 100,000 of the same run."""
    case, out = CASES["change"], folder / "runs"
    long = ["train.iterations=200000", "train.eval_every=200000", "machine.checkpoint_every=10"]
    process = command(
        ["run", case.recipe, *overrides(case, folder), *long, "--device", "cpu", "--out", str(out)]
    )
    until(lambda: any(out.glob("*/*/*/checkpoints/last.pt")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run = only_run(out)
    stored = checkpoint.load(run.checkpoints / "last.pt")
    warm = "python and torch imported"
    ways = {"step 10, " + warm: (10, command), "step 100,000, " + warm: (100_000, command),
            "step 100,000, from nothing": (100_000, started_anew)}  # fmt: skip
    taken = {name: sorted(first_step(run, stored, *way) for _ in range(3)) for name, way in ways.items()}
    middle = taken["step 100,000, from nothing"][1]
    return {
        "case": f"{case.recipe}, from the command to the first step done, three times each",
        "taken": taken,
        "verdict": f"{'ok' if middle < 5 else 'slow'}: {middle:.2f} s at step 100,000 from nothing",
    }


def started_anew(words: Sequence[str]) -> subprocess.Popen[bytes]:
    """`anban WORDS` in an interpreter of its own, as a user starts it."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-m", "anban", *words], stdout=quiet, stderr=quiet)


def first_step(
    run: RunFolder,
    stored: dict[str, Any],
    step: int,
    start: Callable[[Sequence[str]], Forked | subprocess.Popen[bytes]],
) -> float:
    """Pretend that the run has come to `step`, with as long a log, and resume it."""
    state = {**stored, "step": step, "progress": {**stored["progress"], "step": step}}
    checkpoint.save(run.checkpoints / "last.pt", {k: v for k, v in state.items() if k != "format"})
    text = "".join(json.dumps({"step": n, "epoch": n / 2, "split": "train", "protocol": None, "name": "loss",
                               "value": 0.5, "time": 0.1 * n}) + "\n" for n in range(1, step + 1))  # fmt: skip
    log = run.path / "metrics.jsonl"
    log.write_text(text)
    begun = time.perf_counter()
    process = start(["run", "--resume", str(run.path), "--device", "cpu"])
    until(lambda: log.stat().st_size > len(text), process)
    taken = time.perf_counter() - begun
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert reached(run.path, step + 1), "the run ended before its first step"
    return round(taken, 2)


# The page -------------------------------------------------------------------------------------------------------


def page(known: dict[str, Any]) -> str:
    """benchmarks/results/kill.md."""
    text = ["# Runs that are killed", "", " ".join((__doc__ or "").split("\n\n")[1].split()), ""]
    text += [line(["case", "kills", "landed in", "values computed again", "afterwards", "when, where"])]
    text += [line(["---"] * 6)]
    for case in CASES:
        if found := known.get(case):
            landed = ", ".join(f"{what} {count}" for what, count in found["landed"].items())
            cells = [
                found["case"],
                str(found["kills"]),
                landed,
                str(found["repeated"]),
                found["verdict"],
                _where(found),
            ]
            text.append(line(cells))
    if found := known.get("far"):
        taken = "; ".join(
            f"{step}: {', '.join(map(str, values))} s" for step, values in found["taken"].items()
        )
        text += [
            "",
            "## The first step after a resume",
            "",
            f"{found['case']}. {taken}. {found['verdict']}. {_where(found)}.",
        ]
    if found := known.get("deaths"):
        text += ["", "## Forced deaths and the ledger", "", " ".join((deaths.__doc__ or "").split()), ""]
        text += [line(["death", "runs", "state in the ledger", "reason given"]), line(["---"] * 4)]
        text += [line([row["death"], str(row["runs"]), row["state"], row["why"]]) for row in found["rows"]]
        text += ["", f"{found['verdict']}. {_where(found)}."]
    return "\n".join(text) + "\n"


def _where(found: dict[str, Any]) -> str:
    of = found["machine"]
    code = (found["commit"] or "unknown")[:12] + ("+dirty" if "+dirty" in (found["commit"] or "") else "")
    return f"{found['date']}, commit {code}, {found['seconds']} s on {of['cpu']}, {of['cores']} cores shared (load {of['load']})"


if __name__ == "__main__":
    main()
