"""The convolutions of VGG-16 as an encoder: features at five resolutions."""

from __future__ import annotations

import torchvision
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers


def vgg16(*, pretrained: bool, batch_norm: bool = False) -> nn.Sequential:
    """The layers of a VGG-16 up to its last convolution's ReLU, numbered as torchvision's.

    Args:
        pretrained: start from torchvision's ImageNet weights (downloaded where they are not cached).
        batch_norm: the variant with a batch normalisation after every convolution.
    """
    encoder: nn.Sequential = make_layers(cfgs["D"], batch_norm)[:-1]
    if pretrained:
        table = torchvision.models.get_model_weights("vgg16_bn" if batch_norm else "vgg16")
        weights = table["IMAGENET1K_V1"].get_state_dict(progress=False, check_hash=True)
        prefix = "features."
        encoder.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        )
        return encoder
    for layer in encoder:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return encoder


def vgg16_features(encoder: nn.Module, x: Tensor) -> list[Tensor]:
    """What the encoder holds before each pooling and at its end: 1, 1/2, ... 1/16 of the resolution."""
    features = []
    for layer in encoder.children():
        if isinstance(layer, nn.MaxPool2d):
            features.append(x)
        x = layer(x)
    return [*features, x]
