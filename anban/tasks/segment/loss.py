r"""The loss of a segmentation network: terms on the scores of all classes, over the pixels that are not ignored.

Notation: a network with the outputs $o_1, o_2, \dots$ is trained with $\sum_j \omega_j \mathcal{L}(o_j)$; the last $\omega_j$ given counts
for all further outputs.
"""

from __future__ import annotations

from anban.recipe.schema import Collection
from anban.tasks.supervision import TERM

LOSSES: dict[str, str] = {
    "ce": "anban.losses.classes:cross_entropy",
    "ohem": "anban.losses.classes:ohem",
    "focal": "anban.losses.classes:focal",
    "dice": "anban.losses.classes:dice",
    "lovasz-softmax": "anban.losses.classes:lovasz_softmax",
}
LOSS_SECTION = Collection(LOSSES, common=TERM)
