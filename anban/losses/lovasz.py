"""The Lovász extension of the Jaccard loss, for one class against the background.

Berman, Triki, Blaschko 2018, "The Lovász-Softmax loss: A tractable surrogate for the optimization of the
intersection-over-union measure in neural networks", section 3. The Jaccard loss 1 - IoU is a function of the set of
wrong pixels; its Lovász extension is <errors, g>, the errors sorted from large to small and g_k what the k-th pixel adds
to the loss when the wrong pixels before it are there already. Shapes and rules as in `anban.losses.binary`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anban.losses.pixels import counted_mean, pixel_rows


def lovasz_hinge(
    logit: Tensor, target: Tensor, *, valid: Tensor | None = None, per_image: bool = True
) -> Tensor:
    r"""Binary Lovász hinge: errors are hinge margins, and negative ones cost nothing.

    Formula: $\sum_k \max(e_{(k)}, 0) \Delta_k$, where the errors $e_i = 1 - (2 y_i - 1) z_i$ are sorted downwards and
    $\Delta_k$ is what the $k$-th of them adds to the Jaccard loss $1 - \mathrm{IoU}$; with per_image the mean of it over images.

    A mask without positives costs max(0, 1 + its largest logit): nothing once all logits are below -1, else the
    gradient reaches the worst pixel, which is what the extension gives (one false alarm already makes the IoU 0).

    Args:
        per_image: one IoU per image, then the mean over images with a counted pixel; else one IoU for the batch.
    """
    logit, target, valid = pixel_rows(logit, target, valid, per_image=per_image)
    return lovasz_extension(1 - logit * (2 * target - 1), target, valid)


def lovasz_sigmoid(
    logit: Tensor, target: Tensor, *, valid: Tensor | None = None, per_image: bool = True
) -> Tensor:
    r"""Lovász-Softmax of two classes, for the positive one; within 0..1.

    Formula: $\sum_k e_{(k)} \Delta_k$, where the errors $e_i = \lvert y_i - p_i \rvert$ are sorted downwards and $\Delta_k$
    is what the $k$-th of them adds to the Jaccard loss $1 - \mathrm{IoU}$; with per_image the mean of it over images.

    A mask without positives costs its largest probability (the paper's code leaves absent classes out).

    Args:
        per_image: as in `lovasz_hinge`.
    """
    logit, target, valid = pixel_rows(logit, target, valid, per_image=per_image)
    # |t - sigmoid(x)| without abs, whose slope at 0 is 0, and without cancellation.
    return lovasz_extension(torch.sigmoid(-logit * (2 * target - 1)), target, valid)


def lovasz_extension(error: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean over rows of <sorted positive errors, g>; all arguments (rows, N), target and valid float32 of 0 and 1."""
    error, order = torch.sort(error, dim=1, descending=True, stable=True)
    step, counted = _steps(target.gather(1, order), valid.gather(1, order))
    return counted_mean((torch.relu(error) * step).sum(1), counted)


@torch.no_grad()
def _steps(target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """g, the steps of the Jaccard loss as pixels are added in this order (rows, N), and which rows count (rows,)."""
    positive = target * valid
    # Integers, as a float32 count stops growing at 2^24.
    members = positive.sum(1, keepdim=True, dtype=torch.int32)
    found = positive.cumsum(1, dtype=torch.int32)
    union = members + (valid - positive).cumsum(1, dtype=torch.int32)
    # After k wrong pixels: intersection = members - found, union = members + false. A wrong positive pixel leaves the
    # union and takes 1 from the intersection; a wrong negative one leaves the intersection and adds 1 to the union.
    # Both steps in closed form: the difference of two IoU near each other would lose its digits.
    by_positive = 1 / union.clamp(min=1)
    by_negative = (members - found) / (union.float() * (union - 1)).clamp(min=1)
    # With no member the first false pixel takes the loss from 0 to 1, and no other adds to it.
    by_negative = torch.where(members > 0, by_negative, (union == 1).float())
    # A pixel that does not count is in neither sum and takes no step, wherever it was sorted to.
    return torch.where(positive > 0, by_positive, by_negative) * valid, (valid.sum(1) > 0).float()
