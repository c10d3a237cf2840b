"""Forward types: what the official strings mean, and which are refused; the scan orders as index lists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from anban.errors import InputError
from anban.ssm.orders import BIDIRECTIONAL, CROSS, OMNIDIRECTIONAL, ROTATED, UNIDIRECTIONAL
from anban.ssm.vmamba import ForwardType, cross_merge, cross_scan, forward_type, forward_types

V05 = ForwardType()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v05", V05),
        ("v3", V05),
        ("v4", V05),
        ("v05_noz", replace(V05, gate="none")),
        ("v3noz", replace(V05, gate="none")),
        ("v3_noz", replace(V05, gate="none")),
        ("v05_nozact", replace(V05, gate="linear")),
        ("v2", replace(V05, float32_inputs=True)),
        ("v2_no32", V05),
        ("v0", replace(V05, float32_inputs=True)),
        ("v0seq", replace(V05, float32_inputs=True)),
        ("v01_noz", replace(V05, float32_inputs=True, gate="none")),
        ("v051d", replace(V05, orders=UNIDIRECTIONAL)),
        ("v32d", replace(V05, orders=BIDIRECTIONAL)),
        ("v052d3_noz", replace(V05, orders=ROTATED, gate="none")),
        ("v052dc", replace(V05, cascade=True)),
        ("v05_onnone_noz_oact", replace(V05, out_norm="none", gate="none", out_activation=True)),
        ("v05_oact_noz", replace(V05, gate="none", out_activation=True)),
        ("v3softmaxnoz", replace(V05, out_norm="softmax", gate="none")),
        ("v05_oncnorm", replace(V05, out_norm="layer+dwconv3")),
        (
            "xv1aactmul",
            ForwardType(projection="input", step="shared", gate="features", out_activation=True),
        ),
        ("xv2a_onsigmoid", ForwardType(projection="input", step="full", gate="none", out_norm="sigmoid")),
    ],
)
def test_official_strings_say_what_they_mean(name: str, expected: ForwardType) -> None:
    assert forward_type(name) == expected
    assert forward_type(expected) is expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        "v06",
        "v05-noz",
        "v05_",
        "v05_noz_",
        "noz",
        "V05",
        "v05 noz",
        "m0_noz",
        "xv1a_ocov",
        "xv1",
        "v052dc3",
    ],
)
def test_an_unknown_string_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError) as refusal:
        forward_type(name)
    assert repr(name) in refusal.value.what
    assert "v052dc" in str(refusal.value.expected)
    assert "_ondwconv3" in str(refusal.value.expected)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("v05_noz_nozact", "sets gate twice"),
        ("v05_onnone_onsigmoid", "sets out_norm twice"),
        ("xv1a_noz", "belongs to the v types"),
        ("v05_mul", "belongs to the xv types"),
    ],
)
def test_suffixes_that_do_not_go_together_are_refused(name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        forward_type(name)


@pytest.mark.parametrize(
    "options",
    [
        {"orders": ("row", "column")},
        {"orders": OMNIDIRECTIONAL, "cascade": True},
        {"orders": OMNIDIRECTIONAL[4:], "projection": "input", "gate": "none"},
        {"gate": "features"},
        {"step": "shared"},
        {"projection": "input"},
        {"projection": "input", "gate": "none", "cascade": True},
    ],
)
def test_a_type_of_ones_own_must_make_sense(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="do not go together"):
        ForwardType(**options)


def test_the_table_has_every_base_and_suffix_once_and_explains_it() -> None:
    rows = forward_types()
    names = [name for name, _ in rows]
    assert len(set(names)) == len(names)
    assert {"v0", "v05", "v2", "v052dc", "xv3a", "_noz", "_onsoftmax"} <= set(names)
    assert all(len(meaning) > 10 for _, meaning in rows)


# ---- cross-scan and cross-merge ---------------------------------------------------------------------------------------

IMAGE = torch.arange(6.0).view(1, 1, 2, 3)  # 0 1 2 / 3 4 5


@pytest.mark.parametrize(
    ("orders", "sequences"),
    [
        (CROSS, ["012345", "031425", "543210", "524130"]),
        (UNIDIRECTIONAL, ["012345"] * 4),
        (BIDIRECTIONAL, ["012345", "012345", "543210", "543210"]),
        (ROTATED, ["012345", "251403", "543210", "304152"]),
    ],
)
def test_the_orders_read_the_pixels_as_drawn(orders: tuple[str, ...], sequences: list[str]) -> None:
    got = cross_scan(IMAGE, orders)
    assert got.shape == (1, 4, 1, 6)
    assert ["".join(str(int(p)) for p in row) for row in got[0, :, 0]] == sequences


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("out_channel_first", [False, True])
@pytest.mark.parametrize("channel_first", [False, True])
@pytest.mark.parametrize("orders", [CROSS, ROTATED, BIDIRECTIONAL])
def test_merging_is_the_transpose_of_scanning(
    orders: tuple[str, ...], channel_first: bool, out_channel_first: bool, one_by_one: bool
) -> None:
    layout = {
        "channel_first": channel_first,
        "out_channel_first": out_channel_first,
        "one_by_one": one_by_one,
    }
    shape = [2, 4, 5, 3, 4] if one_by_one else [2, 5, 3, 4]
    if not channel_first:
        shape = [2, 3, 4, 4, 5] if one_by_one else [2, 3, 4, 5]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    scanned = cross_scan(x, orders, **layout)
    assert scanned.shape == ((2, 4, 5, 12) if out_channel_first else (2, 12, 4, 5))
    y = torch.randn(scanned.shape, generator=generator, dtype=torch.float64)
    sized: Tensor = y.view(2, 4, 5, 3, 4) if out_channel_first else y.view(2, 3, 4, 4, 5)
    merged = cross_merge(sized, orders, **layout)
    assert (scanned * y).sum() == pytest.approx((x.reshape(merged.shape) * merged).sum().item(), rel=1e-12)


def test_a_wrong_number_of_directions_is_refused() -> None:
    with pytest.raises(InputError, match=r"got \(1, 3, 1, 2, 3\) for 4 directions"):
        cross_merge(torch.zeros(1, 3, 1, 2, 3))
    with pytest.raises(InputError, match="for 4 directions"):
        cross_scan(torch.zeros(1, 2, 3))
