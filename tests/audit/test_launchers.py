"""Processes that look at files: what becomes of them when the one that started them is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARENT = """
import sys, time
from anban.audit.launchers import _pool
from anban.audit.look import Plan
with _pool(Plan(b".", {}, ()), 1, 1 << 32) as pool:
    pool.submit(print, "at work", flush=True).result()
    time.sleep(600)
"""


def test_workers_end_with_a_killed_parent() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"at work\n"
    process.kill()
    rest, _ = process.communicate(
        timeout=60
    )  # ends when nobody holds the pipe any more: the worker has it too
    assert rest == b""
