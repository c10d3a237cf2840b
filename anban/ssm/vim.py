"""Vision Mamba (Vim): an image as one sequence of patches, read forwards and backwards by Mamba mixers.

Source: Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model", arXiv
2401.09417, section 3; numerically equal to the authors' release (github.com/hustvl/Vim), whose parameter names are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from anban.errors import InputError
from anban.ssm.mamba import Bimamba, Mamba

ClassToken = Literal["none", "head", "middle", "double"]
Pool = Literal["last", "mean", "max", "all"]
Rope = Literal["none", "hidden", "both"]

VIM: dict[str, dict[str, Any]] = {
    "vim_tiny_patch16_224": {"embed_dim": 192},  # 7,148,008 parameters
    "vim_tiny_patch16_stride8_224": {"embed_dim": 192, "stride": 8},  # 7,250,344
    "vim_small_patch16_224": {"embed_dim": 384},  # 25,796,584
    "vim_small_patch16_stride8_224": {"embed_dim": 384, "stride": 8},  # 26,001,256
    "vim_base_patch16_224": {"embed_dim": 768},  # 97,598,440
}
"""The released networks: `VisionMamba(**VIM[name])`."""


class VimBlock(nn.Module):
    """Add, norm, mix: (hidden, residual) -> (mixer(norm(residual + hidden)), residual + hidden).

    The mixer's output is added by the next block, or by the network's last norm, so that adding and norm could be one kernel;
    the release's `fused_add_norm` says whether they are, which changes no result.

    Args:
        d_model: width of the tokens.
        rms_norm: RMSNorm, or else LayerNorm.
        norm_epsilon: its epsilon.
        residual_in_fp32: keep the residual in float32 at least.
        drop_path: probability that `hidden` is dropped for a sample before it is added (training only).
        mixer: further arguments of `Mamba`.
    """

    def __init__(
        self,
        d_model: int,
        *,
        rms_norm: bool = True,
        norm_epsilon: float = 1e-5,
        residual_in_fp32: bool = True,
        drop_path: float = 0.0,
        mixer: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.mixer = Mamba(d_model, **dict(mixer or {}))
        self.norm = _norm(d_model, rms_norm, norm_epsilon)
        self.drop_path = _drop_path(drop_path)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`hidden` (batch, L, d_model), `residual` the same or, in the first block, None."""
        residual = hidden if residual is None else residual + self.drop_path(hidden)
        hidden = self.mixer(self.norm(residual.to(self.norm.weight.dtype)))
        if self.residual_in_fp32:
            residual = residual.to(torch.promote_types(residual.dtype, torch.float32))
        return hidden, residual


class PatchEmbed(nn.Module):
    """Patches of an image, which overlap if `stride` is below `patch_size`: (B, channels, H, W) -> (B, patches, width).

    Raises:
        InputError: in `forward`, an image of another size than `img_size`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        stride: int = 16,
        channels: int = 3,
        embed_dim: int = 192,
    ):
        super().__init__()
        self.img_size, (high, wide) = _pair(img_size), _pair(patch_size)
        self.grid = ((self.img_size[0] - high) // stride + 1, (self.img_size[1] - wide) // stride + 1)
        self.proj = nn.Conv2d(channels, embed_dim, (high, wide), stride)
        std = math.sqrt(1 / self.proj.weight[0].numel()) / 0.87962566103423978  # of a normal cut at two sigma
        nn.init.trunc_normal_(self.proj.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != self.img_size:
            given, expected = ("x".join(map(str, size)) for size in (image.shape[-2:], self.img_size))
            raise InputError(
                f"VisionMamba was given an image of {given}",
                expected=f"{expected}: there is a position embedding for each of its patches",
                do=f"resize the image, or build the network with img_size={tuple(image.shape[-2:])}",
            )
        patches: Tensor = self.proj(image)
        return patches.flatten(2).transpose(1, 2)


class VisionRope(nn.Module):
    """Rotary position embedding of an image: half of the channels turn with the patch's row, half with its column.

    Of an odd number of tokens the first is passed over as the class token, as released. The tables are buffers of the release's
    state dict.

    Args:
        width: of the tokens.
        grid: side of the (square) grid of patches.
        pretrained_grid: the side that positions are scaled to.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, width: int, grid: int, pretrained_grid: int):
        super().__init__()
        half = width // 2
        rates = 10000.0 ** -(torch.arange(0, half, 2)[: half // 2] / half)
        place = torch.arange(grid) / grid * pretrained_grid
        angles = (place[:, None] * rates).repeat_interleave(2, dim=-1)  # (grid, half)
        rows, columns = angles.unsqueeze(1).expand(-1, grid, -1), angles.expand(grid, -1, -1)
        angles = torch.cat((rows, columns), dim=-1).flatten(0, 1)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        first, patches = tokens.tensor_split((tokens.shape[1] % 2,), dim=1)
        if patches.shape[1] != len(self.freqs_cos):
            raise InputError(
                f"{tokens.shape[1]} tokens for a rotary embedding of {len(self.freqs_cos)} patches",
                expected="a square image, stride = patch_size, an even number of patches and at most one class token",
            )
        even, odd = patches[..., ::2], patches[..., 1::2]
        turned = torch.stack((-odd, even), dim=-1).flatten(-2)
        return torch.cat((first, patches * self.freqs_cos + turned * self.freqs_sin), dim=1)


class VisionMamba(nn.Module):
    """Vision Mamba: (B, channels, *img_size) -> scores (B, num_classes).

    Args:
        img_size, patch_size, stride: the grid of patches; sides in pixels.
        depth: number of blocks.
        embed_dim: width of the tokens.
        channels: of the image.
        num_classes: 0 for none: `forward` returns what `forward_features` does.
        cls_token: where the class token stands: "head", "middle", "double" (one at either end; the mean of the two is read), or
            "none".
        pool: what is read if there is no class token: the "last" token, the "mean" of all, "all" of them (B, patches, ...), or
            the "max" over the tokens' scores.
        pos_embed: add a learned embedding to every token, the class token included.
        rope: turn the tokens before every block, see `VisionRope`: not at all, the "hidden" ones, or "both" them and the
            residual.
        pt_hw_seq_len: side of the grid that `rope` scales positions to.
        bimamba_type: of every mixer, see `Mamba`.
        pair_layers: of every two blocks in a row one reads forwards, one backwards, and they are added up.
        flip_probability: read a batch of sequences from its end, once in a while; in evaluation too, as released.
        rms_norm, norm_epsilon, residual_in_fp32: see `VimBlock`.
        drop_rate: dropout after the position embedding.
        drop_path_rate: of the last block; it grows linearly from 0.
        mixer: further arguments of `Mamba`; `if_divide_out` is True if it is not given.

    Raises:
        InputError: an unknown option, a `rope` that does not fit; in `forward`, an image of another size.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        stride: int = 16,
        depth: int = 24,
        embed_dim: int = 192,
        channels: int = 3,
        num_classes: int = 1000,
        *,
        cls_token: ClassToken = "middle",
        pool: Pool = "mean",
        pos_embed: bool = True,
        rope: Rope = "none",
        pt_hw_seq_len: int = 14,
        bimamba_type: Bimamba = "v2",
        pair_layers: bool = False,
        flip_probability: float = 0.0,
        rms_norm: bool = True,
        norm_epsilon: float = 1e-5,
        residual_in_fp32: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        mixer: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        _one_of("cls_token", cls_token, ClassToken)
        _one_of("pool", pool, Pool)
        _one_of("rope", rope, Rope)
        self.pool, self.pair_layers, self.flip_probability = pool, pair_layers, flip_probability
        self.patch_embed = PatchEmbed(img_size, patch_size, stride, channels, embed_dim)
        patches = math.prod(self.patch_embed.grid)
        self.class_tokens = _class_tokens(cls_token, patches)
        for name in self.class_tokens:
            self.register_parameter(name, nn.Parameter(torch.zeros(1, 1, embed_dim)))
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, patches + len(self.class_tokens), embed_dim)) if pos_embed else None
        )
        self.pos_drop = nn.Dropout(drop_rate)
        self.rope_residual = rope == "both"
        self.rope = None if rope == "none" else _rope(embed_dim, self.patch_embed, pt_hw_seq_len)
        # A block drops what the block before it put out, at that block's rate: the first has nothing to drop.
        rates = [0.0, *torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()]
        self.layers = nn.ModuleList(
            VimBlock(
                embed_dim,
                rms_norm=rms_norm,
                norm_epsilon=norm_epsilon,
                residual_in_fp32=residual_in_fp32,
                drop_path=rate,
                mixer={"if_divide_out": True, **(mixer or {}), "bimamba_type": bimamba_type},
            )
            for rate in rates[:depth]
        )
        self.drop_path = _drop_path(drop_path_rate)
        self.norm_f = _norm(embed_dim, rms_norm, norm_epsilon)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self._start()

    def forward(self, image: Tensor) -> Tensor:
        """Scores (B, num_classes) of images (B, channels, *img_size); (B, patches, num_classes) if all tokens are read."""
        return self.classify(self.forward_features(image))

    def classify(self, features: Tensor) -> Tensor:
        """Scores of what `forward_features` returns."""
        scores: Tensor = self.head(features)
        return scores.amax(1) if self.pool == "max" and not self.class_tokens else scores

    def forward_features(self, image: Tensor) -> Tensor:
        """The class token, or the pooled tokens, (B, embed_dim); every token, (B, patches, embed_dim), for "all" and "max"."""
        tokens = self._with_class_tokens(self.patch_embed(image))
        if self.pos_embed is not None:
            tokens = self.pos_drop(tokens + self.pos_embed)
        flipped = self.flip_probability > 0 and torch.rand(()).item() < self.flip_probability
        return self._read(self._mix(tokens.flip(1) if flipped else tokens, flipped))

    def _with_class_tokens(self, tokens: Tensor) -> Tensor:
        for name, position in self.class_tokens.items():
            token = self.get_parameter(name).expand(len(tokens), -1, -1)
            tokens = torch.cat((tokens[:, :position], token, tokens[:, position:]), dim=1)
        return tokens

    def _mix(self, hidden: Tensor, flipped: bool) -> Tensor:
        """All blocks and the last norm."""
        residual: Tensor | None = None
        step = 2 if self.pair_layers else 1
        for i in range(0, len(self.layers) - step + 1, step):
            if self.rope is not None:
                # In pairs, a flipped sequence is turned as if it were not, as released.
                back = flipped and not self.pair_layers
                hidden = self._turn(hidden, back)
                if residual is not None and self.rope_residual:
                    residual = self._turn(residual, back)
            if self.pair_layers:
                hidden, residual = self._both_ways(i, hidden, residual)
            else:
                hidden, residual = self.layers[i](hidden, residual)
        hidden = self.drop_path(hidden)
        total = hidden if residual is None else residual + hidden
        normed: Tensor = self.norm_f(total.to(self.norm_f.weight.dtype))
        return normed

    def _turn(self, tokens: Tensor, flipped: bool) -> Tensor:
        assert self.rope is not None
        return self.rope(tokens.flip(1)).flip(1) if flipped else self.rope(tokens)  # type: ignore[no-any-return]

    def _both_ways(self, i: int, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        ahead, ahead_residual = self.layers[i](hidden, residual)
        back, back_residual = self.layers[i + 1](
            hidden.flip(1), None if residual is None else residual.flip(1)
        )
        return ahead + back.flip(1), ahead_residual + back_residual.flip(1)

    def _read(self, tokens: Tensor) -> Tensor:
        if self.class_tokens:
            return torch.stack([tokens[:, position] for position in self.class_tokens.values()]).mean(0)
        if self.pool == "last":
            return tokens[:, -1]
        return tokens.mean(1) if self.pool == "mean" else tokens

    @torch.no_grad()
    def _start(self) -> None:
        """The release's initialisation of what is not a mixer, and its two changes to the mixers' own."""
        for name in self.class_tokens:
            nn.init.trunc_normal_(self.get_parameter(name), std=0.02)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if isinstance(self.head, nn.Linear):
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        for name, parameter in self.layers.named_parameters():
            if name.endswith("out_proj.weight"):
                parameter.div_(math.sqrt(len(self.layers)))  # one addition to the residual per block
            elif name.endswith(("in_proj.bias", "out_proj.bias", "dt_proj_b.bias")):
                nn.init.zeros_(parameter)


def _class_tokens(cls_token: ClassToken, patches: int) -> dict[str, int]:
    """Names of the class tokens' parameters -> their places among the tokens, in the order they are put in."""
    return {
        "none": {},
        "head": {"cls_token": 0},
        "middle": {"cls_token": patches // 2},
        "double": {"cls_token_head": 0, "cls_token_tail": patches + 1},
    }[cls_token]


def _rope(embed_dim: int, patch_embed: PatchEmbed, pt_hw_seq_len: int) -> VisionRope:
    rows, columns = patch_embed.grid
    if rows != columns or embed_dim % 4:
        raise InputError(
            f"a rotary embedding of {rows} x {columns} patches and width {embed_dim}",
            expected="a square image and a width that is a multiple of 4",
        )
    return VisionRope(embed_dim, rows, pt_hw_seq_len)


def _norm(width: int, rms: bool, epsilon: float) -> nn.LayerNorm | nn.RMSNorm:
    return nn.RMSNorm(width, eps=epsilon) if rms else nn.LayerNorm(width, eps=epsilon)


def _drop_path(rate: float) -> nn.Module:
    return StochasticDepth(rate, "row") if rate > 0 else nn.Identity()


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _one_of(option: str, value: str, known: Any) -> None:
    if value not in known.__args__:
        raise InputError(f"no {option} is called {value!r}", expected=f"one of {', '.join(known.__args__)}")
