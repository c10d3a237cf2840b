"""ChangeFormer's side outputs, and the three ways in which its encoder drops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anban.errors import InputError
from anban.tasks.change.models.changeformer import ChangeFormer

KEEP_ALL = {"dropout": 0.0, "attention_dropout": 0.0, "drop_path": 0.0}


def images(*shape: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=draws), torch.randn(shape, generator=draws)


def test_side_outputs_go_from_fine_to_coarse_and_the_main_one_does_not_need_them() -> None:
    model = ChangeFormer(in_channels=4, classes=1, width=8, side_outputs="always").eval()
    alone = ChangeFormer(in_channels=4, classes=1, width=8).eval()
    alone.load_state_dict(model.state_dict())
    pair = images(1, 4, 32, 64)
    with torch.no_grad():
        scores = model(*pair)
        assert torch.equal(scores[0], alone(*pair))
    sides = [(32, 64), (8, 16), (4, 8), (2, 4), (1, 2)]
    assert [each.shape for each in scores] == [(1, 1, *side) for side in sides]


def test_probabilities_are_the_sigmoid_of_every_output() -> None:
    model = ChangeFormer(width=8, side_outputs="always").eval()
    other = ChangeFormer(width=8, side_outputs="always", output="probability").eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        pairs = zip(model(*images(1, 3, 32, 32)), other(*images(1, 3, 32, 32)), strict=True)
    assert all(torch.equal(logits.sigmoid(), probability) for logits, probability in pairs)


@pytest.mark.parametrize("kind", [None, *KEEP_ALL])
def test_the_encoder_drops_in_training_what_it_is_told_to(kind: str | None) -> None:
    torch.manual_seed(0)
    model = ChangeFormer(width=8, **(KEEP_ALL | ({kind: 0.5} if kind else {})))
    image, _ = images(4, 3, 64, 64)
    with torch.no_grad():
        trained, evaluated = (model.train(training)._features(image)[-1] for training in (True, False))
    assert torch.allclose(trained, evaluated, atol=1e-5) == (kind is None)


def test_deeper_blocks_are_skipped_more_often() -> None:
    shares = [
        block.drop_path.p for stage in ChangeFormer(width=8, drop_path=0.3).encoder for block in stage.blocks
    ]
    assert shares == pytest.approx([0.3 * block / 12 for block in range(13)])


def test_other_sides_are_refused() -> None:
    with pytest.raises(InputError, match="48x64"):
        ChangeFormer(width=8)(*images(1, 3, 48, 64))
