"""The switches of the U-Nets and of what joins two of them; the defaults are the diary's `cncl_unet`.

Source: note 004 (the diary), and its code where it is published (github.com/imabackstabber/CT_DIY).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from anban.recipe.schema import Count, NonNegative

Norm = Literal["bn", "ln", "none"]
Activation = Literal["relu", "gelu", "gate", "last-gelu", "none"]
FinalActivation = Literal["none", "relu", "sigmoid", "tanh"]
Initialisation = Literal["xavier", "normal"]

EncoderLevel = Annotated[int, Interval(ge=1, le=5)]
DecoderLevel = Annotated[int, Interval(ge=1, le=4)]


@dataclass(frozen=True)
class Levels:
    """A U-Net of five levels, numbered from 1, the full resolution, to 5, a sixteenth of it.

    Attributes:
        width: channels of level 1, doubled from level to level up to the fourth.
        norm: behind every 3x3 convolution: batch norm, layer norm over the channels of each pixel, or none.
        activation: behind it: "gate" is NAFNet's SimpleGate in place of an activation; "last-gelu" is a GELU
            behind the second convolution of two only, which the diary's code does under the name "sg"; "none"
            leaves the network linear.
        bias: whether the 3x3 convolutions have one.
        deepest: of level 5: "narrow" has the same channels within as at its end, "wide" twice as many.
        upsampling: "bilinear" (corners aligned; level 5 then has the channels of level 4), or "transposed"
            convolutions.
        channel_attention: on the last features: "squeeze-excitation", NAFNet's "simple" one, or "none".
        head: "pixelwise": two convolutions as on every level, then a 1x1 one; "linear": a 3x3 convolution to
            half the width and another one to the image, with neither norm nor activation (CNCL).
    """

    width: Annotated[int, Ge(2)] = 64
    norm: Norm = "bn"
    activation: Activation = "relu"
    bias: bool = False
    deepest: Literal["narrow", "wide"] = "narrow"
    upsampling: Literal["bilinear", "transposed"] = "bilinear"
    channel_attention: Literal["squeeze-excitation", "simple", "none"] = "none"
    head: Literal["pixelwise", "linear"] = "pixelwise"


@dataclass(frozen=True)
class Attention:
    """How attention blocks are made, wherever they stand.

    Attributes:
        over: "channels" (Restormer's MDTA: a map of channels by channels, cheap at any size) or "positions"
            (every pixel looks at every other one: a map of H W by H W, meant for deep levels).
        heads: must divide the channels.
        norm: a layer norm before the attention.
        skip: add the block's input to its output.
        expansion: hidden width of Restormer's gated feed-forward part behind self-attention, over the
            channels; 0 leaves it out.
        values: of cross-attention over channels: a branch takes what it looked for from the "other" branch,
            or, as the diary's code does, gets its "own" values back, weighed by what the other one looked
            for.
    """

    over: Literal["channels", "positions"] = "channels"
    heads: Count = 4
    norm: bool = True
    skip: bool = True
    expansion: NonNegative = 0.0
    values: Literal["other", "own"] = "other"


@dataclass(frozen=True)
class Places:
    """Where attention blocks stand; nowhere by default.

    Attributes:
        encoder: levels of the encoder whose features they change, for the next level and for the skip
            connection; 5 is the deepest.
        decoder: levels of the decoder; 1 is the last, whose features are behind the channel attention
            already.
        layers: blocks at each of these places.
    """

    encoder: list[EncoderLevel] = field(default_factory=list)
    decoder: list[DecoderLevel] = field(default_factory=list)
    layers: Count = 1

    def in_encoder(self, level: int) -> int:
        """How many blocks there are on a level of the encoder."""
        return self.layers if level in self.encoder else 0

    def in_decoder(self, level: int) -> int:
        """How many blocks there are on a level of the decoder."""
        return self.layers if level in self.decoder else 0


@dataclass(frozen=True)
class Fusion:
    """How the two branches become one image.

    Attributes:
        method: one "conv" on both, "cross-attention" between them, or "restormer" blocks (attention over
            channels and the gated feed-forward part) on both.
        of: the two one-channel "maps" (the content, and the image less the noise), or the "features" that
            they are predicted from.
        kernel: of the convolution.
        width: channels that a map is lifted to before attention; one channel alone has nothing to attend to.
        layers: attention blocks.
        init: weights are "drawn", as those of the whole network, which may begin with either image negative; or
            the convolution begins as the "mean" of the two maps.
    """

    method: Literal["conv", "cross-attention", "restormer"] = "conv"
    of: Literal["maps", "features"] = "maps"
    kernel: Literal[1, 3] = 1
    width: Count = 32
    layers: Count = 1
    init: Literal["drawn", "mean"] = "drawn"
