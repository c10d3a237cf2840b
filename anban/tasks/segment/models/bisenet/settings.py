"""The parts of BiSeNetV1 as groups of settings: whatever the training diary ever changed in the network is one of them.

Sources: note 002 (the diary); Yu et al., "BiSeNet: bilateral segmentation network for real-time semantic segmentation", ECCV
2018; the ages of the release (github.com/CoinCheung/BiSeNet), which `AGES` states. The defaults are the release's current
network. Numbers 8, 16 and 32 are strides: feat16 is the backbone's feature at 1/16 of the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen

from anban.errors import InputError
from anban.recipe.schema import Count, Share

Convolution = Literal["none", "1x1", "3x3", "1x1-bn-relu", "3x3-bn-relu"]
"""A convolution that keeps the sides: alone with a bias, or without one and followed by norm and activation."""

Enlarging = Literal["nearest", "bilinear", "deconvolution"]
"""How a map gets larger; a deconvolution by the factor f has stride f and a kernel of 2f."""

Step = Literal["1x1", "3x3", "1x1-bn-relu", "3x3-bn-relu", "dropout", "to-8", "enlarge"]
"""A step of a head: a plain convolution gives the classes, one with norm and activation the head's width; "to-8" is a
deconvolution to 1/8, "enlarge" goes to the size of the image."""

Kernel = Literal[1, 3, 5, 7, 9, 11]
"""Sides of a convolution's kernel; odd, so that the sides of the map are kept."""


@dataclass(frozen=True)
class Backbone:
    """The pretrained part, which gives feat8, feat16 and feat32.

    Attributes:
        network: "resnet18" (self-made, with torchvision's names and weights), "torchvision-resnet18" (the library's own),
            "xception39" (BiSeNet's light one) or "xception" (Chollet's, the standard one).
        attention: channel attention inside the last block of the stages at 1/16 and 1/32, before the shortcut is added:
            "none", "conv-bn-sigmoid", "conv-sigmoid", or as squeeze-and-excitation has it, "conv-relu-conv-sigmoid" (c/16).
        pretrained: start from torchvision's ImageNet weights (ResNet only; downloaded where they are not cached).
        freeze_bn: leave the norms alone: running statistics and affine parameters stay as they are in training too.
    """

    network: Literal["resnet18", "torchvision-resnet18", "xception39", "xception"] = "resnet18"
    attention: Literal["none", "conv-bn-sigmoid", "conv-sigmoid", "conv-relu-conv-sigmoid"] = "none"
    pretrained: bool = False
    freeze_bn: bool = False

    def __post_init__(self) -> None:
        if self.network != "resnet18" and self.attention != "none":
            raise InputError(
                f"Backbone '{self.network}' has no place for attention inside its blocks.",
                where="backbone.attention",
                expected='"none", or the network "resnet18"',
            )
        if self.pretrained and self.network.startswith("xception"):
            raise InputError(
                f"There are no pretrained weights for '{self.network}'.",
                where="backbone.pretrained",
                expected="false, or a ResNet",
            )


@dataclass(frozen=True)
class SpatialPath:
    """The path that keeps detail: convolutions, each with norm and activation, from the image to 1/8.

    Attributes:
        source: "convolutions"; "res2", feat8 of the backbone in their place; or "none", no spatial path and no fusion.
        channels: of each convolution.
        kernels: of each convolution.
        strides: of each convolution; their product is 8.
        out_channels: of a 1x1 convolution behind them; null leaves it out.
    """

    source: Literal["convolutions", "res2", "none"] = "convolutions"
    channels: Annotated[list[Count], MinLen(1)] = field(default_factory=lambda: [64, 64, 64])
    kernels: Annotated[list[Kernel], MinLen(1)] = field(default_factory=lambda: [7, 3, 3])
    strides: Annotated[list[Annotated[int, Interval(ge=1, le=8)]], MinLen(1)] = field(
        default_factory=lambda: [2, 2, 2]
    )
    out_channels: Count | None = 128

    def __post_init__(self) -> None:
        product = 1
        for stride in self.strides:
            product *= stride
        if not len(self.channels) == len(self.kernels) == len(self.strides) or product != 8:
            raise InputError(
                f"The spatial path has channels {self.channels}, kernels {self.kernels}, strides {self.strides}.",
                where="spatial_path",
                expected="three lists of the same length, and strides that multiply to 8",
            )


@dataclass(frozen=True)
class ARM:
    """Attention refinement of the backbone's features, before the context path joins them.

    Attributes:
        attention: of the feature's mean: "conv-bn-sigmoid", "conv-bn-relu", or "none".
        learns: "features" (x is multiplied by its attention) or a "residual" (that product is added to x).
        width: a 3x3 convolution with norm and activation brings each feature to this width first; null leaves it out.
    """

    attention: Literal["none", "conv-bn-sigmoid", "conv-bn-relu"] = "conv-bn-sigmoid"
    learns: Literal["features", "residual"] = "features"
    width: Count | None = 128


@dataclass(frozen=True)
class GlobalContext:
    """The mean of feat32 over the image, brought back into the context path.

    Attributes:
        kind: what becomes of the mean: "avg" (nothing), a 1x1 convolution with "conv-bn", "conv-bn-sigmoid" or
            "conv-bn-relu"; "none" leaves the global context out.
        operation: how it meets the map: "add" or "multiply".
        onto: the map it meets: "feat32" (refined by the ARM), what the path has "joined", or the refined feat32 behind its
            inner convolution, as one more "level" with an inner convolution of its own and `kind` "avg".
    """

    kind: Literal["none", "avg", "conv-bn", "conv-bn-sigmoid", "conv-bn-relu"] = "conv-bn-relu"
    operation: Literal["add", "multiply"] = "add"
    onto: Literal["feat32", "joined", "level"] = "feat32"

    def __post_init__(self) -> None:
        if self.onto == "level" and self.kind not in ("none", "avg"):
            raise InputError(
                f"As a level of the context path the mean passes the path's inner convolution, not '{self.kind}'.",
                where="global_context.kind",
                expected='"avg"',
            )


@dataclass(frozen=True)
class ContextPath:
    """The path that sees much: the backbone's features from 1/32 up, joined.

    Attributes:
        finest: the finest feature that is joined: 16, 8 ("unsample-8s" with feat8), or 32 (feat32 alone).
        join: "add" (FPN, FCN) or "concat" (U-shape).
        order: "top-down", level by level, or "at-once", each feature straight to the output's stride.
        width: channels that every convolution of the path gives.
        inner: the convolution of each feature before it is joined: 1x1 in an FPN, 3x3 in the diary's FCN.
        refine: the convolution behind each enlarging from level to level.
        outer: the convolution behind each joining.
        out: the convolution behind the last enlarging.
        stride: of the output, 8, or coarser where the path is not enlarged as far.
    """

    finest: Literal[8, 16, 32] = 16
    join: Literal["add", "concat"] = "add"
    order: Literal["top-down", "at-once"] = "top-down"
    width: Count = 128
    inner: Convolution = "none"
    refine: Convolution = "3x3-bn-relu"
    outer: Convolution = "none"
    out: Convolution = "3x3-bn-relu"
    stride: Literal[8, 16, 32] = 8

    def __post_init__(self) -> None:
        if self.stride > self.finest:
            raise InputError(
                f"The context path joins features up to 1/{self.finest}, but its output is at 1/{self.stride}.",
                where="context_path.stride",
                expected=f"a stride of {self.finest} or finer",
            )


@dataclass(frozen=True)
class Fusion:
    """Where the spatial and the context path meet.

    Attributes:
        join: "ffm" (feature fusion module: concatenation, convolution, attention), "sum" or "concat", nothing else.
        width: channels of the FFM's convolution; null is the number of classes.
        kernel, stride: of that convolution.
        attention: of the FFM: x + x * attention. "conv-bn-sigmoid", "conv-relu-conv-sigmoid", or "none".
        reduction: "conv-relu-conv-sigmoid" has width / reduction channels inside.
    """

    join: Literal["ffm", "sum", "concat"] = "ffm"
    width: Count | None = 256
    kernel: Literal[1, 3] = 1
    stride: Literal[1, 2] = 1
    attention: Literal["none", "conv-bn-sigmoid", "conv-relu-conv-sigmoid"] = "conv-bn-sigmoid"
    reduction: Count = 4


@dataclass(frozen=True)
class Head:
    """From the fused map to the scores of the classes at the size of the image.

    Attributes:
        steps: in order; "enlarge" stands in it exactly once. ["3x3-bn-relu", "1x1", "enlarge"] is the release's,
            ["enlarge", "1x1"] enlarges first, and ["enlarge"] suits a map that holds scores already.
        width: channels of the convolutions with norm and activation.
        dropout: of the step "dropout".
        bias: whether the plain convolutions have one.
        also: backbone features that are scored by a head of their own with the same steps; the scores are added.
    """

    steps: Annotated[list[Step], MinLen(1)] = field(default_factory=lambda: ["3x3-bn-relu", "1x1", "enlarge"])
    width: Count = 256
    dropout: Share = 0.1
    bias: bool = True
    also: list[Literal["feat16", "feat32"]] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_steps("head", self.steps)


@dataclass(frozen=True)
class Auxiliary:
    """Heads for deep supervision, in training.

    Attributes:
        sources: what they look at, one head each: the backbone's "feat8", "feat16", "feat32", the same refined by the ARM
            ("arm16", "arm32"), the context path's output ("context8"), or what comes up to 1/16 in it ("context16"). Empty:
            no auxiliary losses.
        steps, width, dropout, bias: as of the head.
    """

    sources: list[Literal["feat8", "feat16", "feat32", "arm16", "arm32", "context8", "context16"]] = field(
        default_factory=lambda: ["context8", "context16"]
    )
    steps: Annotated[list[Step], MinLen(1)] = field(default_factory=lambda: ["3x3-bn-relu", "1x1", "enlarge"])
    width: Count = 64
    dropout: Share = 0.1
    bias: bool = True

    def __post_init__(self) -> None:
        _check_steps("auxiliary", self.steps)


@dataclass(frozen=True)
class Upsampling:
    """How maps are enlarged, place by place.

    Attributes:
        levels: from level to level in the context path (in the FPN).
        last: in the last step of the context path, to the stride of its output (before its `out` convolution).
        output: in the step "enlarge" of the head; "deconvolutions" are several of kernel 4 and stride 2 in a row.
        auxiliary: in the step "enlarge" of the auxiliary heads.
        align_corners: of every bilinear enlarging.
    """

    levels: Enlarging = "nearest"
    last: Enlarging = "nearest"
    output: Literal["nearest", "bilinear", "deconvolution", "deconvolutions"] = "bilinear"
    auxiliary: Literal["nearest", "bilinear", "deconvolution", "deconvolutions"] = "bilinear"
    align_corners: bool = False


Init = Literal["pytorch", "kaiming", "kaiming-all"]
"""Convolutions outside the backbone start as PyTorch has it, or by kaiming_normal (a = 1, biases 0); with "kaiming-all"
deconvolutions do too."""


def _check_steps(where: str, steps: list[Step]) -> None:
    if steps.count("enlarge") != 1 or "to-8" in steps[steps.index("enlarge") :]:
        raise InputError(
            f"The steps are {', '.join(steps)}.",
            where=f"{where}.steps",
            expected='"enlarge" exactly once, and "to-8" before it',
        )


FCN_STEPS: list[Step] = ["3x3-bn-relu", "dropout", "1x1", "enlarge"]

AGES: dict[str, dict[str, Any]] = {
    "2018-11": {
        "backbone": Backbone("torchvision-resnet18"),
        "spatial_path": SpatialPath(channels=[64, 128, 256], kernels=[3, 3, 3], out_channels=None),
        "arm": ARM(width=None),
        "global_context": GlobalContext("avg", "multiply"),
        "context_path": ContextPath(join="concat", order="at-once", refine="none", out="none"),
        "fusion": Fusion(width=None, kernel=3, attention="conv-relu-conv-sigmoid", reduction=1),
        "head": Head(steps=["enlarge"]),
        "auxiliary": Auxiliary(sources=["feat16", "feat32"], steps=["3x3", "enlarge"]),
        "init": "pytorch",
    },
    "2019-01": {
        "spatial_path": SpatialPath(channels=[32, 128, 512], kernels=[3, 3, 3], out_channels=None),
        "arm": ARM("none", width=None),
        "global_context": GlobalContext("none"),
        "context_path": ContextPath(join="concat", width=512, refine="none", outer="3x3-bn-relu", out="none"),
        "fusion": Fusion(width=1024, kernel=3, attention="conv-relu-conv-sigmoid", reduction=1),
        "head": Head(steps=FCN_STEPS, bias=False),
        "auxiliary": Auxiliary(sources=["feat16", "feat32"], steps=FCN_STEPS, width=256, bias=False),
    },
    "2019-03": {
        "fusion": Fusion(attention="conv-relu-conv-sigmoid"),
        "head": Head(bias=False),
        "auxiliary": Auxiliary(bias=False),
        "upsampling": Upsampling(align_corners=True),
    },
    "current": {},
}
"""The ages of the release by their date, as arguments of BiSeNetV1: the first commit (plain concatenation, the beginning of the
diary; in structure only: its convolutions have biases in front of norms), the diary's last commit (U-shape, FFM, no ARM), the
published one of old/ (with `norm` "inplace-abn" in old/model.py and old/diss, with "bn" in old/fp16; old/diss has the spatial path
"res2") and today's lib/."""
