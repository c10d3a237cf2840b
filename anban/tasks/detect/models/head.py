"""RetinaNet's head: scores and moves anchors; what that costs, and the boxes that come of it.

Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from anban.official import rename
from anban.tasks.detect.loss import focal, smooth_l1
from anban.tasks.detect.models.boxes import (
    IGNORED,
    cell_anchors,
    decode,
    encode,
    grid_anchors,
    inside,
    match,
)
from anban.tasks.detect.models.settings import Detector

Size = tuple[int, int]


class Head(nn.Module):
    """Scores and differences of all anchors of a map; the same weights for all maps.

    Args:
        inputs: channels of a map.
        width: of the convolutions.
        depth: convolutions with ReLU before the last one, for scores and differences apart.
        anchors: in a cell.
        classes: without background.
    """

    def __init__(self, inputs: int, width: int, depth: int, anchors: int, classes: int):
        super().__init__()
        self.classes = classes
        self.score = self._tower(inputs, width, depth, anchors * classes)
        self.move = self._tower(inputs, width, depth, anchors * 4)
        prior = torch.tensor(0.01)  # the probability of any class to begin with
        self.score[-1].bias.data.fill_(prior.logit())  # type: ignore[union-attr, operator]

    @staticmethod
    def _tower(inputs: int, width: int, depth: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, width, kernel_size=3, padding=1), nn.ReLU()]
            inputs = width
        layers.append(nn.Conv2d(inputs, outputs, kernel_size=3, padding=1))
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return nn.Sequential(*layers)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (B, inputs, H, W) -> per map logits (B, A * classes, H, W) and differences (B, A * 4, H, W), anchor by anchor."""
        return [self.score(x) for x in maps], [self.move(x) for x in maps]

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the parameters of torchvision's head or of MMDetection's."""
        last = len(self.score) - 1
        return rename(
            state_dict,
            [
                # A tower's convolutions are at even places, ReLUs between them.
                (
                    r"^(?:classification_head\.conv\.(\d+)\.0|cls_convs\.(\d+)\.conv)\.",
                    lambda match: f"score.{2 * int(match[1] or match[2])}.",
                ),
                (
                    r"^(?:regression_head\.conv\.(\d+)\.0|reg_convs\.(\d+)\.conv)\.",
                    lambda match: f"move.{2 * int(match[1] or match[2])}.",
                ),
                (r"^(classification_head\.cls_logits|retina_cls)\.", f"score.{last}."),
                (r"^(regression_head\.bbox_reg|retina_reg)\.", f"move.{last}."),
            ],
        )


def by_anchor(x: Tensor, values: int) -> Tensor:
    """What a head gives for a map, (B, A * values, H, W), in the order of anchors: (B, H * W * A, values)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)


def anchors_of(
    detector: Detector, maps: Sequence[Tensor], image: Size
) -> tuple[list[Tensor], list[Tensor] | None]:
    """The anchors (H * W * A, 4) of each level, and whether they lie on the image; None: all do.

    Args:
        maps: of each level, (B, ..., H, W).
        image: height and width.
    """
    anchors, within = [], []
    for level, x in enumerate(maps):
        size = (x.shape[2], x.shape[3])
        if detector.anchor_strides is None:
            strides = (image[0] // size[0], image[1] // size[1])
        else:
            strides = (detector.anchor_strides[level],) * 2
        cell = cell_anchors(
            detector.anchor_sizes[level], detector.anchor_octaves, detector.anchor_ratios, detector.convention
        )
        anchors.append(grid_anchors(cell.to(x), size, strides))
        within.append(inside(size, strides, image, len(cell)).to(x.device))
    return anchors, None if detector.anchor_strides is None else within


def losses(
    detector: Detector,
    logits: Sequence[Tensor],
    differences: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    image: Size,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What each anchor adds to the two losses, which are the sums of these.

    Args:
        logits: of each level, as the head gives them.
        differences: the same.
        targets: of each image.
        image: height and width.

    Returns:
        losses of the classes, (B, A) for each level; losses of the boxes, the same; which box each anchor is to find, (B, all A),
        see `boxes.match`.
    """
    levels, within = anchors_of(detector, logits, image)
    anchors = torch.cat(levels)
    classes = logits[0].shape[1] // (detector.anchor_octaves * len(detector.anchor_ratios))
    scored = torch.cat([by_anchor(x, classes) for x in logits], dim=1)
    moved = torch.cat([by_anchor(x, 4) for x in differences], dim=1)
    found = torch.stack(
        [
            match(
                target["boxes"],
                anchors,
                detector.positive,
                detector.negative,
                detector.claim,
                detector.convention,
            )
            for target in targets
        ]
    )
    if within is not None:
        found[:, ~torch.cat(within)] = IGNORED
    positives = (found >= 0).sum(dim=1).clamp(min=1)
    total = positives * len(targets) if detector.convention == "torchvision" else positives.sum()
    share = 1 / total.expand(len(targets))
    picture, at = (found >= 0).nonzero().unbind(1)
    before = torch.tensor([0, *(len(target["boxes"]) for target in targets)], device=found.device).cumsum(0)
    box = found[picture, at] + before[picture]
    boxes, labels = (torch.cat([target[key] for target in targets])[box] for key in ("boxes", "labels"))
    cost = focal(scored, (picture, at, labels), detector.focal_alpha, detector.focal_gamma)
    of_classes = detector.class_weight * share[:, None] * cost * (found != IGNORED)
    aims = encode(boxes, anchors[at], detector.box_deviations)
    apart = detector.box_weight * share[picture] * smooth_l1(moved[picture, at], aims, detector.box_beta)
    of_boxes = apart.new_zeros(found.shape).index_put((picture, at), apart)
    counts = [len(each) for each in levels]
    return list(torch.split(of_classes, counts, 1)), list(torch.split(of_boxes, counts, 1)), found


def detect(
    detector: Detector,
    logits: Sequence[Tensor],
    differences: Sequence[Tensor],
    image: Size,
    sizes: Sequence[Size],
) -> list[dict[str, Tensor]]:
    """The boxes of each image, best first: `boxes` (n, 4), `scores` (n), `labels` (n); arguments as of `RetinaNet.forward`."""
    levels, _ = anchors_of(detector, logits, image)
    classes = logits[0].shape[1] // (detector.anchor_octaves * len(detector.anchor_ratios))
    scored = [by_anchor(x, classes).sigmoid() for x in logits]
    moved = [by_anchor(x, 4) for x in differences]
    found = []
    for i, size in enumerate(sizes):
        kept = [
            _best(detector, scores[i], move[i], anchors, size)
            for scores, move, anchors in zip(scored, moved, levels, strict=True)
        ]
        boxes, scores, labels = (torch.cat(each) for each in zip(*kept, strict=True))
        best = batched_nms(boxes, scores, labels, detector.overlap)[: detector.detections]
        found.append({"boxes": boxes[best], "scores": scores[best], "labels": labels[best]})
    return found


def _best(
    detector: Detector, scores: Tensor, differences: Tensor, anchors: Tensor, size: Size
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of a level's best pairs of an anchor and a class."""
    classes = scores.shape[1]
    scores = scores.flatten()
    candidates = (scores > detector.score).nonzero().squeeze(1)
    best, order = scores[candidates].topk(min(detector.candidates, len(candidates)))
    pairs = candidates[order]
    at = pairs // classes
    boxes = decode(differences[at], anchors[at], detector.box_deviations, detector.convention)
    return clip_boxes_to_image(boxes, size), best, pairs % classes
