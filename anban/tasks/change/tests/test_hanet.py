"""HANet beyond the release's one size: its attention, its unused layers, other widths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anban.errors import InputError
from anban.official import load_official
from anban.tasks.change.models.hanet import HANet, _ChannelAttention, _RowAttention


def images(*shape: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=draws), torch.randn(shape, generator=draws)


def test_without_its_unused_layers_it_computes_the_same() -> None:
    whole = HANet(width=4, unused_layers=True).eval()
    lean = HANet(width=4).eval()
    load_official(lean, whole.state_dict())
    with torch.no_grad():
        assert torch.equal(whole(*images(1, 3, 24, 40)), lean(*images(1, 3, 24, 40)))
    spared = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in lean.parameters())
    assert spared == 9 * (4 * 4 + 8 * 8 + 16 * 8 + 32 * 8) + 4 + 8 + 8 + 8


def test_it_takes_other_bands_classes_and_widths_but_no_other_sides() -> None:
    model = HANet(in_channels=4, classes=1, width=6)
    assert model(*images(2, 4, 16, 24)).shape == (2, 1, 16, 24)
    with pytest.raises(InputError, match="20x24"):
        model(*images(2, 4, 20, 24))


def test_row_attention_reads_within_rows_alone() -> None:
    torch.manual_seed(0)
    attention = _RowAttention(4)
    torch.nn.init.ones_(attention.gamma)
    x, _ = images(1, 4, 5, 6)
    changed = x.clone()
    changed[..., 2, 3] += 1.0
    with torch.no_grad():
        difference = (attention(changed) - attention(x)).abs().amax(dim=(0, 1))
    assert (difference[2] > 1e-6).all()
    assert not difference[[0, 1, 3, 4]].any()


def test_a_channel_reads_the_channel_least_like_it() -> None:
    attention = _ChannelAttention()
    torch.nn.init.ones_(attention.gamma)
    pattern = 5.0 * torch.ones(4, 4)
    x = torch.stack((pattern, -pattern, 0.9 * pattern))[None]
    with torch.no_grad():
        read = attention(x) - x
    torch.testing.assert_close(read[0], torch.stack((-pattern, pattern, -pattern)))


def test_channel_attention_holds_in_half_precision() -> None:
    x = torch.full((1, 2, 256, 256), 2.0)  # 65536 products of 4: more than the largest half
    attention = _ChannelAttention()
    torch.nn.init.ones_(attention.gamma)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert torch.equal(attention(x.half()), 2 * x.half())
