r"""The loss of a change network: named terms with weights, on one output or on several (deep supervision).

Notation: a network with two class scores enters the loss by their difference, change minus no change, as its logit, so that
bce is the cross entropy of its softmax. One with the outputs $o_1, o_2, \dots$ is trained with
$\sum_j \omega_j \mathcal{L}(o_j)$; the last $\omega_j$ given counts for all further outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anban.errors import InputError
from anban.recipe.schema import Collection, NonNegative, bind, pick

LOSSES: dict[str, str] = {
    "bce": "anban.losses:bce",
    "weighted-bce": "anban.losses:weighted_bce",
    "focal": "anban.losses:focal",
    "dice": "anban.losses:dice",
    "lovasz": "anban.losses:lovasz_hinge",
    "lovasz-sigmoid": "anban.losses:lovasz_sigmoid",
    "swbce": "anban.losses:swbce",
}
LOSS_SECTION = Collection(LOSSES, common={"weight": (NonNegative, 1.0)})


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


class ChangeLoss:
    """The weighted sum of named terms.

    Args:
        terms: for each name in `LOSSES`, the keyword arguments of its function and `weight` (default 1.0); a term that
            is None is left out.
        deep: what to do with more than one output; the default counts each of them 1.

    Raises:
        InputError: an unknown name or argument, a negative weight, or no term at all.
    """

    def __init__(self, terms: Mapping[str, Mapping[str, Any] | None], deep: DeepSupervision | None = None):
        self.deep = deep or DeepSupervision()
        bound, _ = bind({"loss": LOSS_SECTION}, {"loss": terms})
        self._terms: dict[str, tuple[float, Callable[..., Tensor], dict[str, Any]]] = {}
        for name, options in bound["loss"].items():
            self._terms[name] = (options.pop("weight"), pick(LOSSES, name, "loss"), options)
        if not self._terms:
            raise InputError("no loss term is left", where="loss", expected=f"one of {', '.join(LOSSES)}")

    def __call__(
        self, outputs: Tensor | Sequence[Tensor], label: Tensor, *, valid: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and what each term adds to it (weights applied, detached, summing to the total).

        Args:
            outputs: (B, 1, h, w) or (B, 2, h, w), or a list of them with the main one first.
            label: (B, H, W), 0 or 1.
            valid: (B, H, W), true where a pixel counts; None counts all.
        """
        logits = [margin(scores) for scores in ([outputs] if isinstance(outputs, Tensor) else outputs)]
        if not logits:
            raise ValueError("no output to compute a loss from")
        label = label.unsqueeze(1)
        valid = None if valid is None else valid.unsqueeze(1)
        parts: dict[str, Tensor] = {}
        for share, logit in zip(self.deep.of(len(logits)), logits, strict=True):
            if share == 0:
                continue
            scores, target, counted = self._meet(logit, label, valid)
            for name, (weight, function, options) in self._terms.items():
                part = share * weight * function(scores, target, valid=counted, **options)
                parts[name] = parts[name] + part if name in parts else part
        total = torch.stack(list(parts.values())).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def _meet(
        self, logit: Tensor, label: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits, label and counted pixels in one size."""
        size = logit.shape[-2:]
        if size == label.shape[-2:]:
            return logit, label, valid
        if self.deep.resize == "logits":
            logit = F.interpolate(logit.float(), label.shape[-2:], mode="bilinear", align_corners=False)
            return logit, label, valid
        label = F.interpolate(label.float(), size, mode="nearest-exact")
        return (
            logit,
            label,
            None if valid is None else F.interpolate(valid.float(), size, mode="nearest-exact"),
        )


def margin(scores: Tensor) -> Tensor:
    """The logit of change, (B, 1, h, w): (B, 1, h, w) as it is, of (B, 2, h, w) change minus no change.

    The sigmoid of the margin is the softmax of the two scores, so both kinds of network share losses and prediction.
    """
    if scores.ndim == 4 and scores.shape[1] == 1:
        return scores
    if scores.ndim == 4 and scores.shape[1] == 2:
        return scores[:, 1:] - scores[:, :1]
    raise ValueError(
        f"scores of shape {tuple(scores.shape)}; a change network gives (B, 1, h, w) or (B, 2, h, w)"
    )
