"""Starting from a trained detector, or from a backbone's weights: what fits is taken, and what does not is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anban.errors import InputError


@dataclass(frozen=True)
class Start:
    """Weights to begin with.

    Attributes:
        path: a checkpoint of a detection run, or the weights of MMDetection's or torchvision's RetinaNet, or those of a backbone alone
            (as PVT's, trained on ImageNet); null draws all weights.
    """

    path: str | None = None


@dataclass(frozen=True)
class Taken:
    """What became of the weights of a file.

    Attributes:
        taken: how many tensors.
        drawn: tensors of the network that keep their drawn weights.
        left: tensors of the file that the network has no place for, or one of another shape.
        growth: parameters of the network less those of the file.
    """

    taken: int
    drawn: list[str]
    left: list[str]
    growth: int

    def __str__(self) -> str:
        text = f"{self.taken} tensors are taken; {self.growth:+,} parameters compared with the file"
        for what, names in (("drawn anew", self.drawn), ("not used", self.left)):
            if names:
                text += f"; {len(names)} {what}: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"
        return text


def start_from(model: nn.Module, path: Path) -> Taken:
    """Give a detector the weights of a file as far as names and shapes fit.

    Raises:
        InputError: no such file, no weights in it, or none that fit.
    """
    if not path.is_file():
        raise InputError("There is no such file.", where=path, do="set init.path to the weights, or to null")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        # under a name in a checkpoint, by themselves in a release
        weights: Mapping[str, Tensor] = content.get("state_dict") or content.get("model") or content
    except Exception as error:  # the many ways a zip or pickle can be broken
        raise InputError(f"The file holds no weights: {str(error).splitlines()[0]}", where=path) from None
    own = model.state_dict()
    if not set(weights) & set(own):
        weights = _translated(model, weights)
    fitting = {
        name: value for name, value in weights.items() if name in own and own[name].shape == value.shape
    }
    if not fitting:
        raise InputError("No tensor of the file fits the network.", where=path,
                         expected=f"names and shapes such as {next(iter(own))} {tuple(next(iter(own.values())).shape)}")  # fmt: skip
    model.load_state_dict(fitting, strict=False)
    ours, theirs = (sum(value.numel() for value in values.values()) for values in (own, weights))
    return Taken(
        len(fitting),
        [name for name in own if name not in fitting],
        [name for name in weights if name not in fitting],
        ours - theirs,
    )


def _translated(model: Any, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """An official detector's names as ours, or those of a backbone alone."""
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if any(name.startswith("backbone.") for name in weights):
        renamed: Mapping[str, Tensor] = model.from_official(weights)
        return renamed
    translate = getattr(model.encoder, "from_official", dict)
    return {f"encoder.{name}": value for name, value in translate(weights).items()}
