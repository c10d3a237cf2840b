"""The Mamba mixer: equal to the release, its recurrent view to its parallel one, one direction causal, two symmetric."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anban.errors import InputError
from anban.ssm.golden import ADAPTERS
from anban.ssm.mamba import Mamba, causal_conv
from anban.testing import golden

COPIES = Path(__file__).parents[1] / "golden"
CASES = [
    case
    for case in golden.find_cases([Path(os.environ.get("ANBAN_GOLDEN", COPIES)) / "ssm"])
    if case.official[1] in {"Mamba", "selective_scan_ref"}
]


def make(**options: Any) -> Mamba:
    torch.manual_seed(0)
    return Mamba(12, **{"d_state": 5, **options})


def tokens(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_outputs_and_gradients_equal_the_official_ones(case: golden.Case) -> None:
    result = golden.check(case, ADAPTERS)
    assert result.status == "ok", (result.why, *golden.each_output(result))


def test_a_slow_path_of_the_release_reads_forwards_only() -> None:
    case = next(case for case in CASES if case.name == "vim_mixer_v2")
    data = case.data | {"constructor": case.data["constructor"] | {"use_fast_path": False}}
    outputs = ADAPTERS["hustvl/Vim", "Mamba"](golden.Case(case.path, data))
    forwards = Mamba(16)
    forwards.load_state_dict({n: t for n, t in case.weights().items() if n in forwards.state_dict()})
    torch.testing.assert_close(outputs["y"], forwards(case.inputs()["x"]))


# ---- the recurrent view ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"d_conv": 1, "bias": True},
        {"d_conv": 3, "conv_bias": False, "expand": 1.5, "dt_rank": 3, "init_layer_scale": 0.5},
    ],
    ids=["default", "no window", "others"],
)
def test_steps_equal_the_whole_sequence_at_a_constant_size_of_the_state(options: dict[str, Any]) -> None:
    mixer, x = make(**options), tokens(2, 17, 12)
    state = mixer.allocate_state(2)
    sizes = [part.shape for part in state]
    with torch.no_grad():
        for t, expected in enumerate(mixer(x).unbind(1)):
            before = [part.clone() for part in state]
            y, after = mixer.step(x[:, t], state)
            torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-5)
            assert all(torch.equal(old, kept) for old, kept in zip(before, state, strict=True))
            assert [part.shape for part in after] == sizes
            state = after


def test_a_stepped_mixer_keeps_its_state_in_float32() -> None:
    mixer = make().bfloat16()
    y, state = mixer.step(tokens(2, 12).bfloat16(), mixer.allocate_state(2))
    assert y.dtype == state.window.dtype == torch.bfloat16
    assert state.hidden.dtype == torch.float32


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_mixer_that_reads_backwards_cannot_be_stepped(kind: str) -> None:
    mixer = make(bimamba_type=kind)
    with pytest.raises(InputError, match="reads forwards only"):
        mixer.step(tokens(2, 12), mixer.allocate_state(2))


# ---- directions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "v1", "v2"])
def test_only_two_directions_see_what_comes_later(kind: str) -> None:
    mixer, x = make(bimamba_type=kind), tokens(1, 9, 12).requires_grad_()
    seen = torch.autograd.grad(mixer(x)[:, 4].sum(), x)[0].abs().sum(-1)[0] > 0
    assert seen[:5].all()
    assert seen[5:].all() if kind != "none" else not seen[5:].any()


@pytest.mark.parametrize(("kind", "width"), [("v1", 1), ("v2", 4)])
def test_with_equal_weights_the_two_directions_mirror_each_other(kind: str, width: int) -> None:
    # v1 shares the causal convolution, which is symmetric only if it is no convolution at all.
    mixer, x = make(bimamba_type=kind, d_conv=width), tokens(2, 9, 12)
    state = mixer.state_dict()
    mirrored = {
        name: state[name.replace("_b_log", "_log").replace("_b.", ".")] for name in state if "_b" in name
    }
    mixer.load_state_dict(state | mirrored | ({"D_b": state["D"]} if kind == "v2" else {}))
    torch.testing.assert_close(mixer(x.flip(1)).flip(1), mixer(x))


def test_the_sum_of_two_directions_is_halved_on_demand() -> None:
    mixer, x = make(bimamba_type="v2"), tokens(2, 9, 12)
    whole = mixer(x)
    mixer.if_divide_out = True
    torch.testing.assert_close(2 * mixer(x), whole)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("width", [1, 4])
def test_the_convolution_is_a_padded_conv1d(width: int, backwards: bool) -> None:
    x, weight, bias = tokens(2, 7, 6), tokens(6, 1, width), tokens(6)
    columns = x.flip(1).transpose(1, 2) if backwards else x.transpose(1, 2)
    expected = F.conv1d(columns, weight, bias, padding=width - 1, groups=6)[..., :7].transpose(1, 2)
    got = causal_conv(x, weight, bias, backwards=backwards)
    torch.testing.assert_close(got, expected.flip(1) if backwards else expected)


# ---- start, precision, errors ---------------------------------------------------------------------------------------


def test_the_start_of_steps_decays_and_skips() -> None:
    mixer = make(dt_min=0.01, dt_max=0.2, dt_init="constant", dt_scale=2.0, dt_rank=4)
    steps = F.softplus(mixer.dt_proj.bias)
    assert steps.min() >= 0.01 - 1e-6
    assert steps.max() <= 0.2 + 1e-6
    assert steps.std() > 0.01
    assert torch.all(mixer.dt_proj.weight == 2.0 / 4**0.5)
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 6.0).expand(24, 5))
    assert torch.all(mixer.D == 1)
    floored = F.softplus(make(dt_init_floor=0.05).dt_proj.bias)
    assert floored.min() >= 0.05 - 1e-6


@pytest.mark.parametrize("kind", ["none", "v1", "v2"])
def test_gradients_reach_every_parameter(kind: str) -> None:
    mixer = make(bimamba_type=kind, init_layer_scale=0.1, bias=True)
    mixer(tokens(2, 9, 12)).square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", ["none", "v2"])
def test_low_precision_stays_close(kind: str) -> None:
    mixer, x = make(bimamba_type=kind), tokens(2, 33, 12)
    exact = mixer.double()(x.double())
    mixer.float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mixer(x)
    low = mixer.bfloat16()(x.bfloat16())
    assert mixed.dtype == low.dtype == torch.bfloat16
    for y in (mixed, low):
        assert (y.double() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("option", ["bimamba_type", "dt_init"])
def test_unknown_options_are_one_message(option: str) -> None:
    with pytest.raises(InputError, match=f"no {option} is called 'v3'"):
        make(**{option: "v3"})
