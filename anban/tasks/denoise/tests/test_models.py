"""The denoising networks: equal to the published ones, and every switch does what it says."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from anban.errors import InputError
from anban.official import key_map, load_official
from anban.recipe.schema import Choice, bind, construct, pick
from anban.tasks.denoise.golden import _GENERATORS, ADAPTERS, _generator
from anban.tasks.denoise.models import DISCRIMINATORS, MODELS
from anban.tasks.denoise.models.attention import (
    MDTA,
    CrossChannelAttention,
    CrossPositionAttention,
    PositionAttention,
    SelfAttentionBlock,
)
from anban.tasks.denoise.models.discriminator import PatchDiscriminator
from anban.tasks.denoise.models.fusion import FusionLayer
from anban.tasks.denoise.models.layers import ChannelAttention, DoubleConv
from anban.tasks.denoise.models.redcnn import REDCNN, SelectiveKernel
from anban.tasks.denoise.models.settings import Attention, Fusion, Levels
from anban.tasks.denoise.models.twin import PRESETS, Separated, Twin
from anban.tasks.denoise.models.unet import UNet
from anban.testing import golden

COPIES = Path(__file__).parents[4] / "tests" / "golden"
CASES = golden.find_cases([Path(os.environ.get("ANBAN_GOLDEN", COPIES)) / "denoising"])
NETWORKS = [
    case
    for case in CASES
    if isinstance(ADAPTERS[case.official], golden.Network) or case.official[1] in _GENERATORS
]
BUFFER = re.compile(r"\.(running_mean|running_var|num_batches_tracked)$")

ATTENTIVE = {"decoder": [1], "layers": 1}
EVERYWHERE = {"encoder": [1, 2, 3, 4, 5], "decoder": [4, 3, 2, 1]}
VARIANTS: dict[str, dict[str, Any]] = {
    "cncl-unet": {},
    "cncl": {"levels": {"bias": True, "deepest": "wide", "head": "linear"}, "init": "normal"},
    "layer norm": {"levels": {"norm": "ln"}},
    "no norm": {"levels": {"norm": "none", "activation": "gelu"}},
    "gate": {"levels": {"activation": "gate"}},
    "last gelu": {"levels": {"activation": "last-gelu"}},
    "channel attention": {"levels": {"channel_attention": "squeeze-excitation"}},
    "simple channel attention": {"levels": {"channel_attention": "simple", "upsampling": "transposed"}},
    "content attends": {
        "self_attention": {"encoder": [5]},
        "self_attention_in": "content",
        "attention": {"over": "positions"},
    },
    "restormer blocks everywhere": {"self_attention": EVERYWHERE, "attention": {"expansion": 2.66}},
    "cross early": {"cross_attention": ATTENTIVE},
    "cross throughout": {"cross_attention": EVERYWHERE},
    "cross over positions": {"cross_attention": {"encoder": [5]}, "attention": {"over": "positions"}},
    "own values": {"cross_attention": ATTENTIVE, "attention": {"values": "own"}},
    "bare attention": {
        "self_attention": ATTENTIVE,
        "cross_attention": ATTENTIVE,
        "attention": {"norm": False, "skip": False},
    },
    "fusion 3x3": {"fusion": {"kernel": 3}},
    "fusion of features": {"fusion": {"of": "features", "kernel": 3}},
    "fusion by cross-attention": {"fusion": {"method": "cross-attention"}},
    "fusion of features by cross-attention": {"fusion": {"method": "cross-attention", "of": "features"}},
    "fusion by restormer": {"fusion": {"method": "restormer", "layers": 2}},
    "fusion of features by restormer": {"fusion": {"method": "restormer", "of": "features"}},
    "red-cnn for noise": {"noise_network": "red-cnn"},
    "final relu": {"final_activation": "relu"},
}


def make(name: str, options: Mapping[str, Any], *, width: int = 8) -> nn.Module:
    """A small network of the table from the options of a recipe."""
    section = {"name": name, **options}
    if name != "red-cnn":
        section["levels"] = {"width": width, **section.get("levels", {})}
    arguments = bind({"model": Choice(MODELS)}, {"model": section})[0]["model"]
    torch.manual_seed(0)
    return cast(nn.Module, construct(pick(MODELS, arguments.pop("name"), "model"), arguments))


def twin(**options: Any) -> Twin:
    return cast(Twin, make("twin", options))


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- equal to the published implementations ----------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_outputs_equal_the_official_ones(case: golden.Case) -> None:
    result = golden.check(case, ADAPTERS)
    assert result.status == "ok", (result.why, *golden.each_output(result))


@pytest.mark.parametrize("case", NETWORKS, ids=[case.name for case in NETWORKS])
def test_every_official_parameter_is_met_or_named_as_unused(case: golden.Case) -> None:
    official = {name: torch.empty(shape, device="meta") for name, shape in case.data["state_dict"]}
    adapter = ADAPTERS[case.official]
    with torch.device("meta"):
        model = (
            adapter.model(case)
            if isinstance(adapter, golden.Network)
            else _generator(case.official[1], case.arguments(), list(official))
        )
    lines = key_map(model, official)
    assert {line.official for line in lines} == official.keys()
    assert {line.ours for line in lines} - {None} == model.state_dict().keys()
    dropped = [str(line.official) for line in lines if line.how == "dropped"]
    assert all(name.startswith("upbn1_") or "_encoder.outc." in name for name in dropped)
    unused = sum(official[name].numel() for name in dropped if not BUFFER.search(name))
    assert sum(p.numel() for p in model.parameters()) + unused == case.data["params"]


def test_presets_have_the_published_sizes() -> None:
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in Twin(**options).parameters()) for name, options in PRESETS.items()
        }
    # Less what the releases do not use: 384 in norms of CNCL's last level, 130 in the two heads of CNCL_attn.
    assert sizes == {
        "cncl": 43825413 - 384,
        "cncl-unet": 34523653,
        "cncl-attn-2022-12-16": 34596243 - 130,
        "cncl-attn-2022-12-22": 34596755 - 130,
        "cncl-attn": 34560011 - 130,
        "cncl-full-attn": 35274261,
    }


def test_weights_of_our_own_names_load_unchanged() -> None:
    model = twin(self_attention=ATTENTIVE, cross_attention=ATTENTIVE)
    other = twin(self_attention=ATTENTIVE, cross_attention=ATTENTIVE)
    nn.init.ones_(other.fusion.predict.weight)
    load_official(other, model.state_dict())
    assert torch.equal(other.fusion.predict.weight, model.fusion.predict.weight)


# ---- the tables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [*MODELS.values(), *DISCRIMINATORS.values()])
def test_constructor_arguments_are_typed_and_defaulted(address: str) -> None:
    for argument in inspect.signature(pick({"it": address}, "it", "model")).parameters.values():
        assert argument.default is not inspect.Parameter.empty, argument
        assert argument.annotation is not inspect.Parameter.empty, argument


@pytest.mark.parametrize("name", ["unet", "red-cnn"])
def test_single_networks_keep_odd_sizes_and_learn(name: str) -> None:
    model = make(name, {"width": 4} if name == "red-cnn" else {})
    restored = model(drawn(2, 1, 35, 22))
    assert restored.shape == (2, 1, 35, 22)
    restored.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_twin_gives_three_images_and_learns(options: dict[str, Any]) -> None:
    model = twin(**options)
    separated = model(drawn(2, 1, 32, 35))
    assert isinstance(separated, Separated)
    assert [tuple(image.shape) for image in separated] == [(2, 1, 32, 35)] * 3
    torch.stack([image.square().mean() for image in separated]).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(
    ("model", "side"), [(UNet(levels=Levels(4)), 15), (REDCNN(width=2), 20), (PatchDiscriminator(1, 2), 31)]
)
def test_images_that_are_too_small_are_refused(model: nn.Module, side: int) -> None:
    with pytest.raises(InputError, match=f"images of {side}x48"):
        model(drawn(1, 1, side, 48))
    assert model(drawn(1, 1, side + 1, 48)).isfinite().all()


# ---- the twin's branches -----------------------------------------------------------------------------------


def reaches(model: Twin, output: Tensor, branch: str) -> bool:
    """Whether an output depends on the weights of a branch."""
    first = cast(Tensor, model.get_parameter(f"{branch}.encoder.0.conv.conv1.weight"))
    (gradient,) = torch.autograd.grad(output.sum(), [first], retain_graph=True, allow_unused=True)
    return gradient is not None and bool(gradient.abs().max() > 0)


def test_branches_are_independent_until_they_attend_to_each_other() -> None:
    image = drawn(1, 1, 32, 32)
    for options, joined in (({}, False), ({"cross_attention": ATTENTIVE}, True)):
        model = twin(**options)
        separated = model(image)
        assert reaches(model, separated.content, "noise") == joined
        assert reaches(model, separated.noise, "content") == joined
        assert reaches(model, separated.image, "noise")
        assert reaches(model, separated.image, "content")


def test_the_published_values_stay_in_their_branch() -> None:
    attention = CrossChannelAttention(8, heads=2, values="own")
    other = CrossChannelAttention(8, heads=2)
    other.load_state_dict(attention.state_dict())
    a, b = drawn(1, 8, 5, 6), drawn(1, 8, 5, 6, seed=2)
    for layer in (attention, other):
        nn.init.zeros_(layer.b.qkv.weight[16:].detach())  # b has no values
    assert attention(a, b)[0].abs().max() > 0
    assert attention(a, b)[1].abs().max() == 0
    assert other(a, b)[0].abs().max() == 0
    assert other(a, b)[1].abs().max() > 0


def test_self_attention_of_one_branch_is_in_that_branch_only() -> None:
    model = twin(self_attention={"encoder": [2], "decoder": [3], "layers": 2}, self_attention_in="content")
    blocks = [name for name, part in model.named_modules() if isinstance(part, SelfAttentionBlock)]
    assert blocks == [
        f"content.{place}.self_attention.{i}" for place in ("encoder.1", "decoder.1") for i in (0, 1)
    ]


def test_attention_of_its_own_is_not_asked_from_red_cnn() -> None:
    for options in ({"cross_attention": ATTENTIVE}, {"fusion": {"of": "features"}}):
        with pytest.raises(InputError, match="RED-CNN has no levels"):
            twin(noise_network="red-cnn", **options)


def test_the_final_activation_is_that_of_the_fused_image() -> None:
    image = drawn(1, 1, 32, 32)
    free, positive = twin()(image), twin(final_activation="relu")(image)
    assert free.image.min() < 0
    assert torch.equal(positive.image, free.image.relu())
    assert torch.equal(positive.noise, free.noise)


def test_noise_has_both_signs_whatever_predicts_it() -> None:
    noise = twin(noise_network="red-cnn")(drawn(1, 1, 32, 32)).noise
    assert noise.min() < 0 < noise.max()


# ---- its parts ---------------------------------------------------------------------------------------------


def test_attention_over_one_channel_per_head_has_nothing_to_choose() -> None:
    attention, x = MDTA(6, heads=6), drawn(2, 6, 5, 7)
    values = attention.heads.local(attention.heads.qkv(x))[:, 12:]
    torch.testing.assert_close(attention(x), attention.heads.out(values))


def test_heads_must_divide_the_channels() -> None:
    for make_attention in (lambda: MDTA(6, heads=4), lambda: PositionAttention(6, heads=4)):
        with pytest.raises(InputError, match="6 channels cannot be shared by 4 heads"):
            make_attention()


def test_attention_over_positions_is_torchs() -> None:
    ours, theirs = PositionAttention(8, heads=2), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in (ours.q, ours.k, ours.v)]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in (ours.q, ours.k, ours.v)]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    tokens = drawn(2, 5, 8)
    torch.testing.assert_close(ours(tokens), theirs(tokens, tokens, tokens)[0])


def test_cross_attention_over_positions_does_not_care_for_their_order() -> None:
    attention = CrossPositionAttention(8, heads=2, head_width=4).eval()
    a, b = drawn(1, 5, 8), drawn(1, 6, 8, seed=2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    (a1, b1), (a2, b2) = attention(a, b), attention(a, b[:, order])
    torch.testing.assert_close(a1, a2)
    torch.testing.assert_close(b1[:, order], b2)


def test_skip_and_norm_of_an_attention_block() -> None:
    x = 5 + drawn(1, 8, 6, 6)
    kept = SelfAttentionBlock(8, Attention(expansion=2.0))
    bare = SelfAttentionBlock(8, Attention(norm=False, skip=False))
    for block in (kept, bare):
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
    assert torch.equal(kept(x), x)
    assert bare(x).abs().max() == 0
    # With the norm, the scale of the input has no part in what attention adds.
    block = SelfAttentionBlock(8, Attention())
    torch.testing.assert_close(block(100 * x) - 100 * x, block(x) - x, atol=1e-4, rtol=1e-3)


def test_a_1x1_fusion_is_a_3x3_one_with_an_empty_rim() -> None:
    one, three = (FusionLayer(1, 8, Fusion(kernel=kernel), Attention()) for kernel in (1, 3))
    with torch.no_grad():
        three.predict.weight.zero_()
        three.predict.weight[:, :, 1, 1] = one.predict.weight[:, :, 0, 0]
        three.predict.bias.copy_(one.predict.bias)  # type: ignore[union-attr, arg-type]
    pair = drawn(1, 1, 6, 7), drawn(1, 1, 6, 7, seed=2)
    torch.testing.assert_close(one(*pair), three(*pair))


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_fusion_may_begin_as_the_mean(kernel: Any) -> None:
    model = twin(channels=2, fusion={"init": "mean", "kernel": kernel})
    image = drawn(1, 2, 32, 32)
    made = model(image)
    torch.testing.assert_close(made.image, (made.content + image - made.noise) / 2)


@pytest.mark.parametrize("other", [{"method": "restormer"}, {"of": "features"}])
def test_only_a_convolution_of_maps_begins_as_the_mean(other: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Only a convolution of the two maps"):
        twin(fusion={"init": "mean", **other})


def test_fusion_of_features_needs_them() -> None:
    with pytest.raises(ValueError, match="features of both branches"):
        FusionLayer(1, 8, Fusion(of="features"), Attention())(drawn(1, 1, 4, 4), drawn(1, 1, 4, 4))


def test_activations_behind_the_first_and_the_second_convolution() -> None:
    def kinds(activation: Any) -> list[str]:
        block = DoubleConv(4, 4, Levels(activation=activation))
        return [type(block.act1).__name__, type(block.act2).__name__]

    assert kinds("gate") == ["SimpleGate", "SimpleGate"]
    assert kinds("gelu") == ["GELU", "GELU"]
    assert kinds("last-gelu") == ["Identity", "GELU"]
    assert kinds("none") == ["Identity", "Identity"]


def test_channel_attention_weighs_whole_channels() -> None:
    x = drawn(1, 6, 4, 5)
    for simple, bounded in ((False, True), (True, False)):
        weights = (ChannelAttention(6, simple=simple)(x) / x).flatten(2)
        torch.testing.assert_close(weights, weights[..., :1].expand_as(weights), rtol=1e-4, atol=1e-4)
        assert bool((weights > 0).all() and (weights < 1).all()) == bounded


def test_selective_kernels_share_out_one_and_the_published_ones_a_third_of_it() -> None:
    """With three convolutions that give the same, what is left is the sum of the weights."""
    for selection, expected in (("kernels", torch.ones(4)), ("published", None)):
        torch.manual_seed(0)
        layer = SelectiveKernel(4, 3, selection)  # type: ignore[arg-type]
        for conv in layer.convs:
            nn.init.zeros_(conv.weight)  # type: ignore[arg-type]
            nn.init.ones_(conv.bias)  # type: ignore[arg-type]
        weights = layer(drawn(1, 4, 6, 6))[0, :, 0, 0]
        if expected is None:
            torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
        else:
            torch.testing.assert_close(weights, expected)


def test_red_cnn_gives_no_negative_values_unless_asked() -> None:
    image = drawn(1, 1, 24, 24)
    assert REDCNN(width=4)(image).min() == 0
    assert REDCNN(width=4, final_activation="none")(image).min() < 0


def test_the_critic_scores_patches_of_16_pixels() -> None:
    critic = PatchDiscriminator(width=4)
    assert critic(drawn(2, 1, 64, 80), drawn(2, 1, 64, 80), drawn(2, 1, 64, 80)).shape == (2, 1, 4, 5)


def test_initialisations() -> None:
    normal = UNet(levels=Levels(16, bias=True), init="normal")
    convs = [layer for layer in normal.modules() if isinstance(layer, nn.Conv2d)]
    weights = torch.cat([conv.weight.flatten() for conv in convs])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert all(conv.bias is not None and not conv.bias.any() for conv in convs)
    xavier = UNet(levels=Levels(16)).decoder[0].conv.conv1.weight
    fan = (xavier.shape[0] + xavier.shape[1]) * 9
    assert xavier.abs().max().item() == pytest.approx((6 / fan) ** 0.5, rel=0.01)
