"""MambaBCD: its sizes, and how the dates stand next to each other in the decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anban.tasks.change.models.mambabcd import SIZES, MambaBCD
from anban.tasks.change.models.vss import Blocks

SMALL = {"depths": (1, 1), "dims": 8, "decoder_dim": 6, "blocks": Blocks(mlp_ratio=0.0)}


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("mini", 20_227_778), ("tiny", 32_613_506), ("small", 53_999_618), ("base", 92_399_874)],
)
def test_sizes_are_the_release_s(size: str, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in MambaBCD(**SIZES[size]).parameters()) == parameters


def test_every_block_of_a_level_sees_the_dates_in_an_arrangement_of_its_own() -> None:
    torch.manual_seed(0)
    model, seen = MambaBCD(**SMALL).eval(), dict[str, Tensor]()  # type: ignore[arg-type]
    finest = model.levels[-1]
    for name, block in finest.named_children():
        block.register_forward_pre_hook(lambda module, inputs, name=name: seen.update({name: inputs[0]}))
    pair = torch.randn(2, 1, 3, 16, 24)
    with torch.no_grad():
        model(*pair)
        a, b = (model.encoder(date)[0] for date in pair)
    assert a.shape == (1, 8, 4, 6)
    assert torch.equal(seen["parallel"], torch.cat((a, b), dim=1))
    assert torch.equal(seen["cross"][..., ::2], a)
    assert torch.equal(seen["cross"][..., 1::2], b)
    assert torch.equal(seen["sequential"], torch.cat((a, b), dim=3))
    with torch.no_grad():
        parallel, cross, sequential = (
            finest.get_submodule(name)(seen[name]) for name in ("parallel", "cross", "sequential")
        )
    views = [parallel, cross[..., ::2], cross[..., 1::2], sequential[..., :6], sequential[..., 6:]]
    torch.testing.assert_close(seen["fuse"], torch.cat(views, dim=1))


@pytest.mark.parametrize("size", [(31, 45), (32, 32), (9, 70)], ids=str)
def test_scores_are_of_the_images_size_whatever_it_is(size: tuple[int, int]) -> None:
    model = MambaBCD(**SMALL).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        assert model(*torch.randn(2, 1, 3, *size)).shape == (1, 2, *size)
