"""A2Net's side outputs, widths and unused layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anban.official import load_official
from anban.tasks.change.models.a2net import A2Net


def images() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 64, 96, generator=draws), torch.randn(2, 3, 64, 96, generator=draws)


def test_side_outputs_are_enlarged_to_the_images_and_come_after_the_main_one() -> None:
    model, coarsest = A2Net(side_outputs="always").eval(), list[Tensor]()
    model.attend[0].classifier.register_forward_hook(lambda module, inputs, logit: coarsest.append(logit))
    with torch.no_grad():
        scores = model(*images())
        model.side_outputs = "training"
        main = model(*images())
    assert [score.shape for score in scores] == [(2, 1, 64, 96)] * 4
    assert torch.equal(scores[0], main)
    assert torch.equal(F.interpolate(coarsest[0], scale_factor=32, mode="bilinear"), scores[3])


def test_the_unused_layer_changes_nothing_but_the_count() -> None:
    whole, lean = A2Net(unused_layers=True).eval(), A2Net().eval()
    load_official(lean, whole.state_dict())
    with torch.no_grad():
        assert torch.equal(whole(*images()), lean(*images()))
    assert len(list(whole.parameters())) == len(list(lean.parameters())) + 3


def test_width_reaches_every_level() -> None:
    model = A2Net(width=10)
    assert {change.project[0].out_channels for change in model.change} == {10}
    assert len(model(*images())) == 4
