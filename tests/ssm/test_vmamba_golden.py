"""VMamba: equal to the release and to ChangeMamba's copy of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anban.ssm.vmamba.golden import ADAPTERS
from anban.testing import golden

COPIES = Path(__file__).parents[1] / "golden"
CASES = [
    case
    for case in golden.find_cases([Path(os.environ.get("ANBAN_GOLDEN", COPIES)) / "ssm"])
    if case.official in ADAPTERS
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_outputs_equal_the_official_ones(case: golden.Case) -> None:
    result = golden.check(case, ADAPTERS)
    assert result.status == "ok", (result.why, *result.outputs)


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("ss2d_v05_cf", {"forward_type": "xv1a"}, "xv types"),
        ("ss2d_v05_cf", {"forward_type": "v07"}, "v07"),
        ("ss2d_v05_cf", {"k_group": 2}, "k_group"),
        ("vssblock_v05_cf", {"norm_layer": "ln"}, "layout follows the norm"),
        ("vssm_micro_posembed_cf", {"downsample_version": "none"}, "downsample_version"),
    ],
)
def test_what_has_no_counterpart_is_not_supported(name: str, changes: dict[str, object], why: str) -> None:
    (case,) = golden.find_cases([COPIES / "ssm" / f"{name}.json"])
    case.data["constructor"] |= changes
    result = golden.check(case, ADAPTERS)
    assert result.status == "unsupported"
    assert why in str(result.why)


def test_changemamba_takes_all_that_begins_with_v0_for_v0() -> None:
    (case,) = golden.find_cases([COPIES / "ssm" / "ss2d_v0_cl.json"])
    case.data["constructor"] |= {"forward_type": "v05_noz", "d_conv": 5, "conv_bias": False}
    case.data["source"]["repo"] = "https://github.com/ChenHongruixuan/ChangeMamba"
    assert golden.check(case, ADAPTERS).status == "ok"
