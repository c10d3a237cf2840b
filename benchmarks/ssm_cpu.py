"""The selective scan of an image on a processor: our backends beside what public code does in plain torch.

What is timed is VMamba's cross-scan, selective scan and cross-merge in float32, without projections, in Mamba's initial ranges
of steps and rates. The peers (`benchmarks.ssm_anchors`) are checked against float64 first; one that is wrong is not compared.
A ratio is taken to the fastest of loop, hf, pscan and assoc on that cell. A sample repeats the work for a quarter of a second
or more and counts only if all other processes together used less than 12 % of a core meanwhile; a cell that has waited too long
for such samples says "not quiet". In a fresh process torch's softplus and log1p can take six times as long as after F.mish has run once (seen
on an AMD EPYC under virtualisation); peers are measured as a fresh process finds them, or with ANBAN_BENCH_MISH=1 after it. `--rounds 1` is a trial: single calls, no waiting, a quarter of every image. ANBAN_BENCH_COMPILE=1 adds compiled peers
(needs a C++ compiler and minutes). The goals are those set before the kernels were written.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import ssm_page
from benchmarks.ssm_cells import (
    SHAPES,
    WHATS,
    Shape,
    cells,
    error,
    in_turn,
    inputs,
    ours,
    peer,
    peers,
    shapes,
    threads,
    usable,
)
from benchmarks.ssm_floor import rates
from benchmarks.timing import Findings, megabytes

# Beside the cells -------------------------------------------------------------------------------------------------------


def scaling(rounds: int) -> dict[str, float]:
    """How much faster two threads are than one on the smallest shape, called between other operations of torch."""
    contender = ours(usable()[0], inputs(shapes(rounds)["B"]))
    other = torch.randn(1 << 20)
    found = {}
    for what in WHATS:

        def on(number: int, what: str = what) -> float:
            with threads(number):
                samples = in_turn({"": contender.run(what)}, rounds, before=lambda: other.mul_(1.0))
            return samples.median("")

        contender.run(what)()
        found[what] = statistics.median(on(1) / on(2) for _ in range(3))
    return found


def memory(names: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """MB above the level before, at the worst moment, less y and the gradients; "shape, what" -> contender."""
    found = {}
    for name, shape in shapes(rounds).items():
        given = inputs(shape)
        for what in WHATS:
            outputs = given["x"].numel() + (
                0 if what == "forward" else sum(v.numel() for v in given.values())
            )
            line = {}
            for contender in names:
                scan = peers().get(contender)
                work = (ours(contender, given) if scan is None else peer(contender, scan, given)).run(what)
                work()
                times = 3 if scan is None else 1
                line[contender] = min(megabytes(work)().value for _ in range(times)) - 4e-6 * outputs
            found[f"{name}, {what}"] = line
    return found


def _large_steps(given: dict[str, Tensor]) -> None:
    given["delta"].uniform_(-5, 20, generator=torch.Generator().manual_seed(2))


def _fast_decay(given: dict[str, Tensor]) -> None:
    given["A"].copy_(-torch.logspace(0, 3, given["A"].numel()).view_as(given["A"]))


REGIMES: dict[str, Sequence[Callable[[dict[str, Tensor]], None]]] = {
    "Mamba's initial ranges": (),
    "steps to 20": (_large_steps,),
    "A to -1000": (_fast_decay,),
    "steps to 20, A to -1000": (_large_steps, _fast_decay),
}


def accuracy() -> dict[str, dict[str, float]]:
    """Largest error of y and of every gradient against float64, relative to its largest value; "states, regime" -> backend."""
    found = {}
    for states in (1, 16):
        for regime, changes in REGIMES.items():
            given = inputs(Shape(2, 40, 15, 17, states))
            for change in changes:
                change(given)
            right = ours("reference", given, torch.float64)
            expected = (right.forward(), *right.both())
            line = {}
            for name in usable():
                contender = ours(name, given)
                line[name] = error((contender.forward(), *contender.both()), expected)
            found[f"N = {states}, {regime}"] = line
    return found


def bitwise() -> dict[str, bool]:
    """Whether one and two threads, and a repetition, give the same bits."""
    found = {}
    for name in usable():
        results = []
        for number in (1, 2, 2):
            with threads(number):
                contenders = [ours(name, inputs(SHAPES[shape])) for shape in "BD"]
                results.append([tensor for c in contenders for tensor in (c.forward(), *c.both())])
        same = zip(*results, strict=True)
        found[name] = all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in same)
    return found


STARTUP = """
import json, sys, time
import torch
begun = time.perf_counter()
import anban.ssm
from anban.ssm.scan import selective_scan_2d
imported = time.perf_counter() - begun
def call(d, states, height):
    x = torch.randn(1, height, 8, d, requires_grad=True)
    delta, B, C = torch.randn(1, height, 8, 4, d), *torch.randn(2, 1, height, 8, 4, states)
    selective_scan_2d(x, delta, -torch.rand(4, d, states), B, C, backend=sys.argv[1]).sum().backward()
def seconds(*sizes):
    begun = time.perf_counter()
    for size in sizes:
        call(*size)
    return time.perf_counter() - begun
first = seconds((32, 1, 8), (32, 16, 8))
others = (48, 1, 9), (80, 16, 5)
found = {"import": imported, "first calls": first, "other shapes": seconds(*others), "the same again": seconds(*others)}
print(json.dumps(found))
"""


def startup() -> dict[str, dict[str, float]]:
    """Seconds of `import anban.ssm` after torch, and of the first calls with 1 and 16 states, forward and backward."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in usable():
            for state in ("cold", "warm"):
                found[f"{name}, {state}"] = json.loads(_child(STARTUP, name, ANBAN_CACHE=cache))
    return found


def _child(code: str, *arguments: str, **variables: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    if done.returncode:
        raise RuntimeError(f"a child process failed: {done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def on_other_processor(rounds: int) -> float | None:
    """How fast the kernels written for AVX2 are, relative to those for this processor: geometric mean over the shapes, 1 thread."""
    if "cpu" not in usable():
        return None
    code = (
        "import json, sys; from benchmarks import ssm_cpu; print(json.dumps(ssm_cpu.alone(int(sys.argv[1]))))"
    )
    here, there = (json.loads(_child(code, str(rounds), **v)) for v in ({}, {"ANBAN_CPU": "haswell"}))
    return statistics.geometric_mean([a / b for a, b in zip(here, there, strict=True)])


def alone(rounds: int) -> list[float]:
    """Seconds of every shape and kind of work with our fastest backend on one thread."""
    found = []
    with threads(1):
        for shape in shapes(rounds).values():
            contender = ours("cpu", inputs(shape))
            for what in WHATS:
                contender.run(what)()
                found.append(in_turn({"": contender.run(what)}, rounds).median(""))
    return found


# The whole --------------------------------------------------------------------------------------------------------------


def run(rounds: int) -> Findings:
    """Every cell, what is measured beside them, and a page with both and the goals."""
    found = []
    for cell in cells(rounds):
        found.append(cell)
        for row in cell.rows():
            print(f"  {row}", file=sys.stderr)
    details: dict[str, Any] = {
        "cells": [cell.to_dict() for cell in found],
        "shapes": shapes(rounds),
        "rates": rates()._asdict(),
        "scaling": scaling(rounds),
        "memory": memory([*usable(), "pscan"], rounds),
        "accuracy": accuracy(),
        "bitwise": bitwise(),
        "startup": startup(),
        "avx2": on_other_processor(rounds),
    }
    details["goals"] = ssm_page.goals(details)
    return Findings(
        [row for cell in found for row in cell.rows()], details, ssm_page.page(details, __doc__ or "")
    )
