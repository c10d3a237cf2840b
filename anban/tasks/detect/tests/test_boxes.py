"""Anchors, matches and differences: against torchvision's, and MMDetection's rules by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from anban.tasks.detect.models.boxes import (
    BACKGROUND,
    IGNORED,
    cell_anchors,
    decode,
    encode,
    grid_anchors,
    inside,
    match,
)


def boxes(count: int, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    corner = 60 * torch.rand(count, 2, generator=draws)
    return torch.cat((corner, corner + 4 + 40 * torch.rand(count, 2, generator=draws)), dim=1)


def test_anchors_are_torchvisions() -> None:
    sizes = ((32, 40, 50), (64, 80, 101))
    maps = [torch.zeros(1, 1, 6, 8), torch.zeros(1, 1, 3, 4)]
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 2)
    theirs = generator(ImageList(torch.zeros(1, 3, 48, 64), [(48, 64)]), maps)[0]
    ours = [
        grid_anchors(cell_anchors(32.0 * 2**i, 3, (0.5, 1.0, 2.0)), (6 // 2**i, 8 // 2**i), (8 * 2**i,) * 2)
        for i in range(2)
    ]
    assert torch.equal(torch.cat(ours), theirs)


def test_mmdetections_anchors_keep_their_fractions() -> None:
    cell = cell_anchors(32.0, 3, (1.0, 2.0), "mmdetection")
    sides = cell[:, 2:] - cell[:, :2]
    torch.testing.assert_close(sides[:3, 0], 32 * 2 ** (torch.arange(3) / 3))
    torch.testing.assert_close(sides[3:, 1] / sides[3:, 0], torch.full((3,), 2.0))


def test_anchors_whose_cells_are_beyond_the_image() -> None:
    within = inside((2, 3), (8, 8), (8, 20), anchors=2)
    assert within.tolist() == [True] * 6 + [False] * 6
    assert not inside((1, 4), (8, 8), (8, 20), anchors=1)[3]


def test_matches_are_torchvisions() -> None:
    anchors, found = boxes(200), boxes(5, seed=1)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    assert torch.equal(match(found, anchors), matcher(box_iou(found, anchors)))


def test_a_box_gets_its_best_anchor_and_the_later_one_wins() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [100, 100, 110, 110]])
    found = torch.tensor([[0.0, 0, 10, 9], [0, 0, 4, 10]])  # overlaps 0.9 and 0.4 with the first anchor
    assert match(found, anchors, convention="mmdetection").tolist() == [1, BACKGROUND]
    assert match(found, anchors).tolist() == [0, BACKGROUND]
    assert match(found, anchors, claim=0.5, convention="mmdetection").tolist() == [0, BACKGROUND]


def test_in_between_is_ignored_and_without_boxes_all_is_background() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 2, 10]])
    assert match(torch.tensor([[0.0, 0, 10, 10]]), anchors).tolist() == [0, IGNORED, BACKGROUND]
    assert match(torch.zeros(0, 4), anchors).tolist() == [BACKGROUND] * 3


@pytest.mark.parametrize("deviations", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_differences_are_torchvisions_and_lead_back(deviations: tuple[float, ...]) -> None:
    anchors, found = boxes(20), boxes(20, seed=1)
    coder = BoxCoder(tuple(1 / deviation for deviation in deviations))
    differences = encode(found, anchors, deviations)
    torch.testing.assert_close(differences, coder.encode_single(found, anchors))
    torch.testing.assert_close(decode(differences, anchors, deviations), found)


def test_sides_have_limits() -> None:
    anchor = torch.tensor([[0.0, 0, 16, 16]])
    huge, tiny = torch.tensor([[0.0, 0, 99, 99]]), torch.tensor([[0.0, 0, -99, -99]])
    assert (decode(huge, anchor)[0, 2:] - 8).tolist() == pytest.approx([500, 500])
    assert decode(tiny, anchor)[0].tolist() == pytest.approx([8] * 4)
    sides = decode(tiny, anchor, convention="mmdetection")[0]
    assert math.isclose(sides[2] - sides[0], 16 * 16 / 1000, rel_tol=1e-4)
