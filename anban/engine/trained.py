"""A trained network, out of a run folder or a checkpoint: to evaluate it again, or to predict with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import nn

from anban.data.draws import derive, seed_everything
from anban.engine import checkpoint
from anban.engine.evaluate import Evaluation, evaluate, record
from anban.engine.run import make_task, place
from anban.errors import InputError
from anban.recipe import Recipe, from_config
from anban.recipe.yamlfile import read
from anban.record import RunFolder
from anban.tasks.contract import Task


@dataclass
class Trained:
    """A network with its weights; `run` is its folder where the weights came from one, `which` their file's stem."""

    recipe: Recipe
    task: Task
    model: nn.Module
    which: str
    run: RunFolder | None
    device: torch.device


def load_trained(path: Path, overrides: list[str], device: str | None = None) -> Trained:
    """The network of a run folder (its `best.pt`, else `last.pt`) or of one checkpoint file.

    Args:
        overrides: `key.path=value`, such as another `data.root`.

    Raises:
        InputError: neither of the two, unreadable, or weights that do not fit the recipe.
    """
    run = None
    if path.is_dir():
        run = RunFolder.open(path)
        candidates = [run.checkpoints / name for name in ("best.pt", "last.pt")]
        file = next((c for c in candidates if c.is_file()), candidates[0])
    else:
        file = path
        if path.parent.name == "checkpoints" and (path.parent.parent / "run.json").is_file():
            run = RunFolder.open(path.parent.parent)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    state = checkpoint.load(file, target)
    if run is not None:
        stored = read(run.recipe_file)
    else:
        stored = {"id": state.get("recipe") or "local/checkpoint", **state["config"]}
    recipe = from_config(stored, file, overrides)
    task = make_task(recipe)
    seed_everything(derive(recipe.config["seed"], "weights"))
    task.build_networks()
    model = place(task.modules["model"], target, recipe.config["machine"]["channels_last"])
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        detail = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise InputError(f"The weights do not fit the recipe's network: {detail}", where=file,
                         do="leave the model's arguments as they were trained") from None  # fmt: skip
    return Trained(recipe, task, model.eval(), file.stem, run, target)


def evaluate_trained(
    trained: Trained,
    protocols: list[str],
    split: str,
    *,
    results: Path | None = None,
    pictures: Path | None = None,
) -> list[dict[str, Any]]:
    """Scores under each protocol, each with the stamp that says how it was measured.

    Scores on the run's own data join its record; on other data they are only returned.

    Args:
        results: a JSON file for what was found in each sample, see `Task.results`; for a single protocol.
        pictures: a folder for the pictures of every sample that the task draws.

    Raises:
        InputError: unusable data, or results of several protocols.
    """
    if results is not None and len(protocols) != 1:
        raise InputError(f"The results of {len(protocols)} protocols do not go into one file.", where=results,
                         do="name one protocol")  # fmt: skip
    task, run = trained.task, trained.run
    data = task.check_data()
    known = ((run.info.get("data") or {}) if run is not None else {}).get("fingerprint")
    if run is not None and data["fingerprint"] != known:
        logger.warning(f"not recorded: the data ({data['fingerprint']}) are not those of the run ({known})")
        run = None
    rows = []
    for name in protocols:
        stamp = task.stamp(name, split)
        result: Evaluation = evaluate(
            task,
            trained.model,
            split,
            stamp["name"],
            device=trained.device,
            precision=trained.recipe.config["train"]["precision"],
            batch=trained.recipe.config["machine"]["eval_batch"],
            workers=trained.recipe.config["machine"]["workers"],
            dataset=(dataset := task.evaluation_data(split)),
            shown=range(len(dataset)) if pictures is not None else (),  # type: ignore[arg-type]
        )
        if results is not None:
            results.parent.mkdir(parents=True, exist_ok=True)
            found = json.dumps(task.results(split, result.records), ensure_ascii=False)
            results.write_text(found, encoding="utf-8")
        if pictures is not None:
            task.draw(pictures / stamp["name"], split, result.shown, stamp["name"])
        rows.append({"protocol": stamp, "checkpoint": trained.which, "data": data["fingerprint"],
                     "images": len(result.records), "scores": result.scores})  # fmt: skip
        if run is not None:
            try:
                with run.lock():
                    record(run, trained.which, stamp, result)
            except (
                InputError,
                OSError,
            ) as error:  # somebody else writes there, or nobody may: the row is still good
                logger.warning(f"not recorded: {error}")
    return rows
