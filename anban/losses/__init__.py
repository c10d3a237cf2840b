r"""Losses as pure functions of tensors: here those of one class against the background, in `classes` those of K classes.

Notation: over the $N$ counted pixels $i$ of a batch, $z_i$ is the logit, $p_i = \sigma(z_i)$ the probability of the
positive class, $y_i$ the label, 0 or 1, and $\mathrm{BCE}_i = -y_i \log p_i - (1 - y_i) \log(1 - p_i)$.
"""

from anban.losses.binary import bce, dice, focal, swbce, weighted_bce
from anban.losses.lovasz import lovasz_hinge, lovasz_sigmoid

__all__ = ["bce", "dice", "focal", "lovasz_hinge", "lovasz_sigmoid", "swbce", "weighted_bce"]
