r"""The loss of a change network: binary terms on the logit of change.

Notation: a network with two class scores enters the loss by their difference, change minus no change, as its logit, so that
bce is the cross entropy of its softmax. One with the outputs $o_1, o_2, \dots$ is trained with
$\sum_j \omega_j \mathcal{L}(o_j)$; the last $\omega_j$ given counts for all further outputs.
"""

from __future__ import annotations

from torch import Tensor

from anban.recipe.schema import Collection
from anban.tasks.supervision import TERM

LOSSES: dict[str, str] = {
    "bce": "anban.losses:bce",
    "weighted-bce": "anban.losses:weighted_bce",
    "focal": "anban.losses:focal",
    "dice": "anban.losses:dice",
    "lovasz": "anban.losses:lovasz_hinge",
    "lovasz-sigmoid": "anban.losses:lovasz_sigmoid",
    "swbce": "anban.losses:swbce",
}
LOSS_SECTION = Collection(LOSSES, common=TERM)


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
