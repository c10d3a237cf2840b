"""RetinaNet beside torchvision's, and PVT beside its authors' code (whai362/PVT): time and memory.

A training step is forward, losses, backward and AdamW (float32, two pictures of 256 px with seven boxes each, 80 classes);
inference is the same two pictures down to the boxes that are kept; memory is that of a training step above the level before.
RetinaNet on ResNet-50 has torchvision's weights: losses and boxes are checked to be equal before anything is timed, and the
ratio is that of the code. PVT-Tiny, with the book-keeping of either release, is another network than the ResNet-50 it is put
beside, and that ratio is what the choice costs. torchvision normalises and resizes within its network, and our task in its data:
here there is nothing to change for either. The last layers are scaled so that scores spread as those of a trained network, which decides how many boxes have
to be sorted out. Of the backbones, in evaluation mode and with the same weights, maps and the gradient of the pictures are
checked; their code is read from a clone in the folder that ANBAN_BENCH_OFFICIAL names and stays as it is, what it needs of
timm, mmcv and mmdet is replaced by stand-ins, and without the clone they are left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from anban.official import load_official
from anban.record.environment import commit
from anban.tasks.detect.models.pvt import PVT, SIZES
from anban.tasks.detect.models.retinanet import PVTRetinaNet, TorchvisionRetinaNet
from anban.tasks.detect.models.settings import Detector
from benchmarks.official import COMMIT, ERROR, STAND_INS, clone, imports
from benchmarks.timing import (
    Findings,
    Row,
    Unavailable,
    interleave,
    machine,
    megabytes,
    page,
    row,
    seconds,
)

REPOSITORY = "whai362/PVT"
SIZE, CLASSES, BOXES = 256, 80, 7
PEER = "R50, torchvision"

# Detectors ------------------------------------------------------------------------------------------------------


def _detectors(images: Tensor) -> dict[str, nn.Module]:
    """torchvision's RetinaNet, ours with its weights, and two on PVT-Tiny."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    for name, buffer in backbone.named_buffers():
        if name.endswith(
            "bn3.weight"
        ):  # norms that are frozen at 1 would let the maps grow from block to block
            buffer.fill_(0.2)
    peer = RetinaNet(
        backbone,
        CLASSES,
        min_size=SIZE,
        max_size=SIZE,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        detections_per_img=Detector().detections,
    )
    _spread(peer, peer.head.classification_head.cls_logits, images)
    ours = TorchvisionRetinaNet(CLASSES)
    load_official(ours, peer.state_dict())
    tiny = PVTRetinaNet(CLASSES)
    _spread(tiny, cast(nn.Conv2d, tiny.head.score[-1]), images)
    books = Detector(convention="mmdetection", extra_source="input", extra_relu=False)
    other = PVTRetinaNet(CLASSES, replace(SIZES["pvt-tiny"], embed_eps=1e-6), books)
    _spread(other, cast(nn.Conv2d, other.head.score[-1]), images)
    return {"R50": ours, "PVT-Tiny": tiny, "PVT-Tiny, as MMDetection's": other, PEER: peer}


@torch.no_grad()
def _spread(detector: nn.Module, last: nn.Conv2d, images: Tensor) -> None:
    """Scale a detector's last layer: thousands of scores are then above 0.05, the least that counts."""
    logits: list[Tensor] = []
    hook = last.register_forward_hook(lambda *given: logits.append(given[-1].flatten()))
    detector.eval()(images)
    hook.remove()
    last.weight *= 0.6 / torch.cat(logits).std()


class Trained:
    """A detector with its optimiser; torchvision's is called as ours."""

    def __init__(self, model: nn.Module, images: Tensor, targets: list[dict[str, Tensor]]):
        self.model, self.images, self.targets = model, images, targets
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def losses(self) -> Tensor:
        """Of classes and boxes, (2)."""
        return torch.stack(list(self.model.train()(self.images, self.targets).values()))

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.losses().sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    @torch.inference_mode()
    def infer(self) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = self.model.eval()(self.images)
        return found


def _of_detectors(rounds: int) -> tuple[dict[str, float], list[Row]]:
    torch.manual_seed(0)
    images = torch.randn(2, 3, SIZE, SIZE)
    corners, sides = torch.rand(2, BOXES, 2) * SIZE * 0.7, 10 + torch.rand(2, BOXES, 2) * SIZE * 0.25
    targets = [
        {"boxes": boxes, "labels": torch.randint(CLASSES, (BOXES,))}
        for boxes in torch.cat((corners, corners + sides), dim=-1)
    ]
    detectors = {name: Trained(model, images, targets) for name, model in _detectors(images).items()}
    ours, peer = detectors["R50"], detectors[PEER]
    differences = {"losses": _difference(ours.losses().detach(), peer.losses().detach())}
    for name in ("boxes", "scores"):
        differences[name] = max(
            _difference(found[name], expected[name])
            for found, expected in zip(ours.infer(), peer.infer(), strict=True)
        )
    _refuse(differences)
    rows = []
    for what, works in (
        ("a training step", {name: each.step for name, each in detectors.items()}),
        ("inference", {name: each.infer for name, each in detectors.items()}),
    ):
        rows += _timed(f"RetinaNet, {what}", works, rounds)
    steps = {name: each.step for name, each in detectors.items()}
    return differences, rows + _weighed("RetinaNet, memory of a training step", steps)


# Backbones ------------------------------------------------------------------------------------------------------

BACKBONES = {"pvt_tiny": "pvt-tiny", "pvt_v2_b0": "pvt-v2-b0", "pvt_v2_b1": "pvt-v2-b1"}


def _as_it_is(made: Any) -> Any:
    """A decorator that registers nothing."""
    return made


STAND_INS_HERE: dict[str, Any] = {
    **STAND_INS,
    "timm.models.registry": SimpleNamespace(register_model=_as_it_is),
    "timm.models.vision_transformer": MagicMock(),
    "mmdet": MagicMock(),
    "mmdet.models": MagicMock(),
    "mmdet.models.builder": SimpleNamespace(BACKBONES=SimpleNamespace(register_module=lambda: _as_it_is)),
    "mmdet.utils": MagicMock(),
    "mmcv": MagicMock(),
    "mmcv.runner": MagicMock(),
}


class Backbone:
    """A backbone in evaluation mode, and pictures for it."""

    def __init__(self, model: nn.Module):
        self.model = model.eval()
        self.images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))

    @torch.inference_mode()
    def forward(self) -> list[Tensor]:
        maps: list[Tensor] = self.model(self.images)
        return maps

    def both(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self._sum(self.images).backward()  # type: ignore[no-untyped-call]

    def gradient(self) -> Tensor:
        """Of the pictures."""
        images = self.images.clone().requires_grad_()
        return torch.autograd.grad(self._sum(images), images)[0]

    def _sum(self, images: Tensor) -> Tensor:
        """Of all maps' sines: behind a norm, sums of values or of squares would be constant."""
        return torch.stack([each.sin().sum() for each in self.model(images)]).sum()


def _of_backbones(rounds: int) -> tuple[dict[str, dict[str, float]], list[Row], str | None]:
    """Differences of each backbone, rows, and the commit of the authors' code."""
    folder = clone(REPOSITORY)
    with imports(folder / "detection", STAND_INS_HERE):
        modules = [importlib.import_module(name) for name in ("pvt", "pvt_v2")]
    differences, rows = {}, []
    for name, size in BACKBONES.items():
        torch.manual_seed(0)
        peer = getattr(modules[name.startswith("pvt_v2")], name)(pretrained=None)
        model = PVT(replace(SIZES[size], positions_by_count=True))
        load_official(model, peer.state_dict())
        networks = {"ours": Backbone(model), "official": Backbone(peer)}
        ours, official = networks.values()
        differences[name] = {
            "maps": max(map(_difference, ours.forward(), official.forward())),
            "gradient": _difference(ours.gradient(), official.gradient()),
        }
        _refuse(differences[name])
        both = {who: each.both for who, each in networks.items()}
        rows += _timed(f"{name}, forward", {who: each.forward for who, each in networks.items()}, rounds)
        rows += _timed(f"{name}, forward+backward", both, rounds)
        rows += _weighed(f"{name}, memory of forward+backward", both)
    return differences, rows, commit(folder)


# Both -----------------------------------------------------------------------------------------------------------


def run(rounds: int) -> Findings:
    """Rows of detectors and backbones, and by how much those of the same weights differ."""
    before = machine()["load"]
    errors, rows = _of_detectors(rounds)
    details: dict[str, Any] = {"error": {"R50": errors}, "commits": {}, "left_out": {}}
    try:
        found, more, at = _of_backbones(rounds)
    except Unavailable as why:
        details["left_out"][REPOSITORY] = str(why)
    else:
        rows += more
        details["error"] |= found
        details["commits"][REPOSITORY] = at
    details["load"] = [before, machine()["load"]]
    lists = {
        "Largest difference, relative to the largest value, with the same weights:": [
            f"{name}: " + ", ".join(f"{what} {error:.1e}" for what, error in of.items())
            for name, of in details["error"].items()
        ],
        COMMIT: [f"{of}: {at or 'unknown'}" for of, at in details["commits"].items()],
        "Left out:": [f"{name}: {why}" for name, why in details["left_out"].items()],
        "Load of the machine, before and after:": [", ".join(map(str, details["load"]))],
    }
    return Findings(
        rows, details, page("RetinaNet and PVT beside torchvision and the authors' code", rows, lists)
    )


def _timed(case: str, works: Mapping[str, Callable[[], object]], rounds: int) -> list[Row]:
    """A row for each of the works beside the last, taken in turn."""
    *ours, peer = works
    taken = interleave({name: seconds(work) for name, work in works.items()}, rounds)
    return [row(taken, case, name, peer) for name in ours]


def _weighed(case: str, works: Mapping[str, Callable[[], object]]) -> list[Row]:
    """The same in MB, three times."""
    *ours, peer = works
    taken = interleave({name: megabytes(work) for name, work in works.items()}, 3, warm=False)
    return [row(taken, case, name, peer, unit="MB") for name in ours]


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _refuse(differences: Mapping[str, float]) -> None:
    for what, difference in differences.items():
        if not difference <= ERROR:
            raise Unavailable(f"{what} differ by {difference:.1e} of the largest value")
