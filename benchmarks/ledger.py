"""Ten thousand runs: list, filter, watch and compare them with the ledger, and fill the ledger again from their folders.

The runs are made up: 40 recipes with 125 seeds twice each, in all states, with scores under two protocols, a recipe and the size of
run.json that real runs have. Beside each question stands what it costs to read all the folders for the answer, as
one would without a ledger, and the whole command, which is mostly the start of the interpreter.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anban.cli.runs import print_comparison, print_list, print_run, watch
from anban.record import Ledger
from anban.record.environment import environment
from anban.record.files import find_runs, read_info, to_json
from anban.record.run import FORMAT
from benchmarks.timing import Findings, interleave, machine, page, row, seconds

RECIPES, SEEDS = 40, 250
ENDS = ("finished",) * 17 + ("failed", "interrupted", "queued")
FOLDERS = "reading every run.json"


def run(rounds: int) -> Findings:
    """A row per question, and one for the whole command of each."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        ids = make_runs(out)
        ledger = Ledger(out)
        ledger.rebuild()
        pair = [ids[0], ids[SEEDS]]
        questions: dict[str, Callable[[], object]] = {
            "list, the newest 50": lambda: print_list(out, limit=50),
            "list, all": lambda: print_list(out, limit=0),
            "list, one recipe": lambda: print_list(out, recipe="change/arm-7"),
            "list, failed ones": lambda: print_list(out, state="failed"),
            "list, superseded ones": lambda: print_list(out, state="superseded"),
            "compare two": lambda: print_comparison(out, pair),
            "show one by the beginning of its id": lambda: print_run(out, ids[0][:-2]),
            "watch, one look": lambda: watch(out),
            "rebuild": ledger.rebuild,
        }
        commands = {
            "anban runs --limit 50": ["--limit", "50"],
            "anban runs --recipe change/arm-7": ["--recipe", "change/arm-7"],
            "anban runs compare": ["compare", *pair],
            "anban runs rebuild": ["rebuild"],
        }
        measures = {FOLDERS: seconds(lambda: [read_info(each) for each in find_runs(out)])}
        measures |= {name: seconds(_silently(work)) for name, work in questions.items()}
        measures |= {name: seconds(_process(given, out)) for name, given in commands.items()}
        values = interleave(measures, min(rounds, 3))
    rows = [row(values, f"{len(ids)} runs", name, FOLDERS) for name in (*questions, *commands)]
    return Findings(rows, {"runs": len(ids)}, page("The ledger of ten thousand runs", rows, _measured()))


def make_runs(out: Path) -> list[str]:
    """Write the runs under `out`; returns their ids."""
    made_with = environment()
    ids = []
    for number in range(RECIPES * SEEDS):
        arm, seed = number // SEEDS, number % SEEDS // 2  # each seed twice: some runs supersede others
        recipe, state = f"change/arm-{arm}", ENDS[number % len(ENDS)]
        started = f"2026-{1 + number % 12:02d}-{1 + number % 28:02d}T{number % 24:02d}:{number % 60:02d}:00.000+00:00"
        name = f"{started[:10].replace('-', '')}-{number:06d}-s{seed}-{number:04x}"
        folder = out / recipe / name
        folder.mkdir(parents=True)
        info = _info(name, recipe, state, seed, started, made_with)
        (folder / "run.json").write_text(to_json(info, indent=1), encoding="utf-8")
        (folder / "recipe.yaml").write_text(
            f"id: {recipe}\nseed: {seed}\nmodel: {{width: {arm}}}\n", encoding="utf-8"
        )
        ids.append(name)
    return ids


def _info(
    name: str, recipe: str, state: str, seed: int, started: str, made_with: dict[str, Any]
) -> dict[str, Any]:
    stamp = {
        "split": "test",
        "size": "256x256",
        "tiling": "whole",
        "flips": "none",
        "scales": [1.0],
        "threshold": 0.5,
    }
    scores = [
        {
            "split": "test",
            "protocol": protocol,
            "checkpoint": "best",
            "name": score,
            "value": 0.5 + seed / 1000,
        }
        for protocol in ("whole", "whole+flip")
        for score in ("precision", "recall", "f1", "iou", "oa", "kappa")
    ]
    finding = {
        "kind": "stagnation",
        "step": 900,
        "what": "it stands still",
        "cause": "",
        "remedy": "",
        "ended": None,
    }
    return {
        "format": FORMAT, "id": name, "recipe": recipe, "title": recipe.title(), "task": "change",
        "hash": f"{hash_of(recipe):012x}", "base": "change/arm-0", "difference": {"model.width": 16}, "state": state,
        "why": "loss is NaN" if state == "failed" else None, "outcome": "stagnation", "findings": [finding], "seed": seed,
        "started": started, "ended": started, "seconds": 3600.0, "commit": "0" * 40, "device": "cpu", "remark": None,
        "host": "elsewhere", "pid": 1, "process": "x", "job": None, "command": f"anban run {recipe}",
        "environment": made_with, "data": {"root": "levir", "fingerprint": "8d1f00c3b7aa", "splits": {"test": 128}},
        "model": {"name": "change/tinycd", "parameters": 285128}, "progress": {"step": 1000, "steps": 1000},
        "protocols": {f"test/{each}": {"name": each, **stamp} for each in ("whole", "whole+flip")}, "scores": scores,
    }  # fmt: skip


def hash_of(recipe: str) -> int:
    """Another number for each recipe, the same in every process."""
    return int(recipe.rpartition("-")[2]) * 2_654_435_761


def _measured() -> dict[str, list[str]]:
    here = machine()
    place = f"{here['cpu']}, {here['cores']} cores, load {here['load']}, {here['platform']}, Python {here['python']}"
    return {"Measured:": [f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}, {place}"]}


def _silently(work: Callable[[], object]) -> Callable[[], None]:
    def quiet() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            work()

    return quiet


def _process(arguments: list[str], out: Path) -> Callable[[], None]:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "anban", "runs", *arguments, "--out", str(out)]

    def work() -> None:
        subprocess.run(
            command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    return work
