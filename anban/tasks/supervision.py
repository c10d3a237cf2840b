"""The loss of a network that gives maps: named terms with weights, on one output or on several (deep supervision)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anban.errors import InputError
from anban.recipe.schema import Collection, NonNegative, bind, pick

TERM = {"weight": (NonNegative, 1.0)}
"""What every term of a section `loss` has besides its function's own arguments."""


@dataclass(frozen=True)
class DeepSupervision:
    """How the outputs after the first are used. Outputs and label of other sizes always meet in one size.

    Args:
        weights: factors on the second, third, ... output, the first one counting 1; the last is repeated for further
            outputs. An empty list leaves all but the first out.
        resize: "logits" enlarges each output to the label (bilinear), "label" takes the label at the output's pixel
            centres (nearest), which is cheaper and loses objects smaller than an output pixel.
    """

    weights: list[NonNegative] = field(default_factory=lambda: [1.0])
    resize: Literal["logits", "label"] = "logits"

    def of(self, count: int) -> list[float]:
        """The factors of `count` outputs, the first one included."""
        extra = list(self.weights[: count - 1])
        if extra:
            extra += extra[-1:] * (count - 1 - len(extra))
        return [1.0, *extra] + [0.0] * (count - 1 - len(extra))


class SupervisedLoss:
    """The weighted sum of named terms over the outputs of a network.

    Args:
        terms: for each name of `section`, the keyword arguments of its function and `weight` (default 1.0); a term that
            is None is left out.
        section: the recipe section that names the functions, each called with (scores, label, valid=..., options).
        deep: what to do with more than one output; the default counts each of them 1.
        scores: what is done to an output before a term sees it.

    Raises:
        InputError: an unknown name or argument, a negative weight, or no term at all.
    """

    def __init__(
        self,
        terms: Mapping[str, Mapping[str, Any] | None],
        section: Collection,
        deep: DeepSupervision | None = None,
        scores: Callable[[Tensor], Tensor] = lambda output: output,
    ):
        self.deep, self.scores = deep or DeepSupervision(), scores
        bound, _ = bind({"loss": section}, {"loss": terms})
        self._terms: dict[str, tuple[float, Callable[..., Tensor], dict[str, Any]]] = {}
        for name, options in bound["loss"].items():
            self._terms[name] = (options.pop("weight"), pick(section.table, name, "loss"), options)
        if not self._terms:
            raise InputError(
                "no loss term is left", where="loss", expected=f"one of {', '.join(section.table)}"
            )

    def __call__(
        self, outputs: Tensor | Sequence[Tensor], label: Tensor, *, valid: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and what each term adds to it (weights applied, detached, summing to the total).

        Args:
            outputs: (B, K, h, w), or a list of them with the main one first.
            label: (B, H, W), class numbers.
            valid: (B, H, W), true where a pixel counts; None counts all.
        """
        given = [self.scores(output) for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]
        if not given:
            raise ValueError("no output to compute a loss from")
        parts: dict[str, Tensor] = {}
        for share, scores in zip(self.deep.of(len(given)), given, strict=True):
            if share == 0:
                continue
            scores, target, counted = self._meet(scores, label, valid)
            for name, (weight, function, options) in self._terms.items():
                part = share * weight * function(scores, target, valid=counted, **options)
                parts[name] = parts[name] + part if name in parts else part
        total = torch.stack(list(parts.values())).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def _meet(
        self, scores: Tensor, label: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores, label and counted pixels in one size."""
        size = scores.shape[-2:]
        if size == label.shape[-2:]:
            return scores, label, valid
        if self.deep.resize == "logits":
            scores = F.interpolate(scores.float(), label.shape[-2:], mode="bilinear", align_corners=False)
            return scores, label, valid
        return scores, _nearest(label, size), None if valid is None else _nearest(valid, size)


def _nearest(labels: Tensor, size: torch.Size) -> Tensor:
    """(B, H, W) -> (B, h, w), each value that of the nearest pixel centre; the type stays."""
    small = F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0]
    return small.to(labels.dtype)
