"""Anban (案板): a workbench for dense-prediction research. Change one thing, train, and know whether it helped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anban._version import __version__

if TYPE_CHECKING:
    from torch import nn

__all__ = ["__version__", "create_model", "load_official"]


def create_model(name: str, **options: Any) -> nn.Module:
    """Build a network by its name, such as `create_model("change/tinycd")`.

    Args:
        name: `task/model`; each task's `models/__init__.py` lists its networks.
        options: arguments of the network's own constructor, checked against its signature.

    Raises:
        InputError: unknown name, unknown option, wrong type or value.
    """
    from anban.recipe.schema import Choice, bind, construct, pick
    from anban.tasks import model_table

    table = model_table()
    config, _ = bind({"model": Choice(table)}, {"model": {"name": name, **options}})
    arguments = {key: value for key, value in config["model"].items() if key != "name"}
    network: nn.Module = construct(pick(table, name, "model.name"), arguments)
    return network


def load_official(model: nn.Module, state_dict_or_path: Any) -> None:
    """Load an official release's weights into our network; strict, parameter names are mapped.

    Args:
        model: a network made by `create_model`.
        state_dict_or_path: a state dict, or a `.pt`, `.pth` or `.safetensors` file (nothing in it is executed).

    Raises:
        InputError: unreadable file, or names and shapes that do not match (the message lists them).
    """
    from anban.official import load_official as load

    load(model, state_dict_or_path)
