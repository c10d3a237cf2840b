"""VMamba: the 2-D selective scan block SS2D, its forward types, VSS blocks, the network VSSM and its backbone form.

Source: Liu et al., "VMamba: Visual State Space Model", arXiv 2401.10166; numerically equal to the authors' release
(github.com/MzeroMiko/VMamba) and to the copy of it in ChangeMamba (github.com/ChenHongruixuan/ChangeMamba).
"""

from __future__ import annotations

from anban.ssm.vmamba.blocks import VSSBlock
from anban.ssm.vmamba.cross import cross_merge, cross_scan
from anban.ssm.vmamba.forward_types import ForwardType, forward_type, forward_types
from anban.ssm.vmamba.ss2d import SS2D
from anban.ssm.vmamba.vssm import CONFIGURATIONS, VSSM, VSSMBackbone

__all__ = [
    "CONFIGURATIONS",
    "SS2D",
    "VSSM",
    "ForwardType",
    "VSSBlock",
    "VSSMBackbone",
    "cross_merge",
    "cross_scan",
    "forward_type",
    "forward_types",
]
