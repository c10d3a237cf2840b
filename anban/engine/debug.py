"""A recipe at a debug size: real code, invented data, one step."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anban.engine.run import prepare
from anban.engine.stream import StepSampler, batches
from anban.errors import InputError
from anban.recipe import load_recipe, task_package


def check_recipe(name: str, folder: Path) -> dict[str, Any]:
    """Build a recipe, take a training step and evaluate.

    The task's `debug(config, folder)` writes tiny data and returns the overrides that shrink the recipe to it.

    Returns:
        `id`, `status` (`ok` or `failed`) and `error` (None, or one message).
    """
    try:
        recipe = load_recipe(name)
        overrides = _debug(recipe.task)(recipe.config, folder)
        recipe = load_recipe(name, overrides)
        task, loop = prepare(recipe, torch.device("cpu"))
        for module in task.modules.values():
            module.train()
        sampler = StepSampler(len(loop.data), loop.settings.batch_size, 0, 0, 1)  # type: ignore[arg-type]
        values = loop.updater.apply(task, next(batches(loop.data, sampler, task.collate)))
        if not torch.isfinite(values["loss"]):
            raise ValueError(f"the loss of the first step is {values['loss'].item()}")
        pickle.dumps((loop.data, task.collate))  # what worker processes are sent
        for protocol in recipe.config["eval"]["protocols"]:
            loop.evaluate(recipe.config["eval"]["splits"][0], protocol, [])
    except Exception as error:  # whatever it is, the other recipes are still to be checked
        return {"id": name, "status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {"id": name, "status": "ok", "error": None}


def _debug(task: str) -> Callable[[dict[str, Any], Path], list[str]]:
    module = f"{task_package(task)}.debug"
    if importlib.util.find_spec(module) is None:
        raise InputError(f"The task '{task}' cannot be checked: there is no {module}.",
                         expected="debug(config, folder) -> overrides that shrink a recipe to invented data")  # fmt: skip
    found: Callable[[dict[str, Any], Path], list[str]] = importlib.import_module(module).debug
    return found
