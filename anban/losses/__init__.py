"""Losses as pure functions of tensors."""

from anban.losses.binary import bce, dice, focal, swbce, weighted_bce
from anban.losses.lovasz import lovasz_hinge, lovasz_sigmoid

__all__ = ["bce", "dice", "focal", "lovasz_hinge", "lovasz_sigmoid", "swbce", "weighted_bce"]
