"""AERNet's edge refinement and its global context: what they compute, and where the published ways differ."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anban.tasks.change.models.aernet import AERNet, _EdgeRefinement, _GlobalContext


def images(height: int = 64, width: int = 96) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return (
        torch.randn(1, 3, height, width, generator=draws),
        torch.randn(1, 3, height, width, generator=draws),
    )


@pytest.mark.parametrize("edge", ["soft", "hard"])
def test_only_the_soft_switch_teaches_where_edges_are(edge: str) -> None:
    model = AERNet(edge=edge).eval()  # type: ignore[arg-type]
    model(*images()).square().sum().backward()
    gradients = [p.grad is not None and bool(p.grad.any()) for p in model.edge_head.parameters()]
    assert gradients == [edge == "soft"] * len(gradients)


def test_the_hard_switch_gives_the_coarse_or_the_refined_logit() -> None:
    model = AERNet(edge="hard", side_outputs="always").eval()
    with torch.no_grad():
        refined, coarse = model(*images())[:2]
        model.edge_head[1].bias.fill_(-1e3)
        nowhere = model(*images())[0]
        model.edge_head[1].bias.fill_(1e3)
        everywhere = model(*images())[0]
    assert torch.equal(nowhere, coarse)
    assert not torch.allclose(everywhere, coarse)
    assert bool(((refined == coarse) | (refined == everywhere)).all())


def test_an_edge_takes_the_mean_of_the_neighbours_in_the_directions_weighed() -> None:
    refinement, logit = _EdgeRefinement(4), torch.arange(9.0).reshape(1, 1, 3, 3)
    refinement.reset_shifts()
    last = refinement.directions[1]
    with torch.no_grad():
        last.weight.zero_()
        for direction, neighbour in enumerate((3, 0, 1, 2, 5, 8, 7, 6)):
            last.bias.copy_(1e3 * F.one_hot(torch.tensor(direction), 8))
            refined = refinement(torch.zeros(1, 4, 3, 3), logit, torch.ones(1, 1, 3, 3))
            assert refined[0, 0, 1, 1] == neighbour


def test_the_release_draws_the_shifts_anew() -> None:
    assert torch.equal(AERNet().refine.neighbours.weight.unique(), torch.tensor([0.0, 1.0]))
    assert len(AERNet(redraw_shifts=True).refine.neighbours.weight.unique()) == 72


def test_every_pixel_of_a_window_hears_the_same_of_the_others() -> None:
    torch.manual_seed(0)
    context, x = _GlobalContext(16, unused_layers=False), 30 * torch.randn(1, 16, 11, 16)
    heard = context(x) - x
    for rows in (slice(0, 8), slice(8, 11)):
        for columns in (slice(0, 8), slice(8, 16)):
            window = heard[..., rows, columns]
            assert torch.allclose(window, window[..., :1, :1].expand_as(window), atol=1e-4)
    assert not torch.allclose(heard[..., 0, 0], heard[..., 10, 0], atol=1e-3)
