"""The pyramid: published sizes, official names and numbers, what every switch does, what it refuses."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anban.engine.profile import count
from anban.errors import InputError
from anban.official import key_map, load_official
from anban.recipe.schema import Choice, bind, construct
from anban.tasks.detect.golden import ADAPTERS
from anban.tasks.detect.models.dilation import Halving, Shrinking
from anban.tasks.detect.models.pvt import PVT, SIZES, Classifier, resized
from anban.tasks.detect.models.retinanet import PVTRetinaNet
from anban.tasks.detect.models.settings import Attention, Detector, Dilation, Pyramid
from anban.testing import golden

COPIES = Path(__file__).parents[4] / "tests" / "golden" / "detection"
CASES = golden.find_cases([COPIES])
ALL = Path(os.environ["ANBAN_GOLDEN"]) / "detection" if "ANBAN_GOLDEN" in os.environ else None

SMALL = Pyramid(widths=(8, 16, 24, 32), heads=(1, 2, 3, 4), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))
"""PVT v1, small enough for a test."""


def images(height: int = 64, width: int = 96, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def make(settings: Pyramid, **options: bool) -> PVT:
    torch.manual_seed(0)
    return PVT(settings, **options)


# ---- equal to the official implementations ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_outputs_equal_the_official_ones(case: golden.Case) -> None:
    result = golden.check(case, ADAPTERS)
    assert result.status == "ok", (result.why, *golden.each_output(result))


@pytest.mark.slow
@pytest.mark.skipif(ALL is None, reason="ANBAN_GOLDEN is not set")
def test_all_official_outputs_there_are() -> None:
    assert ALL is not None
    for case in golden.find_cases([ALL]):
        result = golden.check(case, ADAPTERS)
        assert result.status == "ok", (case.name, result.why, *golden.each_output(result))


PUBLISHED = {
    "pvt-tiny": 13.2,
    "pvt-small": 24.5,
    "pvt-medium": 44.2,
    "pvt-large": 61.4,
    "pvt-v2-b0": 3.7,
    "pvt-v2-b1": 14.0,
    "pvt-v2-b2": 25.4,
    "pvt-v2-b2-linear": 22.6,
    "pvt-v2-b3": 45.2,
    "pvt-v2-b4": 62.6,
    "pvt-v2-b5": 82.0,
}
"""Millions of parameters of the classifiers, by the release's tables."""


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_sizes_are_the_published_ones(name: str, millions: float) -> None:
    settings = SIZES[name]
    with torch.device("meta"):
        model = Classifier(settings, pool="mean" if settings.stage_norm else "token")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == pytest.approx(millions, abs=0.051)


def test_costs_are_the_published_ones() -> None:
    """GFLOPs of the papers' tables 5 and 1, which are multiply-adds: PVT-Tiny 1.9, PVT v2-B0 0.6."""
    for name, gmacs in (("pvt-tiny", 1.9), ("pvt-v2-b0", 0.6)):
        with torch.device("meta"):
            model = PVT(SIZES[name])
            counted = count(model, (torch.empty(1, 3, 224, 224),)).macs / 1e9
        assert counted == pytest.approx(gmacs, abs=0.06)


def test_a_classifiers_checkpoint_loads_into_the_backbone() -> None:
    case = next(case for case in CASES if case.name == "pvt_v1_tiny_96x160")
    state = case.weights()
    model = make(SIZES["pvt-tiny"])
    load_official(model, {"model": state})
    assert torch.equal(model.state_dict()["stages.3.positions.embedding"], state["pos_embed4"][:, 1:])
    dropped = {line.official for line in key_map(model, state) if line.how == "dropped"}
    assert dropped == {"cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_positions_of_another_image_size_are_resized_on_loading() -> None:
    state = next(case for case in CASES if case.name == "pvt_v1_tiny_96x160").weights()
    model = make(replace(SIZES["pvt-tiny"], image_size=(96, 160)))
    load_official(model, state)
    expected = resized(state["pos_embed4"][:, 1:], (7, 7), (3, 5))
    torch.testing.assert_close(model.state_dict()["stages.3.positions.embedding"], expected)


# ---- the switches ------------------------------------------------------------------------------------------------------

NOTE: dict[str, Pyramid] = {
    "original": SMALL,
    "v2": replace(
        SMALL, patch_sizes=(7, 3, 3, 3), paddings=(3, 1, 1, 1), positions="none", stage_norm=True, mlp="conv"
    ),
    "full attention": replace(SMALL, attention=Attention("full")),
    "a kind for each stage": replace(SMALL, attention=Attention(("strided", "fixed", "axial", "lsh"))),
    "embedded once, 5x5": replace(
        SMALL,
        widths=(8, 8, 8, 8),
        heads=(1, 1, 1, 1),
        patch_sizes=(5, 5, 5, 5),
        patch_strides=(5, 5, 5, 5),
        entry="none",
        positions="first",
        stage_norm=True,
        attention=Attention("strided"),
    ),
    "reshape, linear": replace(SMALL, entry="linear", positions="first", attention=Attention("atrous")),
    "1x1": replace(SMALL, patch_sizes=(4, 1, 1, 1), patch_strides=(4, 1, 1, 1)),
    "equal patches": replace(
        SMALL, patch_sizes=(4, 4, 4, 4), patch_strides=(4, 4, 4, 4), attention=Attention("full")
    ),
    "dilated, to the neck": replace(SMALL, entry="linear", dilation=Dilation("outputs")),
    "dilated, in the trunk": replace(
        SMALL, patch_strides=(4, 1, 1, 1), dilation=Dilation("between", (0, 1, 1, 1)),
        patch_sizes=(4, 3, 3, 3), paddings=(0, 1, 1, 1), positions="none",
    ),
    "as published, shrinking": replace(
        SMALL, entry="linear", dilation=Dilation("outputs", kind="shrinking")
    ),
    "no positions": replace(SMALL, positions="none"),
    "some outputs": replace(SMALL, outputs=(1, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTE)
def test_maps_are_what_the_network_says_and_all_parameters_learn(name: str) -> None:
    model = make(NOTE[name]).train()
    height, width = (256, 256) if name == "equal patches" else (64, 96)
    maps = model(images(height, width, batch=2))
    assert [each.shape[1] for each in maps] == list(model.channels)
    if NOTE[name].dilation.kind == "halving":
        for each, stride in zip(maps, model.strides, strict=True):
            expected = (math.ceil if NOTE[name].dilation.place != "none" else math.floor)(height / stride)
            assert each.shape[2] == expected
    sum(each.square().mean() for each in maps).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    if name == "as published, shrinking":  # what runs depends on the size of the map
        assert all(".convs." in each or ".narrow." in each for each in without)
    else:
        assert not without


def test_the_dilated_pyramid_has_a_pyramids_strides_and_leaves_the_trunk_alone() -> None:
    plain, dilated = make(replace(SMALL, entry="linear")), make(NOTE["dilated, to the neck"])
    assert plain.strides == (4, 4, 4, 4)
    assert dilated.strides == (4, 8, 16, 32)
    own = {n: p for n, p in dilated.state_dict().items() if not n.startswith("outward.")}
    plain.load_state_dict(own)
    trunk = {}
    for model in (plain, dilated):
        model.eval().stages[3].register_forward_hook(
            lambda m, i, out, model=model: trunk.update({model: out})
        )
        model(images())
    assert torch.equal(trunk[plain], trunk[dilated])


def test_a_shrinking_module_loses_its_border_and_leaves_out_what_does_not_fit() -> None:
    module = Shrinking(4).eval()
    assert module(torch.zeros(1, 4, 30, 40)).shape == (1, 4, 14, 24)
    assert module(torch.zeros(1, 4, 6, 9)).shape == (1, 4, 4, 7)
    assert module(torch.zeros(1, 4, 3, 9)).shape == (1, 4, 3, 9)
    assert Halving(4)(torch.zeros(2, 4, 7, 8)).shape == (2, 4, 4, 4)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 61), (100, 140)])
def test_any_size_that_the_release_takes(height: int, width: int) -> None:
    maps = make(SMALL).eval()(images(height, width))
    assert maps[0].shape[-2:] == (height // 4, width // 4)
    assert maps[3].shape[-2:] == (height // 32, width // 32)


def test_positions_are_resized_unless_the_shortcut_is_asked_for() -> None:
    settings = replace(SMALL, image_size=(64, 64))
    plain, shortcut = make(settings).eval(), make(replace(settings, positions_by_count=True)).eval()
    wide = images(32, 128)  # as many tokens as 64x64
    assert not torch.allclose(plain(wide)[0], shortcut(wide)[0])
    assert torch.equal(plain(images(64, 64))[0], shortcut(images(64, 64))[0])


def test_a_padded_map_is_as_wide_as_the_strides_make_it() -> None:
    same = replace(SMALL, paddings=(0, "same", "same", "same"))
    sizes = [tuple(each.shape[-2:]) for each in make(same).eval()(images(100, 140))]
    assert sizes == [(25, 35), (13, 18), (7, 9), (4, 5)]
    corner = make(replace(same, paddings=(0, "corner", "corner", "corner"))).eval()
    assert [tuple(each.shape[-2:]) for each in corner(images(100, 140))] == sizes


def test_deeper_blocks_are_skipped_more_often() -> None:
    model = make(replace(SMALL, depths=(1, 2, 1, 1), drop_path=0.4))
    shares = [block.drop_path.p for stage in model.stages for block in stage.blocks]
    assert shares == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_the_stages_are_told_as_a_note_writes_them() -> None:
    lines = NOTE["dilated, to the neck"].describe().splitlines()
    assert lines[0] == "[[[patch 4/4, pos], reduced 8 [layer1]],"
    assert lines[1] == " [[reshape, linear, pos], reduced 16 [layer1], -> 1 dilated],"
    assert "norm" in SIZES["pvt-v2-b0"].describe()


def test_a_recipe_can_set_every_switch() -> None:
    sections = {"model": Choice({"retinanet": f"{PVTRetinaNet.__module__}:PVTRetinaNet"})}
    given = {
        "widths": [8, 8],
        "depths": [1, 2],
        "heads": [1, 2],
        "mlp_ratios": [2, 2],
        "patch_sizes": [5, 5],
        "patch_strides": [5, 5],
        "paddings": [0, "same"],
        "entry": "none",
        "outputs": [0, 1],
        "attention": {"kind": ["full", "lsh"], "reductions": [1, 1]},
    }
    detector = {"width": 8, "anchor_sizes": [32, 64, 128]}
    model = {"name": "retinanet", "classes": 2, "backbone": given, "detector": detector}
    bound, _ = bind(sections, {"model": model})
    arguments = {name: value for name, value in bound["model"].items() if name != "name"}
    network = construct(PVTRetinaNet, arguments).eval()
    assert network.encoder.settings.attention.kinds(2) == ("full", "lsh")
    assert [each.shape[-1] for each in network.features(images(50, 50))] == [10, 5, 3]
    assert arguments["backbone"].keys() == {each.name for each in dataclasses.fields(Pyramid)}
    assert arguments["detector"].keys() == {each.name for each in dataclasses.fields(Detector)}


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        (lambda: replace(SMALL, depths=(1, 1)), "depths has 2"),
        (lambda: replace(SMALL, heads=(1, 3, 3, 4)), "16 is not shared by 3"),
        (lambda: replace(SMALL, outputs=(4,)), "stages 0 to 3"),
        (lambda: replace(SMALL, entry="none"), "equal widths"),
        (lambda: Classifier(replace(SMALL, mlp="conv")), "class token"),
        (lambda: make(SMALL)(images(2, 64)), "sides of at least 4"),
        (lambda: make(SMALL)(images(16, 64)), "cannot be reduced by 8"),
    ],
)
def test_what_cannot_be_is_refused(refused: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        refused()


def test_a_classifier_reads_its_token_or_the_mean() -> None:
    for settings, pool in ((SMALL, "token"), (NOTE["v2"], "mean")):
        model = Classifier(settings, classes=5, pool=pool).eval()  # type: ignore[arg-type]
        assert model(images()).shape == (1, 5)
        assert isinstance(Classifier(settings, classes=0, pool=pool).head, nn.Identity)  # type: ignore[arg-type]
