"""The switches of STNet, in groups; every place that the notebook's author ever adjusted is one of them.

Sources: notes 000 (versions, runs, ablation code) and 001 (design of the encoder); the reading is told in docs/stnet.md.
The defaults are the complete model, code 0-0-0. Versions are pinned in recipes that state every switch, so a default that is
changed here does not change them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from anban.recipe.schema import Count, Positive, Share

Source = Literal["a", "b", "pair", "difference", "fused"]
Norm = Literal["ln", "bn"]


@dataclass(frozen=True)
class VSS:
    """The state-space blocks, wherever they stand.

    Attributes:
        forward_type: of SS2D, by its official name: the directions ("v05": four, "v052d": there and back, "v051d": one way),
            the kernel's implementation, the gate ("noz": none). `python -m anban.ssm.vmamba` explains all.
        d_state: states per channel and direction.
        ssm_ratio: width of the scan, over the width of the level.
        mlp_ratio: hidden width of the feed-forward part, over the width of the level.
        activation: of SS2D; feed-forward parts have GELU, as in VMamba.
        drop_path: of the last encoder block; it grows from 0 block by block.
    """

    forward_type: str = "v05_noz"
    d_state: Count = 1
    ssm_ratio: Positive = 1.0
    mlp_ratio: Positive = 4.0
    activation: Literal["silu", "gelu"] = "silu"
    drop_path: Share = 0.1


@dataclass(frozen=True)
class Encoder:
    """SISS: the dates go their separate ways, then they are integrated, level by level.

    Attributes:
        stem: patch embedding "v1" (one 4x4 convolution) or "v2" (two 3x3 convolutions, the first with half the width).
        branch: what a date passes through: VSS blocks, residual blocks of 3x3 convolutions ("cnn"), or the same with depth-wise
            7x7 convolutions ("depth-wise-cnn").
        sharing: whether both dates have the same weights: at "all" levels, at the "low" ones, at "none"; the stem goes with the
            first level.
        low_levels: how many levels are low.
        integration: "cssm" scans both dates in one field; "cama" is RSCaMa's pair of blocks; "none" keeps them apart.
        scale: of each date's residual in CSSM: "learned" per channel, "squeeze-excitation", or "none".
        merging: the convolution in CSSM that joins the two dates at the same place: "depth-wise" (channel by channel), "ordinary"
            with batch norm and ReLU, or "none".
        difference: the convolution of the difference block (DDB), "depth-wise" or "ordinary"; "none" leaves the block out.
        difference_norm: its norm.
        difference_norms: how many norms it has: one behind each of its two convolutions, or behind the last one only.
    """

    stem: Literal["v1", "v2"] = "v2"
    branch: Literal["vss", "cnn", "depth-wise-cnn"] = "vss"
    sharing: Literal["all", "low", "none"] = "none"
    low_levels: Annotated[int, Interval(ge=1, le=3)] = 2
    integration: Literal["cssm", "cama", "none"] = "cssm"
    scale: Literal["learned", "squeeze-excitation", "none"] = "learned"
    merging: Literal["depth-wise", "ordinary", "none"] = "ordinary"
    difference: Literal["depth-wise", "ordinary", "none"] = "ordinary"
    difference_norm: Norm = "bn"
    difference_norms: Literal[1, 2] = 2


@dataclass(frozen=True)
class Decoder:
    """The way up: per level the dates are fused with what comes from below, and the trunk's VSS blocks run on that.

    Attributes:
        head: how the deepest level begins, where nothing comes from below: "fused" (A, B and D joined, then the trunk),
            "difference" (|A - B| without weights: the clean trunk), "shared-trunk" or "separate-trunk" (A and B each through
            the same, or through their own, trunk blocks, then joined).
        skip: how A, B, D and what comes from below are joined at the other levels: "cat", "squeeze-excitation" (cat, then
            channels weighed), "aff" (attentional, three inputs: from below, A, B), "aernet" (cat, and once more behind the trunk),
            "change-mamba" (A and B through three VSS blocks: stacked, interleaved, side by side), "none" (from below only).
        order: "fuse-first", or "scan-first": what comes from below passes the trunk's blocks, then it is joined with A and B.
        trunk: the VSS blocks, in this order: one attends over "channel", one over "spatial". An empty list keeps none.
        mlp: whether they have a feed-forward part.
        conv_small: size of the small convolution behind every fusion.
        add_input: add the trunk's input to its output ("c + out").
        residual: norm of a residual block of two 3x3 convolutions at the end of each level, as ChangeMamba has it; or "none".
        widths: per level the encoder's ("level by level"), or the "smallest" at every level.
        difference_fusion: fuse the differences of all levels by AFF and add them to the last level (until version 3).
        upsampling: from 1/4 to the input size "at-once", or with an "extra-level" in between, which works at 1/2.
        deep_supervision: one output per level in training.
    """

    head: Literal["fused", "difference", "shared-trunk", "separate-trunk"] = "fused"
    skip: Literal["cat", "squeeze-excitation", "aff", "aernet", "change-mamba", "none"] = "cat"
    order: Literal["fuse-first", "scan-first"] = "fuse-first"
    trunk: list[Literal["channel", "spatial"]] = field(default_factory=lambda: ["channel", "spatial"])
    mlp: bool = True
    conv_small: Literal[1, 3, 5, 7] = 3
    add_input: bool = True
    residual: Literal["ln", "bn", "none"] = "none"
    widths: Literal["level-by-level", "smallest"] = "level-by-level"
    difference_fusion: bool = False
    upsampling: Literal["at-once", "extra-level"] = "at-once"
    deep_supervision: bool = False


@dataclass(frozen=True)
class Enhancement:
    """EDSS: what is local, by fixed derivative operators of first and second order and a small scan, as a branch beside the trunk.

    A source is date "a", date "b", both joined ("pair"), the level's "difference", or the trunk's input ("fused").

    Attributes:
        levels: how many levels have the branch, from the shallowest; 0 leaves it out.
        first_order: sources of the first-order derivative operator (Sobel, horizontal and vertical); empty leaves it out.
        second_order: sources of the second-order derivative operator; empty leaves it out.
        operator: the second-order one: "laplacian" (of a Gaussian) or "dog" (difference of Gaussians).
        of: take dates a and b as "features" of the level, or as "images" brought to its size.
        with_difference: join the level's difference as it is.
        width: channels that each source is squeezed to; behind their fusion they are repeated to the trunk's width.
        light_levels: how many levels, from the shallowest, get by with few parameters; deeper ones keep an eighth of the trunk's
            width, if that is more than `width`, and take ordinary convolutions in place of depth-wise ones.
        gaussian_bias: give the Gaussian convolution a bias (the derivative removes it again; until version 6).
        scan: where the small scan (LSSM) runs: "after" the fusion, at the trunk's width, "before" it, on each source, or "none".
        block: the small scan is one SS2D as wide as its input ("ss2d"), or the trunk's two VSS blocks ("trunk").
        mlp: a feed-forward part behind it.
        product: multiply the branch with the trunk's output and add that.
    """

    levels: Annotated[int, Interval(ge=0, le=4)] = 3
    first_order: list[Source] = field(default_factory=lambda: ["a", "b"])
    second_order: list[Source] = field(default_factory=lambda: ["a", "b"])
    operator: Literal["laplacian", "dog"] = "laplacian"
    of: Literal["features", "images"] = "features"
    with_difference: bool = True
    width: Count = 16
    light_levels: Annotated[int, Interval(ge=0, le=4)] = 2
    gaussian_bias: bool = False
    scan: Literal["after", "before", "none"] = "after"
    block: Literal["ss2d", "trunk"] = "ss2d"
    mlp: bool = True
    product: bool = True


@dataclass(frozen=True)
class AFF:
    """Attentional fusion of trunk and branch with a learned weight w from local and global context.

    Attributes:
        activation: "tanh": trunk (1 + w) + branch (2 - (1 + w)); "sigmoid": trunk + branch (1 - w); "gelu": as tanh, with GELU.
        kernel: of its convolutions; 1 as published.
        reduction: the width within is that of the level divided by this.
        resize: enlarge the result inside, before the level above lowers its channels, instead of behind that.
    """

    activation: Literal["tanh", "sigmoid", "gelu"] = "tanh"
    kernel: Literal[1, 3] = 1
    reduction: Count = 4
    resize: bool = False


@dataclass(frozen=True)
class Classifier:
    """From the last level to logits.

    Attributes:
        kernel: size of the convolution that gives the logits.
        strengthened: put a 3x3 convolution with norm and activation before it.
    """

    kernel: Literal[1, 3, 7] = 3
    strengthened: bool = True
