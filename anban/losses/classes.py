r"""Losses for maps of K classes, as pure functions of logits.

Shapes, in every function here:
    logits  (B, K, H, W), any floating type, any real value
    label   (B, H, W), class numbers 0..K-1, any integer type
    valid   (B, H, W) bool, true where a pixel counts; None counts all of them. The label of a pixel that does not count
            can be any number
    result  a scalar, float32

All arithmetic is float32, whatever the autocast state. All are finite, with finite gradients, for logits of +-1e4. A
batch in which no pixel counts costs 0 and has the gradient 0. Shapes that do not match raise ValueError.

Notation: over the $N$ counted pixels $i$ of a batch, $p_{ic}$ is the softmax of the logits of pixel $i$ for class $c$, $y_i$ its
label, and $\mathrm{CE}_i = -\log p_{i y_i}$.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Interval
from torch import Tensor

from anban.losses.binary import Fraction, NotNegative, Positive
from anban.losses.lovasz import lovasz_extension
from anban.losses.pixels import counted_mean


def cross_entropy(
    logits: Tensor,
    label: Tensor,
    *,
    valid: Tensor | None = None,
    class_weights: list[NotNegative] | None = None,
) -> Tensor:
    r"""Cross entropy of the softmax, mean over the counted pixels.

    Formula: $\frac{\sum_i w_{y_i} \mathrm{CE}_i}{\sum_i w_{y_i}}$; $w$ = class_weights (None: $w_c = 1$).

    Args:
        class_weights: one factor per class; a common factor of them changes nothing.
    """
    cost, target, counted = pixel_costs(logits, label, valid)
    if class_weights is None:
        return counted_mean(cost, counted)
    weight = _of_class(class_weights, target, logits) * counted
    total = weight.sum()
    return (weight * cost).sum() / torch.where(total > 0, total, 1.0)


def ohem(
    logits: Tensor,
    label: Tensor,
    *,
    valid: Tensor | None = None,
    form: Literal["new", "old", "deeplab"] = "new",
    thresh: Annotated[float, Interval(gt=0, le=1)] = 0.7,
    n_min: Annotated[int, Ge(0)] | None = None,
    top_k: Fraction = 0.2,
) -> Tensor:
    r"""Cross entropy of the hard pixels only: online hard example mining.

    Formula: $\frac{1}{\lvert S \rvert} \sum_{i \in S} \mathrm{CE}_i$, where $S$ holds the pixels with $p_{i y_i} < t$, or the $n$ of
    largest cost where those are fewer than $n$; with the form deeplab, the share $k$ of all pixels with the largest costs
    that are not 0; $t$ = thresh, $n$ = n_min (None: $n$ is a sixteenth of the pixels), $k$ = top_k.

    "new" and "old" are the two of CoinCheung/BiSeNet (lib/ohem_ce_loss.py, old/loss.py). They choose in the same way and
    differ in what n is where nobody gives it: a sixteenth of the counted pixels, or of all of them. So they agree where
    every pixel counts, and wherever the hard ones are at least as many as n. With fewer, "old" can run out of counted
    pixels and then fills up with ignored ones, which cost 0 and lower the mean. The released old code sorts all costs to
    find the n largest; here both take them without sorting, which gives the same pixels in less memory. Where no pixel is
    kept the loss is 0 (there NaN). In several processes each one chooses among its own pixels, so n is per process.

    "deeplab" is the mining of tensorflow/models (research/deeplab/utils/train_utils.py): ignored pixels count towards the
    share, not towards the mean. There the share falls from 1 to top_k over the first steps of a training; a function of
    logits knows no step, so whoever wants that passes another top_k at each step.

    Args:
        form: "new" or "old", which take `thresh` and `n_min`, or "deeplab", which takes `top_k`.
        thresh: a pixel is hard if the probability of its class is below.
        n_min: how many pixels are kept at least.
        top_k: share of the pixels that is kept; 1 is cross entropy.
    """
    cost, _, counted = pixel_costs(logits, label, valid)
    cost = cost.flatten()
    if form == "deeplab":
        if top_k == 1:
            return counted_mean(cost, counted.flatten())
        kept = cost.topk(int(top_k * cost.numel())).values
        return kept.sum() / (kept > 0).sum().clamp(min=1)
    if form not in ("new", "old"):
        raise ValueError(f"form is {form!r}; it can be 'new', 'old' or 'deeplab'")
    if n_min is None:
        n_min = (int(counted.sum()) if form == "new" else cost.numel()) // 16
    # In float32, as the costs are: a pixel at the threshold itself is not hard.
    hard = cost > -torch.log(torch.tensor(thresh)).item()
    if hard.sum() < n_min:
        kept = cost.topk(min(n_min, cost.numel())).values
        return kept.sum() / max(1, kept.numel())
    return counted_mean(cost, hard)


def focal(
    logits: Tensor,
    label: Tensor,
    *,
    valid: Tensor | None = None,
    gamma: NotNegative = 2.0,
    alpha: list[NotNegative] | None = None,
) -> Tensor:
    r"""Focal loss of the softmax, mean over the counted pixels.

    Formula: $\frac{1}{N} \sum_i \alpha_{y_i} (1 - p_{i y_i})^\gamma \mathrm{CE}_i$; $\gamma$ = gamma, $\alpha$ = alpha (None:
    $\alpha_c = 1$).

    Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3, with the softmax in place of the sigmoid.

    Args:
        gamma: how strongly pixels that are already right are discounted; 0 is cross entropy.
        alpha: one factor per class; the mean is still taken over the number of pixels.
    """
    cost, target, counted = pixel_costs(logits, label, valid)
    # 1 - p out of the cost keeps its digits near p = 1; at 0 a power with gamma < 1 would have an infinite slope.
    discount = (-torch.expm1(-cost)).clamp(min=1e-12) ** gamma
    if alpha is not None:
        discount = discount * _of_class(alpha, target, logits)
    return counted_mean(discount * cost, counted)


def dice(logits: Tensor, label: Tensor, *, valid: Tensor | None = None, smooth: Positive = 1.0) -> Tensor:
    r"""Soft Dice loss, mean over the classes that occur in the batch's label.

    Formula: $\frac{1}{\lvert C \rvert} \sum_{c \in C} \left[ 1 - \frac{2 \sum_i p_{ic} y_{ic} + s}{\sum_i p_{ic} + \sum_i y_{ic} + s}
    \right]$, where $y_{ic}$ is 1 for $c = y_i$, else 0, and $C$ are the classes with a label; $s$ = smooth.

    Args:
        smooth: in pixels.
    """
    probability, member, counted = _class_rows(logits, label, valid)
    overlap = (probability * member).sum(1)
    predicted, there = (probability * counted).sum(1), member.sum(1)
    return counted_mean(1 - (2 * overlap + smooth) / (predicted + there + smooth), there > 0)


def lovasz_softmax(logits: Tensor, label: Tensor, *, valid: Tensor | None = None) -> Tensor:
    r"""Lovász-Softmax: the mean over the classes that occur in the batch's label; within 0..1.

    Formula: $\frac{1}{\lvert C \rvert} \sum_{c \in C} \sum_k e_{c(k)} \Delta_{ck}$, where $C$ are the classes with a label, the errors
    $e_{ci}$, $1 - p_{ic}$ for $c = y_i$ and else $p_{ic}$, are sorted downwards, and $\Delta_{ck}$ is what the $k$-th of them adds to
    $1 - \mathrm{IoU}_c$ of the batch.

    Berman, Triki, Blaschko 2018, "The Lovász-Softmax loss", section 3; see `anban.losses.lovasz`.
    """
    probability, member, counted = _class_rows(logits, label, valid)
    present = member.any(1)
    error = torch.where(member, 1 - probability, probability)[present]
    return lovasz_extension(error, member[present].float(), counted.expand_as(member)[present].float())


def pixel_costs(logits: Tensor, label: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of every pixel, 0 where it does not count; its label, 0 there; and where it counts: (B, H, W) each."""
    target, counted = _pixels(logits, label, valid)
    cost = F.cross_entropy(logits.float(), target.masked_fill(~counted, -100), reduction="none")
    return cost, target, counted


def _class_rows(logits: Tensor, label: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Probability of every class, and where it is the counted label, (K, N) each; and which pixels count, (N,)."""
    target, counted = (pixels.flatten() for pixels in _pixels(logits, label, valid))
    classes = torch.arange(logits.shape[1], device=logits.device)
    probability = logits.float().softmax(dim=1).movedim(1, 0).flatten(1)
    return probability, (target == classes[:, None]) & counted, counted


def _pixels(logits: Tensor, label: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The label, 0 where a pixel does not count, and where it does: int64 and bool (B, H, W)."""
    if logits.ndim != 4:
        raise ValueError(f"logits of shape {tuple(logits.shape)}; expected (B, K, H, W)")
    for name, other in (("label", label), ("valid", valid)):
        if other is not None and other.shape != (logits.shape[0], *logits.shape[2:]):
            raise ValueError(
                f"{name} is {tuple(other.shape)}, logits are {tuple(logits.shape)}: not the same pixels"
            )
    counted = torch.ones_like(label, dtype=torch.bool) if valid is None else valid.bool()
    return label.long().masked_fill(~counted, 0), counted


def _of_class(values: list[float], target: Tensor, logits: Tensor) -> Tensor:
    """The value of each pixel's class."""
    if len(values) != logits.shape[1]:
        raise ValueError(f"{len(values)} values for {logits.shape[1]} classes")
    return torch.tensor(values, dtype=torch.float32, device=target.device)[target]
