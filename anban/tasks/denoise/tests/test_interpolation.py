"""Networks between networks, and the scale of an image."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anban.errors import InputError
from anban.tasks.denoise.interpolation import interpolate
from anban.tasks.denoise.scale import Scale, to_hounsfield


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_between_two_networks() -> None:
    f, g = network(0).state_dict(), network(1).state_dict()
    f["1.num_batches_tracked"] += 7
    mixed = interpolate(f, g, 0.25)
    torch.testing.assert_close(mixed["0.weight"], g["0.weight"] + 0.25 * (f["0.weight"] - g["0.weight"]))
    assert mixed["1.num_batches_tracked"] == 7
    assert all(torch.equal(tensor, f[name]) for name, tensor in interpolate(f, g, 1).items())
    network(2).load_state_dict(mixed)


def test_different_networks_and_shares_are_refused() -> None:
    f = network(0).state_dict()
    with pytest.raises(InputError, match="different networks"):
        interpolate(f, {name: tensor for name, tensor in f.items() if name != "0.bias"}, 0.5)
    with pytest.raises(InputError, match=r"different networks: 0\.bias"):
        interpolate(f, f | {"0.bias": torch.zeros(3)}, 0.5)
    with pytest.raises(InputError, match=r"a share of 1\.5"):
        interpolate(f, f, 1.5)


def test_a_scale_and_back() -> None:
    noisy = 300 * torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0)) + 40
    scale = Scale.of(noisy)
    scaled = scale.apply(noisy)
    assert scaled.mean().item() == pytest.approx(0, abs=1e-5)
    assert scaled.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(scale.undo(scaled), noisy)
    assert Scale.of(noisy, by="variance").divisor == pytest.approx(scale.divisor**2)


def test_a_flat_image_has_no_scale() -> None:
    with pytest.raises(InputError, match="all 3 has no scale"):
        Scale.of(torch.full((1, 4, 4), 3.0))


def test_hounsfield_units_are_clipped_to_their_window() -> None:
    units = to_hounsfield(torch.tensor([-0.1, 0.0, 0.25, 1.0, 2.0]))
    assert units.tolist() == [-1024, -1024, 0, 3072, 3072]
