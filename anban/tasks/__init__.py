"""One folder per task. A task is found by looking in this folder; no other task's code is imported."""

from __future__ import annotations

import importlib

from anban.recipe.recipe import known_tasks, prefix


def task_names() -> list[str]:
    """The tasks there are."""
    return known_tasks()


def model_table() -> dict[str, str]:
    """`prefix/model` -> address, over every task's `models/__init__.py` (which import no torch)."""
    return {
        f"{prefix(task)}/{name}": address
        for task in task_names()
        for name, address in importlib.import_module(f"anban.tasks.{task}.models").MODELS.items()
    }
