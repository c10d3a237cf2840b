"""What networks made of VMamba's blocks have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anban.recipe.schema import Count, NonNegative, Positive, Share
from anban.ssm.vmamba.layers import Activation, Norm


@dataclass(frozen=True)
class Blocks:
    """How all VSS blocks of a network are made: arguments of `anban.ssm.VSSBlock`, which says what they mean.

    The defaults are those of the second release of VMamba as ChangeMamba configures it: no gate, one state.
    """

    norm_layer: Norm = "ln"
    ssm_d_state: Count = 1
    ssm_ratio: Positive = 2.0
    ssm_dt_rank: Count | Literal["auto"] = "auto"
    ssm_act_layer: Activation = "silu"
    ssm_conv: Count = 3
    ssm_conv_bias: bool = False
    ssm_drop_rate: Share = 0.0
    ssm_init: Literal["v0", "v1", "v2"] = "v0"
    forward_type: str = "v3noz"
    mlp_ratio: NonNegative = 4.0
    mlp_act_layer: Activation = "gelu"
    mlp_drop_rate: Share = 0.0
    gmlp: bool = False
    use_checkpoint: bool = False
