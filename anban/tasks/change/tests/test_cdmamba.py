"""CDMamba: its options, and the shape in which local branches see the pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from anban.errors import InputError
from anban.official import load_official
from anban.tasks.change.models.cdmamba import CDMamba, LocalBranch

SMALL: dict[str, Any] = {"width": 4, "depths": (1, 1, 1), "decoder_depths": (1, 1), "norm_groups": 2}


def make(**options: Any) -> CDMamba:
    torch.manual_seed(0)
    return CDMamba(**{**SMALL, **options}).eval()


def pair(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randn(2, 1, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_a_square_local_image_is_the_actual_one_of_square_images_only() -> None:
    actual, square = make(), make(local_image="square")
    with torch.no_grad():
        assert torch.equal(actual(*pair(16, 16)), square(*pair(16, 16)))
        assert not torch.allclose(actual(*pair(8, 32)), square(*pair(8, 32)), atol=1e-3)
        assert actual(*pair(16, 24)).shape == (1, 2, 16, 24)
        with pytest.raises(InputError, match="no square"):
            square(*pair(16, 24))


def test_a_local_branch_sees_neighbours_below() -> None:
    branch, tokens = LocalBranch(4, 8, "dense").eval(), torch.zeros(1, 24, 4)
    tokens[0, 9] = 1  # row 1, column 3 of 4 x 6 pixels
    with torch.no_grad():
        changed = branch(tokens, (4, 6)) != branch(torch.zeros(1, 24, 4), (4, 6))
    rows, columns = changed.any(2).view(4, 6).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 3, 1, 5)  # two pixels each way


@pytest.mark.parametrize("options", [{}, {"guided_levels": 0}, {"guide_residual": True}], ids=str)
def test_without_unused_layers_it_computes_the_same_with_every_parameter_in_use(
    options: dict[str, Any],
) -> None:
    whole, lean = make(unused_layers=True, **options), make(**options)
    load_official(lean, whole.state_dict())
    scores = lean(*pair(8, 12))
    assert torch.equal(scores, whole(*pair(8, 12)))
    scores.square().sum().backward()
    assert all(parameter.grad is not None for parameter in lean.parameters())
    assert len(whole.fusion) == 4
    assert len(lean.fusion) == options.get("guided_levels", 2)


def test_guidance_makes_what_one_date_shows_depend_on_the_other() -> None:
    model = make(guided_levels=1)
    fusion, (a, b) = model.fusion[0], torch.randn(2, 1, 4, 6, 6)
    with torch.no_grad():
        guided, by_another = fusion(a, b)[0], fusion(a, b.flip(3))[0]
        assert not torch.allclose(guided, by_another)
        assert torch.equal(guided, fusion(a, b)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"upsample": "deconv", "norm": "batch", "act": "gelu", "classes": 1},
        {"norm": "instance", "norm_affine": False, "local": "separable-wide", "in_channels": 5},
        {"depths": (1, 2), "decoder_depths": (2,), "local": "dense-1.5", "dropout": 0.5, "guided_levels": 1},
    ],
    ids=str,
)
def test_other_widths_norms_and_depths_fit_together(options: dict[str, Any]) -> None:
    model, images = make(**options).train(), pair(8, 16, options.get("in_channels", 3))
    assert model(*images).shape == (1, options.get("classes", 2), 8, 16)


def test_depths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="3 levels in the encoder, 3 in the decoder"):
        make(decoder_depths=(1, 1, 1))
    with pytest.raises(InputError, match="4 guided"):
        make(guided_levels=4)
    with pytest.raises(InputError, match="multiples of 4"):
        make()(*pair(8, 10))
