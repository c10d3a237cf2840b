"""Which task a command is about, where none is named."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path


def named(task: str | None) -> str:
    """The task called so, by its name or by what its ids begin with.

    Raises:
        InputError: there is none, or none is named.
    """
    from anban.errors import InputError
    from anban.recipe.schema import unknown
    from anban.tasks import task_names

    if task is None:
        raise InputError("No task is named.", where="--task", expected=", ".join(task_names()))
    task = _by_prefix().get(task, task)
    if task not in task_names():
        raise unknown("task", task, task_names(), "--task")
    return task


def of_id(name: str) -> str:
    """The task of a network's or recipe's id."""
    first = name.partition("/")[0]
    return _by_prefix().get(first, first)


def _by_prefix() -> dict[str, str]:
    from anban.recipe.recipe import prefix
    from anban.tasks import task_names

    return {prefix(task): task for task in task_names()}


def of_data(folders: Sequence[str | Path], task: str | None) -> str:
    """The task called so; without a name the one whose layouts fit all the folders, if there is one only.

    Raises:
        InputError: there is no such task, or the folders do not tell it.
    """
    from anban.errors import InputError
    from anban.tasks import task_names

    if task is not None:
        return named(task)
    fitting = [name for name in task_names() if all(_knows(name, folder) for folder in folders)]
    if len(fitting) == 1:
        return fitting[0]
    found = (
        f"They could be of {' or '.join(fitting)}." if fitting else "They have no layout that a task knows."
    )
    raise InputError(
        f"The data do not tell what they are for. {found}",
        where=", ".join(map(str, folders)),
        expected=f"--task with one of {', '.join(task_names())}",
    )


def _knows(task: str, folder: str | Path) -> bool:
    """Whether a task has a layout for a folder, with labels: pictures alone could be anybody's."""
    from anban.errors import InputError

    place = f"anban.tasks.{task}.layouts"
    if importlib.util.find_spec(place) is None:
        return False
    try:
        layout = importlib.import_module(place).find_layout(folder)
    except (InputError, OSError):
        return False
    return bool(getattr(layout, "labelled", True))
