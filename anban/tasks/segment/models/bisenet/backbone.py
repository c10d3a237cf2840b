"""Backbones of BiSeNetV1: each gives its features at 1/8, 1/16 and 1/32 of the image, by stride.

Sources: He et al., "Deep residual learning for image recognition", CVPR 2016; Chollet, "Xception: deep learning with depthwise
separable convolutions", CVPR 2017, figure 5; for Xception39 Yu et al., "BiSeNet", ECCV 2018, and its publication in TorchSeg.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Self

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from anban.errors import InputError
from anban.tasks.segment.models.bisenet.attention import ChannelAttention, Form
from anban.tasks.segment.models.bisenet.settings import Backbone
from anban.tasks.segment.models.common import ConvNormAct, Style


class Features(nn.Module):
    """A backbone: images (B, 3, H, W) -> {s: (B, widths[s], ceil(H / s), ceil(W / s)) for s in 8, 16, 32}."""

    widths: Mapping[int, int]
    freeze_norms = False

    def freeze(self) -> None:
        """Keep the norms as they are: their parameters take no gradient, and `train` leaves them in evaluation."""
        self.freeze_norms = True
        for norm in self._norms():
            norm.requires_grad_(False)
            norm.eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_norms:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | nn.GroupNorm)]


def build_backbone(settings: Backbone, style: Style) -> Features:
    """The backbone that the settings name, its convolutions started by kaiming_normal over their outputs, or pretrained.

    Raises:
        InputError: torchvision's ResNet is to have the leaky ReLU of InPlace-ABN.
    """
    made: Features
    if settings.network == "resnet18":
        made = ResNet18(None if settings.attention == "none" else settings.attention, style)
    elif settings.network == "torchvision-resnet18":
        made = TorchvisionResNet18(style)
    elif settings.network == "xception39":
        made = Xception39(style)
    else:
        made = Xception(style)
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if settings.pretrained:
        own = made.state_dict()
        trained = torchvision.models.resnet18(weights="IMAGENET1K_V1").state_dict()
        made.load_state_dict(own | {name: tensor for name, tensor in trained.items() if name in own})
    if settings.freeze_bn:
        made.freeze()
    return made


# ---- ResNet-18, under the names that torchvision's weights have -------------------------------------------------------------


class _Residual(nn.Module):
    """Two 3x3 convolutions, attention if there is any, and the shortcut; the last activation is a plain ReLU in every style."""

    def __init__(self, inputs: int, outputs: int, stride: int, style: Style):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = style.normalisation(outputs)
        self.act = style.activation()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = style.normalisation(outputs)
        self.attention: nn.Module | None = None
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), style.normalisation(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        if self.attention is not None:
            residual = residual * self.attention(residual)
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        return (shortcut + residual).relu()


class ResNet18(Features):
    """ResNet-18, with channel attention in the last block of its last two stages if asked."""

    widths: Mapping[int, int] = {8: 128, 16: 256, 32: 512}

    def __init__(self, attention: Form | None, style: Style):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = style.normalisation(64)
        self.act = style.activation()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(_Residual(64, 64, 1, style), _Residual(64, 64, 1, style))
        self.layer2 = nn.Sequential(_Residual(64, 128, 2, style), _Residual(128, 128, 1, style))
        self.layer3 = nn.Sequential(_Residual(128, 256, 2, style), _Residual(256, 256, 1, style))
        self.layer4 = nn.Sequential(_Residual(256, 512, 2, style), _Residual(512, 512, 1, style))
        if attention is not None:
            for stage, width in ((self.layer3, 256), (self.layer4, 512)):
                stage[-1].attention = ChannelAttention(attention, width, style, reduction=16)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        x = self.layer1(self.maxpool(self.act(self.bn1(self.conv1(image)))))
        feat8 = self.layer2(x)
        feat16 = self.layer3(feat8)
        return {8: feat8, 16: feat16, 32: self.layer4(feat16)}


class TorchvisionResNet18(Features):
    """The library's ResNet-18 without its classifier: with the same weights, the same features as `ResNet18`."""

    widths: Mapping[int, int] = {8: 128, 16: 256, 32: 512}

    def __init__(self, style: Style):
        super().__init__()
        if style.norm == "inplace-abn":
            raise InputError(
                "torchvision's ResNet has ReLU only, not the leaky one of InPlace-ABN.",
                where="backbone.network with norm",
                do='set backbone.network to "resnet18", the same with any norm',
            )
        whole = torchvision.models.ResNet(BasicBlock, [2, 2, 2, 2], norm_layer=style.normalisation)
        for name, part in whole.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, part)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        features = {}
        x = image
        for name, part in self.named_children():
            x = part(x)
            features[name] = x
        return {8: features["layer2"], 16: features["layer3"], 32: features["layer4"]}


# ---- Xception ---------------------------------------------------------------------------------------------------------------


def _separable(inputs: int, outputs: int, stride: int, style: Style) -> list[nn.Module]:
    """A 3x3 convolution channel by channel, and a 1x1 convolution with norm."""
    return [
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        style.normalisation(outputs),
    ]


class _LightBlock(nn.Module):
    """Three separable convolutions, the last one four times as wide, and the shortcut, separable too where the stride is not 1."""

    def __init__(self, inputs: int, width: int, stride: int, style: Style):
        super().__init__()
        self.residual = nn.Sequential(
            *_separable(inputs, width, stride, style),
            style.activation(),
            *_separable(width, width, 1, style),
            style.activation(),
            *_separable(width, 4 * width, 1, style),
        )
        self.shortcut = (
            nn.Sequential(*_separable(inputs, 4 * width, stride, style)) if stride > 1 else nn.Identity()
        )
        self.act = style.activation()

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(self.shortcut(x) + self.residual(x))
        return activated


class Xception39(Features):
    """The light Xception of BiSeNet: 39 layers, stages of 4, 8 and 4 blocks."""

    widths: Mapping[int, int] = {8: 64, 16: 128, 32: 256}

    def __init__(self, style: Style):
        super().__init__()
        self.stem = nn.Sequential(ConvNormAct(3, 8, 3, 2, style), nn.MaxPool2d(3, 2, 1))
        self.stage8 = _light_stage(8, 16, 4, style)
        self.stage16 = _light_stage(64, 32, 8, style)
        self.stage32 = _light_stage(128, 64, 4, style)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        feat8 = self.stage8(self.stem(image))
        feat16 = self.stage16(feat8)
        return {8: feat8, 16: feat16, 32: self.stage32(feat16)}


def _light_stage(inputs: int, width: int, blocks: int, style: Style) -> nn.Sequential:
    first = _LightBlock(inputs, width, 2, style)
    return nn.Sequential(first, *(_LightBlock(4 * width, width, 1, style) for _ in range(blocks - 1)))


class _XceptionBlock(nn.Module):
    """Separable convolutions through `widths`, an activation before each, pooled by 2 if `pool`, and the shortcut."""

    def __init__(self, widths: list[int], style: Style, *, pool: bool, activate_first: bool = True):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            # The first one must not be in place: the shortcut reads the same map.
            layers += [style.activation(inplace=bool(layers)), *_separable(inputs, outputs, 1, style)]
        self.residual = nn.Sequential(*layers[0 if activate_first else 1 :])
        self.shortcut: nn.Module = nn.Identity()
        if pool:
            self.residual.append(nn.MaxPool2d(3, 2, 1))
            self.shortcut = nn.Sequential(
                nn.Conv2d(widths[0], widths[-1], 1, 2, bias=False), style.normalisation(widths[-1])
            )

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.shortcut(x) + self.residual(x)
        return joined


class Xception(Features):
    """Chollet's Xception without its classifier; every convolution is padded, so that the features line up with the image."""

    widths: Mapping[int, int] = {8: 256, 16: 728, 32: 2048}

    def __init__(self, style: Style):
        super().__init__()
        self.stage8 = nn.Sequential(
            ConvNormAct(3, 32, 3, 2, style),
            ConvNormAct(32, 64, 3, 1, style),
            _XceptionBlock([64, 128, 128], style, pool=True, activate_first=False),
            _XceptionBlock([128, 256, 256], style, pool=True),
        )
        self.stage16 = nn.Sequential(
            _XceptionBlock([256, 728, 728], style, pool=True),
            *(_XceptionBlock([728] * 4, style, pool=False) for _ in range(8)),
        )
        self.stage32 = nn.Sequential(
            _XceptionBlock([728, 728, 1024], style, pool=True),
            *_separable(1024, 1536, 1, style),
            style.activation(),
            *_separable(1536, 2048, 1, style),
            style.activation(),
        )

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        feat8 = self.stage8(image)
        feat16 = self.stage16(feat8)
        return {8: feat8, 16: feat16, 32: self.stage32(feat16)}
