"""The VSS block: SS2D and a feed-forward network (FFN), each with a norm and a residual."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from anban.ssm.vmamba.forward_types import ForwardType
from anban.ssm.vmamba.layers import (
    Activation,
    GatedMlp,
    Mlp,
    Norm,
    Official,
    check_layout,
    is_channel_first,
    norm,
)
from anban.ssm.vmamba.ss2d import SS2D


class VSSBlock(Official):
    """x + SS2D(norm(x)), then x + FFN(norm(x)): (batch, H, W, C), or (batch, C, H, W) if channel-first, to the same shape.

    The layout follows the norm: "ln" is channels-last, "ln2d" and "bn" are channel-first.

    Args:
        hidden_dim: channels C.
        drop_path: probability that a sample skips a branch, in training.
        norm_layer: "ln", "ln2d" or "bn".
        ssm_ratio: width of the SS2D within, over C; 0 leaves that branch out.
        ssm_d_state, ssm_dt_rank, ssm_act_layer, ssm_conv, ssm_conv_bias, ssm_drop_rate, ssm_init, forward_type: of SS2D.
        mlp_ratio: hidden width of the FFN, over C; 0 leaves that branch out, as in the first release ("v0").
        mlp_act_layer, mlp_drop_rate: of the FFN.
        gmlp: take the gated FFN.
        use_checkpoint: compute the block again in the backward pass instead of keeping its activations.
        post_norm: x + norm(branch(x)) instead.

    To put another layer in the place of SS2D, derive from the block and set `scan` to a class that takes SS2D's arguments.

    Raises:
        InputError: an unknown name; in `forward`, an input of another layout or width.
    """

    scan: ClassVar[type[nn.Module]] = SS2D

    def __init__(
        self,
        hidden_dim: int,
        drop_path: float = 0.0,
        norm_layer: Norm = "ln",
        ssm_d_state: int = 16,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | Literal["auto"] = "auto",
        ssm_act_layer: Activation = "silu",
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0.0,
        ssm_init: Literal["v0", "v1", "v2"] = "v0",
        forward_type: str | ForwardType = "v2",
        mlp_ratio: float = 4.0,
        mlp_act_layer: Activation = "gelu",
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        use_checkpoint: bool = False,
        post_norm: bool = False,
    ):
        super().__init__()
        self.hidden_dim, self.channel_first = hidden_dim, is_channel_first(norm_layer)
        self.use_checkpoint, self.post_norm = use_checkpoint, post_norm
        self.ssm_branch, self.mlp_branch = ssm_ratio > 0, mlp_ratio > 0
        if self.ssm_branch:
            self.norm = norm(norm_layer, hidden_dim)
            self.op = self.scan(
                d_model=hidden_dim,
                d_state=ssm_d_state,
                ssm_ratio=ssm_ratio,
                dt_rank=ssm_dt_rank,
                act_layer=ssm_act_layer,
                d_conv=ssm_conv,
                conv_bias=ssm_conv_bias,
                dropout=ssm_drop_rate,
                initialize=ssm_init,
                forward_type=forward_type,
                channel_first=self.channel_first,
            )
        self.drop_path = StochasticDepth(drop_path, "row")
        if self.mlp_branch:
            self.norm2 = norm(norm_layer, hidden_dim)
            ffn = GatedMlp if gmlp else Mlp
            self.mlp = ffn(
                hidden_dim,
                int(hidden_dim * mlp_ratio),
                mlp_act_layer,
                mlp_drop_rate,
                channel_first=self.channel_first,
            )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, in the shape of x."""
        check_layout(x, self.hidden_dim, self.channel_first, "VSSBlock")
        if self.use_checkpoint and self.training:
            again: Any = checkpoint(self._both, x, use_reentrant=False)
            assert isinstance(again, Tensor)
            return again
        return self._both(x)

    def _both(self, x: Tensor) -> Tensor:
        if self.ssm_branch:
            x = self._residual(x, self.norm, self.op)
        if self.mlp_branch:
            x = self._residual(x, self.norm2, self.mlp)
        return x

    def _residual(self, x: Tensor, normed: nn.Module, branch: nn.Module) -> Tensor:
        y: Tensor = normed(branch(x)) if self.post_norm else branch(normed(x))
        result: Tensor = x + self.drop_path(y)
        return result
