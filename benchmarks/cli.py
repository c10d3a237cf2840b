"""Whole-process wall time of commands that only look things up, against `python -c "import torch"`.

What a command that trains nothing may cost is set by whether it has to import torch: a listing or a help text should
stay far below the yardstick, and a command that needs a task's code cannot.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.timing import Row, interleave, row, seconds

YARDSTICK = 'python -c "import torch"'
COMMANDS = {
    YARDSTICK: ["-c", "import torch"],
    "anban --help": ["-m", "anban", "--help"],
    "anban recipes": ["-m", "anban", "recipes"],
    "anban show change/levir-bit": ["-m", "anban", "show", "change/levir-bit"],
}


def run(rounds: int) -> list[Row]:
    """A row per command."""
    values = interleave({name: seconds(_process(given)) for name, given in COMMANDS.items()}, rounds)
    return [row(values, "a process", name, YARDSTICK) for name in COMMANDS if name != YARDSTICK]


def _process(arguments: list[str]) -> Callable[[], None]:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}

    def work() -> None:
        command = [sys.executable, *arguments]
        subprocess.run(command, check=True, cwd=root, env=environment, stdout=subprocess.DEVNULL)

    return work
