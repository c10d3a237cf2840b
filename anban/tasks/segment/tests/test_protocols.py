"""Names of protocols, what evaluation gives to a network and makes of its answers, and the official evaluators."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anban.errors import InputError
from anban.tasks.segment.golden_functions import FUNCTIONS
from anban.tasks.segment.protocols import (
    Protocol,
    Start,
    apply_protocol,
    label_at,
    parse_protocol,
)
from anban.testing import golden

COPIES = Path(__file__).parents[4] / "tests" / "golden"
CASES = [
    case
    for case in golden.find_cases([Path(os.environ.get("ANBAN_GOLDEN", COPIES)) / "segmentation"])
    if case.official in FUNCTIONS
]
ALL = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def of_pixels(image: Tensor) -> Tensor:
    """Logits of 4 classes out of a pixel's own colours: no neighbour, no border and no size matters."""
    weight = noise(4, 3, 1, 1)
    return torch.nn.functional.conv2d(image, weight) + image.square().sum(1, keepdim=True) * weight[:, 0]


def scores(name: str, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    return apply_protocol(parse_protocol(name), of_pixels, image, size)


# ---- equal to the official implementation ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_equal_to_the_official_one(case):
    result = golden.check(case, FUNCTIONS)
    assert result.status == "ok", "\n".join([str(result.why), *golden.each_output(result)])


def test_every_official_evaluator_is_among_the_cases():
    assert {case.official for case in CASES} == set(FUNCTIONS)


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("ss", Protocol()),
        ("ssf", Protocol(flip=True)),
        ("ms", Protocol(scales=ALL)),
        ("msf", Protocol(scales=ALL, flip=True)),
        ("msf+scales-0.5-1-2.25", Protocol(scales=(0.5, 1.0, 2.25), flip=True)),
        ("ssc-1024-683", Protocol(crop=(1024, 1024), stride=(683, 683))),
        ("sscf-960-800", Protocol(flip=True, crop=(960, 960), stride=(800, 800), rule="exp-softmax")),
        (
            "mscf-64x96-43x64+exp-sum",
            Protocol(scales=ALL, flip=True, crop=(64, 96), stride=(43, 64), rule="exp-sum"),
        ),
        ("ssc-64-43+mirror", Protocol(crop=(64, 64), stride=(43, 43), border="mirror")),
        ("ssc-64-43+exp-softmax", Protocol(crop=(64, 64), stride=(43, 43), rule="exp-softmax")),
        (
            "mscf-64-43+softmax",
            Protocol(scales=ALL, flip=True, crop=(64, 64), stride=(43, 43), rule="softmax"),
        ),
        ("msf+long-640+logits", Protocol(scales=ALL, flip=True, start=Start("long", (640,)), rule="logits")),
        ("ss+size-512x1024+labels", Protocol(start=Start("size", (512, 1024)), meet="label")),
    ],
)
def test_a_name_is_a_protocol(name, protocol):
    assert parse_protocol(name) == protocol
    assert protocol.name == name


@pytest.mark.parametrize(
    ("written", "called"),
    [
        ("ssc", "ssc-1024-683"),
        ("mscf", "mscf-1024-683"),
        ("msfc", "mscf-1024-683"),
        ("mscf-1024-5/6", "mscf-1024-854"),
        ("msc-960", "msc-960-640"),
        ("ssc-960-5/6+zeros", "ssc-960-800"),
        ("ssc-1024-2/3+empty", "ssc-1024-683+mirror"),
        ("ssc-1024x1024-683x683", "ssc-1024-683"),
        ("ssc-64x96-2/3", "ssc-64x96-43x64"),
        ("ms+scales-1", "ss"),
        ("msf+scales-0.50-0.75-1-1.25-1.5-1.75", "msf"),
        ("mscf+exp-softmax", "mscf-1024-683"),
        ("ss+softmax", "ss"),
    ],
)
def test_other_ways_to_write_a_name(written, called):
    assert parse_protocol(written).name == called
    assert parse_protocol(called) == parse_protocol(written)


@pytest.mark.parametrize(
    "name",
    [
        "", "SS", "s", "ssfx", "mcsf", "ss-1024", "msf-64-32", "ss+mirror", "ss+scales-1-2", "mscf+labels", "ms+labels",
        "ssc-0", "ssc-64-65", "ssc-64x32-33", "ssc-64-5/4", "ssc-64-0", "ssc-64-1-2", "ss+short-64x64", "ss+size-64",
        "ss+short-0", "ms+scales-0-1", "ms+scales-", "ms+scales-1e3", "ss+exp", "ss+", "ss++softmax", "ss+softmax+logits",
        "ss+softmax+short-64", "ssc-64-43+mirror+mirror", "ssc-64-1/0", " ss", "ss\n",
    ],
)  # fmt: skip
def test_what_is_no_name(name):
    with pytest.raises(InputError, match="protocol"):
        parse_protocol(name)


def test_a_wrong_name_is_told_the_nearest():
    with pytest.raises(InputError, match="did you mean 'mscf'"):
        parse_protocol("mscff")


def test_stamp():
    stamp = parse_protocol("mscf-960-5/6+short-512").to_dict("val", ["road", "sky"])
    assert stamp["name"] == "mscf-960-800+short-512"
    assert (stamp["size"], stamp["tiling"], stamp["stride"]) == ("960x960", "sliding", "800")
    assert (stamp["scales"], stamp["flips"], stamp["rule"]) == (list(ALL), "none, horizontal", "exp-softmax")
    assert (stamp["start"], stamp["classes"], stamp["ignore"]) == ("short-512", ["road", "sky"], 255)
    whole = parse_protocol("ss").to_dict("test", ["road", "sky"], "1024x2048")
    assert (whole["size"], whole["tiling"], whole["stride"]) == ("1024x2048", "whole", None)


def test_stamps_differ_where_protocols_do():
    names = [
        "ss",
        "ssf",
        "ssc-64-43",
        "ssc-64-32",
        "ssc-64-43+mirror",
        "ss+logits",
        "ss+labels",
        "ss+short-64",
    ]
    stamps = [parse_protocol(name).to_dict("val", ["a"]) for name in names]
    bare = [{key: value for key, value in stamp.items() if key != "name"} for stamp in stamps]
    assert all(a != b for i, a in enumerate(bare) for b in bare[:i])


# ---- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["softmax", "logits", "exp-sum", "exp-softmax"])
@pytest.mark.parametrize(
    "name", ["ssc-32-2/3", "ssc-32x48-5/6", "ssc-64-1/2", "sscf-40-27", "ssc-200-200+mirror"]
)
def test_windows_of_a_network_of_pixels_are_the_whole_image(name, rule):
    image = noise(2, 3, 64, 96)
    whole = scores(("ssf" if parse_protocol(name).flip else "ss") + f"+{rule}", image)
    of_one_class = apply_protocol(parse_protocol(f"{name}+softmax"), lambda x: x[:, :1], image)
    coverage = of_one_class / of_one_class.min()
    found = scores(f"{name}+{rule}", image)
    torch.testing.assert_close(found / coverage, whole)
    assert torch.equal(found.argmax(1), whole.argmax(1))


@pytest.mark.parametrize("size", [(20, 30), (64, 64), (65, 130), (200, 40)])
@pytest.mark.parametrize("crop", [(64, 64), (32, 96)])
def test_windows_have_the_size_of_the_protocol_whatever_else(size, crop):
    seen = []

    def predict(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape[-2:]))
        return of_pixels(image)

    protocol = Protocol(crop=crop, stride=(30, 30))
    assert apply_protocol(protocol, predict, noise(1, 3, *size)).shape == (1, 4, *size)
    assert set(seen) == {crop}


@pytest.mark.parametrize(("border", "value"), [("zeros", 0.0), ("mirror", 1.0)])
def test_border(border, value):
    seen = []
    protocol = parse_protocol(f"ssc-8-8+{border}")
    apply_protocol(protocol, lambda x: seen.append(x) or x, torch.ones(1, 3, 5, 4))  # type: ignore[func-returns-value]
    assert seen[0][0, 0, 0, 0] == value
    assert seen[0][0, 0, 1:6, 2:6].eq(1).all()  # centred, what cannot be halved goes below


def test_a_network_must_fill_its_window():
    with pytest.raises(ValueError, match="window"):
        apply_protocol(parse_protocol("ssc-64-64"), lambda x: x[..., ::2, ::2], noise(1, 3, 64, 64))


# ---- flips, scales, sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["softmax", "logits", "exp-sum", "exp-softmax"])
def test_flipping_the_image_flips_the_scores(rule):
    kernel = noise(4, 3, 3, 3)

    def predict(image: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(image, kernel, padding=1)

    image = noise(1, 3, 32, 64)
    plain, mirrored = (
        apply_protocol(parse_protocol(f"ssf+{rule}"), predict, x) for x in (image, image.flip(-1))
    )
    assert torch.equal(plain, mirrored.flip(-1))
    assert not torch.equal(plain, apply_protocol(parse_protocol(f"ss+{rule}"), predict, image))


def test_rules_by_hand():
    image = torch.tensor([[[[0.0, 2.0] * 16] * 32, [[1.0, 0.0] * 16] * 32]])
    turned = image.flip(-1)
    a, b = image.softmax(1), turned.flip(-1).softmax(1)
    found = {
        rule: apply_protocol(parse_protocol(f"ssf+{rule}"), lambda x: x, image)
        for rule in ("softmax", "logits", "exp-sum", "exp-softmax")
    }
    torch.testing.assert_close(found["softmax"], a + b)
    torch.testing.assert_close(found["logits"], 2 * image)
    torch.testing.assert_close(found["exp-sum"], a * b)
    torch.testing.assert_close(found["exp-softmax"], (a + b).exp())


def test_scales_are_added_up_at_the_label_s_size():
    image = noise(1, 3, 64, 96)
    each = [scores(f"ms+scales-{scale}", image, (50, 70)) for scale in (0.5, 1, 1.5)]
    torch.testing.assert_close(scores("ms+scales-0.5-1-1.5", image, (50, 70)), torch.stack(each).sum(0))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("ss", {(96, 128)}),
        ("ms+scales-0.5-1.5", {(64, 64), (128, 192)}),
        ("ss+short-64", {(64, 128)}),
        ("ss+long-60", {(64, 64)}),
        ("ss+long-300", {(96, 128)}),
        ("ss+size-64x32", {(64, 32)}),
    ],
)
def test_sizes_that_a_network_gets(name, sizes):
    seen = set()

    def predict(image: Tensor) -> Tensor:
        seen.add(tuple(image.shape[-2:]))
        return image

    assert apply_protocol(parse_protocol(name), predict, noise(1, 3, 70, 110)).shape[-2:] == (70, 110)
    assert seen == sizes


@pytest.mark.parametrize("side", ["short", "long"])
@pytest.mark.parametrize("size", [(40, 90), (90, 40), (50, 50)])
def test_start_keeps_proportions(side, size):
    height, width = Start(side, (30,)).of(*size)
    assert (min if side == "short" else max)(height, width) == 30
    assert height / width == pytest.approx(size[0] / size[1], rel=0.1)


def test_label_brought_to_the_output():
    image = noise(1, 3, 64, 64)
    output = apply_protocol(parse_protocol("ss+labels"), lambda x: x[..., ::8, ::8], image)
    assert output.shape == (1, 3, 8, 8)
    label = torch.arange(64).expand(1, 64, 64)
    assert label_at(label, output)[0, 0].tolist() == list(range(4, 64, 8))
    assert label_at(label, image) is label
    assert label_at(label.byte(), output).dtype == torch.uint8


def test_reduced_precision_is_added_up_in_float32():
    found = apply_protocol(parse_protocol("mscf-32"), lambda x: x.bfloat16(), noise(1, 3, 40, 40))
    assert found.dtype == torch.float32
