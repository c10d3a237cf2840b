"""Starting from a trained detector, or from a backbone's weights: what fits is taken, and what does not is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anban.errors import InputError

Shape = tuple[int, ...]
_MOST = 6  # names of one kind that are written out


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
        taken: tensors that are the file's now.
        reshaped: tensors that both have, in different shapes: the network's keep their drawn weights. Name -> its shape and the file's.
        drawn: tensors that the network alone has; they keep their drawn weights.
        left: tensors that the file alone has.
        parameters: how many the network has, those of `taken`, and those of the file.
    """

    taken: list[str]
    reshaped: dict[str, tuple[Shape, Shape]]
    drawn: list[str]
    left: list[str]
    parameters: tuple[int, int, int]

    @property
    def growth(self) -> int:
        """Parameters of the network less those of the file."""
        return self.parameters[0] - self.parameters[2]

    def __str__(self) -> str:
        ours, taken, theirs = self.parameters
        lines = [
            f"{len(self.taken)} of {len(self.taken) + len(self.reshaped) + len(self.drawn)} tensors of the network are taken "
            f"from the file, {100 * taken / ours:.1f} % of its parameters",
            f"the network has {ours:,} parameters, the file {theirs:,}: {self.growth:+,} ({100 * self.growth / theirs:+.1f} %)",
        ]
        shapes = [
            f"{name} ({_shape(own)}, in the file {_shape(its)})" for name, (own, its) in self.reshaped.items()
        ]
        for what, names in (
            ("drawn anew, of another shape in the file", shapes),
            ("drawn anew, not in the file", self.drawn),
            ("not used, in the file alone", self.left),
        ):
            if names:
                lines.append(
                    f"{len(names)} {what}: {', '.join(names[:_MOST])}{' ...' if len(names) > _MOST else ''}"
                )
        return "\n  ".join(lines)


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"


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
    ours, taken, theirs = (
        sum(value.numel() for value in values.values()) for values in (own, fitting, weights)
    )
    shared = [name for name in own if name in weights and name not in fitting]
    return Taken(
        list(fitting),
        {name: (tuple(own[name].shape), tuple(weights[name].shape)) for name in shared},
        [name for name in own if name not in weights],
        [name for name in weights if name not in own],
        (ours, taken, theirs),
    )


def _translated(model: Any, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """An official detector's names as ours, or those of a backbone alone."""
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if any(name.startswith("backbone.") for name in weights):
        renamed: Mapping[str, Tensor] = model.from_official(weights)
        return renamed
    translate = getattr(model.encoder, "from_official", dict)
    return {f"encoder.{name}": value for name, value in translate(weights).items()}
