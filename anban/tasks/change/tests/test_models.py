"""Every network of the table: shapes, gradients, sizes, saving; and the numbers of the official implementations."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from anban.errors import InputError
from anban.official import key_map, load_official
from anban.tasks.change.golden import ADAPTERS
from anban.tasks.change.models import MODELS
from anban.tasks.change.models.bit import BIT, VARIANTS
from anban.tasks.change.models.fc import FCEF, FullyConvolutional, _DecoderStage
from anban.tasks.change.models.tinycd import TinyCD
from anban.testing import golden

COPIES = Path(__file__).parents[4] / "tests" / "golden"
CASES = [
    case
    for case in golden.find_cases([Path(os.environ.get("ANBAN_GOLDEN", COPIES)) / "change"])
    if case.official in ADAPTERS and isinstance(ADAPTERS[case.official], golden.Network)
]
IDS = [case.name for case in CASES]


def make(name: str, **options: object) -> nn.Module:
    module, _, attribute = MODELS[name].partition(":")
    torch.manual_seed(0)
    model = getattr(importlib.import_module(module), attribute)(**options)
    return cast(nn.Module, model)


def images(*shape: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=draws), torch.randn(shape, generator=draws)


def size(model: nn.Module) -> tuple[int, int]:
    """Small sides that the network takes, near 32 and 48 pixels."""
    step = cast(int, model.multiple_of)
    return math.ceil(32 / step) * step, math.ceil(48 / step) * step


def of_case(case: golden.Case) -> nn.Module:
    model = cast(golden.Network, ADAPTERS[case.official]).model(case)
    load_official(model, case.weights())
    return model


# ---- equal to the official implementations --------------------------------------------------------------------------


def test_the_cases_of_all_networks_are_there() -> None:
    assert {case.official for case in CASES} == {
        key for key, a in ADAPTERS.items() if isinstance(a, golden.Network)
    }


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_outputs_equal_the_official_ones(case: golden.Case) -> None:
    result = golden.check(case, ADAPTERS)
    assert result.status == "ok", (result.why, *golden.each_output(result))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_parameters_are_the_official_ones_and_the_key_map_says_which(case: golden.Case) -> None:
    model, official = of_case(case), case.weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == case.data["params"]
    lines = key_map(model, official)
    assert {line.official for line in lines} - {None} == official.keys()
    assert {line.ours for line in lines} - {None} == model.state_dict().keys()
    assert {line.how for line in lines} <= {"same", "renamed", "split", "dropped"}
    for line in lines:
        if line.official and line.ours and line.how in ("same", "renamed"):
            assert torch.equal(model.state_dict()[line.ours].flatten(), official[line.official].flatten()), (
                line
            )


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_gradients_reach_all_parameters_but_the_officially_unused(case: golden.Case) -> None:
    model = of_case(case).eval()
    # The gradients of a scan's rates may be 1e-8 of others, which is below the noise of float32.
    scans = any(".A_log" in name for name, _ in model.named_parameters())
    dtype = torch.float64 if scans else torch.float32
    draws = torch.Generator().manual_seed(2)
    outputs = golden.flatten(model.to(dtype)(*case.inputs(dtype).values()))
    seeds = [torch.randn(scores.shape, generator=draws, dtype=dtype) for scores in outputs]
    torch.autograd.backward(outputs, seeds)  # type: ignore[no-untyped-call]
    gradients = {
        name: p.grad.abs().max().item() for name, p in model.named_parameters() if p.grad is not None
    }
    # A bias that the difference of the dates cancels is zero up to the order of summation.
    none = 8 * torch.finfo(dtype).eps * max(gradients.values())
    dead = {name for name, _ in model.named_parameters() if gradients.get(name, 0.0) <= none}
    keys = case.data["unused_parameters"]["keys"]
    unused = set(model.from_official({name: torch.empty(0) for name in keys}))  # type: ignore[operator]
    # So is a bias of attention's keys: it adds the same to all scores of a query, and the softmax takes it away. Where
    # the scores are nearly equal, little reaches the queries and keys themselves.
    faint = {name for name in gradients if ".to_q." in name or ".to_k." in name}
    assert dead - faint == unused - faint


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_table_names_the_networks_without_importing_torch() -> None:
    program = "import sys, anban.tasks.change.models as m; print(*m.MODELS, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*MODELS, "False"]


@pytest.mark.parametrize("name", MODELS)
def test_constructor_arguments_are_typed_and_defaulted(name: str) -> None:
    for argument in inspect.signature(type(make(name))).parameters.values():
        assert argument.default is not inspect.Parameter.empty, argument
        assert argument.annotation is not inspect.Parameter.empty, argument


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_finite_and_of_the_images_size(name: str, training: bool) -> None:
    model = make(name).train(training)
    outputs = model(*images(2, 3, *size(model)))
    assert isinstance(outputs, Tensor) or training
    scores = golden.flatten(outputs)
    assert scores[0].shape in [(2, classes, *size(model)) for classes in (1, 2)]
    assert all(output.isfinite().all() for output in scores)
    if not training:
        return  # what only side outputs need takes no part, so it takes no gradient
    torch.stack([output.square().mean() for output in scores]).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert all(n.startswith(("resnet.layer4.", "resnet.fc.")) for n in without), without


@pytest.mark.parametrize("name", MODELS)
def test_the_smallest_step_in_size_is_what_the_network_says(name: str) -> None:
    model = make(name).eval()
    step = int(model.multiple_of)  # type: ignore[arg-type]
    height, width = (side + step for side in size(model))
    with torch.no_grad():
        assert model(*images(1, 3, height, width)).shape[-2:] == (height, width)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("fc-")])
@pytest.mark.parametrize("size", [(16, 31), (33, 17), (50, 70)], ids=str)
def test_odd_sizes_pass_through_the_fully_convolutional_networks(name: str, size: tuple[int, int]) -> None:
    assert make(name).eval()(*images(1, 3, *size)).shape == (1, 2, *size)


def test_the_row_and_column_that_pooling_lost_repeat_their_neighbours() -> None:
    stage, seen = _DecoderStage(4, 2, [3], dropout=0.0).eval(), list[Tensor]()
    stage.units.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x, skip = torch.randn(1, 4, 3, 5), torch.randn(1, 2, 7, 11)
    with torch.no_grad():
        stage(x, skip)
        raised = stage.up(x)
    assert torch.equal(seen[0][:, :4, :6, :10], raised)
    assert torch.equal(seen[0][:, :4, 6], torch.cat((raised[:, :, 5], raised[:, :, 5, -1:]), dim=2))
    assert torch.equal(seen[0][:, :4, :6, 10], raised[..., 9])
    assert torch.equal(seen[0][:, 4:], skip)


def test_bit_enlarges_odd_sizes_and_tinycd_refuses_them() -> None:
    assert make("bit").eval()(*images(1, 3, 33, 47)).shape == (1, 2, 40, 48)
    with pytest.raises(InputError, match="multiples of 8"):
        make("tinycd")(*images(1, 3, 30, 64))


@pytest.mark.parametrize("name", MODELS)
def test_backbone_prefixes_meet_parameters(name: str) -> None:
    model = make(name)
    for prefix in cast(tuple[str, ...], model.backbone):
        under = [n for n, _ in model.named_parameters() if n.startswith(prefix + ".")]
        assert under
        assert len(under) < len(list(model.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_it_computes_the_same(name: str, tmp_path: Path) -> None:
    model = make(name).eval()
    pair = images(1, 3, *size(model))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = make(name)
    for parameter in other.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(model(*pair), other.eval()(*pair))


# ---- options --------------------------------------------------------------------------------------------------------


def test_published_outputs_are_functions_of_the_logits() -> None:
    pair = images(1, 3, 32, 32)
    with torch.no_grad():
        for name, published, function in (
            ("fc-siam-diff", "log_softmax", lambda s: s.log_softmax(1)),
            ("tinycd", "probability", torch.sigmoid),
            ("bit", "probability", torch.sigmoid),
            ("ifnet", "probability", torch.sigmoid),
            ("a2net", "probability", torch.sigmoid),
        ):
            logits, other = make(name).eval()(*pair), make(name, output=published).eval()(*pair)
            assert torch.equal(function(logits), other)
            assert not torch.equal(logits, other)


def test_fc_takes_other_bands_classes_and_widths() -> None:
    scores = FCEF(in_channels=13, classes=5, width=4, dropout=0.0)(*images(2, 13, 20, 24))
    assert scores.shape == (2, 5, 20, 24)


@pytest.mark.parametrize("encoder", ["efficientnet_b0", "efficientnet_b5"])
@pytest.mark.parametrize("output_layer", [1, 2, 4, 5, 6])
def test_tinycd_fits_other_encoders_and_depths(encoder: str, output_layer: int) -> None:
    model = TinyCD(encoder, output_layer).eval()  # type: ignore[arg-type]
    assert model.multiple_of == {1: 2, 2: 4, 4: 16, 5: 16, 6: 32}[output_layer]
    with torch.no_grad():
        assert model(*images(1, 3, 64, 96)).shape == (1, 1, 64, 96)


def test_tinycd_freezes_its_encoder_alone() -> None:
    frozen = {n for n, p in TinyCD(freeze_backbone=True).named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in TinyCD().named_parameters() if n.startswith("encoder.")}


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": "pooled", "pool_size": 3, "pool_mode": "mean"},
        {"tokens": "pooled", "pool_mode": "none", "token_positions": False},
        {"tokens": "pooled", "encoder": False, "decoder": False},
        {"tokens": "none", "stages": 3, "resnet": "resnet34", "in_channels": 4},
        {"stages": 5, "resnet": "resnet50", "enlarge_first": False, "attention_scale": "head"},
        {"encoder_depth": 2, "decoder_depth": 2, "token_len": 6, "decoder_softmax": False, "classes": 1},
    ],
    ids=str,
)
def test_bit_without_unused_layers_computes_the_same_with_every_parameter_in_use(
    options: dict[str, object],
) -> None:
    whole = BIT(**options).eval()  # type: ignore[arg-type]
    lean = BIT(**options, unused_layers=False).eval()  # type: ignore[arg-type]
    load_official(lean, whole.state_dict())
    pair = images(2, int(options.get("in_channels", 3)), 32, 48)  # type: ignore[call-overload]
    scores = lean(*pair)
    assert torch.equal(scores, whole(*pair))
    assert scores.shape == (2, options.get("classes", 2), 32, 48)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in lean.parameters())
    assert any(parameter.grad is None for parameter in whole.parameters())


def test_bit_with_decoder_positions_takes_one_size() -> None:
    model = BIT(decoder_positions=True, decoder_depth=1).eval()
    with torch.no_grad():
        assert model(*images(1, 3, 256, 256)).shape == (1, 2, 256, 256)
    with pytest.raises(InputError, match="256 pixels"):
        model(*images(1, 3, 64, 64))


def test_bit_variants_are_the_published_ones() -> None:
    names = ["base_resnet18", "base_transformer_pos_s4", "base_transformer_pos_s4_dd8"]
    assert list(VARIANTS) == [*names, "base_transformer_pos_s4_dd8_dedim8"]
    last, default = BIT(**VARIANTS["base_transformer_pos_s4_dd8_dedim8"]).state_dict(), BIT().state_dict()
    assert {name: t.shape for name, t in last.items()} == {name: t.shape for name, t in default.items()}


def test_bit_redraws_its_backbone_only_when_asked() -> None:
    drawn = {redraw: BIT(redraw_backbone=redraw) for redraw in (False, True)}
    spread = {redraw: model.resnet.layer1[0].conv1.weight.std().item() for redraw, model in drawn.items()}
    assert spread[True] == pytest.approx(0.02, rel=0.1)
    assert spread[False] > 2 * spread[True]
    assert drawn[False].conv_pred.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_pretrained_weights_need_three_bands() -> None:
    with pytest.raises(InputError, match="in_channels=4"):
        BIT(in_channels=4, pretrained=True)


@pytest.mark.parametrize("name", ["fc-siam-conc", "fc-siam-diff"])
def test_the_siamese_decoder_starts_from_the_later_date_alone(name: str) -> None:
    # The golden cases hardly see it: under their weights the deepest features weigh next to nothing.
    model, (a, b) = cast(FullyConvolutional, make(name).eval()), images(1, 3, 32, 48)
    seen: list[Tensor] = []
    model.get_submodule("decoder.0.up").register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    with torch.no_grad():
        model(a, b)
        model(torch.zeros_like(a), b)
        x = b
        for stage in model.encoder:
            x = torch.nn.functional.max_pool2d(stage(x), 2)
    assert torch.equal(seen[0], x)
    assert torch.equal(seen[1], x)
