"""Vision Mamba: equal to the release; class tokens, pooling, directions, sizes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anban.errors import InputError
from anban.ssm.golden import ADAPTERS
from anban.ssm.vim import VIM, VimBlock, VisionMamba
from anban.testing import golden

COPIES = Path(__file__).parents[1] / "golden"
CASES = [
    case
    for case in golden.find_cases([Path(os.environ.get("ANBAN_GOLDEN", COPIES)) / "ssm"])
    if case.official in {("hustvl/Vim", "create_block / Block"), ("hustvl/Vim", "VisionMamba")}
]


def make(**options: Any) -> VisionMamba:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "stride": 8, "depth": 2, "embed_dim": 16, "num_classes": 5}
    return VisionMamba(**{**small, **options}).eval()


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 32, 32), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_outputs_equal_the_official_ones(case: golden.Case) -> None:
    result = golden.check(case, ADAPTERS)
    assert result.status == "ok", (result.why, *golden.each_output(result))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vim_tiny_patch16_224", 7_148_008),
        ("vim_tiny_patch16_stride8_224", 7_250_344),
        ("vim_small_patch16_224", 25_796_584),
        ("vim_small_patch16_stride8_224", 26_001_256),
        ("vim_base_patch16_224", 97_598_440),
    ],
)
def test_the_released_networks_have_the_official_numbers_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = VisionMamba(**VIM[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == count


# ---- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "tokens", "names"),
    [
        ("none", 16, []),
        ("head", 17, ["cls_token"]),
        ("middle", 17, ["cls_token"]),
        ("double", 18, ["cls_token_head", "cls_token_tail"]),
    ],
)
def test_class_tokens_stand_where_they_are_asked_to_and_are_what_is_read(
    place: Any, tokens: int, names: list[str]
) -> None:
    model = make(cls_token=place, depth=0, drop_path_rate=0.0, pos_embed=False)
    patches = model.patch_embed(image())
    whole = model._with_class_tokens(patches)
    assert whole.shape == (2, tokens, 16)
    assert [name for name in model.state_dict() if name.startswith("cls_token")] == names
    expected = {"none": [], "head": [0], "middle": [8], "double": [0, 17]}[place]
    kept = [t for t in range(tokens) if t not in expected]
    assert torch.equal(whole[:, kept], patches)
    for name, position in zip(names, expected, strict=True):
        assert torch.equal(whole[0, position], model.get_parameter(name)[0, 0])
    read = torch.stack([model.norm_f(whole[:, t]) for t in expected]).mean(0) if expected else None
    torch.testing.assert_close(
        model.forward_features(image()), model.norm_f(patches).mean(1) if read is None else read
    )


@pytest.mark.parametrize(
    ("pool", "features", "scores"),
    [
        ("last", (2, 16), (2, 5)),
        ("mean", (2, 16), (2, 5)),
        ("max", (2, 16, 16), (2, 5)),
        ("all", (2, 16, 16), (2, 16, 5)),
    ],
)
def test_pooling_without_a_class_token(pool: Any, features: tuple[int, ...], scores: tuple[int, ...]) -> None:
    model = make(cls_token="none", pool=pool)
    assert model.forward_features(image()).shape == features
    assert model(image()).shape == scores


def test_a_network_without_classes_returns_its_features() -> None:
    model = make(num_classes=0)
    assert torch.equal(model(image()), model.forward_features(image()))


# ---- directions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sees_all"),
    [({"bimamba_type": "none"}, False), ({}, True), ({"bimamba_type": "none", "pair_layers": True}, True)],
    ids=["forwards", "v2", "pairs of layers"],
)
def test_the_first_patch_sees_the_last_one_through_two_directions_only(
    options: dict[str, Any], sees_all: bool
) -> None:
    model, x = make(cls_token="none", pool="all", **options), image(1, 3, 32, 32).requires_grad_()
    seen = torch.autograd.grad(model(x)[0, 0].sum(), x)[0][..., -8:, -8:].abs().sum() > 0
    assert bool(seen) is sees_all


def test_a_flipped_sequence_is_read_from_its_end() -> None:
    options = {"cls_token": "none", "pool": "last", "pos_embed": False, "bimamba_type": "none"}
    ahead, back = make(**options), make(**options, flip_probability=1.0)
    x = image()
    # Of the turned image these weights make the same patches, in the reverse order.
    back.patch_embed.proj.weight.data = back.patch_embed.proj.weight.data.flip(-1, -2)
    torch.testing.assert_close(back(x.flip(-1, -2)), ahead(x))


def test_gradients_reach_every_parameter() -> None:
    model = make(cls_token="double", drop_path_rate=0.0)
    model(image()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# ---- blocks ---------------------------------------------------------------------------------------------------------


def test_a_block_keeps_its_residual_in_float32_on_demand() -> None:
    hidden, residual = torch.randn(2, 2, 5, 16).bfloat16()
    for wanted, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        out, kept = VimBlock(16, residual_in_fp32=wanted).bfloat16()(hidden, residual)
        assert (out.dtype, kept.dtype) == (torch.bfloat16, dtype)


def test_dropped_paths_leave_the_residual_as_it_was() -> None:
    torch.manual_seed(0)
    block = VimBlock(16, drop_path=0.5)
    hidden, residual = torch.ones(2, 64, 3, 16)
    _, kept = block(hidden, residual)
    # a sample is dropped as a whole, and what is kept is scaled up
    assert set(kept.flatten(1).unique(dim=1).flatten().tolist()) == {1.0, 3.0}
    _, all_kept = block.eval()(hidden, residual)
    assert torch.all(all_kept == 2.0)


def test_the_drop_rate_grows_from_block_to_block() -> None:
    rates = [getattr(layer.drop_path, "p", 0.0) for layer in make(depth=4, drop_path_rate=0.3).layers]
    assert rates == pytest.approx([0.0, 0.0, 0.1, 0.2])  # of the block before: its output is what is dropped


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_an_image_of_another_size_is_one_message() -> None:
    with pytest.raises(InputError, match="an image of 32x48"):
        make()(image(1, 3, 32, 48))


@pytest.mark.parametrize("option", ["cls_token", "pool", "rope"])
def test_unknown_options_are_one_message(option: str) -> None:
    with pytest.raises(InputError, match=f"no {option} is called 'somewhere'"):
        make(**{option: "somewhere"})


def test_a_rotary_embedding_that_does_not_fit_is_one_message() -> None:
    with pytest.raises(InputError, match="4 x 6 patches"):
        make(rope="hidden", img_size=(32, 48))
    with pytest.raises(InputError, match="18 tokens"):
        make(rope="hidden", cls_token="double")(image())
