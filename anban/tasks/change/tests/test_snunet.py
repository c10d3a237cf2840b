"""SNUNet's two heads, and what its grid reads of the two dates."""

from __future__ import annotations

import torch
from torch import Tensor

from anban.tasks.change.models.snunet import SNUNet


def images(channels: int = 3) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, 32, 48, generator=draws), torch.randn(
        2, channels, 32, 48, generator=draws
    )


def test_the_fused_scores_come_first_and_follow_from_the_side_outputs() -> None:
    model = SNUNet(width=4, head="sides")
    fused, *sides = model(*images())
    assert len(sides) == 4
    assert torch.equal(fused, model.head.classifier(torch.cat(sides, dim=1)))


def test_side_outputs_in_evaluation_are_asked_for() -> None:
    model = SNUNet(width=4, head="sides").eval()
    always = SNUNet(width=4, head="sides", side_outputs="always").eval()
    always.load_state_dict(model.state_dict())
    main, scores = model(*images()), always(*images())
    assert len(scores) == 5
    assert torch.equal(scores[0], main)


def test_the_deepest_level_reads_the_later_date_alone() -> None:
    model, seen = SNUNet(width=4).eval(), list[Tensor]()
    model.nodes["4_0"].register_forward_hook(lambda module, inputs, output: seen.append(output))
    a, b = images()
    model(a, b)
    model(torch.zeros_like(a), b)
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


def test_it_takes_other_bands_classes_and_widths() -> None:
    model = SNUNet(in_channels=4, classes=1, width=8)
    scores = model(*images(4))
    assert scores.shape == (2, 1, 32, 48)
    assert model.nodes["4_0"].conv1.out_channels == 128
