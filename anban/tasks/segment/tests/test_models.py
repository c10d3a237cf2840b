"""The networks: the numbers of the official implementations, and every setting builds, trains and does something."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anban.errors import InputError
from anban.official import key_map
from anban.recipe.schema import Choice, bind, construct, pick
from anban.tasks.segment.golden import ADAPTERS, build
from anban.tasks.segment.models import MODELS
from anban.tasks.segment.models.bisenet import settings
from anban.tasks.segment.models.bisenet.network import BiSeNetV1
from anban.tasks.segment.models.bisenet.settings import AGES
from anban.tasks.segment.models.bisenetv2 import BiSeNetV2
from anban.tasks.segment.models.common import Enlarge, PositiveBatchNorm2d
from anban.testing import golden

COPIES = Path(__file__).parents[4] / "tests" / "golden"
NETWORKS = ("BiSeNet", "BiSeNetV1", "BiSeNetV2")
CASES = [
    case
    for case in golden.find_cases([Path(os.environ.get("ANBAN_GOLDEN", COPIES)) / "segmentation"])
    if case.official[1] in NETWORKS
]
IDS = [case.name for case in CASES]


def make(name: str = "bisenetv1", **options: Any) -> nn.Module:
    """A network as a recipe would make it: its options checked against its signature."""
    config, _ = bind({"model": Choice(MODELS)}, {"model": {"name": name, **options}})
    arguments = {key: value for key, value in config["model"].items() if key != "name"}
    return cast(nn.Module, construct(pick(MODELS, name, "model"), arguments))


def merged(*options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of several, the last one decides; groups are merged."""
    result: dict[str, Any] = {}
    for given in options:
        for name, value in given.items():
            both = isinstance(value, dict) and name in result
            result[name] = {**result[name], **value} if both else value
    return result


def filled(model: nn.Module) -> nn.Module:
    """The network with every parameter and buffer a function of its name and shape."""
    state = {name: torch.from_numpy(golden.fill(name, t.shape)) for name, t in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# ---- equal to the official implementations --------------------------------------------------------------------------


def test_cases_of_all_networks_are_there() -> None:
    assert {case.official[1] for case in CASES} == set(NETWORKS)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_outputs_equal_the_official_ones(case: golden.Case) -> None:
    result = golden.check(case, ADAPTERS)
    assert result.status == "ok", (result.why, *golden.each_output(result))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_parameters_and_multiplications_are_the_official_ones(case: golden.Case) -> None:
    with torch.device("meta"):
        model = build(case).eval()
        official = {name: torch.empty(shape) for name, shape in case.data["state_dict"]}
    lines = key_map(model, official)
    assert {line.ours for line in lines} - {None} == model.state_dict().keys()
    assert {line.how for line in lines} <= {"same", "renamed", "dropped", "missing"}
    # The diary's last commit makes attention and a global mean that it never calls; old weights have no batch counters.
    never_called = ("cp.arm", "cp.conv_avg.", "cp.bn_avg.")
    assert all(
        line.official.startswith(never_called) for line in lines if line.how == "dropped" and line.official
    )
    assert all(
        line.ours.endswith("num_batches_tracked") for line in lines if line.how == "missing" and line.ours
    )

    dropped = [line.official for line in lines if line.how == "dropped" and line.official]
    unused = sum(official[n].numel() for n in dropped if "running" not in n and "num_batches" not in n)
    assert sum(p.numel() for p in model.parameters()) + unused == case.data["params"]
    if "macs" in case.data:
        with FlopCounterMode(display=False) as counter:
            model(case.inputs()["x"].to("meta"))
        assert counter.get_total_flops() // 2 == case.data["macs"]["conv_linear_matmul"]


def test_the_first_age_fuses_straight_into_the_classes() -> None:
    model = BiSeNetV1(7, **AGES["2018-11"])
    assert model.fusion.channels == 7
    assert [head.layers[0].kernel_size for head in model.auxiliary] == [(3, 3), (3, 3)]


# ---- every setting --------------------------------------------------------------------------------------------------

GROUPS: dict[str, Any] = {
    "backbone": settings.Backbone,
    "spatial_path": settings.SpatialPath,
    "arm": settings.ARM,
    "global_context": settings.GlobalContext,
    "context_path": settings.ContextPath,
    "fusion": settings.Fusion,
    "head": settings.Head,
    "auxiliary": settings.Auxiliary,
    "upsampling": settings.Upsampling,
}
SMALL: dict[str, Any] = {
    "classes": 5,
    "backbone": {"network": "xception39"},
    "spatial_path": {"channels": [8, 8, 8], "out_channels": 16},
    "arm": {"width": 16},
    "context_path": {"width": 16},
    "fusion": {"width": 16},
    "head": {"width": 8},
    "auxiliary": {"width": 8},
    "side_outputs": "always",
}
STEPS = [
    ["1x1", "enlarge"],
    ["enlarge", "1x1"],
    ["3x3", "enlarge", "1x1"],
    ["1x1", "enlarge", "3x3"],
    ["3x3-bn-relu", "dropout", "1x1", "enlarge"],
    ["3x3-bn-relu", "3x3-bn-relu", "1x1", "enlarge"],
    ["enlarge", "1x1-bn-relu", "1x1"],
]
OTHER_VALUES: dict[str, list[Any]] = {
    "backbone.network": ["resnet18", "xception"],  # torchvision's ResNet computes the same: a test of its own
    "backbone.pretrained": [],  # tests of their own
    "backbone.freeze_bn": [],
    "spatial_path.channels": [[8, 12, 16]],
    "spatial_path.kernels": [[3, 3, 3], [7, 5, 5]],
    "spatial_path.strides": [[4, 2, 1]],
    "spatial_path.out_channels": [None],
    "arm.width": [None],
    "context_path.width": [24],
    "fusion.width": [24, None],
    "fusion.reduction": [2],
    "head.steps": STEPS,
    "head.width": [12],
    "head.dropout": [],
    "head.also": [["feat16"], ["feat16", "feat32"]],
    "auxiliary.sources": [[], ["feat8"], ["feat16", "feat32"], ["arm16", "arm32"], ["context16"]],
    "auxiliary.steps": [*STEPS[:2], ["1x1", "to-8", "enlarge"]],
    "auxiliary.width": [12],
    "auxiliary.dropout": [],
}
PLAIN_MEAN = {"arm": {"width": None}, "context_path": {"inner": "1x1"}, "global_context": {"kind": "avg"}}
NOTHING_AT_16 = {"auxiliary": {"sources": ["context8"]}}
AROUND: dict[str, dict[str, Any]] = {
    "backbone.attention": {"backbone": {"network": "resnet18"}},
    "spatial_path.channels": {"spatial_path": {"out_channels": None}, "fusion": {"join": "concat"}},
    "arm.width": {"context_path": {"inner": "1x1"}},
    "global_context.kind": merged(PLAIN_MEAN, {"global_context": {"kind": "conv-bn-relu"}}),
    "global_context.onto=level": PLAIN_MEAN,
    "context_path.width": {"context_path": {"inner": "1x1"}},
    "context_path.finest=32": NOTHING_AT_16,
    "context_path.order": NOTHING_AT_16,
    "context_path.stride=16": {"spatial_path": {"source": "none"}},
    "context_path.stride=32": merged(
        NOTHING_AT_16, {"spatial_path": {"source": "none"}, "context_path": {"finest": 32}}
    ),
    "fusion.reduction": {"fusion": {"attention": "conv-relu-conv-sigmoid"}},
}
"""What stands around a setting, before and after it changes, so that it can."""


def alternatives() -> Iterator[Any]:
    """Options around, and what changes, for every value of each setting that is not the default."""
    for group, kind in GROUPS.items():
        for field in dataclasses.fields(kind):
            name, hint = f"{group}.{field.name}", get_type_hints(kind)[field.name]
            values = OTHER_VALUES.get(name)
            if values is None:
                assert get_origin(hint) is Literal or hint is bool, f"no values for {name}"
                values = list(get_args(hint)) or [True, False]
            for value in values:
                around = merged(SMALL, AROUND.get(f"{name}={value}") or AROUND.get(name) or {})
                if value != around.get(group, {}).get(field.name, getattr(kind(), field.name)):
                    yield pytest.param(around, {group: {field.name: value}}, id=f"{name}={value}")
    for name, value in (("classes", 7), ("norm", "inplace-abn"), ("norm", "gn")):
        yield pytest.param(SMALL, {name: value}, id=f"{name}={value}")
    three = {"channels": [8, 8, 12, 8, 8], "kernels": [3] * 5, "strides": [2, 1, 1, 2, 2]}
    yield pytest.param(SMALL, {"spatial_path": three}, id="three convolutions in place of the first")
    u_shape = {"context_path": {"join": "concat", "outer": "3x3-bn-relu", "refine": "none", "out": "none"}}
    yield pytest.param(SMALL, u_shape, id="U-shape")
    both_to_8 = {"context_path": {"order": "at-once"}, "upsampling": {"levels": "deconvolution"}}
    yield pytest.param(merged(SMALL, NOTHING_AT_16), both_to_8, id="both features deconvolved to 1/8")


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def scores_of(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return golden.flatten(filled(model).eval()(images(1, 3, 64, 96)))


@cache
def unchanged(around: str) -> tuple[dict[str, tuple[int, ...]], list[Tensor]]:
    """Shapes and scores of the network before a setting changes; the options as JSON."""
    model = make(**json.loads(around))
    return shapes_of(model), scores_of(model)


@pytest.mark.parametrize(("around", "change"), list(alternatives()))
def test_a_setting_trains_and_does_something(around: dict[str, Any], change: dict[str, Any]) -> None:
    options = merged(around, change)
    model = filled(make(**options)).train()
    outputs = golden.flatten(model(images(3, 3, 32, 64)))
    torch.stack([scores.square().mean() for scores in outputs]).sum().backward()
    sources = merged({"auxiliary": {"sources": ["context8", "context16"]}}, options)["auxiliary"]["sources"]
    assert [tuple(scores.shape) for scores in outputs] == [(3, options["classes"], 32, 64)] * (
        1 + len(sources)
    )
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    shapes, scores_before = unchanged(json.dumps(around))
    if shapes_of(model) == shapes:
        pairs = zip(scores_of(model), scores_before, strict=True)
        assert not all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)


UNFITTING = {
    "backbone.attention": {"backbone": {"network": "xception39", "attention": "conv-sigmoid"}},
    "backbone.pretrained": {"backbone": {"network": "xception39", "pretrained": True}},
    "backbone.network": {"backbone": {"network": "torchvision-resnet18"}, "norm": "inplace-abn"},
    "spatial_path": {"spatial_path": {"strides": [2, 2, 1]}},
    "global_context.kind": {"global_context": {"kind": "avg"}},
    "global_context.kind at level": {"global_context": {"onto": "level"}},
    "context_path.stride": {"context_path": {"finest": 16, "stride": 32}},
    "context_path.stride beside a spatial path": {"context_path": {"stride": 16}},
    "context_path.join": {"arm": {"width": None}},
    "fusion.join": {"fusion": {"join": "sum"}, "context_path": {"width": 24, "inner": "1x1"}},
    "head.steps without classes": {"head": {"steps": ["3x3-bn-relu", "enlarge"]}},
    "head.steps without enlarge": {"head": {"steps": ["1x1"]}},
    "auxiliary.steps": {"auxiliary": {"steps": ["enlarge", "1x1", "to-8"]}},
    "auxiliary.sources": {"auxiliary": {"sources": ["context16"]}, "context_path": {"finest": 32}},
}


@pytest.mark.parametrize("where", UNFITTING)
def test_what_does_not_fit_is_refused_where_it_stands(where: str) -> None:
    with pytest.raises(InputError) as refused:
        make(**merged(SMALL, UNFITTING[where]))
    assert str(refused.value.where).startswith(where.split(" ")[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context_path": {"finest": 8}, "upsampling": {"levels": "deconvolution"}},
        {"context_path": {"order": "at-once"}, "upsampling": {"levels": "deconvolution"}, **NOTHING_AT_16},
        {"upsampling": {"output": "deconvolutions", "last": "deconvolution"}, "fusion": {"stride": 2}},
        {"spatial_path": {"source": "none"}, "auxiliary": {"steps": ["1x1", "to-8", "enlarge"]}},
    ],
    ids=["defaults", "unsample-8s", "at once", "deconvolutions", "to-8"],
)
def test_sides_may_have_any_length(options: dict[str, Any]) -> None:
    model = make(**merged(SMALL, options)).eval()
    assert {tuple(scores.shape) for scores in model(images(1, 3, 70, 101))} == {(1, 5, 70, 101)}


# ---- the backbone ---------------------------------------------------------------------------------------------------


def test_the_own_resnet_is_torchvisions() -> None:
    own, library = (
        make(backbone={"network": name}).features for name in ("resnet18", "torchvision-resnet18")
    )
    library.load_state_dict(filled(own).state_dict())
    x = images(1, 3, 64, 64)
    for one, other in zip(own.eval()(x).values(), library.eval()(x).values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("network", ["resnet18", "torchvision-resnet18"])
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_pretrained_weights_are_torchvisions(
    network: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = filled(torchvision.models.resnet18())
    asked: list[str] = []

    def resnet18(weights: str) -> nn.Module:
        asked.append(weights)
        return trained

    monkeypatch.setattr(torchvision.models, "resnet18", resnet18)
    features = make(backbone={"network": network, "pretrained": True}, norm=norm).features.state_dict()
    assert asked == ["IMAGENET1K_V1"]
    assert features
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in features.items())


def test_frozen_norms_of_the_backbone_stay_as_they_are() -> None:
    model = make(**merged(SMALL, {"backbone": {"freeze_bn": True}})).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    torch.stack([scores.square().mean() for scores in model(images(2, 3, 64, 64))]).sum().backward()
    optimizer.step()
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    norms = {
        f"features.{name}"
        for place, module in model.features.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name in (f"{place}.{own}" for own in module.state_dict())
    }
    assert norms
    assert not changed & norms
    assert changed == before.keys() - norms


def test_the_pretrained_part_is_named_for_the_learning_rate() -> None:
    for name, new in (
        ("bisenetv1", {"spatial_path", "context_path", "fusion", "head", "auxiliary"}),
        ("bisenetv2", {"head", "auxiliary"}),
    ):
        model = make(name)
        parts = {parameter.partition(".")[0] for parameter, _ in model.named_parameters()}
        assert parts - set(cast(tuple[str, ...], model.backbone)) == new


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_inplace_abn_takes_the_weight_as_positive() -> None:
    norm, plain = PositiveBatchNorm2d(3).eval(), nn.BatchNorm2d(3).eval()
    weight = torch.tensor([-0.5, 0.0, 2.0])
    norm.load_state_dict({**norm.state_dict(), "weight": weight})
    plain.load_state_dict({**plain.state_dict(), "weight": weight.abs() + 1e-5})
    x = images(2, 3, 4, 4)
    torch.testing.assert_close(norm(x), plain(x))


@pytest.mark.parametrize(("how", "kernels"), [("deconvolution", [16]), ("deconvolutions", [4, 4, 4])])
def test_deconvolutions_have_the_diarys_kernels(how: Any, kernels: list[int]) -> None:
    layer = Enlarge(how, 2, 8)
    assert [conv.kernel_size[0] for conv in layer.deconvolutions] == kernels
    assert layer(images(1, 2, 3, 4), (21, 32)).shape == (1, 2, 21, 32)


def test_init_chooses_which_layers_start_by_kaiming_normal() -> None:
    deconvolved = merged(SMALL, {"upsampling": {"levels": "deconvolution"}})

    def spread(init: str, name: str) -> float:
        """Standard deviation over that of kaiming_normal: the root of the inverse fan-in."""
        torch.manual_seed(0)
        weight = make(**merged(deconvolved, {"init": init})).get_parameter(name)
        return weight.std().item() * float(weight[0].numel() ** 0.5)

    conv, deconvolution = (
        "context_path.arm.32.conv.conv.weight",
        "context_path.joining.up.16.deconvolutions.0.weight",
    )
    spreads = {init: (spread(init, conv), spread(init, deconvolution)) for init in get_args(settings.Init)}
    uniform = 3**-0.5
    assert spreads["pytorch"] == pytest.approx((uniform, uniform), rel=0.1)
    assert spreads["kaiming"] == pytest.approx((1, uniform), rel=0.1)
    assert spreads["kaiming-all"] == pytest.approx((1, 1), rel=0.1)


def test_dropout_stands_in_the_head_with_its_rate() -> None:
    steps = settings.FCN_STEPS
    model = make(**merged(SMALL, {"head": {"steps": steps, "dropout": 0.3}, "auxiliary": {"steps": steps}}))
    rates = [part.p for part in model.modules() if isinstance(part, nn.Dropout)]
    assert rates == [0.3, 0.1, 0.1]


@pytest.mark.parametrize("name", MODELS)
def test_classes_are_the_best_scores(name: str) -> None:
    scores, classes = (filled(make(name, output=output)).eval() for output in ("logits", "classes"))
    x = images(1, 3, 64, 64)
    assert classes(x).dtype == torch.int32
    assert torch.equal(classes(x), scores(x).argmax(dim=1))


# ---- BiSeNetV2 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"auxiliary": "plain"}, {"auxiliary": "none"}, {"guidance": "bilinear"}, {"align_corners": True}, {}],
    ids=str,
)
def test_a_setting_of_bisenetv2_trains_and_does_something(change: dict[str, Any]) -> None:
    model = filled(make("bisenetv2", classes=5, **change)).train()
    outputs = model(images(2, 3, 65, 97))
    assert {tuple(scores.shape) for scores in outputs} == {(2, 5, 65, 97)}
    assert len(outputs) == (1 if change.get("auxiliary") == "none" else 5)
    torch.stack([scores.square().mean() for scores in outputs]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    before = make("bisenetv2", classes=5)
    if change and model.state_dict().keys() == before.state_dict().keys():
        assert not torch.allclose(scores_of(model)[0], scores_of(before)[0], atol=1e-5)


def test_gather_and_expansion_layers_start_as_their_shortcuts() -> None:
    torch.manual_seed(0)
    layer = BiSeNetV2().semantic.stage3[1].eval()
    x = images(1, 32, 8, 8)
    torch.testing.assert_close(layer(x), x.relu())


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_table_names_the_networks_without_importing_torch() -> None:
    program = "import sys, anban.tasks.segment.models as m; print(*m.MODELS, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*MODELS, "False"]


def test_addresses_are_classes() -> None:
    for address in MODELS.values():
        module, _, name = address.partition(":")
        assert issubclass(getattr(importlib.import_module(module), name), nn.Module)
