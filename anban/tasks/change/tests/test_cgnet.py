"""CGNet and HCGMNet: what their guiding map does, other sides, unused layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anban.official import load_official
from anban.tasks.change.models.cgnet import CGNet, HCGMNet, _ChangeGuide

NETWORKS = [CGNet, HCGMNet]


def images(height: int = 32, width: int = 48) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, height, width, generator=draws), torch.randn(
        1, 3, height, width, generator=draws
    )


def open_guides(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
    return model.eval()


@pytest.mark.parametrize("network", NETWORKS)
def test_the_final_map_comes_first_and_follows_the_guiding_one(network: Any) -> None:
    torch.manual_seed(0)
    model = open_guides(network(side_outputs="always"))
    with torch.no_grad():
        final, guiding = model(*images())
        model.guide_head[-1].bias += 2.0
        shifted_final, shifted_guiding = model(*images())
    torch.testing.assert_close(shifted_guiding, guiding + 2.0)
    assert not torch.equal(shifted_final, final)
    assert (shifted_final - final).abs().max() < 1.0


@pytest.mark.parametrize("network", NETWORKS)
def test_any_sides_are_taken(network: Any) -> None:
    with torch.no_grad():
        assert network().eval()(*images(37, 53)).shape == (1, 1, 37, 53)


def test_without_its_unused_layers_cgnet_computes_the_same() -> None:
    whole, lean = CGNet(unused_layers=True).eval(), CGNet().eval()
    load_official(lean, whole.state_dict())
    with torch.no_grad():
        assert torch.equal(whole(*images()), lean(*images()))
    spared = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in lean.parameters())
    assert spared == 9 * (512**2 + 512**2 + 256**2) + 2 * (512 + 512 + 256)


def test_only_the_deepest_features_are_taken_before_their_relu() -> None:
    model, seen = CGNet().eval(), list[Tensor]()
    for fuse in model.fuse:
        fuse.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(*images())
    assert [features.shape[1:] for features in seen] == [
        (256, 16, 24),
        (512, 8, 12),
        (1024, 4, 6),
        (1024, 2, 3),
    ]
    assert [bool((features < 0).any()) for features in seen] == [False, False, False, True]


def test_the_guide_weighs_changed_pixels_twice() -> None:
    torch.manual_seed(0)
    guide = _ChangeGuide(8)
    nn.init.ones_(guide.gamma)
    for projection in (guide.to_q, guide.to_k):
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    x = torch.randn(1, 8, 4, 4)
    value = guide.to_v(x).mean(dim=(2, 3), keepdim=True)
    for certainty, weight in ((-50.0, 1.0), (50.0, 2.0)):
        torch.testing.assert_close(guide(x, torch.full((1, 1, 2, 2), certainty)), x + weight * value)
