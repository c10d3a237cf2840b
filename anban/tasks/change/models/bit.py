"""BIT: two images become a few semantic tokens, a transformer relates them, the pixels read them back.

Source: Chen, Qi, Shi, "Remote sensing image change detection with transformers", IEEE TGRS 2021, section III; numerically
equal to the authors' release (github.com/justchenhao/BIT_CD), whose named variants are listed in `VARIANTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
import torchvision
from annotated_types import Ge
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from anban.errors import InputError
from anban.official import rename

WIDTH = 32
"""Channels of the feature maps that are compared, and of the tokens."""
HEADS = 8

VARIANTS: dict[str, dict[str, Any]] = {
    "base_resnet18": {"tokens": "none", "stages": 5},
    "base_transformer_pos_s4": {"decoder_depth": 1, "decoder_head_width": 64},
    "base_transformer_pos_s4_dd8": {"decoder_depth": 8, "decoder_head_width": 64},
    "base_transformer_pos_s4_dd8_dedim8": {"decoder_depth": 8, "decoder_head_width": 8},
}
"""The release's names of its variants (`net_G`) -> what they set; the last is that of its LEVIR-CD weights."""


class _UndilatedBlock(BasicBlock):  # type: ignore[misc]
    """A residual block of ResNet-18 and -34 that keeps its convolutions dense where a stride was given up."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] | None = None,
    ):
        super().__init__(inplanes, planes, stride, downsample, groups, base_width, 1, norm_layer)


RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (_UndilatedBlock, [2, 2, 2, 2]),
    "resnet34": (_UndilatedBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


class _Attention(nn.Module):
    """Multi-head attention of the queries (B, N, C) over the memory (B, M, C) -> (B, N, C)."""

    def __init__(self, width: int, heads: int, head_width: int, *, scale: float, softmax: bool):
        super().__init__()
        self.heads, self.scale, self.softmax = heads, scale, softmax
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_k = nn.Linear(width, heads * head_width, bias=False)
        self.to_v = nn.Linear(width, heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(queries), self.to_k(memory), self.to_v(memory))
        )
        weights = (q @ k.transpose(-2, -1)) * self.scale
        if self.softmax:
            weights = weights.softmax(dim=-1)
        read: Tensor = self.to_out((weights @ v).transpose(1, 2).flatten(2))
        return read


class _Layer(nn.Module):
    """Pre-norm transformer layer; the memory, where there is one, goes through the same norm as the queries."""

    def __init__(self, head_width: int, *, attention_scale: Literal["width", "head"], softmax: bool = True):
        super().__init__()
        scale = (WIDTH if attention_scale == "width" else head_width) ** -0.5
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = _Attention(WIDTH, HEADS, head_width, scale=scale, softmax=softmax)
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        queries = self.norm(x)
        x = x + self.attention(queries, queries if memory is None else self.norm(memory))
        refined: Tensor = x + self.mlp(self.mlp_norm(x))
        return refined


class BIT(nn.Module):
    """BIT, and the convolutional baseline it is compared with: (B, C, H, W) twice -> class scores (B, classes, H, W).

    A ResNet without its last two strides gives features at 1/8 of the resolution, enlarged to 1/4 and reduced to 32
    channels. Their difference, with or without the tokens' say, is enlarged to full resolution and classified. Sides that
    are no multiple of 8 give scores of the next multiple, as published.

    The published variants are sets of these arguments: `VARIANTS`.

    Args:
        in_channels: bands of one date (the release has an argument for it and ignores it).
        classes: 2 (class 1 = change) or 1 (logit of change); any number of classes may be asked for.
        resnet: the backbone.
        stages: how many of the five ResNet stages are used.
        pretrained: start the ResNet from torchvision's ImageNet weights (downloaded where they are not cached).
        redraw_backbone: draw the ResNet's weights anew like those of the new layers, even over pretrained ones. The
            release does; the paper does not mean to.
        enlarge_first: enlarge the features by 2 before they are reduced to 32 channels; otherwise the difference.
        tokens: "semantic" tokens are weighted sums over all pixels with learned spatial attention; "pooled" ones are
            a grid of pooled features; "none" is the baseline, the difference of the features alone.
        token_len: number of semantic tokens of one date.
        pool_size: pooled tokens lie on a grid of this many rows and columns.
        pool_mode: how the grid is pooled; "none" takes every pixel as a token (without `token_positions`).
        token_positions: add a learned position to every token of the two dates.
        encoder: relate the tokens of both dates by a transformer encoder.
        encoder_depth: its layers.
        encoder_head_width: channels of each of its 8 heads.
        decoder: pixels read the tokens of their date by a transformer decoder; otherwise the sum of the tokens is added.
        decoder_depth: its layers.
        decoder_head_width: channels of each of its 8 heads.
        decoder_softmax: normalise the decoder's attention.
        decoder_positions: add a learned 64x64 map of positions to the features: images must be 256x256
            (512x512 without `enlarge_first`).
        attention_scale: attention scores are divided by the root of the tokens' "width" (32), as published, or of the
            "head" width, as usual.
        unused_layers: keep layers that the chosen options never run (ResNet stages and its ImageNet classifier among
            them), as published: they count as parameters, take no gradient and change no result.
        output: "logits" are raw scores; "probability" is their sigmoid, the release's `output_sigmoid`.
    """

    multiple_of = 8
    backbone: ClassVar[tuple[str, ...]] = ("resnet",)

    def __init__(
        self,
        in_channels: Annotated[int, Ge(1)] = 3,
        classes: Annotated[int, Ge(1)] = 2,
        resnet: Literal["resnet18", "resnet34", "resnet50"] = "resnet18",
        stages: Literal[3, 4, 5] = 4,
        pretrained: bool = False,
        redraw_backbone: bool = False,
        enlarge_first: bool = True,
        tokens: Literal["semantic", "pooled", "none"] = "semantic",
        token_len: Annotated[int, Ge(1)] = 4,
        pool_size: Annotated[int, Ge(1)] = 2,
        pool_mode: Literal["max", "mean", "none"] = "max",
        token_positions: bool = True,
        encoder: bool = True,
        encoder_depth: Annotated[int, Ge(0)] = 1,
        encoder_head_width: Annotated[int, Ge(1)] = 64,
        decoder: bool = True,
        decoder_depth: Annotated[int, Ge(0)] = 8,
        decoder_head_width: Annotated[int, Ge(1)] = 8,
        decoder_softmax: bool = True,
        decoder_positions: bool = False,
        attention_scale: Literal["width", "head"] = "width",
        unused_layers: bool = True,
        output: Literal["logits", "probability"] = "logits",
    ):
        super().__init__()
        self.stages, self.enlarge_first, self.output = stages, enlarge_first, output
        self.tokens, self.pool_size, self.pool_mode = tokens, pool_size, pool_mode
        self.encode_tokens, self.decode_tokens = encoder, decoder

        self.resnet = _resnet(resnet, in_channels, pretrained)
        block, _ = RESNETS[resnet]
        self.conv_pred = nn.Conv2d(64 * 2 ** (stages - 2) * block.expansion, WIDTH, kernel_size=3, padding=1)
        self.classifier = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, classes, kernel_size=3, padding=1),
        )
        if tokens != "none":
            self.conv_a = nn.Conv2d(WIDTH, token_len, kernel_size=1, bias=False)
            count = token_len if tokens == "semantic" else pool_size**2
            self.pos_embedding = nn.Parameter(torch.randn(1, 2 * count, WIDTH)) if token_positions else None
            self.pos_embedding_decoder = (
                nn.Parameter(torch.randn(1, WIDTH, 64, 64)) if decoder_positions else None
            )
            self.encoder = nn.ModuleList(
                _Layer(encoder_head_width, attention_scale=attention_scale) for _ in range(encoder_depth)
            )
            self.decoder = nn.ModuleList(
                _Layer(decoder_head_width, attention_scale=attention_scale, softmax=decoder_softmax)
                for _ in range(decoder_depth)
            )
        self._initialise(redraw_backbone)
        self._left_out = () if unused_layers else tuple(self._unused())
        for name in self._left_out:
            owner, _, layer = name.rpartition(".")
            delattr(self.get_submodule(owner), layer)

    def _unused(self) -> Iterator[str]:
        """Names of the layers and parameters that the chosen options never run."""
        yield "resnet.fc"
        yield from (f"resnet.layer{stage}" for stage in range(self.stages, 5))
        if self.tokens == "pooled":
            yield "conv_a"
        if self.tokens != "none" and not self.encode_tokens:
            yield from ("encoder", "pos_embedding")
        if self.tokens != "none" and not self.decode_tokens:
            yield from ("decoder", "pos_embedding_decoder")

    def _initialise(self, redraw_backbone: bool) -> None:
        for name, module in self.named_modules():
            if name.startswith("resnet.") and not redraw_backbone:
                continue
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Class scores (B, classes, H, W) of the earlier image `a` and the later image `b`, (B, in_channels, H, W) each."""
        a, b = self._features(a), self._features(b)
        if self.tokens != "none":
            tokens_a, tokens_b = self._tokens(a), self._tokens(b)
            if self.encode_tokens:
                both = torch.cat((tokens_a, tokens_b), dim=1)
                if self.pos_embedding is not None:
                    both = both + self.pos_embedding
                for layer in self.encoder:
                    both = layer(both)
                tokens_a, tokens_b = both.chunk(2, dim=1)
            a, b = self._read(a, tokens_a), self._read(b, tokens_b)
        x = (a - b).abs()
        if not self.enlarge_first:
            x = F.interpolate(x, scale_factor=2)
        x = F.interpolate(x, scale_factor=4, mode="bilinear")
        scores: Tensor = self.classifier(x)
        return scores.sigmoid() if self.output == "probability" else scores

    def _features(self, x: Tensor) -> Tensor:
        """One image (B, in_channels, H, W) -> (B, 32, H/4, W/4), or H/8 and W/8 without `enlarge_first`."""
        r = self.resnet
        x = r.maxpool(r.relu(r.bn1(r.conv1(x))))
        for stage in range(1, self.stages):
            x = getattr(r, f"layer{stage}")(x)
        if self.enlarge_first:
            x = F.interpolate(x, scale_factor=2)
        features: Tensor = self.conv_pred(x)
        return features

    def _tokens(self, x: Tensor) -> Tensor:
        """Features (B, 32, H, W) -> tokens (B, L, 32)."""
        if self.tokens == "semantic":
            attention = self.conv_a(x).flatten(2).softmax(dim=-1)
            tokens: Tensor = attention @ x.flatten(2).transpose(1, 2)
            return tokens
        if self.pool_mode == "max":
            x = F.adaptive_max_pool2d(x, self.pool_size)
        elif self.pool_mode == "mean":
            x = F.adaptive_avg_pool2d(x, self.pool_size)
        return x.flatten(2).transpose(1, 2)

    def _read(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Features (B, 32, H, W) that have read the tokens (B, L, 32) of their date, same shape."""
        if not self.decode_tokens:
            return x + tokens.sum(dim=1)[:, :, None, None]
        if self.pos_embedding_decoder is not None:
            if x.shape[-2:] != self.pos_embedding_decoder.shape[-2:]:
                raise InputError(
                    f"BIT with decoder_positions met features of {x.shape[-2]}x{x.shape[-1]}",
                    expected=f"64x64, from images of {256 if self.enlarge_first else 512} pixels a side",
                    do="resize or tile the images, or set decoder_positions to false",
                )
            x = x + self.pos_embedding_decoder
        pixels = x.flatten(2).transpose(1, 2).contiguous()  # or every layer would copy it for its norm
        for layer in self.decoder:
            pixels = layer(pixels, tokens)
        return pixels.transpose(1, 2).reshape(x.shape)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters, part its joint projections and leave out layers this network does not keep."""
        state = rename(
            state_dict,
            [
                (r"^transformer\.layers\.", "encoder."),
                (r"^transformer_decoder\.layers\.", "decoder."),
                (r"^((?:en|de)coder\.\d+)\.0\.fn\.norm\.", r"\1.norm."),
                (r"^((?:en|de)coder\.\d+)\.0\.fn\.fn\.", r"\1.attention."),
                (r"\.to_out\.0\.", ".to_out."),
                (r"^((?:en|de)coder\.\d+)\.1\.fn\.norm\.", r"\1.mlp_norm."),
                (r"^((?:en|de)coder\.\d+)\.1\.fn\.fn\.net\.0\.", r"\1.mlp.0."),
                (r"^((?:en|de)coder\.\d+)\.1\.fn\.fn\.net\.3\.", r"\1.mlp.2."),
            ],
        )
        for name in [name for name in state if name.endswith(".to_qkv.weight")]:
            for part, weight in zip("qkv", state.pop(name).chunk(3), strict=True):
                state[name.replace("to_qkv", f"to_{part}")] = weight
        below = tuple(f"{layer}." for layer in self._left_out)
        return {
            name: tensor
            for name, tensor in state.items()
            if name not in self._left_out and not name.startswith(below)
        }


def _resnet(name: str, in_channels: int, pretrained: bool) -> ResNet:
    """The ResNet without the strides of its last two stages, so that they stay at 1/8 of the resolution."""
    block, depths = RESNETS[name]
    resnet = ResNet(block, depths, replace_stride_with_dilation=[False, True, True])
    if pretrained:
        if in_channels != 3:
            raise InputError(
                f"pretrained weights were asked for with in_channels={in_channels}",
                expected="3 bands, as the ImageNet weights have",
                do="set pretrained to false or give three bands",
            )
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        resnet.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
    if in_channels != 3:
        resnet.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
    return resnet
