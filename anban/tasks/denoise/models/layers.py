"""What the denoising networks are built from. Maps are (B, C, H, W) throughout."""

from __future__ import annotations

from torch import Tensor, nn

from anban.errors import InputError
from anban.ssm.vmamba.layers import LayerNorm2d
from anban.tasks.denoise.models.settings import (
    Activation,
    FinalActivation,
    Initialisation,
    Levels,
    Norm,
)

FINAL_ACTIVATIONS: dict[FinalActivation, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def normalisation(norm: Norm, width: int) -> nn.Module:
    """The norm of that name over `width` channels; none is the identity."""
    if norm == "bn":
        return nn.BatchNorm2d(width)
    return LayerNorm2d(width, eps=1e-6) if norm == "ln" else nn.Identity()


class SimpleGate(nn.Module):
    """A gated linear unit: half of the channels times the other half, between a layer norm and 1x1
    convolutions.

    Source: Chen et al., "Simple baselines for image restoration" (NAFNet), ECCV 2022, section 3.

    Args:
        width: channels, in and out.
        expansion: channels that are split into halves, over `width`; the product with `width` must be even.
    """

    def __init__(self, width: int, expansion: int = 2):
        super().__init__()
        self.norm = LayerNorm2d(width, eps=1e-6)
        self.expand = nn.Conv2d(width, expansion * width, kernel_size=1)
        self.reduce = nn.Conv2d(expansion * width // 2, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        half, other = self.expand(self.norm(x)).chunk(2, dim=1)
        gated: Tensor = self.reduce(half * other)
        return gated


def activation(name: Activation, width: int, *, last: bool) -> nn.Module:
    """The activation of that name behind the first or the `last` of two convolutions."""
    if name == "relu":
        return nn.ReLU()
    if name == "gate":
        return SimpleGate(width)
    return nn.GELU() if name == "gelu" or (name == "last-gelu" and last) else nn.Identity()


class DoubleConv(nn.Module):
    """Twice: 3x3 convolution, norm, activation; (B, inputs, H, W) -> (B, outputs, H, W).

    Args:
        within: channels between the two; None for as many as at the end.
        levels: norm, activation and bias.
    """

    def __init__(self, inputs: int, outputs: int, levels: Levels, within: int | None = None):
        super().__init__()
        within = within or outputs
        self.conv1 = nn.Conv2d(inputs, within, kernel_size=3, padding=1, bias=levels.bias)
        self.norm1 = normalisation(levels.norm, within)
        self.act1 = activation(levels.activation, within, last=False)
        self.conv2 = nn.Conv2d(within, outputs, kernel_size=3, padding=1, bias=levels.bias)
        self.norm2 = normalisation(levels.norm, outputs)
        self.act2 = activation(levels.activation, outputs, last=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        y: Tensor = self.act2(self.norm2(self.conv2(x)))
        return y


class ChannelAttention(nn.Module):
    """Every channel times a weight that follows from the means of all channels.

    Source: Hu et al., "Squeeze-and-excitation networks", CVPR 2018; simplified as in NAFNet (ECCV 2022,
    section 3).

    Args:
        width: channels.
        simple: one 1x1 convolution and no sigmoid, instead of two with a ReLU between them and a sigmoid.
    """

    def __init__(self, width: int, *, simple: bool = False):
        super().__init__()
        self.weigh: nn.Module = nn.Conv2d(width, width, kernel_size=1)
        if not simple:
            self.weigh = nn.Sequential(
                nn.Conv2d(width, width // 2, kernel_size=1),
                nn.ReLU(),
                nn.Conv2d(width // 2, width, kernel_size=1),
                nn.Sigmoid(),
            )

    def forward(self, x: Tensor) -> Tensor:
        weighed: Tensor = x * self.weigh(x.mean(dim=(2, 3), keepdim=True))
        return weighed


def initialise(network: nn.Module, how: Initialisation) -> None:
    """Set the weights of all convolutions and linear layers anew.

    Args:
        how: "xavier" (uniform; biases stay as torch draws them), as the diary's code, or "normal": a normal
            of 0.02, biases 0, and the weights of batch norms from a normal of 0.02 around 1, as CNCL.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if how == "xavier":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.normal_(layer.weight, 0.0, 0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        elif how == "normal" and isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)


def check_smallest(network: nn.Module, image: Tensor, smallest: int) -> None:
    """Refuse images (B, C, H, W) with a side below `smallest`.

    Raises:
        InputError: a side is.
    """
    height, width = image.shape[-2:]
    if min(height, width) < smallest:
        raise InputError(
            f"{type(network).__name__} was given images of {height}x{width}",
            expected=f"sides of at least {smallest} pixels",
        )
