"""The network that a name on the command line stands for, and inputs for it: what `attention`, `draw`, `keys`, `profile` and `stages` ask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn


class Built(NamedTuple):
    """A network with inputs of the right kind, (1, C, H, W) each, and the task that it was built for, None outside of recipes."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    task: Any = None


def build(name: str, overrides: list[str]) -> Built:
    """The network of a recipe (task/name) or of the table (task/model), fresh and always the same, or a trained one.

    Args:
        name: also a run folder or a checkpoint.
        overrides: key.path=value on top of the recipe; of a network of the table, keys that begin with `model.`

    Raises:
        InputError: there is nothing of that name, or an override has no place there.
    """
    import torch
    from omegaconf import OmegaConf

    import anban
    from anban.cli.tasks import of_id
    from anban.engine.run import make_task, task_class
    from anban.engine.trained import load_trained
    from anban.errors import InputError
    from anban.recipe import load_recipe
    from anban.recipe.recipe import parse_override, recipe_files
    from anban.tasks import model_table

    torch.manual_seed(0)
    recipes = recipe_files()
    if name in model_table() and name not in recipes:
        changes: Any = OmegaConf.to_container(OmegaConf.merge({}, *map(parse_override, overrides)))
        options = changes.pop("model", {})
        if changes:
            raise InputError(f"Found the key '{next(iter(changes))}'.", where="command line",
                             expected="keys that begin with 'model.', as this is a network and no recipe")  # fmt: skip
        model = anban.create_model(name, **options)
        return Built(model, task_class(of_id(name)).inputs(model))
    if name not in recipes and (Path(name).is_dir() or name.endswith(".pt")):
        trained = load_trained(Path(name), overrides, "cpu")
        return Built(trained.model, trained.task.example(), trained.task)
    task = make_task(load_recipe(name, ["data.root=.", *overrides]))
    task.build_networks()
    return Built(task.modules["model"], task.example(), task)
