"""VSSM, the classification network of VMamba, its backbone form, and the published configurations.

Source: VMamba, arXiv 2401.10166, section 4; numerically equal to VSSM and Backbone_VSSM of the authors' release.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError
from anban.official import rename
from anban.ssm.vmamba.blocks import VSSBlock
from anban.ssm.vmamba.forward_types import ForwardType
from anban.ssm.vmamba.layers import (
    Activation,
    Norm,
    Official,
    ToFirst,
    downsample,
    is_channel_first,
    norm,
    patch_embed,
    to_first,
    to_last,
)


class VSSMTrunk(Official):
    """Patch embedding, then stages of VSS blocks with a downsampling between any two: what VSSM and its backbone form share.

    Stage i has the width dims[i] and works at 1 / (patch_size * 2 ** i) of the image's size. A network with blocks of one's own
    derives from VSSM or VSSMBackbone and sets `block` to a class that takes VSSBlock's arguments; the others do not change.

    Args:
        patch_size: pixels per side of a patch.
        in_chans: bands of the image.
        depths: number of blocks of every stage.
        dims: width of every stage; one number is the width of the first, doubled from stage to stage.
        ssm_*, forward_type, mlp_*, gmlp, use_checkpoint: see `VSSBlock`.
        drop_path_rate: drop path of the last block; that of the first is 0, it grows linearly between them.
        patch_norm: whether the patch embedding has norms.
        norm_layer: "ln" (channels-last within), "ln2d" or "bn" (channel-first within).
        downsample_version: "v1" (patch merging), "v2" (2x2 convolution) or "v3" (3x3 convolution).
        patchembed_version: "v1" (one convolution) or "v2" (two).
        posembed: add a learned position embedding to the patches; at another image size it is resized (bicubic).
        imgsize: side of the square images that the position embedding is made for.
    """

    block: ClassVar[type[nn.Module]] = VSSBlock
    pos_embed: nn.Parameter | None

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        depths: Sequence[int] = (2, 2, 9, 2),
        dims: int | Sequence[int] = 96,
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
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        norm_layer: Norm = "ln",
        downsample_version: Literal["v1", "v2", "v3"] = "v2",
        patchembed_version: Literal["v1", "v2"] = "v1",
        use_checkpoint: bool = False,
        posembed: bool = False,
        imgsize: int = 224,
    ):
        super().__init__()
        self.norm_layer, self.channel_first = norm_layer, is_channel_first(norm_layer)
        self.dims = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        if len(self.dims) != len(depths) or not depths:
            raise InputError(
                f"{len(self.dims)} widths for {len(depths)} stages", where="dims", expected="one per stage"
            )
        side = imgsize // patch_size
        embedding = nn.Parameter(torch.zeros(1, self.dims[0], side, side)) if posembed else None
        self.register_parameter("pos_embed", embedding)
        self.patch_embed = patch_embed(
            patchembed_version,
            in_chans,
            self.dims[0],
            patch_size,
            patch_norm=patch_norm,
            norm_layer=norm_layer,
        )
        drops = iter(_ramp(drop_path_rate, sum(depths)))
        self.layers = nn.ModuleList()
        for i, (depth, width) in enumerate(zip(depths, self.dims, strict=True)):
            blocks = [
                self.block(
                    hidden_dim=width,
                    drop_path=next(drops),
                    norm_layer=norm_layer,
                    ssm_d_state=ssm_d_state,
                    ssm_ratio=ssm_ratio,
                    ssm_dt_rank=ssm_dt_rank,
                    ssm_act_layer=ssm_act_layer,
                    ssm_conv=ssm_conv,
                    ssm_conv_bias=ssm_conv_bias,
                    ssm_drop_rate=ssm_drop_rate,
                    ssm_init=ssm_init,
                    forward_type=forward_type,
                    mlp_ratio=mlp_ratio,
                    mlp_act_layer=mlp_act_layer,
                    mlp_drop_rate=mlp_drop_rate,
                    gmlp=gmlp,
                    use_checkpoint=use_checkpoint,
                )
                for _ in range(depth)
            ]
            shrink: nn.Module = nn.Identity()
            if i + 1 < len(depths):
                shrink = downsample(downsample_version, width, self.dims[i + 1], norm_layer=norm_layer)
            stage = OrderedDict(blocks=nn.Sequential(*blocks), downsample=shrink)
            self.layers.append(nn.Sequential(stage))

    def _initialise(self) -> None:
        """Linear weights from a normal of std 0.02 cut off at 2, their biases 0; layer norms 1 and 0.

        Convolutions, and the parameters of the scan, keep the start that they were made with.
        """
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def _patches(self, x: Tensor, *, positions: bool = True) -> Tensor:
        x = self.patch_embed(x)
        if self.pos_embed is None or not positions:
            return x
        size = x.shape[2:] if self.channel_first else x.shape[1:3]
        embedding = _resized(self.pos_embed, size)
        return x + (embedding if self.channel_first else to_last(embedding))

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Official`; a position embedding for another image size is resized, as the release does."""
        state = super().from_official(state_dict)
        if self.pos_embed is not None and "pos_embed" in state:
            state["pos_embed"] = _resized(state["pos_embed"], self.pos_embed.shape[2:])
        return state


class VSSM(VSSMTrunk):
    """VMamba: images (batch, in_chans, H, W) -> logits (batch, num_classes).

    The patch embedding divides the size by patch_size, every stage but the last by 2; norm, mean over the pixels and one linear
    layer follow. `CONFIGURATIONS` are the published networks: `VSSM(**CONFIGURATIONS["vmambav2v_tiny_224"].arguments)`.

    Args:
        num_classes: number of logits.
        **trunk: patch_size, in_chans, depths, dims, norm_layer and so on, by their official names: see `VSSMTrunk`.

    Raises:
        InputError: an unknown name, or widths that do not fit the depths.
    """

    def __init__(self, num_classes: int = 1000, **trunk: Any):
        super().__init__(**trunk)
        self.classifier = nn.Sequential(
            OrderedDict(
                norm=norm(self.norm_layer, self.dims[-1]),
                permute=nn.Identity() if self.channel_first else ToFirst(),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(1),
                head=nn.Linear(self.dims[-1], num_classes),
            )
        )
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, in_chans, H, W)."""
        x = self._patches(x)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.classifier(x)
        return logits

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the trunk; the first releases had norm and head outside of the classifier."""
        state = super().from_official(state_dict)
        return rename(state, [(r"^(norm|head)\.", r"classifier.\1.")])


class VSSMBackbone(VSSMTrunk):
    """VMamba as a backbone: images (batch, in_chans, H, W) -> features of some stages, each (batch, C_i, H_i, W_i).

    A stage's output is taken before the downsampling and normed (`outnorm{i}`) unless `out_norm` is off; the next stage goes on from the output that
    is not normed. Everything else is the network VSSM without its classifier.

    Args:
        out_indices: the stages, from 0, whose features are returned, in the order of the stages.
        out_norm: norm the features; otherwise they are those that the next stage goes on from.
        add_pos_embed: with posembed=True, add the position embedding. The release's backbone has it and never adds it; give
            False for that.
        **trunk: see `VSSMTrunk`.

    Raises:
        InputError: an unknown name, widths that do not fit the depths, or a stage that does not exist.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        *,
        out_norm: bool = True,
        add_pos_embed: bool = True,
        **trunk: Any,
    ):
        super().__init__(**trunk)
        self.out_indices, self.add_pos_embed = tuple(sorted(set(out_indices))), add_pos_embed
        if not out_indices or not set(out_indices) <= set(range(len(self.layers))):
            raise InputError(
                f"out_indices are {list(out_indices)}",
                where="out_indices",
                expected=f"some of the stages 0 to {len(self.layers) - 1}",
            )
        self.widths = [self.dims[i] for i in self.out_indices]
        self._initialise()
        for i in self.out_indices:
            self.add_module(f"outnorm{i}", norm(self.norm_layer, self.dims[i]) if out_norm else nn.Identity())

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features (batch, C_i, H_i, W_i) of the stages `out_indices` of images (batch, in_chans, H, W)."""
        return list(self._levels(x))

    def _levels(self, x: Tensor) -> Iterator[Tensor]:
        x = self._patches(x, positions=self.add_pos_embed)
        for i in range(self.out_indices[-1] + 1):
            if i > 0:
                x = self.layers[i - 1].downsample(x)  # type: ignore[operator, union-attr]
            x = self.layers[i].blocks(x)  # type: ignore[operator, union-attr]
            if i in self.out_indices:
                normed = self.get_submodule(f"outnorm{i}")(x)
                yield (normed if self.channel_first else to_first(normed)).contiguous()

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As the trunk; of a classification network the classifier is dropped, and the out norms start as they are here."""
        state = super().from_official(state_dict)
        classifier = [name for name in state if name.startswith(("classifier.", "norm.", "head."))]
        for name in classifier:
            del state[name]
        if classifier and not any(name.startswith("outnorm") for name in state):
            state |= {name: t for name, t in self.state_dict().items() if name.startswith("outnorm")}
        return state


def _ramp(last: float, count: int) -> list[float]:
    """`count` numbers from 0 to `last`."""
    return [last * i / max(count - 1, 1) for i in range(count)]


def _resized(embedding: Tensor, size: Sequence[int]) -> Tensor:
    if embedding.shape[2:] == tuple(size):
        return embedding
    return F.interpolate(embedding, size=list(size), mode="bicubic", align_corners=False)


# ---- published networks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configuration:
    """A published network.

    Attributes:
        arguments: of VSSM; without num_classes they fit VSSMBackbone too.
        name: as the paper and the release's table of results call it.
        parameters, macs: millions of parameters and 10^9 multiply-adds at 224 x 224 pixels, as published; the scan counts
            9 per state and element.
    """

    arguments: dict[str, Any]
    name: str
    parameters: int
    macs: float


def _first(name: str, depth: int, width: int, drop: float, parameters: int, macs: float) -> Configuration:
    """The first release: SS2D with a gate and 16 states, no FFN."""
    arguments = {
        "depths": (2, 2, depth, 2),
        "dims": width,
        "drop_path_rate": drop,
        "ssm_d_state": 16,
        "ssm_ratio": 2.0,
        "forward_type": "v0",
        "mlp_ratio": 0.0,
        "norm_layer": "ln",
        "downsample_version": "v1",
        "patchembed_version": "v1",
    }
    return Configuration(arguments, name, parameters, macs)


def _second(
    name: str, depth: int, width: int, drop: float, ratio: float, parameters: int, macs: float
) -> Configuration:
    """The second release: no gate, one state, an FFN of ratio 4; s1 and s2 in the names are the ssm_ratio, l the depth."""
    arguments = {
        "depths": (2, 2, depth, 2),
        "dims": width,
        "drop_path_rate": drop,
        "ssm_d_state": 1,
        "ssm_ratio": ratio,
        "ssm_conv_bias": False,
        "forward_type": "v05_noz",
        "mlp_ratio": 4.0,
        "norm_layer": "ln2d",
        "downsample_version": "v3",
        "patchembed_version": "v2",
    }
    return Configuration(arguments, name, parameters, macs)


CONFIGURATIONS: dict[str, Configuration] = {
    "vmambav0_tiny_224": _first("Vanilla-VMamba-T", 9, 96, 0.2, 23, 5.6),
    "vmambav0_small_224": _first("Vanilla-VMamba-S", 27, 96, 0.3, 44, 11.2),
    "vmambav0_base_224": _first("Vanilla-VMamba-B", 27, 128, 0.6, 76, 18.0),
    "vmambav2_tiny_224": _second("VMamba-T[s2l5]", 5, 96, 0.2, 2.0, 31, 4.9),
    "vmambav2_small_224": _second("VMamba-S[s2l15]", 15, 96, 0.3, 2.0, 50, 8.7),
    "vmambav2_base_224": _second("VMamba-B[s2l15]", 15, 128, 0.6, 2.0, 89, 15.4),
    "vmambav2v_tiny_224": _second("VMamba-T[s1l8]", 8, 96, 0.2, 1.0, 30, 4.9),
    "vmambav2v_small_224": _second("VMamba-S[s1l20]", 20, 96, 0.3, 1.0, 49, 8.6),
    "vmambav2v_base_224": _second("VMamba-B[s1l20]", 20, 128, 0.5, 1.0, 87, 15.2),
}
"""Keys are the names of the release's configuration files."""
