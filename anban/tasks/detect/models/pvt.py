"""Pyramids of transformer stages: PVT v1 and v2, and the variants of note 003 between and around them.

Sources: Wang et al., "Pyramid vision transformer: a versatile backbone for dense prediction without convolutions", ICCV 2021;
Wang et al., "PVT v2: improved baselines with pyramid vision transformer", 2021. Numerically equal to the authors' release
(github.com/whai362/PVT), to MMDetection's (`PyramidVisionTransformer`), and to the networks of the AtrousLSHTransformer's
release (github.com/iredawen/AtrousLSHTransformer) that run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from anban.errors import InputError
from anban.official import rename
from anban.tasks.detect.models.attention import make_attention
from anban.tasks.detect.models.attention.layers import to_map
from anban.tasks.detect.models.dilation import SHRINKING_NAMES, Halving, Shrinking
from anban.tasks.detect.models.settings import Attention, Padding, Pyramid

_V2: dict[str, Any] = {
    "patch_sizes": (7, 3, 3, 3),
    "paddings": (3, 1, 1, 1),
    "positions": "none",
    "stage_norm": True,
    "mlp": "conv",
}

SIZES: dict[str, Pyramid] = {
    "pvt-tiny": Pyramid(),
    "pvt-small": Pyramid(depths=(3, 4, 6, 3)),
    "pvt-medium": Pyramid(depths=(3, 4, 18, 3)),
    "pvt-large": Pyramid(depths=(3, 8, 27, 3)),
    "pvt-huge": Pyramid(widths=(128, 256, 512, 768), heads=(2, 4, 8, 12), depths=(3, 10, 60, 3)),
    "pvt-v2-b0": Pyramid(widths=(32, 64, 160, 256), **_V2),
    "pvt-v2-b1": Pyramid(**_V2),
    "pvt-v2-b2": Pyramid(depths=(3, 4, 6, 3), **_V2),
    "pvt-v2-b2-linear": Pyramid(
        depths=(3, 4, 6, 3), attention=Attention("pooled"), **{**_V2, "mlp": "conv-relu"}
    ),
    "pvt-v2-b3": Pyramid(depths=(3, 4, 18, 3), **_V2),
    "pvt-v2-b4": Pyramid(depths=(3, 8, 27, 3), **_V2),
    "pvt-v2-b5": Pyramid(depths=(3, 6, 40, 3), mlp_ratios=(4.0, 4.0, 4.0, 4.0), **_V2),
}
"""The published sizes."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
}


class _Positions(nn.Module):
    """A learned grid, added to tokens (B, N, C) of a map of any size.

    Args:
        by_count: whether the grid is added as it is to any map of as many tokens, whatever its shape.
        extra: rows for tokens that are not pixels, in front.
    """

    def __init__(self, grid: tuple[int, int], width: int, dropout: float, by_count: bool, extra: int):
        super().__init__()
        self.grid, self.by_count = grid, by_count
        self.embedding = _learned(grid[0] * grid[1], width)
        self.extra = _learned(extra, width) if extra else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        positions: Tensor = self.embedding
        same = self.by_count and size[0] * size[1] == positions.shape[1]
        if size != self.grid and not same:
            positions = resized(positions, self.grid, size)
        if self.extra is not None:
            positions = torch.cat((self.extra, positions), dim=1)
        out: Tensor = self.dropout(x + positions)
        return out


def _learned(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, rows, width), std=0.02))


def resized(positions: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Position embeddings (1, h x w, C) of a grid (h, w), resized bilinearly to a grid (H, W): (1, H x W, C)."""
    return F.interpolate(to_map(positions, grid), size, mode="bilinear").flatten(2).transpose(1, 2)


class _FeedForward(nn.Module):
    """The perceptron of a block, (B, N, C) -> same; a depth-wise convolution in it tells tokens where they are."""

    def __init__(self, width: int, hidden: int, settings: Pyramid):
        super().__init__()
        self.kind, self.activation = settings.mlp, _ACTIVATIONS[settings.activation]
        self.widen = nn.Linear(width, hidden)
        if self.kind != "plain":
            self.depthwise = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.narrow = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.widen(x)
        if self.kind == "conv-relu":
            x = F.relu(x)
        if self.kind != "plain":
            x = self.depthwise(to_map(x, size)).flatten(2).transpose(1, 2)
        out: Tensor = self.dropout(self.narrow(self.dropout(self.activation(x))))
        return out


class _Block(nn.Module):
    """Pre-norm transformer block on tokens (B, N, C)."""

    def __init__(self, settings: Pyramid, stage: int, drop_path: float):
        super().__init__()
        width = settings.widths[stage]
        self.attention_norm = nn.LayerNorm(width, eps=settings.eps)
        self.attention = make_attention(
            settings.attention,
            stage,
            len(settings.widths),
            width=width,
            heads=settings.heads[stage],
            bias=settings.qkv_bias,
            scale=settings.qk_scale,
            dropout=settings.dropout,
            attention_dropout=settings.attention_dropout,
            eps=settings.embed_eps,
        )
        self.mlp_norm = nn.LayerNorm(width, eps=settings.eps)
        self.mlp = _FeedForward(width, int(width * settings.mlp_ratios[stage]), settings)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attention(self.attention_norm(x), size))
        out: Tensor = x + self.drop_path(self.mlp(self.mlp_norm(x), size))
        return out


class _Stage(nn.Module):
    """One stage: how it begins, position embeddings, blocks, norm. (B, inputs, H, W) -> (B, width, H', W')."""

    def __init__(self, settings: Pyramid, stage: int, drop_paths: list[float], class_token: bool):
        super().__init__()
        inputs = settings.widths[stage - 1] if stage else settings.in_channels
        width = settings.widths[stage]
        self.dilated = nn.Sequential()
        self.entry = settings.entry if stage else "patch"
        if settings.dilation.place == "between":
            self.dilated = _dilated(settings, stage, inputs)
        if self.entry == "patch":
            self.patch, self.stride = settings.patch_sizes[stage], settings.patch_strides[stage]
            self.padding: Padding = settings.paddings[stage]
            self.embed: nn.Module = nn.Conv2d(inputs, width, self.patch, self.stride)
            self.embed_norm = nn.LayerNorm(width, eps=settings.embed_eps)
        elif self.entry == "linear":
            self.embed = nn.Linear(inputs, width)
        self.class_token = _learned(1, width) if class_token else None
        self.positions = None
        if settings.has_positions(stage):
            self.positions = _Positions(
                settings.grid(stage),
                width,
                settings.dropout,
                by_count=settings.positions_by_count and settings.grid(stage) == settings.grid(0),
                extra=int(class_token),
            )
        self.blocks = nn.ModuleList(_Block(settings, stage, drop_path) for drop_path in drop_paths)
        self.norm = nn.LayerNorm(width, eps=settings.eps) if settings.stage_norm else None

    def tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A map (B, inputs, H, W) -> tokens (B, N, width), the class token first, and the size of their map."""
        x, size = self._embedded(x)
        return self._encoded(x, size), size

    @torch.no_grad()
    def places(self, x: Tensor) -> float:
        """Whether the stage knows where its tokens are: by how much they differ once they trade places and are put back.

        Args:
            x: a map (B, inputs, H, W).

        Returns:
            the difference over the length of the tokens: 0 where nothing tells the stage a token's place (no position embedding,
            no convolution over the map).
        """
        was_training = self.training
        self.eval()
        x, size = self._embedded(x)
        order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0)).to(x.device)
        here, there = (self._encoded(each, size)[:, -x.shape[1] :] for each in (x, x[:, order]))
        self.train(was_training)
        return float((there - here[:, order]).norm() / here.norm())

    def _embedded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A map (B, inputs, H, W) -> its tokens (B, N, width), and the size of their map."""
        x = self.dilated(x)
        if self.entry == "patch":
            x = self.embed(_padded(x, self.patch, self.stride, self.padding))
        size = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        if self.entry == "patch":
            x = self.embed_norm(x)
        elif self.entry == "linear":
            x = self.embed(x)
        return x, size

    def _encoded(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens through positions, blocks and norm, the class token first."""
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), -1, -1), x), dim=1)
        if self.positions is not None:
            x = self.positions(x, size)
        for block in self.blocks:
            x = block(x, size)
        return x if self.norm is None else self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        x, size = self.tokens(x)
        return to_map(x[:, -size[0] * size[1] :], size)


def _dilated(settings: Pyramid, stage: int, channels: int) -> nn.Sequential:
    dilation = settings.dilation
    return nn.Sequential(
        *(
            Halving(channels, dilation.rate) if dilation.kind == "halving" else Shrinking(channels)
            for _ in range(dilation.counts[stage])
        )
    )


def _padded(x: Tensor, patch: int, stride: int, padding: Padding) -> Tensor:
    """The map with the zeros that a patch embedding sees around it."""
    if padding == 0:
        return x
    return F.pad(
        x, [zeros for side in (x.shape[3], x.shape[2]) for zeros in margins(side, patch, stride, padding)]
    )


def margins(side: int, patch: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Zeros before and behind a side of a map that is cut into patches."""
    if isinstance(padding, int):
        return padding, padding
    missing = max((math.ceil(side / stride) - 1) * stride + patch - side, 0)
    before = missing // 2 if padding == "same" else 0
    return before, missing - before


class PVT(nn.Module):
    """A pyramid of transformer stages: (B, in_channels, H, W) -> a list of maps, one for each stage that is put out.

    Attributes:
        channels: of each map that is put out.
        strides: pixels of the image per pixel of each of these maps; convolutions of the kind "shrinking" also take off borders,
            which strides do not tell.

    Args:
        settings: the switches; the published sizes are `SIZES`.
        class_token: prepend a learned token in the last stage, for a classifier.

    Raises:
        InputError: a class token with an attention other than full, or with convolutions over tokens; in `forward`, images
            smaller than one patch.
    """

    def __init__(self, settings: Pyramid | None = None, *, class_token: bool = False):
        super().__init__()
        self.settings = settings = settings or Pyramid()
        stages = len(settings.widths)
        last = settings.attention.kinds(stages)[-1], settings.attention.reductions[-1]
        if class_token and (settings.mlp != "plain" or (last[0] != "full" and last != ("reduced", 1))):
            raise InputError(
                "a class token is no pixel of a map",
                expected='full attention in the last stage and mlp "plain"',
            )
        blocks = sum(settings.depths)
        drops = iter([settings.drop_path * block / max(blocks - 1, 1) for block in range(blocks)])
        self.stages = nn.ModuleList(
            _Stage(settings, stage, [next(drops) for _ in range(depth)], class_token and stage == stages - 1)
            for stage, depth in enumerate(settings.depths)
        )
        self.outward = nn.ModuleList(nn.Sequential() for _ in settings.widths)
        if settings.dilation.place == "outputs":
            self.outward = nn.ModuleList(
                _dilated(settings, stage, width) for stage, width in enumerate(settings.widths)
            )
        self.channels = tuple(settings.widths[stage] for stage in sorted(settings.outputs))
        self.strides = settings.output_strides
        self.apply(_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, in_channels, H, W) -> the maps of the stages that are put out, fine to coarse."""
        self._check(x)
        maps = []
        for stage, (run, outward) in enumerate(zip(self.stages, self.outward, strict=True)):
            x = run(x)
            if stage in self.settings.outputs:
                maps.append(outward(x))
        return maps

    def describe(self) -> dict[str, dict[str, str]]:
        """What its parts consist of, by the names of their modules."""
        dilation = self.settings.dilation
        found = {f"stages.{stage}": self.settings.entries(stage) for stage in range(len(self.stages))}
        if dilation.place == "outputs":
            for stage, count in enumerate(dilation.counts):
                if count:
                    found[f"outward.{stage}"] = {"consists of": f"{count} dilated ({dilation.kind})"}
        return found

    def tokens(self, x: Tensor) -> Tensor:
        """The last stage's tokens (B, N, C) of images (B, in_channels, H, W), a class token first."""
        self._check(x)
        for stage in self.stages[:-1]:
            x = stage(x)
        found: Tensor = self._last.tokens(x)[0]
        return found

    @property
    def _last(self) -> _Stage:
        last = self.stages[-1]
        assert isinstance(last, _Stage)
        return last

    def _check(self, x: Tensor) -> None:
        patch = self.settings.patch_sizes[0]
        if self.settings.paddings[0] == 0 and min(x.shape[-2:]) < patch:
            raise InputError(
                f"PVT was given images of {x.shape[-2]}x{x.shape[-1]}", expected=f"sides of at least {patch}"
            )

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the parameters of PVT's own release, or of MMDetection's and the AtrousLSHTransformer's.

        What only classification needs (class token, last norm, head) is dropped where this network has none; position
        embeddings of another grid are resized, as the release does for its detectors.
        """
        layers = any(name.startswith("layers.") for name in state_dict)
        token = (
            "class_token"
            if self.stages[-1].class_token is None
            else f"stages.{len(self.stages) - 1}.class_token"
        )
        rules = self._mmdetection() if layers else [(r"^cls_token$", token), *_RELEASE]
        state: dict[str, Tensor] = {}
        for name, tensor in _divided(rename(state_dict, rules)).items():
            state |= self._positions(name, tensor) if name.endswith("positions.embedding") else {name: tensor}
        own = self.state_dict()
        state = {
            name: tensor for name, tensor in state.items() if name in own or not name.startswith(_UNUSED)
        }
        if not self.settings.qkv_bias:  # MMDetection's output projection has none then either
            state = {
                name: torch.zeros_like(tensor) for name, tensor in own.items() if name.endswith("to_out.bias")
            } | state
        return state

    def _mmdetection(self) -> list[tuple[str, Any]]:
        """Rules for `layers.{stage}.{part}`, whose parts are counted by what a stage consists of."""
        once, between = self.settings.entry != "patch", self.settings.dilation.place == "between"
        rules: list[tuple[str, Any]] = []
        for stage, own in enumerate(self.stages):
            here, ours = rf"^layers\.{stage}\.", f"stages.{stage}."
            blocks = 2 if between and stage else 1
            listed = int(own.positions is not None and not once)
            patch = r"0\.0\." if once else rf"{blocks - 1}\."
            positions = r"0\.1\." if once else rf"{blocks}\.0\."
            rules += [
                (rf"{here}{positions}pos_embed$", f"{ours}positions.embedding"),
                (rf"{here}{patch}projection\.", f"{ours}embed."),
                (rf"{here}{patch}norm\.", f"{ours}embed_norm."),
                (
                    rf"{here}{blocks}\.(\d+)\.",
                    lambda match, ours=ours, listed=listed: f"{ours}blocks.{int(match[1]) - listed}.",
                ),
                (rf"{here}{blocks + 1}\.", f"{ours}norm."),
                (rf"{here}{blocks + 2}\.", f"outward.{stage}."),
                (rf"{here}0\.0\.(?=weight$|bias$)", f"{ours}embed."),
                (rf"{here}0\.", f"{ours}dilated.0."),
            ]
        return [*rules, *_MMDETECTION]

    def _positions(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """A stage's position embeddings, the row of a class token apart, resized to our grid."""
        positions = self.get_submodule(name.removesuffix(".embedding"))
        assert isinstance(positions, _Positions)
        grid, rows = positions.grid, tensor.shape[1]
        first = int(rows == grid[0] * grid[1] + 1 or (not _square(rows) and _square(rows - 1)))
        found = {name.replace("embedding", "extra"): tensor[:, :1]} if positions.extra is not None else {}
        tensor = tensor[:, first:]
        if tensor.shape[1] != grid[0] * grid[1] and _square(tensor.shape[1]):
            side = math.isqrt(tensor.shape[1])
            tensor = resized(tensor, (side, side), grid)
        return {**found, name: tensor}


def from_mmdetection(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parts of MMDetection's transformer blocks."""
    return _divided(rename(state_dict, _MMDETECTION))


def _divided(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joined projections divided into ours, 1x1 convolutions of perceptrons made linear layers."""
    divided: dict[str, Tensor] = {}
    for name, tensor in state.items():
        joined = re.match(r"(.*\.to_)(q?kv)\.(weight|bias)$", name)
        if joined:
            letters = joined[2]
            for letter, part in zip(letters, tensor.chunk(len(letters)), strict=True):
                divided[f"{joined[1]}{letter}.{joined[3]}"] = part
        else:
            pointwise = tensor.ndim == 4 and re.search(r"\.mlp\.(widen|narrow)\.", name)
            divided[name] = tensor.flatten(1) if pointwise else tensor
    return divided


def _square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


class Classifier(nn.Module):
    """PVT as its weights are trained on ImageNet: (B, in_channels, H, W) -> class scores (B, classes).

    Args:
        settings: of the pyramid.
        classes: of the scores; 0: the features themselves are returned.
        pool: what the classes are read from: a learned class "token" in the last stage (v1), behind a norm of its own, or the
            "mean" of the tokens (v2).
    """

    def __init__(self, settings: Pyramid, classes: int = 1000, pool: Literal["token", "mean"] = "token"):
        super().__init__()
        self.pool = pool
        self.pyramid = PVT(settings, class_token=pool == "token")
        width = settings.widths[-1]
        self.norm = nn.LayerNorm(width, eps=settings.eps) if pool == "token" else nn.Identity()
        self.head = nn.Linear(width, classes) if classes else nn.Identity()
        self.head.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) -> (B, classes)."""
        tokens = self.norm(self.pyramid.tokens(x))
        scores: Tensor = self.head(tokens[:, 0] if self.pool == "token" else tokens.mean(dim=1))
        return scores

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters."""
        own = {name: t for name, t in state_dict.items() if name.startswith(("norm.", "head."))}
        rest = {name: t for name, t in state_dict.items() if name not in own}
        pyramid = self.pyramid.from_official(rest)
        return {**own, **{f"pyramid.{name}": tensor for name, tensor in pyramid.items()}}


def _initialise(module: nn.Module) -> None:
    """First weights: truncated normal where a layer is linear, by its fan-out where it is a convolution."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


_UNUSED = ("norm.", "head.", "class_token", "unused.")
"""What a pyramid has no use for: of a classifier, and layers that the release makes and never calls."""

_COMMON: list[tuple[str, Any]] = [
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".mlp_norm."),
]

_RELEASE: list[tuple[str, Any]] = [
    (r"^patch_embed(\d)\.proj\.", lambda match: f"stages.{int(match[1]) - 1}.embed."),
    (r"^patch_embed(\d)\.norm\.", lambda match: f"stages.{int(match[1]) - 1}.embed_norm."),
    (r"^pos_embed(\d)$", lambda match: f"stages.{int(match[1]) - 1}.positions.embedding"),
    (r"^block(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.blocks."),
    (r"^norm(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.norm."),
    *_COMMON,
    (r"\.attn\.sr\.", ".attention.reduce."),
    (r"\.attn\.(q|kv)\.", r".attention.to_\1."),
    (r"\.attn\.proj\.", ".attention.to_out."),
    (r"\.attn\.norm\.", ".attention.norm."),
    (r"\.mlp\.fc1\.", ".mlp.widen."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.depthwise."),
    (r"\.mlp\.fc2\.", ".mlp.narrow."),
]

_MMDETECTION: list[tuple[str, Any]] = [
    *_COMMON,
    (r"\.attn\.attn\.in_proj_", ".attention.to_qkv."),
    (r"\.attn\.attn\.out_proj\.", ".attention.to_out."),
    (r"\.attn\.sr\.", ".attention.reduce."),
    (r"\.attn\.norm\.", ".attention.norm."),
    (r"\.attn\.query_key\.", ".attention.causal."),
    (r"^.*\.attn\.(value|c_proj)\.", r"unused.\1."),
    (r"\.ffn\.layers\.0\.", ".mlp.widen."),
    (r"\.ffn\.layers\.1\.", ".mlp.depthwise."),
    (r"\.ffn\.layers\.[34]\.", ".mlp.narrow."),
    *SHRINKING_NAMES,
]
