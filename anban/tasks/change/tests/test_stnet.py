"""STNet: every switch builds, trains and does something; its parts compute what they say; its versions are pinned."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor, nn

import anban
from anban.errors import InputError
from anban.tasks.change.models.stnet import settings, versions
from anban.tasks.change.models.stnet.encoder import CSSM, DifferenceBlock
from anban.tasks.change.models.stnet.enhancement import EDSS, FirstOrder, Gaussian, SecondOrder
from anban.tasks.change.models.stnet.fusion import AttentionalFusion
from anban.tasks.change.models.stnet.layers import Style
from anban.tasks.change.models.stnet.settings import AFF, VSS, Enhancement

GOLDEN = Path(__file__).parents[4] / "tests" / "golden" / "stnet" / "versions.json"
GROUPS = {
    "vss": settings.VSS,
    "encoder": settings.Encoder,
    "decoder": settings.Decoder,
    "enhancement": settings.Enhancement,
    "aff": settings.AFF,
    "classifier": settings.Classifier,
}
OTHER_VALUES: dict[str, list[Any]] = {
    "vss.forward_type": ["v051d_noz", "v052d_noz", "v0"],
    "vss.d_state": [4],
    "vss.ssm_ratio": [2.0],
    "vss.mlp_ratio": [2.0],
    "decoder.trunk": [[], ["channel"], ["spatial"], ["spatial", "channel"]],
    "enhancement.levels": [0, 1, 2, 4],
    "enhancement.first_order": [[], ["pair"], ["difference"], ["fused"]],
    "enhancement.second_order": [[], ["pair"], ["difference"], ["fused"]],
    "enhancement.width": [1, 5],
    "enhancement.light_levels": [0, 3],
    "encoder.low_levels": [],  # of no effect without sharing: "low"
    "vss.drop_path": [],  # of no effect in evaluation
    "aff.reduction": [2],
}
STYLE = Style("bn", "where-no-bn", "quarter", VSS())


def small(**options: Any) -> nn.Module:
    return anban.create_model("change/stnet", **{"dims": 8, "depths": [1, 1, 2, 1], **options})


def switches() -> Iterator[Any]:
    """One set of options per value of each switch that is not the default."""
    for group, kind in GROUPS.items():
        for field in dataclasses.fields(kind):
            name, hint = f"{group}.{field.name}", get_type_hints(kind)[field.name]
            default = getattr(kind(), field.name)
            values = OTHER_VALUES.get(name)
            if values is None:
                values = list(get_args(hint)) if get_origin(hint) is Literal else [True, False]
            for value in values:
                if value != default:
                    yield pytest.param({group: {field.name: value}}, id=f"{name}={value}")
    for name, value in (
        ("norm", "ln"),
        ("bias", "always"),
        ("reduction", "direct"),
        ("classes", 1),
        ("in_chans", 4),
    ):
        yield pytest.param({name: value}, id=f"{name}={value}")
    both = {"decoder": {"skip": "none"}, "enhancement": {"second_order": ["fused"]}}
    yield pytest.param(both, id="the branch fuses the dates itself")
    bare = {"first_order": [], "second_order": [], "with_difference": False}
    yield pytest.param({"enhancement": bare}, id="the small scan alone")
    yield pytest.param({"enhancement": {"operator": "dog", "gaussian_bias": True}}, id="dog with a bias")


@cache
def by_default() -> tuple[set[str], Tensor]:
    model = versions.filled(small())
    return set(model.state_dict()), versions.scores_of(model)


@pytest.mark.parametrize("options", list(switches()))
def test_a_switch_trains_and_does_something(options: dict[str, Any]) -> None:
    model = small(**options)
    pair = torch.randn(2, 2, options.get("in_chans", 3), 64, 64, generator=torch.Generator().manual_seed(0))
    outputs = model(*pair)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    torch.stack([scores.square().mean() for scores in outputs]).sum().backward()
    assert outputs[0].shape == (2, options.get("classes", 2), 64, 64)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    names, scores = by_default()
    if set(model.state_dict()) == names:
        state = model.state_dict()
        if all(state[name].shape == t.shape for name, t in small().state_dict().items()):
            assert not torch.allclose(versions.scores_of(versions.filled(model)), scores, atol=1e-9)


def test_the_defaults_are_version_16() -> None:
    defaults = anban.create_model("change/stnet", dims=8).state_dict()
    v16 = versions.network({**anban_recipe("v16"), "dims": 8}).state_dict()
    assert {n: t.shape for n, t in defaults.items()} == {n: t.shape for n, t in v16.items()}


def anban_recipe(version: str) -> dict[str, Any]:
    from anban.recipe import load_recipe

    model: dict[str, Any] = load_recipe(f"change/{version}").config["model"]
    return model


def test_the_names_of_kernels_mean_one_function() -> None:
    for name in ("v3noz", "v2_noz", "v01_noz"):
        scores = versions.scores_of(versions.filled(small(vss={"forward_type": name})))
        assert torch.allclose(scores, by_default()[1], atol=1e-9)


# ---- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", versions.VERSIONS)
def test_a_version_is_what_it_was(version: str) -> None:
    known, found = json.loads(GOLDEN.read_text())[version], versions.measure(version)
    assert found["model"] == known["model"]
    assert (found["parameters"], found["macs_256"]) == (known["parameters"], known["macs_256"])
    assert found["scores"] == pytest.approx(known["scores"], rel=1e-6, abs=1e-7)
    assert max(map(abs, found["scores"])) > 1e-3


def test_versions_differ() -> None:
    cases = json.loads(GOLDEN.read_text())
    assert len({json.dumps(case["model"], sort_keys=True) for case in cases.values()}) == len(
        versions.VERSIONS
    )


def test_version_1_is_as_large_as_the_note_says() -> None:
    assert json.loads(GOLDEN.read_text())["v1"]["parameters"] / 1e6 == pytest.approx(37, abs=1)


def test_the_lite_model_has_fewer_than_five_million_parameters() -> None:
    with torch.device("meta"):
        model = versions.network(anban_recipe("levir-stnet-lite"))
    assert versions.cost(model, 256)[0] < 5e6


# ---- separation and integration --------------------------------------------------------------------------------------


def reach(encoder: dict[str, Any]) -> float:
    """How much date a's deepest features feel of date b."""
    model = versions.filled(small(encoder=encoder))
    a, b = torch.randn(2, 1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b.requires_grad_()
    *_, (deepest, _, _) = model.encoder(a, b)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(deepest.sum(), b, allow_unused=True)
    return 0.0 if gradient is None else gradient.abs().max().item()


@pytest.mark.parametrize("sharing", ["none", "low", "all"])
@pytest.mark.parametrize("branch", ["vss", "cnn"])
def test_without_integration_a_date_does_not_see_the_other(sharing: str, branch: str) -> None:
    assert reach({"sharing": sharing, "branch": branch, "integration": "none"}) == 0


@pytest.mark.parametrize("integration", ["cssm", "cama"])
def test_with_integration_it_does(integration: str) -> None:
    assert reach({"integration": integration}) > 0


@pytest.mark.parametrize(
    ("sharing", "ways"), [("none", [2, 2, 2, 2]), ("low", [1, 1, 2, 2]), ("all", [1, 1, 1, 1])]
)
def test_sharing_is_per_level(sharing: str, ways: list[int]) -> None:
    model = small(encoder={"sharing": sharing})
    assert [len(level.ways) for level in model.encoder.levels] == ways  # type: ignore[union-attr]


def test_a_shared_encoder_treats_both_dates_alike() -> None:
    model = versions.filled(small(encoder={"sharing": "all", "integration": "none"}))
    a, b = torch.randn(2, 1, 3, 64, 64, dtype=torch.float64)
    for there, back in zip(model.encoder(a, b), model.encoder(b, a), strict=True):  # type: ignore[operator]
        assert torch.allclose(there[0], back[1])
        assert there[2] is not None
        assert torch.allclose(there[2], back[2])


def test_each_scan_passes_through_both_dates() -> None:
    """By the scan alone, without the merging: a pixel of date b reaches date a's other rows, and back."""
    cssm = versions.filled(CSSM(8, STYLE, "none", "none"))
    a, b = torch.randn(2, 1, 8, 5, 6, dtype=torch.float64).requires_grad_()
    for features, other in zip(cssm(a, b), (b, a), strict=True):
        (gradient,) = torch.autograd.grad(features[0, :, 2, 3].sum(), other, retain_graph=True)
        assert (gradient[0].abs().amax(0) > 0).all()


def test_the_difference_does_not_ask_which_date_is_first() -> None:
    block = versions.filled(DifferenceBlock(8, STYLE, "depth-wise", "ln", 2))
    a, b = torch.randn(2, 1, 8, 5, 6, dtype=torch.float64)
    assert torch.equal(block(a, b), block(b, a))


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, [True] * 4),
        ({"encoder": {"difference": "none"}}, [False] * 4),
        ({"decoder": {"skip": "none", "head": "difference"}}, [True, True, True, False]),
        ({"decoder": {"skip": "none"}, "enhancement": {"levels": 0}}, [False, False, False, True]),
    ],
)
def test_a_difference_that_nobody_looks_at_is_not_made(options: dict[str, Any], made: list[bool]) -> None:
    levels = small(**options).encoder.levels  # type: ignore[union-attr]
    assert [level.difference is not None for level in levels] == made


def test_differences_cannot_be_fused_without_any() -> None:
    with pytest.raises(InputError, match="takes none"):
        small(encoder={"difference": "none"}, decoder={"difference_fusion": True})


# ---- enhancement -----------------------------------------------------------------------------------------------------


def field(function: Any) -> Tensor:
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    result: Tensor = function(y, x)[None, None]
    return result


def test_the_first_order_operator_is_a_slope() -> None:
    across, down = FirstOrder()(field(lambda y, x: 3 * x - 2 * y))[0, :, 2:-2, 2:-2]
    assert torch.allclose(across, torch.tensor(3.0), atol=1e-5)
    assert torch.allclose(down, torch.tensor(-2.0), atol=1e-5)


def test_the_second_order_operators_are_curvatures() -> None:
    bowl = field(lambda y, x: 0.5 * (x - 6) ** 2)
    laplacian, dog = (
        SecondOrder(kind, 1, bias=False)(bowl)[0, 0, 4:-4, 4:-4] for kind in ("laplacian", "dog")
    )
    assert torch.allclose(laplacian, torch.tensor(1.0), atol=1e-4)
    assert (dog > 0.2).all()
    ramp = field(lambda y, x: x + y)
    for kind in ("laplacian", "dog"):
        assert SecondOrder(kind, 1, bias=False)(ramp)[0, 0, 4:-4, 4:-4].abs().max() < 1e-4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "operator", [FirstOrder(), SecondOrder("laplacian", 1, False), SecondOrder("dog", 1, False)]
)
def test_a_flat_picture_has_no_derivative_up_to_its_border(operator: nn.Module) -> None:
    assert operator(torch.full((1, 1, 9, 9), 5.0)).abs().max() < 1e-5


def test_the_laplacian_removes_the_bias_of_its_gaussian() -> None:
    x = torch.randn(1, 3, 9, 9)
    for kind, removed in (("laplacian", True), ("dog", False)):
        operator = SecondOrder(kind, 3, bias=True)  # type: ignore[arg-type]
        before = operator(x)
        assert operator.bias is not None
        nn.init.constant_(operator.bias, 2.0)
        assert torch.allclose(operator(x), before, atol=1e-5) == removed


def test_a_gaussian_keeps_the_mean() -> None:
    assert Gaussian(1.6).kernels.sum().item() == pytest.approx(1)


def test_derivatives_are_not_learned_and_cost_few_parameters() -> None:
    branch = EDSS(64, 0, 3, Enhancement(width=1, mlp=False, scan="none"), STYLE)
    assert not any("operators" in name for name, _ in branch.named_parameters())
    assert sum(p.numel() for p in branch.parameters()) < 700


def test_fewer_channels_are_repeated_to_the_trunk_s_width() -> None:
    branch = EDSS(8, 0, 3, Enhancement(width=3, mlp=False, scan="none", product=False), STYLE).eval()
    x = torch.randn(1, 8, 6, 6)
    out = branch({"a": x, "b": x, "difference": x, "fused": x}, x)
    assert out.shape == x.shape
    assert torch.equal(out[:, 0], out[:, 3])
    assert torch.equal(out[:, 1], out[:, 7])
    assert not torch.equal(out[:, 0], out[:, 1])


# ---- fusion ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "gelu"])
def test_aff_weighs_as_the_note_writes(activation: Any) -> None:
    aff = AttentionalFusion(8, STYLE, AFF(activation)).eval()
    trunk, branch = torch.randn(2, 1, 8, 5, 5)
    together = trunk + branch
    z = aff.local(together) + aff.overall(together)
    expected = {
        "tanh": trunk * (1 + z.tanh()) + branch * (2 - (1 + z.tanh())),
        "sigmoid": trunk + branch * (1 - z.sigmoid()),
        "gelu": trunk * (1 + nn.functional.gelu(z)) + branch * (2 - (1 + nn.functional.gelu(z))),
    }[activation]
    assert torch.allclose(aff(trunk, branch), expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["bn", "ln"])
def test_a_convolution_has_no_bias_only_where_batch_norm_follows(norm: Any) -> None:
    model = small(norm=norm)
    followed = [
        (convolution, after)
        for part in model.modules()
        if isinstance(part, nn.Sequential)
        for convolution, after in itertools.pairwise(part)
        if isinstance(convolution, nn.Conv2d)
    ]
    own = [
        pair for pair in followed if pair[0].stride == (1, 1)
    ]  # stem and downsampling are VMamba's, with a bias
    assert len(own) > 20
    for convolution, after in own:
        assert (convolution.bias is None) == isinstance(after, nn.BatchNorm2d)


@pytest.mark.parametrize("decoder", [{"trunk": []}, {"trunk": [], "head": "shared-trunk"}])
def test_without_blocks_between_input_and_output_nothing_is_added(decoder: dict[str, Any]) -> None:
    with_c, without = (
        versions.scores_of(versions.filled(small(decoder={**decoder, "add_input": on})))
        for on in (True, False)
    )
    assert torch.equal(with_c, without)


# ---- outputs ---------------------------------------------------------------------------------------------------------


def test_each_level_answers_under_deep_supervision_in_training_only() -> None:
    model = small(decoder={"deep_supervision": True})
    pair = torch.randn(2, 1, 3, 64, 96)
    assert [tuple(scores.shape[-2:]) for scores in model(*pair)] == [(64, 96), (8, 12), (4, 6), (2, 3)]
    assert model.eval()(*pair).shape == (1, 2, 64, 96)


def test_a_level_s_parameters_hardly_change_with_outputs_but_its_operations_do() -> None:
    plain, deep = (small(decoder={"deep_supervision": on}) for on in (False, True))
    count = [sum(p.numel() for p in model.parameters()) for model in (plain, deep)]
    assert 0 < count[1] - count[0] < 0.001 * count[0]


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_one_pair_of_any_size_trains(size: tuple[int, int]) -> None:
    model = small()
    model(*torch.randn(2, 1, 3, *size)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_half_precision_stays_finite() -> None:
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(*(50 * torch.randn(2, 2, 3, 64, 64)))
    scores.float().square().mean().backward()
    assert scores.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_group_can_be_given_from_python() -> None:
    model = anban.create_model("change/stnet", dims=8, depths=[1, 1, 1, 1], enhancement=Enhancement(levels=0))
    assert all(level.enhancement is None for level in model.decoder)  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"enhancement\.level"):
        anban.create_model("change/stnet", enhancement={"level": 0})
