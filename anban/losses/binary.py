"""Losses for one class against the background, as pure functions of logits.

Shapes, in every function here:
    logit   (B, 1, H, W) or (B, H, W), any floating type, any real value
    target  the same pixels, (B, 1, H, W) or (B, H, W), values 0 and 1, any type
    valid   the same pixels, true where a pixel counts; None counts all of them
    result  a scalar, float32

All arithmetic is float32, whatever the autocast state: sums over 10^5 pixels do not fit bfloat16. All are finite,
with finite gradients, for logits of +-1e4 and for targets of a single class. A batch in which no pixel counts costs 0.
Shapes that do not match raise ValueError.

Each function has its formula in its docstring, where `anban formulas` finds it; the package's has the notation.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt, Interval
from torch import Tensor

from anban.losses.pixels import counted_mean, pixel_rows

NotNegative = Annotated[float, Interval(ge=0)]
Positive = Annotated[float, Gt(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]


def bce(logit: Tensor, target: Tensor, *, valid: Tensor | None = None, pos_weight: Positive = 1.0) -> Tensor:
    r"""Binary cross entropy, mean over the counted pixels.

    Formula: $\frac{1}{N} \sum_i \left[ -w y_i \log p_i - (1 - y_i) \log(1 - p_i) \right]$; $w$ = pos_weight.

    Args:
        pos_weight: factor on the positive pixels; the mean is still taken over the number of pixels, as in torch.
    """
    logit, target, valid = pixel_rows(logit, target, valid)
    cost = F.binary_cross_entropy_with_logits(
        logit, target, pos_weight=logit.new_tensor(pos_weight), reduction="none"
    )
    return counted_mean(cost, valid)


def weighted_bce(
    logit: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    class_weights: tuple[NotNegative, NotNegative] | None = None,
) -> Tensor:
    r"""Class-weighted binary cross entropy, in which a common factor of the weights changes nothing.

    Formula: $\frac{\sum_i w_{y_i} \mathrm{BCE}_i}{\sum_i w_{y_i}}$; $(w_0, w_1)$ = class_weights (None: $w_c = 1 / N_c$,
    $N_c$ being the number of pixels of class $c$ in the batch).

    Args:
        class_weights: weights of a (negative, positive) pixel. None balances the classes of this batch: every class
            that is present has the same total weight, which makes the loss the mean over present classes of the
            class's mean cost. A batch of one class is then plain `bce`.
    """
    logit, target, valid = pixel_rows(logit, target, valid)
    cost = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    if class_weights is None:
        positive = (target * valid).sum()
        negative = valid.sum() - positive
        of_negative, of_positive = 1 / negative.clamp(min=1), 1 / positive.clamp(min=1)
    else:
        of_negative, of_positive = (logit.new_tensor(weight) for weight in class_weights)
    weight = valid * torch.where(target > 0.5, of_positive, of_negative)
    total = weight.sum()
    # Where nothing has weight the numerator is 0 too, and any denominator but 0 gives the 0 that is meant.
    return (weight * cost).sum() / torch.where(total > 0, total, 1.0)


def focal(
    logit: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    gamma: NotNegative = 2.0,
    alpha: Fraction | None = 0.25,
) -> Tensor:
    r"""Focal loss, mean over the counted pixels.

    Formula: $\frac{1}{N} \sum_i \alpha_{y_i} (1 - q_i)^\gamma \mathrm{BCE}_i$, where $q_i$ is $p_i$ for $y_i = 1$ and $1 - p_i$
    for $y_i = 0$; $\gamma$ = gamma, $\alpha_1 = 1 - \alpha_0$ = alpha (None: $\alpha_0 = \alpha_1 = 1$).

    Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3. The detector there divides by the number of
    positive anchors; a dense map has no anchors, so this is a mean over pixels.

    Args:
        gamma: how strongly pixels that are already right are discounted; 0 is cross entropy.
        alpha: weight of a positive pixel, 1 - alpha that of a negative one; None weighs both 1.
    """
    logit, target, valid = pixel_rows(logit, target, valid)
    towards = logit * (2 * target - 1)  # grows as the pixel gets right, for either class
    # log(1 - p_t) = logsigmoid(-towards). A power of 1 - p_t itself has an infinite slope at 0 for gamma < 1.
    discount = torch.exp(gamma * F.logsigmoid(-towards))
    cost = -discount * F.logsigmoid(towards)
    if alpha is not None:
        cost = cost * (alpha * target + (1 - alpha) * (1 - target))
    return counted_mean(cost, valid)


def dice(
    logit: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    smooth: Positive = 1.0,
    per_image: bool = True,
    empty: Literal["area", "smooth", "skip"] = "area",
) -> Tensor:
    r"""Soft Dice loss.

    Formula: $1 - \frac{2 \sum_i p_i y_i + s}{\sum_i p_i + \sum_i y_i + s}$, with per_image the mean of it over the images, in
    which one without a positive pixel costs its mean $p_i$ if empty is area; $s$ = smooth.

    Milletari et al. 2016, "V-Net", section 3, without the squares in the denominator.

    Args:
        smooth: in pixels.
        per_image: one ratio per image, then the mean over images with a counted pixel; else one ratio for the batch.
        empty: what a mask without a positive pixel costs, as t = 0 leaves no overlap to measure.
            "area": the mean of $p$, 0 for an empty prediction, and every false positive is pushed down alike.
            "smooth": the formula as it stands; 0 for an empty prediction too, but its slope falls with the square of
            the predicted area, so large false alarms are hardly corrected.
            "skip": 0, whatever is predicted: false alarms are free and the image still counts in the mean.
    """
    logit, target, valid = pixel_rows(logit, target, valid, per_image=per_image)
    probability = torch.sigmoid(logit) * valid
    target = target * valid
    predicted, positive, counted = probability.sum(1), target.sum(1), valid.sum(1)
    overlap = (probability * target).sum(1)
    cost = 1 - (2 * overlap + smooth) / (predicted + positive + smooth)
    if empty == "area":
        cost = torch.where(positive > 0, cost, predicted / counted.clamp(min=1))
    elif empty == "skip":
        cost = torch.where(positive > 0, cost, predicted * 0)
    elif empty != "smooth":
        raise ValueError(f"empty is {empty!r}; it can be 'area', 'smooth' or 'skip'")
    return counted_mean(cost, (counted > 0).float())


def swbce(
    logit: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    degenerate: Literal["bce", "published"] = "bce",
) -> Tensor:
    r"""Self-adaptive weighted binary cross entropy: each class is weighted by the IoU of the other one.

    Formula: $\frac{1}{N} \sum_i w_{y_i} \mathrm{BCE}_i$, where $w_0 = \frac{TP}{TP + FP + FN}$ and
    $w_1 = \frac{TN}{TN + FP + FN}$ are counted in the batch, predicted at a probability of 0.5.

    With the batch predicted at probability 0.5, a negative pixel weighs TP / (TP + FP + FN), the IoU of the positive
    class, and a positive pixel weighs TN / (TN + FP + FN), the IoU of the negative class; the result is the mean of
    weight * cost over the pixels (not over the weights). The rarer and worse class so gets the larger weight. No
    gradient flows through the weights.

    Zhang et al. 2023, "AERNet: An Attention-Guided Edge Refinement Network and a Dataset for Remote Sensing Building
    Change Detection", IEEE TGRS 61; the formula is the one computed by the official code (zjd1836/AERNet,
    model/SWBCE with model/metric_tool). There the loss is applied to each supervised output and summed.

    Args:
        degenerate: what happens to batches on which these weights fail.
            "bce": an IoU of 0/0 (class neither there nor predicted) is 1; and where the weights leave nothing to
            learn from, because they are 0 for every pixel of the batch, all weights are 1. This is the case of false
            alarms on a batch without positives (published loss: 0, so the alarms are free) and of a batch that is
            wrong everywhere.
            "published": 0/0 stays NaN, as for a batch without positives that is predicted rightly, and zero stays zero.
    """
    logit, target, valid = pixel_rows(logit, target, valid)
    cost = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    positive = (target > 0.5).float() * valid
    negative = valid - positive
    predicted = (logit.detach() > 0).float()
    hit, alarm = (predicted * positive).sum(), (predicted * negative).sum()
    miss = positive.sum() - hit
    rest = negative.sum() - alarm
    of_negative, of_positive = hit / (hit + alarm + miss), rest / (rest + alarm + miss)
    if degenerate == "bce":
        of_negative, of_positive = (
            torch.nan_to_num(weight, nan=1.0) for weight in (of_negative, of_positive)
        )
        nothing_left = of_negative * negative.sum() + of_positive * positive.sum() == 0
        of_negative, of_positive = (
            torch.where(nothing_left, 1.0, weight) for weight in (of_negative, of_positive)
        )
    elif degenerate != "published":
        raise ValueError(f"degenerate is {degenerate!r}; it can be 'bce' or 'published'")
    return counted_mean(cost * torch.where(target > 0.5, of_positive, of_negative), valid)
