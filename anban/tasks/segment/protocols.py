"""How an image becomes scores of its classes, by name, so that every number can say how it was measured.

A name is a form, for windows their size and stride, and options in the order of the table below:

| form | what it does |
| --- | --- |
| `ss`, `ssf` | the whole image at one scale; and its mirror image |
| `ms`, `msf` | the whole image at several scales; and their mirror images |
| `ssc`, `sscf`, `msc`, `mscf` | the same in windows; `ssfc` and `msfc` are other words for `sscf` and `mscf` |

Windows: `-N` or `-HxW` pixels, then the stride: `-N`, `-HxW`, or `-P/Q`, a share of the window's sides, rounded up. Without
them `-1024-2/3`. `mscf-1024-2/3` is called `mscf-1024-683`.

| option | what it does |
| --- | --- |
| `+short-N`, `+long-N`, `+size-HxW` | first resize the image: its shorter side to N; its longer side to N where it has more; to that size |
| `+scales-S-S-...` | instead of 0.5, 0.75, 1, 1.25, 1.5, 1.75; after `ms...` only |
| `+zeros`, `+mirror` | what fills up images smaller than a window: 0, the mean colour, as usual, or the image mirrored; `+empty` means `+mirror` |
| `+softmax`, `+exp-softmax`, `+exp-sum`, `+logits` | how views are added up, see `Rule` |
| `+labels` | the label is brought to the size of the network's output, not the output to the label's; after `ss` and `ssf` only |

`ss`, `ssc`, `msf` and `mscf` (there `msfc`) are the protocols of CoinCheung/BiSeNet's tables: tools/evaluate.py, MscEvalV0
and MscEvalCrop. Its first release (old/evaluate.py) is `mscf-1024-5/6`. What the windows of a place give is added up, not
averaged: at one scale that changes no decision, at several it lends weight to the places where windows overlap. A border
of uninitialised memory, as `torch.empty` makes one, cannot be repeated: mirrored pixels stand for its arbitrary values.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from anban.data.tiles import pad_reflect, starts
from anban.errors import InputError

Predict = Callable[[Tensor], Tensor]
Size = tuple[int, int]

Rule = Literal["softmax", "exp-softmax", "exp-sum", "logits"]
"""What is added up over scales and windows, of a view and, with flips, its mirror image turned back.

softmax      the sum of their probabilities: the rule of CoinCheung/BiSeNet for whole images, and for windows without flip
exp-softmax  exp of that sum: the same for windows with flip (in its first release for all windows)
exp-sum      exp of the sum of their log-probabilities: TorchSeg's, whose networks give log-probabilities when they
             evaluate (furnace/engine/evaluator.py, model/bisenet/*/network.py)
logits       the sum of their logits
"""

_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_MULTIPLE = 32
_KNOWN = ("ss", "ssf", "ssc", "sscf", "ms", "msf", "msc", "mscf", "msfc", "ssc-1024-2/3", "mscf-1024-5/6")
_EXPECTED = "ss, ssf, ms, msf, or in windows ssc, sscf, msc, mscf, such as mscf-1024-2/3, then options such as +exp-sum"
_COUNT, _SHARE = r"[1-9]\d*", r"\d+(?:\.\d+)?"
_SIZE = rf"{_COUNT}(?:x{_COUNT})?"
_GRAMMAR = re.compile(
    r"(?P<scales>ss|ms)(?P<views>c?f?|fc)"
    rf"(?:-(?P<crop>{_SIZE})(?:-(?P<stride>{_SIZE}|{_COUNT}/{_COUNT}))?)?"
    rf"(?:\+(?P<side>short|long|size)-(?P<pixels>{_SIZE}))?"
    rf"(?:\+scales-(?P<factors>{_SHARE}(?:-{_SHARE})*))?"
    r"(?:\+(?P<border>zeros|mirror|empty))?"
    rf"(?:\+(?P<rule>{'|'.join(get_args(Rule))}))?"
    r"(?P<labels>\+labels)?"
)


@dataclass(frozen=True)
class Start:
    """The size to which an image is brought before everything else.

    Attributes:
        side: "short" and "long" keep the proportions, "long" only makes smaller; "size" takes no notice of them.
        pixels: of that side; of "size" (height, width).
    """

    side: Literal["short", "long", "size"]
    pixels: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.side}-{'x'.join(map(str, self.pixels))}"

    def of(self, height: int, width: int) -> Size:
        """(height, width) of what an image of this size becomes."""
        if self.side == "size":
            return self.pixels[0], self.pixels[1]
        (pixels,) = self.pixels
        if self.side == "long" and max(height, width) <= pixels:
            return height, width
        if (height < width) == (self.side == "short"):
            return pixels, int(pixels / height * width)
        return int(pixels / width * height), pixels


@dataclass(frozen=True)
class Protocol:
    """A way to predict an image; the attributes say what the options of a name say.

    Attributes:
        crop, stride: (height, width) of the windows and of the steps between them; None for whole images.
        border: what fills up an image that is smaller than a window.
        meet: what is resized where scores and label differ in size.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    crop: Size | None = None
    stride: Size | None = None
    start: Start | None = None
    border: Literal["zeros", "mirror"] = "zeros"
    rule: Rule = "softmax"
    meet: Literal["scores", "label"] = "scores"

    @property
    def name(self) -> str:
        """What it is called where its numbers are filed: strides in pixels, nothing said that goes without saying."""
        single = self.scales == (1.0,)
        name = ("ss" if single else "ms") + ("c" if self.crop else "") + ("f" if self.flip else "")
        if self.crop and self.stride:
            name += f"-{_size(self.crop)}-{_size(self.stride)}"
        if self.start:
            name += f"+{self.start}"
        if not single and self.scales != _SCALES:
            name += "+scales-" + "-".join(_number(scale) for scale in self.scales)
        if self.border == "mirror":
            name += "+mirror"
        if self.rule != usual_rule(bool(self.crop), self.flip):
            name += f"+{self.rule}"
        return name + ("+labels" if self.meet == "label" else "")

    def to_dict(self, split: str, classes: Sequence[str], size: str | None = None) -> dict[str, Any]:
        """The stamp that a run's record keeps with its numbers.

        Args:
            split: the split that was evaluated.
            classes: their names, in the order of their numbers.
            size: for whole images, their size such as "1024x2048" or "mixed"; windows know their own.
        """
        return {
            "name": self.name,
            "split": split,
            "size": f"{self.crop[0]}x{self.crop[1]}" if self.crop else size,
            "tiling": "sliding" if self.crop else "whole",
            "stride": _size(self.stride) if self.stride else None,
            "border": self.border if self.crop else None,
            "start": str(self.start) if self.start else None,
            "flips": "none, horizontal" if self.flip else "none",
            "scales": list(self.scales),
            "rule": self.rule,
            "resized": self.meet,
            "classes": list(classes),
            "ignore": 255,
            "data_range": "uint8 0..255",
            "averaging": "micro",
        }


def parse_protocol(name: str) -> Protocol:
    """The protocol of that name; `parse_protocol(name).name` is what it is called where its numbers are filed.

    Raises:
        InputError: a name outside the grammar above, an option where it means nothing, or a stride that would leave pixels
            out.
    """
    found = _GRAMMAR.fullmatch(name)
    if found is None:
        near = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0)[0]
        raise InputError(f"unknown protocol '{name}'", expected=_EXPECTED, do=f"did you mean '{near}'?")
    part: dict[str, Any] = found.groupdict()
    several, windows, flip = part["scales"] == "ms", "c" in part["views"], "f" in part["views"]
    for_windows = bool(part["crop"] or part["border"])
    _refuse(name, for_windows and not windows, "only windows have a size and a border")
    _refuse(name, bool(part["factors"]) and not several, "only ms, msf, msc and mscf have scales")
    _refuse(name, bool(part["labels"]) and (several or windows), "only ss and ssf have an output of one size")
    _refuse(name, bool(part["pixels"]) and ("x" in part["pixels"]) != (part["side"] == "size"),
            "short and long have one number, size has two")  # fmt: skip
    crop = _pair(part["crop"] or "1024") if windows else None
    stride = _stride(part["stride"] or "2/3", crop) if crop else None
    if crop and stride:
        outside = not all(1 <= step <= side for step, side in zip(stride, crop, strict=True))
        _refuse(name, outside, "the stride is more than the window, or nothing")
    scales = tuple(map(float, part["factors"].split("-"))) if part["factors"] else _SCALES
    _refuse(name, min(scales) == 0, "a scale is more than 0")
    return Protocol(
        scales=scales if several else (1.0,),
        flip=flip,
        crop=crop,
        stride=stride,
        start=Start(part["side"], tuple(map(int, part["pixels"].split("x")))) if part["side"] else None,
        border="mirror" if part["border"] in ("mirror", "empty") else "zeros",
        rule=part["rule"] or usual_rule(windows, flip),
        meet="label" if part["labels"] else "scores",
    )


def apply_protocol(protocol: Protocol, predict: Predict, image: Tensor, size: Size | None = None) -> Tensor:
    """Score the classes of images the way the protocol says; the largest score of a pixel is its prediction.

    Whole images are resized to multiples of 32 pixels, as by CoinCheung/BiSeNet, which has no other way to bring them to
    what its networks take. Windows are given to `predict` as they are. So a network that needs other multiples has to
    be padded by `predict`, which the official evaluation does not do.

    Args:
        predict: (N, 3, h, w) -> logits (N, K, h, w); whole images may have logits of another size.
        image: (B, 3, H, W), normalised.
        size: of the label, (height, width); None: that of the images.

    Returns:
        float32 (B, K, *size), or with `+labels` of the size of the network's output; see `label_at`.
    """
    size = size or (image.shape[-2], image.shape[-1])
    if protocol.start:
        image = _resize(image, protocol.start.of(*image.shape[-2:]), align_corners=False)

    def at(scale: float) -> Tensor:
        height, width = (max(1, int(side * scale)) for side in image.shape[-2:])
        if protocol.crop and protocol.stride:
            scaled = _resize(image, (height, width))
            return _resize(_in_windows(protocol, predict, scaled, protocol.crop, protocol.stride), size)
        height, width = (_MULTIPLE * math.ceil(side / _MULTIPLE) for side in (height, width))
        views = _views(predict, _resize(image, (height, width)), protocol.flip)
        if protocol.meet == "scores":
            views = [_resize(view, size) for view in views]
        return _combined(views, protocol.rule)

    return reduce(torch.add, map(at, protocol.scales))


def label_at(label: Tensor, scores: Tensor) -> Tensor:
    """The label (B, H, W) at the pixel centres of scores (B, K, h, w) of any size: (B, h, w), nearest."""
    if label.shape[-2:] == scores.shape[-2:]:
        return label
    resized = F.interpolate(label[:, None].float(), scores.shape[-2:], mode="nearest-exact")
    return resized[:, 0].to(label.dtype)


def usual_rule(windows: bool, flip: bool) -> Rule:
    """The rule of CoinCheung/BiSeNet's current evaluation."""
    return "exp-softmax" if windows and flip else "softmax"


def _in_windows(protocol: Protocol, predict: Predict, image: Tensor, crop: Size, stride: Size) -> Tensor:
    """Scores of all windows, added up: (B, K, H, W)."""
    height, width = image.shape[-2:]
    down, across = max(0, crop[0] - height), max(0, crop[1] - width)
    top, left = down // 2, across // 2
    bottom, right = down - top, across - left
    if protocol.border == "mirror":
        padded = pad_reflect(image, top, bottom, left, right)
    else:
        padded = F.pad(image, (left, right, top, bottom))
    total = None
    for row in starts(padded.shape[-2], crop[0], stride[0]):
        for column in starts(padded.shape[-1], crop[1], stride[1]):
            place = (..., slice(row, row + crop[0]), slice(column, column + crop[1]))
            scores = _combined(_views(predict, padded[place], protocol.flip), protocol.rule)
            if scores.shape[-2:] != crop:
                raise ValueError(f"scores of {tuple(scores.shape[-2:])} pixels for a window of {crop}")
            if total is None:
                total = scores.new_zeros((*scores.shape[:2], *padded.shape[-2:]))
            total[place] += scores
    assert total is not None, "there is always a window"
    return total[..., top : top + height, left : left + width]


def _views(predict: Predict, image: Tensor, flip: bool) -> list[Tensor]:
    """Logits of the image, and of its mirror image turned back."""
    logits = [predict(image).float()]
    return [*logits, predict(image.flip(-1)).float().flip(-1)] if flip else logits


def _combined(views: list[Tensor], rule: Rule) -> Tensor:
    """What the views of one window or image add to the scores."""
    if rule == "logits":
        return reduce(torch.add, views)
    if rule == "exp-sum":
        return reduce(torch.add, [view.log_softmax(dim=1) for view in views]).exp()
    total = reduce(torch.add, [view.softmax(dim=1) for view in views])
    return total.exp() if rule == "exp-softmax" else total


def _resize(maps: Tensor, size: Size, align_corners: bool = True) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=align_corners)


def _pair(text: str) -> Size:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _stride(text: str, crop: Size) -> Size:
    if "/" not in text:
        return _pair(text)
    above, below = map(int, text.split("/"))
    # The share first, as a float: so does the official code, and rounding up is sensitive to it.
    return math.ceil(crop[0] * (above / below)), math.ceil(crop[1] * (above / below))


def _size(size: Size) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _number(value: float) -> str:
    return str(value).removesuffix(".0")


def _refuse(name: str, wrong: bool, why: str) -> None:
    if wrong:
        raise InputError(f"protocol '{name}': {why}", expected=_EXPECTED)
