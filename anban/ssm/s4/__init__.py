"""Linear time-invariant state spaces: S4 = SSM + HiPPO + discretisation, its diagonal form S4D, and S4ND for images.

    from anban.ssm.s4 import S4D, S4Block, S4ND

`hippo`: state matrices and what they remember; `discretise`: from continuous to discrete; `systems`: the convolutional,
recurrent and parallel views of a discrete system; `kernels`, `layers`, `s4nd`: trainable modules.
"""

from __future__ import annotations

from anban.ssm.s4.kernels import S4DKernel, SSMKernelDiag, SSMKernelDPLR
from anban.ssm.s4.layers import S4D, FFTConv, S4Block
from anban.ssm.s4.s4nd import S4ND
from anban.ssm.s4.systems import DiagonalSystem, DPLRSystem

__all__ = [
    "S4D",
    "S4ND",
    "DPLRSystem",
    "DiagonalSystem",
    "FFTConv",
    "S4Block",
    "S4DKernel",
    "SSMKernelDPLR",
    "SSMKernelDiag",
]
