"""One folder per task. A task is found by looking in this folder; no other task's code is imported."""

from __future__ import annotations

import importlib
from pathlib import Path


def task_names() -> list[str]:
    """The tasks there are: folders beside this file that hold a `task.py`."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/task.py"))


def model_table() -> dict[str, str]:
    """`task/model` -> address, over every task's `models/__init__.py` (which import no torch)."""
    return {
        f"{task}/{name}": address
        for task in task_names()
        for name, address in importlib.import_module(f"anban.tasks.{task}.models").MODELS.items()
    }
