"""Weights of official releases: unwrap what their training scripts saved, rename, load strictly.

`key_map` says under which of our names each official entry arrives; `anban keys MODEL CHECKPOINT` prints it.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from anban.errors import InputError

CONTAINERS = ("state_dict", "model_state_dict", "model", "model_G_state_dict")
"""Keys under which training scripts put the weights of the network, next to optimizer, epoch and the like."""


def load_official(model: nn.Module, state_dict_or_path: Mapping[str, object] | str | PathLike[str]) -> None:
    """Load the weights of an official release into `model`, strictly.

    Containers (`CONTAINERS`) and a leading `module.` (DataParallel) are unwrapped, then the model's own
    `from_official(state_dict) -> dict`, where it has one, translates the official parameter names. Every tensor of the
    model must be met by one of the same shape and none may be left over; only the batch counters of normalisation
    layers (`num_batches_tracked`), which releases of before 2018 lack and which no forward pass reads, may be missing.

    Args:
        model: a network of anban.
        state_dict_or_path: official names -> tensors, or a file: `.safetensors`, anything else is read by `torch.load`
            without running code from the file.

    Raises:
        InputError: the file cannot be read, holds no weights, or names missing, unexpected or mis-shaped tensors.
    """
    official, where = _open(state_dict_or_path)
    state = _translate(model, official)
    _check(model.state_dict(), state, where)
    model.load_state_dict(state, strict=False)


How = Literal["same", "renamed", "split", "joined", "dropped", "unexpected", "own", "missing"]


class Key(NamedTuple):
    """One line of a key map: what became of the entry `official` of a release, or where our tensor `ours` is from.

    `how` is "same" (the same name), "renamed", "split" (one of several tensors made from the entry), "joined" (made from
    several entries, each with a line of its own), "dropped" (not used; `ours` is None) or "unexpected" (our network has no
    tensor of that name). Without an entry, `official` being None, it is "own" (our network's own values stand in) or
    "missing" (nothing fills the tensor).
    """

    official: str | None
    ours: str | None
    how: How


def key_map(model: nn.Module, state_dict_or_path: Mapping[str, object] | str | PathLike[str]) -> list[Key]:
    """Where each entry of an official release goes in `model`: its entries in order, then what only our network has.

    Nothing is loaded, and weights that do not fit are mapped as far as they go. The origin of a tensor is followed through
    whatever the model's `from_official` computes with it.

    Raises:
        InputError: the file cannot be read or holds no weights; and what the model's `from_official` raises.
    """
    official, _ = _open(state_dict_or_path)
    state = _translate(model, {name: _Followed.start(name, tensor) for name, tensor in official.items()})
    origins = {
        ours: tensor.origins if isinstance(tensor, _Followed) else () for ours, tensor in state.items()
    }
    known = model.state_dict().keys()
    lines = []
    for name in official:
        arrived = [ours for ours, origin in origins.items() if name in origin]
        for ours in arrived:
            how = _how(name, ours, len(arrived), len(origins[ours])) if ours in known else "unexpected"
            lines.append(Key(name, ours, how))
        if not arrived:
            lines.append(Key(name, None, "dropped"))
    lines += [Key(None, ours, "own") for ours, origin in origins.items() if not origin]
    return lines + [Key(None, ours, "missing") for ours in known if ours not in origins]


def _how(official: str, ours: str, arrived: int, origins: int) -> How:
    if origins > 1:
        return "joined"
    if arrived > 1:
        return "split"
    return "same" if official == ours else "renamed"


class _Followed(Tensor):
    """A tensor that knows the official entries it was made from; so do its views and all that is computed from it."""

    origins: tuple[str, ...] = ()

    @classmethod
    def start(cls, name: str, tensor: Tensor) -> Tensor:
        followed = tensor.detach().as_subclass(cls)
        followed.origins = (name,)
        return followed

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, cls)]
        if made:
            used = [leaf.origins for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, cls)]
            origins = tuple(dict.fromkeys(name for names in used for name in names))
            for tensor in made:
                tensor.origins = origins
        return result


def rename(
    state_dict: Mapping[str, Tensor], rules: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]
) -> dict[str, Tensor]:
    """Return the tensors under new names: every rule (regular expression, replacement) is applied, in order."""
    renamed = {}
    rules = list(rules)
    for name, tensor in state_dict.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _open(given: Mapping[str, object] | str | PathLike[str]) -> tuple[dict[str, Tensor], str]:
    """The official entries of a state dict or file, and what to call it in a message."""
    where = "the given state dict" if isinstance(given, Mapping) else str(given)
    return _unwrap(given if isinstance(given, Mapping) else _read(Path(given)), where), where


def _translate(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    translate: Callable[[dict[str, Tensor]], dict[str, Tensor]] = getattr(model, "from_official", dict)
    return translate(state)


def _read(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise InputError(
            "the weights file does not exist", where=path, expected="a .pt, .pth or .safetensors file"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"the weights file cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=path,
            expected="tensors, numbers and text only: no code is run from a weights file",
            do="save its state dict alone, in the program that made it: torch.save(model.state_dict(), PATH)",
        ) from error
    except Exception as error:  # safetensors raises a class of its own that derives from Exception alone
        raise InputError(f"the weights file cannot be read: {error}", where=path) from error
    if not isinstance(content, Mapping):
        raise InputError(
            f"the weights file holds a {type(content).__name__}", where=path, expected="a state dict"
        )
    return content


def _numpy_scalars() -> list[Any]:
    """What a best score kept as a numpy number needs to be read; training scripts save it next to the weights."""
    import numpy as np

    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "b1")]
    scalar = np.float64(0).__reduce__()[0]  # the function that numpy pickles a number by
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def _unwrap(content: Mapping[str, object], where: str) -> dict[str, Tensor]:
    for container in CONTAINERS:
        inner = content.get(container)
        if isinstance(inner, Mapping):
            return _unwrap(inner, where)
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        found = ", ".join(sorted(str(key) for key in content)[:8]) or "nothing"
        raise InputError(
            f"no state dict found, but the keys: {found}",
            where=where,
            expected=f"names -> tensors, bare or under one of {', '.join(CONTAINERS)}",
        )
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _check(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    if any(names for _, names in faults):
        raise InputError(
            "the weights do not fit the network: "
            + "; ".join(f"{len(names)} {fault} ({_few(names)})" for fault, names in faults if names),
            where=where,
            expected=f"the {len(own)} tensors of the network, all of them, by the official names",
            do="build the network with the options of the release (width, depth, classes, ...)",
        )


def _few(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
