"""The switches of detectors, in groups: of a pyramid of transformer stages, and of what stands on it.

Every place that note 003 adjusts is one of them.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from anban.errors import InputError
from anban.recipe.schema import Count, NonNegative, Positive, Share

Kind = Literal[
    "reduced", "pooled", "full", "strided", "fixed", "axial", "atrous", "atrous-grid", "lsh", "log-sparse"
]
Padding = int | Literal["same", "corner"]
Convention = Literal["torchvision", "mmdetection"]
"""Whose books RetinaNet keeps: the two implementations differ in anchors, matches and the normalisation of losses."""
Source = Literal["input", "lateral", "output", "pool"]
Activation = Literal["gelu", "relu", "leaky_relu", "silu"]


@dataclass(frozen=True)
class Attention:
    """Which tokens a token sees.

    Attributes:
        kind: of all stages, or of each; `anban.tasks.detect.models.attention` explains them.
        reductions: "reduced": keys and values come from maps reduced this often per side, one number for each stage.
        pool: "pooled": sides of the map that keys and values come from.
        block: "strided", "fixed": tokens of a block, the unit of the next three.
        stride: "strided", "fixed": blocks; null: as many as make a row of the map.
        window: "strided": blocks nearer than this are seen; null: one stride.
        summary: "fixed": last blocks of every stretch, which all see.
        rate: "atrous", "atrous-grid": of dilation.
        buckets: "lsh": of the hash, an even number.
        hashes: "lsh": rounds of hashing.
        stretch: "log-sparse": length after which the pattern repeats itself.
        taps: "log-sparse": tokens that the convolution in front of queries and keys looks at.
        mask: "log-sparse": "masked", or "added" as in the release, where the mask is a bonus of 1 to the logits and masks nothing.
    """

    kind: Kind | tuple[Kind, ...] = "reduced"
    reductions: tuple[Count, ...] = (8, 4, 2, 1)
    pool: Count = 7
    block: Count = 1
    stride: Count | None = None
    window: Count | None = None
    summary: Count = 1
    rate: Count = 2
    buckets: Count = 16
    hashes: Count = 2
    stretch: Count = 8
    taps: Count = 8
    mask: Literal["masked", "added"] = "masked"

    def __post_init__(self) -> None:
        if self.buckets % 2:
            raise InputError(f"attention.buckets is {self.buckets}", expected="an even number")

    def kinds(self, stages: int) -> tuple[Kind, ...]:
        """The kind of each stage."""
        return (self.kind,) * stages if isinstance(self.kind, str) else tuple(self.kind)


@dataclass(frozen=True)
class Dilation:
    """Dilated convolutions outside the transformer stages.

    Attributes:
        place: "outputs": behind a stage, on the way to the neck only, so that the trunk stays as it is; "between": in front of a
            stage's embedding, in the trunk; or "none".
        counts: how many there are at each stage.
        kind: "halving": one padded convolution of stride 2; "shrinking": the release's three unpadded ones, which take pixels
            off the border.
        rate: of "halving".
    """

    place: Literal["none", "outputs", "between"] = "none"
    counts: tuple[int, ...] = (0, 1, 2, 3)
    kind: Literal["halving", "shrinking"] = "halving"
    rate: Count = 2


@dataclass(frozen=True)
class Pyramid:
    """A backbone of transformer stages; the defaults are PVT-Tiny.

    Lists hold one value for each stage.

    Attributes:
        in_channels: bands of an image.
        widths: channels.
        depths: transformer blocks.
        heads: of their attention.
        mlp_ratios: hidden width of their perceptrons, over the width.
        patch_sizes: kernels of the patch embeddings: 4 and 2 in PVT v1, 7 and 3 (overlapping) in v2, 1 for a 1x1 convolution.
        patch_strides: of the patch embeddings.
        paddings: of the patch embeddings: pixels on every side; or what makes the map ceil(side / stride) pixels wide, put
            on all sides ("same") or to the right and below ("corner").
        entry: how a stage after the first begins: with a "patch" embedding; by a "linear" map of the tokens, their map keeping
            its size; or as it comes ("none"): the image is embedded once.
        positions: learned position embeddings: in the "every" stage, in the "first", or "none".
        image_size: height and width for which position embeddings are made; for other sizes they are resized.
        position_grids: height and width of the grids of position embeddings, where they do not follow from the strides.
        positions_by_count: PVT v1's shortcut: where a map has as many tokens as the first grid, positions are not resized,
            whatever its shape.
        stage_norm: a layer norm behind every stage.
        mlp: "plain", or with a depth-wise convolution before the activation: "conv" (v2), "conv-relu" (v2-linear: a ReLU
            before the convolution too).
        activation: of the perceptrons.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: of the logits; null: one over the root of a head's width.
        dropout: share of values dropped behind embeddings, attention and in perceptrons.
        attention_dropout: share of attention weights dropped.
        drop_path: share of images that skip the last block; it grows evenly from 0 at the first.
        eps: of the norms of blocks and stages.
        embed_eps: of the norms of patch embeddings and of reduced maps (PVT's own code: 1e-5, MMDetection's: 1e-6).
        outputs: stages whose maps are put out.
        attention: which tokens a token sees.
        dilation: dilated convolutions outside the stages.

    Raises:
        InputError: lists of different lengths, a width that its heads do not share, an output that is no stage, a stage
            without an entry of its own that changes the width.
    """

    in_channels: Count = 3
    widths: tuple[Count, ...] = (64, 128, 320, 512)
    depths: tuple[Count, ...] = (2, 2, 2, 2)
    heads: tuple[Count, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[Positive, ...] = (8.0, 8.0, 4.0, 4.0)
    patch_sizes: tuple[Count, ...] = (4, 2, 2, 2)
    patch_strides: tuple[Count, ...] = (4, 2, 2, 2)
    paddings: tuple[Padding, ...] = (0, 0, 0, 0)
    entry: Literal["patch", "linear", "none"] = "patch"
    positions: Literal["every", "first", "none"] = "every"
    image_size: tuple[Count, Count] = (224, 224)
    position_grids: tuple[tuple[Count, Count], ...] | None = None
    positions_by_count: bool = False
    stage_norm: bool = False
    mlp: Literal["plain", "conv", "conv-relu"] = "plain"
    activation: Activation = "gelu"
    qkv_bias: bool = True
    qk_scale: Positive | None = None
    dropout: Share = 0.0
    attention_dropout: Share = 0.0
    drop_path: Share = 0.1
    eps: NonNegative = 1e-6
    embed_eps: NonNegative = 1e-5
    outputs: tuple[int, ...] = (0, 1, 2, 3)
    attention: Attention = field(default_factory=Attention)
    dilation: Dilation = field(default_factory=Dilation)

    def __post_init__(self) -> None:
        stages = len(self.widths)
        lengths: dict[str, Sized] = {
            "depths": self.depths,
            "heads": self.heads,
            "mlp_ratios": self.mlp_ratios,
            "patch_sizes": self.patch_sizes,
            "patch_strides": self.patch_strides,
            "paddings": self.paddings,
            "attention.kind": self.attention.kinds(stages),
            "attention.reductions": self.attention.reductions,
        }
        if self.dilation.place != "none":
            lengths["dilation.counts"] = self.dilation.counts
        if self.position_grids is not None:
            lengths["position_grids"] = self.position_grids
        for name, values in lengths.items():
            if len(values) != stages:
                raise InputError(
                    f"{name} has {len(values)} values", expected=f"{stages}, one for each of the widths"
                )
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise InputError(
                    f"a width of {width} is not shared by {heads} heads", expected="a multiple of the heads"
                )
        if not set(self.outputs) <= set(range(stages)) or not self.outputs:
            raise InputError(f"outputs are {list(self.outputs)}", expected=f"stages 0 to {stages - 1}")
        if self.entry == "none" and len(set(self.widths)) > 1:
            raise InputError(
                f"the widths are {list(self.widths)} and nothing between the stages changes them",
                expected="equal widths",
                do='set entry: "linear", or make the widths equal',
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image per pixel of each stage's map, as far as strides make it (not counting lost borders)."""
        found, stride = [], 1
        for stage, patch in enumerate(self.patch_strides):
            if stage == 0 or self.entry == "patch":
                stride *= patch
            if self.dilation.place == "between":
                stride *= self._halved(stage)
            found.append(stride)
        return tuple(found)

    @property
    def output_strides(self) -> tuple[int, ...]:
        """Pixels of the image per pixel of each map that is put out."""
        outside = self.dilation.place == "outputs"
        strides = self.strides
        return tuple(
            strides[stage] * (self._halved(stage) if outside else 1) for stage in sorted(self.outputs)
        )

    def _halved(self, stage: int) -> int:
        """By how much a stage's dilated convolutions divide the sides."""
        return 2 ** int(self.dilation.counts[stage]) if self.dilation.kind == "halving" else 1

    def grid(self, stage: int) -> tuple[int, int]:
        """Height and width of a stage's position embeddings."""
        if self.position_grids is not None:
            height, width = self.position_grids[stage]
        else:
            height, width = (side // self.strides[stage] for side in self.image_size)
        return max(height, 1), max(width, 1)

    def describe(self) -> str:
        """The network as a list of stages, as a lab note writes it, one line a stage."""
        return "[" + ",\n ".join(self.sketch(stage) for stage in range(len(self.widths))) + "]"

    def sketch(self, stage: int) -> str:
        """A stage as a lab note writes it: [how it begins], attention, width and layers, norm, what is behind it."""
        begin = [self._beginning(stage)] if self._beginning(stage) else []
        if self.has_positions(stage):
            begin.append("pos")
        layers = ", ".join(f"layer{block + 1}" for block in range(self.depths[stage]))
        parts = [f"[{', '.join(begin)}]"] if begin else []
        parts += [f"{self.attention.kinds(len(self.widths))[stage]} {self.widths[stage]} [{layers}]"]
        parts += ["norm"] if self.stage_norm else []
        if self.dilation.place == "outputs" and self.dilation.counts[stage]:
            parts.append(f"-> {self.dilation.counts[stage]} dilated")
        return f"[{', '.join(parts)}]"

    def entries(self, stage: int) -> dict[str, str]:
        """What a stage consists of, one thing at a time: what tells networks apart."""
        kind, heads = self.attention.kinds(len(self.widths))[stage], self.heads[stage]
        reduced = f" by {self.attention.reductions[stage]}" if kind == "reduced" else ""
        grid = "x".join(map(str, self.grid(stage)))
        return {
            "written": self.sketch(stage),
            "begins with": self._beginning(stage) or "the map as it comes",
            "position embedding": grid if self.has_positions(stage) else "none",
            "layers": f"{self.depths[stage]} of {self.widths[stage]}",
            "attention": f"{kind}{reduced}, {heads} head{'' if heads == 1 else 's'}",
            "perceptron": f"{self.mlp} x{self.mlp_ratios[stage]:g}",
            "norm": "layer norm" if self.stage_norm else "none",
        }

    def _beginning(self, stage: int) -> str:
        """What comes before position embeddings and blocks."""
        begin = []
        if self.dilation.place == "between" and self.dilation.counts[stage]:
            begin.append(f"{self.dilation.counts[stage]} dilated")
        if stage == 0 or self.entry == "patch":
            begin.append(f"patch {self.patch_sizes[stage]}/{self.patch_strides[stage]}")
        elif self.entry == "linear":
            begin.append("reshape, linear")
        return ", ".join(begin)

    def has_positions(self, stage: int) -> bool:
        """Whether a stage has position embeddings."""
        return self.positions == "every" or (stage == 0 and self.positions == "first")


@dataclass(frozen=True)
class Detector:
    """What stands on a backbone.

    Attributes:
        first_stage: the finest map of the backbone that is used, counted from 0.
        width: channels of the pyramid's maps, and of the head.
        depth: convolutions of the head before the last.
        extra_levels: coarser levels of the pyramid that the backbone has no map for.
        extra_source: what the first of them is made from, see `fpn.FPN`.
        extra_relu: a ReLU between them.
        top_down: whether coarse maps are added to fine ones: without it there is no pyramid, but single levels.
        anchor_sizes: side of the smallest square anchor of each level, in pixels.
        anchor_octaves: sizes between that and its double.
        anchor_ratios: heights over widths.
        anchor_strides: pixels between anchors, of each level; null: as the maps have it. Others put anchors where the maps do
            not look: the release of the AtrousLSHTransformer has 8 to 128 for maps that are all at 1/4.
        convention: whose anchors, matches and normalisation of losses: torchvision's (losses per box found, image by image) or
            MMDetection's (over the batch).
        positive: overlap from which an anchor is to find a box.
        negative: overlap below which it is background.
        claim: overlap from which a box gets its best anchors whatever `positive` says.
        focal_alpha: weight of positive scores in the focal loss.
        focal_gamma: its exponent.
        class_weight: of the loss of the classes.
        box_weight: of the loss of the boxes.
        box_beta: differences below this count quadratically in the loss of the boxes; 0: L1.
        box_deviations: that differences of centre and side are divided by.
        score: boxes with a lower score are not put out.
        candidates: per level, how many are kept before the overlapping ones are removed.
        overlap: of a box with a better one of its class, from which it is removed.
        detections: per image, how many are put out.
    """

    first_stage: Annotated[int, Interval(ge=0)] = 1
    width: Count = 256
    depth: Count = 4
    extra_levels: Annotated[int, Interval(ge=0)] = 2
    extra_source: Source = "output"
    extra_relu: bool = True
    top_down: bool = True
    anchor_sizes: tuple[Positive, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    anchor_octaves: Count = 3
    anchor_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    anchor_strides: tuple[Count, ...] | None = None
    convention: Convention = "torchvision"
    positive: Share = 0.5
    negative: Share = 0.4
    claim: NonNegative = 0.0
    focal_alpha: Share = 0.25
    focal_gamma: NonNegative = 2.0
    class_weight: NonNegative = 1.0
    box_weight: NonNegative = 1.0
    box_beta: NonNegative = 0.0
    box_deviations: tuple[Positive, Positive, Positive, Positive] = (1.0, 1.0, 1.0, 1.0)
    score: Share = 0.05
    candidates: Count = 1000
    overlap: Share = 0.5
    detections: Count = 100

    def __post_init__(self) -> None:
        if self.negative > self.positive:
            raise InputError(
                f"negative is {self.negative} and positive {self.positive}",
                expected="negative at most positive",
            )
        if self.anchor_strides is not None and len(self.anchor_strides) != len(self.anchor_sizes):
            raise InputError(
                f"{len(self.anchor_strides)} anchor_strides, {len(self.anchor_sizes)} anchor_sizes",
                expected="one of either for each level",
            )
