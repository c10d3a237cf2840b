"""RetinaNet: a backbone's maps, a feature pyramid, and one head for all its levels that scores and moves anchors.

Source: Lin et al., "Focal loss for dense object detection", ICCV 2017; numerically equal to torchvision's, and with the
convention "mmdetection" to MMDetection's (as in github.com/iredawen/AtrousLSHTransformer).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from anban.errors import InputError
from anban.recipe.schema import Count
from anban.tasks.detect.models.fpn import FPN
from anban.tasks.detect.models.head import Head, Size, detect, losses
from anban.tasks.detect.models.pvt import PVT
from anban.tasks.detect.models.settings import Detector, Pyramid

_PYRAMID, _DETECTOR = Pyramid(), Detector()


class RetinaNet(nn.Module):
    """RetinaNet on any backbone.

    Args:
        encoder: the backbone, a network with the `channels` of the maps it returns, fine to coarse.
        classes: without background, numbered from 0.
        detector: the switches.

    Raises:
        InputError: other than one size of anchors for each level; in `forward`, training without targets.
    """

    backbone: ClassVar[tuple[str, ...]] = ("encoder",)

    def __init__(self, encoder: nn.Module, classes: int, detector: Detector = _DETECTOR):
        super().__init__()
        self.detector = detector
        self.encoder = encoder
        channels = list(encoder.channels)[detector.first_stage :]  # type: ignore[arg-type]
        levels = len(channels) + detector.extra_levels
        if not channels or levels != len(detector.anchor_sizes):
            raise InputError(
                f"{levels} levels ({len(channels)} of the backbone) and {len(detector.anchor_sizes)} anchor_sizes",
                expected="one size for each level",
                do="change anchor_sizes, extra_levels or first_stage",
            )
        self.neck = FPN(
            channels,
            detector.width,
            extra=detector.extra_levels,
            source=detector.extra_source,
            relu=detector.extra_relu,
            top_down=detector.top_down,
        )
        anchors = detector.anchor_octaves * len(detector.anchor_ratios)
        self.head = Head(detector.width, detector.width, detector.depth, anchors, classes)

    def forward(
        self,
        images: Tensor,
        targets: list[dict[str, Tensor]] | None = None,
        sizes: Sequence[Size] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            images: (B, 3, H, W), normalised, padded to the right and below where they are of different sizes.
            targets: for each image `boxes` (n, 4), x1, y1, x2, y2 in pixels, and `labels` (n), classes from 0.
            sizes: height and width of each image without padding; by default all are H x W.

        Returns:
            in training the losses `classes` and `boxes`; in evaluation, for each image, `boxes` (n, 4), `scores` (n),
            falling, and `labels` (n).
        """
        logits, differences = self.head(self.features(images))
        size = (images.shape[2], images.shape[3])
        if not self.training:
            return detect(self.detector, logits, differences, size, sizes or [size] * len(images))
        if targets is None:
            raise InputError("RetinaNet was asked to train without targets", expected="boxes and labels")
        classes, boxes, _ = losses(self.detector, logits, differences, targets, size)
        return {
            name: torch.cat(levels, dim=1).sum() for name, levels in (("classes", classes), ("boxes", boxes))
        }

    def features(self, images: Tensor) -> list[Tensor]:
        """The pyramid's maps, fine to coarse."""
        maps: list[Tensor] = self.neck(self.encoder(images)[self.detector.first_stage :])
        return maps

    def describe(self) -> dict[str, dict[str, str]]:
        """What its parts consist of, by the names of their modules: the backbone's own, the neck, the head."""
        detector, levels = self.detector, len(self.neck.lateral)
        inside: dict[str, dict[str, str]] = self.encoder.describe()  # type: ignore[operator]
        neck = {
            "consists of": "feature pyramid"
            if detector.top_down
            else "a level for each map, nothing added to it",
            "levels": f"{levels} of the backbone, {detector.extra_levels} coarser ones from {detector.extra_source}",
            "width": str(detector.width),
        }
        anchors = detector.anchor_octaves * len(detector.anchor_ratios)
        head = {
            "layers": f"{detector.depth} + 1",
            "scores": f"{anchors} anchors x {self.head.classes} classes",
        }
        return {
            **{f"encoder.{part}": entries for part, entries in inside.items()},
            "neck": neck,
            "head": head,
        }

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the parameters of torchvision's RetinaNet or of MMDetection's; the backbone renames its own."""
        parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "neck": {}, "head": {}}
        for name, tensor in state_dict.items():
            part, _, rest = name.removeprefix("bbox_").partition(".")
            if name.startswith("backbone.fpn."):
                part, rest = "neck", name.removeprefix("backbone.fpn.")
            parts.setdefault("encoder" if part == "backbone" else part, {})[rest] = tensor
        translated: dict[str, Tensor] = {}
        for part, state in parts.items():
            translate: Any = getattr(getattr(self, part, None), "from_official", dict)
            translated |= {f"{part}.{name}": tensor for name, tensor in translate(state).items()}
        return translated


class PVTRetinaNet(RetinaNet):
    """RetinaNet on a pyramid of transformer stages.

    Args:
        classes: without background.
        backbone: the pyramid's switches.
        detector: of what stands on it.
    """

    def __init__(self, classes: Count = 20, backbone: Pyramid = _PYRAMID, detector: Detector = _DETECTOR):
        super().__init__(PVT(backbone), classes, detector)


Torchvision = Literal["resnet18", "resnet34", "resnet50", "resnet101", "swin_t", "swin_s", "swin_b"]


class TorchvisionBackbone(nn.Module):
    """The four stages of a ResNet (batch norms frozen) or a Swin transformer of torchvision.

    Attributes:
        channels: of the maps.
        strides: 4, 8, 16, 32.

    Args:
        name: torchvision's.
        pretrained: start from torchvision's ImageNet weights (downloaded where they are not cached).
    """

    strides = (4, 8, 16, 32)

    def __init__(self, name: Torchvision = "resnet50", pretrained: bool = False):
        super().__init__()
        weights = "DEFAULT" if pretrained else None
        if name.startswith("swin"):
            layers = dict(torchvision.models.get_model(name, weights=weights).features.named_children())
            # patch embedding and blocks; then merging and blocks, three times
            self.stages = {str(2 * stage + 1) for stage in range(4)}
            self.channels = tuple(
                layers[stage][-1].norm1.normalized_shape[0] for stage in sorted(self.stages)
            )
        else:
            whole = torchvision.models.get_model(name, weights=weights, norm_layer=FrozenBatchNorm2d)
            layers = {part: layer for part, layer in whole.named_children() if part not in ("avgpool", "fc")}
            self.stages = {f"layer{stage + 1}" for stage in range(4)}
            self.channels = tuple(whole.inplanes >> (3 - stage) for stage in range(4))
        self.channels_last = name.startswith("swin")
        self.body = nn.ModuleDict(layers)

    def describe(self) -> dict[str, dict[str, str]]:
        """What its parts consist of, by the names of their modules."""
        return {f"body.{name}": {"consists of": _blocks(layer)} for name, layer in self.body.items()}

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> four maps, at 1/4 to 1/32 of the resolution."""
        maps = []
        for name, layer in self.body.items():
            x = layer(x)
            if name in self.stages:
                maps.append(x.permute(0, 3, 1, 2).contiguous() if self.channels_last else x)
        return maps


def _blocks(layer: nn.Module) -> str:
    """The classes of a layer's members, counted."""
    members = Counter(type(member).__name__ for member in layer) if isinstance(layer, nn.Sequential) else {}
    return ", ".join(f"{count} {name}" for name, count in members.items()) or type(layer).__name__


class TorchvisionRetinaNet(RetinaNet):
    """RetinaNet on a backbone of torchvision.

    Args:
        classes: without background.
        backbone: torchvision's name.
        pretrained: start the backbone from torchvision's ImageNet weights.
        detector: of what stands on it.
    """

    def __init__(
        self,
        classes: Count = 20,
        backbone: Torchvision = "resnet50",
        pretrained: bool = False,
        detector: Detector = _DETECTOR,
    ):
        super().__init__(TorchvisionBackbone(backbone, pretrained), classes, detector)
