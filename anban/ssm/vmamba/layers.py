"""The small parts of VMamba: layers in both layouts, MLPs, patch embedding, downsampling.

In a channel-first network tensors are (batch, C, H, W), in the other (batch, H, W, C). Linear layers and layer norms work on
the last dimension either way: the channel-first forms permute views, so that memory stays channels-last and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError
from anban.official import rename

Norm = Literal["ln", "ln2d", "bn"]
Activation = Literal["silu", "gelu", "relu", "sigmoid"]
_T = TypeVar("_T")


def to_last(x: Tensor) -> Tensor:
    """(batch, C, H, W) -> the view (batch, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def to_first(x: Tensor) -> Tensor:
    """(batch, H, W, C) -> the view (batch, C, H, W)."""
    return x.permute(0, 3, 1, 2)


class ToLast(nn.Module):
    """(batch, C, H, W) -> the view (batch, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return to_last(x)


class ToFirst(nn.Module):
    """(batch, H, W, C) -> the view (batch, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return to_first(x)


class Linear2d(nn.Linear):
    """A linear layer on the channels of (batch, C, H, W); its weight is (out, in), initialised as that of any linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return to_first(F.linear(to_last(x), self.weight, self.bias))


class LayerNorm2d(nn.LayerNorm):
    """A layer norm over the channels of (batch, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return to_first(super().forward(to_last(x)))


NORMS: dict[str, type[nn.Module]] = {"ln": nn.LayerNorm, "ln2d": LayerNorm2d, "bn": nn.BatchNorm2d}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
}


def choose(table: Mapping[str, _T], name: str, what: str) -> _T:
    """The entry of a table of names, whatever the case of the letters.

    Raises:
        InputError: there is none.
    """
    if not isinstance(name, str) or name.lower() not in table:
        raise InputError(f"{what} is {name!r}", where=what, expected=f"one of {', '.join(table)}")
    return table[name.lower()]


def norm(name: str, width: int) -> nn.Module:
    """The norm `name` of `width` channels."""
    return choose(NORMS, name, "norm_layer")(width)


def is_channel_first(norm_layer: str) -> bool:
    """The layout follows the norm: "ln" normalises the last dimension, "ln2d" and "bn" the second."""
    choose(NORMS, norm_layer, "norm_layer")
    return norm_layer.lower() != "ln"


def linear(inputs: int, outputs: int, *, channel_first: bool, bias: bool = True) -> nn.Linear:
    """A linear layer on the channels, in the layout asked for."""
    return (Linear2d if channel_first else nn.Linear)(inputs, outputs, bias=bias)


def check_layout(x: Tensor, width: int, channel_first: bool, where: str) -> None:
    """Refuse a tensor whose channels do not stand where the layout has them.

    Raises:
        InputError: x is not (batch, width, H, W), or (batch, H, W, width) without `channel_first`.
    """
    if x.dim() == 4 and x.shape[1 if channel_first else 3] == width:
        return
    sizes = f"{width}, height, width" if channel_first else f"height, width, {width}"
    raise InputError(
        f"got {tuple(x.shape)}; this {where} has channel_first={channel_first} and expects (batch, {sizes})",
        where=where,
        do="permute the input, or build for the other layout: channel_first of SS2D, norm_layer of VSSBlock and VSSM"
        ' ("ln": channels last, "ln2d" and "bn": channel first)',
    )


class Mlp(nn.Module):
    """The feed-forward network (FFN): linear, activation, linear, on every pixel by itself."""

    def __init__(
        self,
        width: int,
        hidden: int,
        act_layer: str = "gelu",
        drop: float = 0.0,
        *,
        channel_first: bool = False,
    ):
        super().__init__()
        self.fc1 = linear(width, hidden, channel_first=channel_first)
        self.act = choose(ACTIVATIONS, act_layer, "act_layer")()
        self.fc2 = linear(hidden, width, channel_first=channel_first)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.act(self.fc1(x)))
        result: Tensor = self.drop(self.fc2(hidden))
        return result


class GatedMlp(nn.Module):
    """A feed-forward network whose hidden features are multiplied by a gate (gMlp in the release)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        act_layer: str = "gelu",
        drop: float = 0.0,
        *,
        channel_first: bool = False,
    ):
        super().__init__()
        self.channels = 1 if channel_first else -1
        self.fc1 = linear(width, 2 * hidden, channel_first=channel_first)
        self.act = choose(ACTIVATIONS, act_layer, "act_layer")()
        self.fc2 = linear(hidden, width, channel_first=channel_first)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.fc1(x).chunk(2, dim=self.channels)
        result: Tensor = self.drop(self.fc2(hidden * self.act(gate)))
        return result


# ---- patch embedding and downsampling: positions in the sequences give the official parameter names ------------------


def patch_embed(
    version: str,
    in_chans: int,
    width: int,
    patch_size: int = 4,
    *,
    patch_norm: bool = True,
    norm_layer: str = "ln",
) -> nn.Sequential:
    """(batch, in_chans, H, W) -> `width` channels at 1 / patch_size of the size, in the layout of the norm.

    Version "v1" is one convolution without overlap, then a norm. Version "v2" is two overlapping ones of stride patch_size / 2,
    the first with half of the channels, norm and GELU between them: as in the release, only patch_size 4 is divided by 4
    (2 twice); 8 is divided by 16, and 2 by nothing.
    """
    first = is_channel_first(norm_layer)

    def normalised(channels: int) -> nn.Module:
        return norm(norm_layer, channels) if patch_norm else nn.Identity()

    def v1() -> list[nn.Module]:
        return [
            nn.Conv2d(in_chans, width, kernel_size=patch_size, stride=patch_size),
            _turn(ToLast, not first),
            normalised(width),
        ]

    def v2() -> list[nn.Module]:
        stride = patch_size // 2
        turned = patch_norm and not first
        return [
            nn.Conv2d(in_chans, width // 2, kernel_size=stride + 1, stride=stride, padding=1),
            _turn(ToLast, turned),
            normalised(width // 2),
            _turn(ToFirst, turned),
            nn.GELU(),
            nn.Conv2d(width // 2, width, kernel_size=stride + 1, stride=stride, padding=1),
            _turn(ToLast, not first),
            normalised(width),
        ]

    return nn.Sequential(*choose({"v1": v1, "v2": v2}, version, "patchembed_version")())


def downsample(version: str, width: int, out_width: int, *, norm_layer: str = "ln") -> nn.Module:
    """Half of the height and width, `out_width` channels, in the layout of the norm.

    Version "v1" merges patches (`PatchMerging2D`), "v2" is a 2x2 convolution of stride 2 (the last line of an odd size is lost),
    "v3" a 3x3 one (odd sizes are rounded up); a norm follows both.
    """

    def convolution(size: int, padding: int) -> nn.Module:
        turned = not is_channel_first(norm_layer)
        return nn.Sequential(
            _turn(ToFirst, turned),
            nn.Conv2d(width, out_width, kernel_size=size, stride=2, padding=padding),
            _turn(ToLast, turned),
            norm(norm_layer, out_width),
        )

    versions: dict[str, Callable[[], nn.Module]] = {
        "v1": lambda: PatchMerging2D(width, out_width, norm_layer=norm_layer),
        "v2": lambda: convolution(2, 0),
        "v3": lambda: convolution(3, 1),
    }
    return choose(versions, version, "downsample_version")()


def _turn(layer: type[nn.Module], needed: bool) -> nn.Module:
    return layer() if needed else nn.Identity()


class PatchMerging2D(nn.Module):
    """2x2 pixels become one of four times the channels, then norm and a linear layer; odd sizes are padded by zeros.

    The four pixels are joined in the order (0, 0), (1, 0), (0, 1), (1, 1) of (row, column). In the release odd sizes fail in
    the channel-first layout.
    """

    def __init__(self, width: int, out_width: int, *, norm_layer: str = "ln"):
        super().__init__()
        self.channel_first = is_channel_first(norm_layer)
        self.reduction = linear(4 * width, out_width, channel_first=self.channel_first, bias=False)
        self.norm = norm(norm_layer, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = to_last(x) if self.channel_first else x
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        result: Tensor = self.reduction(self.norm(to_first(x) if self.channel_first else x))
        return result


# ---- official weights ------------------------------------------------------------------------------------------------


class Official(nn.Module):
    """A module whose parameters have the official names; `from_official` takes the older forms of them too."""

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename what older releases called otherwise; give 1x1 convolutions the shape of linear layers."""
        state = rename(
            state_dict,
            [
                (r"^patch_embed\.proj\.", "patch_embed.0."),
                (r"^patch_embed\.norm\.", "patch_embed.2."),
                (r"^(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
                (r"^(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
            ],
        )
        own = self.state_dict()
        for name, tensor in list(state.items()):
            # ChangeMamba's depth-wise out norm is a bare convolution, VMamba's the second of a sequence.
            if name.endswith("out_norm.weight") and tensor.dim() == 4:
                state[name.removesuffix("weight") + "1.weight"] = state.pop(name)
            elif name in own and own[name].dim() == 2 and tensor.shape[2:] == (1, 1):
                state[name] = tensor.flatten(1)
        return state
