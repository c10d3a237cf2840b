"""IFNet's options: one encoder or two, frozen or not, the attention of the deepest features, the unused layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anban.errors import InputError
from anban.official import load_official
from anban.tasks.change.models.ifnet import IFNet


def images() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 32, 48, generator=draws), torch.randn(2, 3, 32, 48, generator=draws)


def official_encoders(model: IFNet) -> dict[str, Tensor]:
    """The state of `model`, its encoder twice and under the release's names."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoders.")}
    for date in (1, 2):
        for name, tensor in model.encoders[0].state_dict().items():
            state[f"t{date}_base.features.{name}"] = tensor.clone()
    return state


def test_the_outputs_get_coarser() -> None:
    scores = IFNet()(*images())
    assert [tuple(score.shape[1:]) for score in scores] == [
        (1, 32, 48), (1, 16, 24), (1, 8, 12), (1, 4, 6), (1, 2, 3)
    ]  # fmt: skip


def test_two_equal_official_encoders_load_into_a_shared_one() -> None:
    one, two = IFNet().eval(), IFNet(shared_encoder=False).eval()
    load_official(one, official_encoders(one))
    load_official(two, official_encoders(one))
    with torch.no_grad():
        assert torch.equal(one(*images()), two(*images()))


def test_two_different_official_encoders_are_refused_by_a_shared_one() -> None:
    model = IFNet()
    state = official_encoders(model)
    state["t2_base.features.0.bias"] += 1
    with pytest.raises(InputError, match="different encoder for each date"):
        load_official(model, state)


def test_a_frozen_backbone_leaves_the_rest_to_train() -> None:
    frozen = {name for name, p in IFNet(freeze_backbone=True).named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in IFNet().named_parameters() if name.startswith("encoders.")}


def test_the_deepest_attention_is_the_one_the_release_keeps_unused() -> None:
    whole = IFNet(unused_layers=True, side_outputs="always").eval()
    lean = IFNet(side_outputs="always").eval()
    attentive = IFNet(deepest_attention=True, side_outputs="always").eval()
    load_official(lean, whole.state_dict())
    attention = {
        f"ca1.fc{layer}.weight": weight
        for layer, weight in enumerate(whole.unused["channel_attention"].parameters(), start=1)
    }
    load_official(attentive, {**lean.state_dict(), **attention})
    with torch.no_grad():
        scores = [model(*images())[-1] for model in (whole, lean, attentive)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.allclose(scores[1], scores[2])
