"""The detector: losses and boxes by hand, both conventions, every backbone, learning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNet as Theirs
from torchvision.models.detection.retinanet import RetinaNetHead

from anban.errors import InputError
from anban.official import load_official
from anban.tasks.detect.models.boxes import encode
from anban.tasks.detect.models.fpn import FPN
from anban.tasks.detect.models.head import Head, anchors_of, detect, losses
from anban.tasks.detect.models.retinanet import (
    PVTRetinaNet,
    RetinaNet,
    TorchvisionRetinaNet,
)
from anban.tasks.detect.models.settings import Attention, Detector, Pyramid

SMALL = Pyramid(
    widths=(8, 8, 8, 8),
    heads=(1, 1, 1, 1),
    depths=(1, 1, 1, 1),
    mlp_ratios=(2, 2, 2, 2),
    drop_path=0.0,
)
TINY = Detector(width=8, depth=1)
TARGET = {"boxes": torch.tensor([[8.0, 8, 44, 40], [50, 20, 90, 60]]), "labels": torch.tensor([1, 0])}


def images(height: int = 64, width: int = 96, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_an_image_is_learnt_and_found_again() -> None:
    torch.manual_seed(0)
    model = PVTRetinaNet(2, replace(SMALL, attention=Attention("full")), Detector(width=16, depth=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x = images()
    for _ in range(60):
        optimizer.zero_grad()
        costs = model.train()(x, [TARGET])
        assert isinstance(costs, dict)
        sum(costs.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    found = model.eval()(x)
    assert isinstance(found, list)
    best = {
        int(label): box
        for box, label in zip(found[0]["boxes"].flip(0), found[0]["labels"].flip(0), strict=True)
    }
    for box, label in zip(TARGET["boxes"], TARGET["labels"], strict=True):
        torch.testing.assert_close(best[int(label)], box, atol=6, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "swin_t"])
def test_torchvisions_backbones(name: str) -> None:
    model = TorchvisionRetinaNet(3, name, detector=TINY).eval()  # type: ignore[arg-type]
    maps = model.encoder(images())
    assert [each.shape[1:] for each in maps] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(model.encoder.channels, model.encoder.strides, strict=True)
    ]
    assert [tuple(each.shape[-2:]) for each in model.features(images())] == [
        (8, 12),
        (4, 6),
        (2, 3),
        (1, 2),
        (1, 1),
    ]


class _Maps(nn.Module):
    """Maps as torchvision's detector wants them."""

    def __init__(self, model: RetinaNet):
        super().__init__()
        self.model, self.out_channels = model, model.detector.width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {str(level): each for level, each in enumerate(self.model.features(x))}


def test_losses_and_detections_are_torchvisions_on_a_pyramid_too() -> None:
    torch.manual_seed(0)
    detector = replace(TINY, depth=4, score=0.3, candidates=100, detections=30)
    model = PVTRetinaNet(4, SMALL, detector)
    head = RetinaNetHead(8, 9, 4)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.15)
    model.head.load_state_dict(model.head.from_official(head.state_dict()))
    theirs = Theirs(
        _Maps(model), 4, head=head, min_size=64, max_size=96, image_mean=[0.0] * 3, image_std=[1.0] * 3,
        score_thresh=0.3, topk_candidates=100, detections_per_img=30,
    )  # fmt: skip
    x = images(batch=2)
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    model.train()
    batch, _ = theirs.transform(list(x))
    maps = model.features(x)
    expected = theirs.compute_loss([TARGET, none], theirs.head(maps), theirs.anchor_generator(batch, maps))
    costs = model(x, [TARGET, none])
    torch.testing.assert_close(costs["classes"], expected["classification"])
    torch.testing.assert_close(costs["boxes"], expected["bbox_regression"])
    found, wanted = model.eval()(x), theirs.eval()(list(x))
    assert len(wanted[0]["boxes"]) > 5
    for ours, them in zip(found, wanted, strict=True):
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(ours[name], them[name])


def test_mmdetection_divides_by_the_positives_of_the_batch() -> None:
    torch.manual_seed(0)
    maps = [torch.zeros(2, 1, 8, 12)]
    one = Detector(anchor_sizes=(32.0,), anchor_strides=(8,), convention="mmdetection")
    logits = [torch.randn(2, 9 * 2, 8, 12)]
    moves = [torch.randn(2, 9 * 4, 8, 12)]
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    classes, boxes, found = losses(one, logits, moves, [TARGET, empty], (64, 96))
    positives = int((found[0] >= 0).sum())
    assert (found[1] < 0).all()
    (anchors,), _ = anchors_of(one, maps, (64, 96))
    at = found[0] >= 0
    aims = encode(TARGET["boxes"][found[0, at]], anchors[at])
    given = moves[0][0].permute(1, 2, 0).reshape(-1, 4)[at]
    expected = (given - aims).abs().sum() / (positives + 1)
    torch.testing.assert_close(torch.cat(boxes, dim=1).sum(), expected)
    per_image = losses(replace(one, convention="torchvision"), logits, moves, [TARGET, empty], (64, 96))
    assert not torch.allclose(torch.cat(per_image[0]).sum(), torch.cat(classes).sum())


def test_anchors_beyond_the_image_are_ignored_and_strides_of_the_maps_leave_none() -> None:
    logits, moves = [torch.zeros(1, 9, 4, 30)], [torch.zeros(1, 36, 4, 30)]
    fixed = Detector(anchor_sizes=(32.0,), anchor_strides=(8,), convention="mmdetection")
    target = [{"boxes": torch.tensor([[0.0, 0, 30, 30]]), "labels": torch.tensor([0])}]
    classes, _, found = losses(fixed, logits, moves, target, (32, 160))
    beyond = (found[0] == -2).reshape(4, 30, 9)[:, 20:]
    assert beyond.all()
    assert (classes[0].reshape(4, 30, 9)[:, 20:] == 0).all()
    own = losses(replace(fixed, anchor_strides=None), logits, moves, target, (32, 160))
    assert not (own[2][0] == -2).reshape(4, 30, 9)[:, 20:].any()


def test_boxes_stay_on_their_image_and_scores_fall() -> None:
    torch.manual_seed(0)
    detector = Detector(anchor_sizes=(32.0,), score=0.4, candidates=50, detections=7)
    found = detect(
        detector, [torch.randn(2, 18, 8, 8)], [torch.randn(2, 36, 8, 8)], (64, 64), [(64, 64), (40, 30)]
    )
    for each, (height, width) in zip(found, ((64, 64), (40, 30)), strict=True):
        assert 0 < len(each["boxes"]) <= 7
        assert (each["boxes"] >= 0).all()
        assert (each["boxes"][:, 2] <= width).all()
        assert (each["boxes"][:, 3] <= height).all()
        assert (each["scores"].diff() <= 0).all()
        assert (each["scores"] > 0.4).all()


@pytest.mark.parametrize("source", ["input", "lateral", "output", "pool"])
def test_the_pyramids_extra_levels(source: str) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, c, s, s) for c, s in ((4, 8), (6, 5), (8, 3))]
    fpn = FPN((4, 6, 8), 5, source=source, relu=False)  # type: ignore[arg-type]
    found = fpn(maps)
    assert [each.shape[-1] for each in found] == [8, 5, 3, 2, 1]
    start = {"input": maps[-1], "lateral": fpn.lateral[2](maps[-1]), "output": found[2]}
    expected = found[2][..., ::2, ::2] if source == "pool" else fpn.extra[0](start[source])
    torch.testing.assert_close(found[3], expected)


def test_without_the_way_down_levels_do_not_know_of_each_other() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4, requires_grad=True)]
    for top_down in (True, False):
        finest = FPN((4, 4), 5, top_down=top_down)(maps)[0]
        (gradient,) = torch.autograd.grad(finest.sum(), maps[1], allow_unused=True)
        assert (gradient is not None) == top_down


def test_scores_begin_at_one_percent() -> None:
    logits, _ = Head(8, 8, 4, 9, 3)([torch.zeros(1, 8, 4, 4)])
    torch.testing.assert_close(logits[0].sigmoid(), torch.full_like(logits[0], 0.01))


def test_maps_without_a_pyramid_need_a_detector_without_extra_levels() -> None:
    single = replace(SMALL, outputs=(3,))
    detector = replace(TINY, first_stage=0, extra_levels=0, anchor_sizes=(64.0,))
    assert len(PVTRetinaNet(2, single, detector).features(images())) == 1
    with pytest.raises(InputError, match="3 levels"):
        PVTRetinaNet(2, single, replace(TINY, first_stage=0))
    with pytest.raises(InputError, match="without targets"):
        PVTRetinaNet(2, SMALL, TINY).train()(images())
    with pytest.raises(InputError, match="at most positive"):
        Detector(positive=0.3)
    with pytest.raises(InputError, match="one of either"):
        Detector(anchor_strides=(8,))


def test_a_released_head_loads_by_its_names() -> None:
    ours, theirs = Head(8, 8, 4, 9, 2), RetinaNetHead(8, 9, 2)
    load_official(ours, theirs.state_dict())
    logits, _ = ours([torch.ones(1, 8, 3, 3)])
    expected = theirs([torch.ones(1, 8, 3, 3)])["cls_logits"]
    torch.testing.assert_close(logits[0].permute(0, 2, 3, 1).reshape(1, -1, 2), expected)
