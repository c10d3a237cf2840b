r"""The loss of a detector: what the classes and the boxes of its anchors cost.

Notation: $z_{ac}$ is the logit of anchor $a$ for class $c$, $y_{ac}$ is 1 where the anchor is to find an object of that class
and 0 else, $p_{ac} = \sigma(z_{ac})$; $d_{ak}$ are the four differences of centre and side that move the anchor, $t_{ak}$ those
that would move it onto its object; anchors that overlap an object too much for background and too little to find it are left
out. $n_a$ is, by the convention torchvision, the number of anchors of the anchor's image that are to find an object (at least
1) times the number of images of the batch; by the convention mmdetection the sum of these numbers over the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from anban.formulas import Term

LOSSES: dict[str, str] = {
    "focal": "anban.tasks.detect.loss:focal",
    "smooth-l1": "anban.tasks.detect.loss:smooth_l1",
}


def focal(logits: Tensor, ones: tuple[Tensor, ...], alpha: float, gamma: float) -> Tensor:
    r"""The focal loss of logits (B, A, classes), summed over the classes, (B, A); targets are 1 at the places `ones`, else 0.

    As there are few ones, no targets are made: the logits of ones change their sign, and then all are too high alike.

    Formula: $\sum_a \frac{1}{n_a} \sum_c \alpha_{ac} (1 - q_{ac})^\gamma \left( -\log q_{ac} \right)$, where $q_{ac}$ is $p_{ac}$
    for $y_{ac} = 1$ and $1 - p_{ac}$ for $y_{ac} = 0$, and $\alpha_{ac}$ is $\alpha$ and $1 - \alpha$; $\alpha$ = alpha, $\gamma$ = gamma.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3.
    """
    high = logits.index_put(ones, -logits[ones])
    cost = high.sigmoid() ** gamma * F.softplus(high)
    return ((1 - alpha) * cost.sum(dim=-1)).index_put(ones[:2], (2 * alpha - 1) * cost[ones], accumulate=True)


def smooth_l1(moved: Tensor, aims: Tensor, beta: float) -> Tensor:
    r"""The cost of differences (N, 4) that should be `aims`, summed over the four, (N,).

    Formula: $\sum_a \frac{1}{n_a} \sum_k h(d_{ak} - t_{ak})$, over the anchors that are to find an object, where $h(x)$ is
    $\frac{x^2}{2 \beta}$ for $\lvert x \rvert < \beta$ and $\lvert x \rvert - \frac{\beta}{2}$ else, so that it is the absolute
    difference for $\beta = 0$; $\beta$ = beta.
    """
    return F.smooth_l1_loss(moved, aims, reduction="none", beta=beta).sum(dim=-1)


def terms_of(config: Mapping[str, Any]) -> list[Term]:
    """What a recipe's detector is trained with."""
    detector = config["model"]["detector"]
    shared = {"convention": detector["convention"]}
    classes = {"alpha": detector["focal_alpha"], "gamma": detector["focal_gamma"], **shared}
    boxes = {"beta": detector["box_beta"], **shared}
    return [
        Term("focal", "", {"weight": detector["class_weight"], **classes}),
        Term("smooth-l1", "", {"weight": detector["box_weight"], **boxes}),
    ]
