"""SS2D: layouts, sizes, gradients, precision, memory; refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError
from anban.official import load_official
from anban.ssm.orders import CROSS, OMNIDIRECTIONAL, walk
from anban.ssm.scan import selective_scan
from anban.ssm.vmamba import SS2D, ForwardType, VSSBlock, cross_merge, cross_scan, ss2d

TYPES = [
    "v0",
    "v05",
    "v05_noz",
    "v052d_nozact",
    "v052dc_noz",
    "v05_oncnorm_noz",
    "v05_onsoftmax",
    "xv1a_mul",
    "xv2a",
    "xv3a_act",
]


def make(channel_first: bool = False, **options: Any) -> SS2D:
    torch.manual_seed(0)
    return SS2D(**{"d_model": 8, "d_state": 3, "channel_first": channel_first, **options})


def image(*shape: int) -> Tensor:
    """(batch, H, W, 8)."""
    return torch.randn(shape or (2, 5, 4, 8), generator=torch.Generator().manual_seed(1))


def naive(model: SS2D, x: Tensor) -> Tensor:
    """The scan of features (batch, d, H, W) as the paper draws it: four written sequences, each projected by itself."""
    batch, d, height, width = x.shape
    sequences = cross_scan(x)
    outputs = []
    for k in range(4):
        u = sequences[:, k]
        projected = torch.einsum("cd,bdl->bcl", model.x_proj_weight[k], u)
        step, B, C = projected.split([model.dt_rank, model.d_state, model.d_state], dim=1)
        delta = torch.einsum("dr,brl->bdl", model.dt_projs_weight[k], step)
        A = -model.A_logs.exp().view(4, d, -1)[k]
        D, bias = model.Ds.view(4, d)[k], model.dt_projs_bias[k]
        outputs.append(selective_scan(u, delta, A, B, C, D, bias, True, backend="reference"))
    return cross_merge(torch.stack(outputs, 1).view(batch, 4, d, height, width)).view(x.shape)


def test_projecting_pixels_once_equals_projecting_four_sequences() -> None:
    model = make(forward_type="v05_noz").double()
    x = image(2, 5, 7, 8).double()
    features = F.silu(model.conv2d(model.in_proj(x).permute(0, 3, 1, 2)))
    expected = model.out_proj(model.out_norm(naive(model, features).permute(0, 2, 3, 1)))
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("channel_first", [False, True])
def test_no_features_are_copied_for_the_directions(
    channel_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, ...]] = []

    def spy(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append((x, delta, B, C))
        return x

    monkeypatch.setattr(ss2d, "selective_scan_2d", spy)
    model = make(channel_first, forward_type="v05")
    model(image().permute(0, 3, 1, 2).contiguous() if channel_first else image())
    ((x, delta, B, C),) = seen
    assert x.shape == (2, 5, 4, 16)
    assert x.is_contiguous()
    assert delta.shape == (2, 5, 4, 4, 16)
    assert delta.permute(3, 0, 1, 2, 4).is_contiguous()
    assert B.untyped_storage().data_ptr() == C.untyped_storage().data_ptr()
    assert B.untyped_storage().nbytes() == 4 * 2 * 5 * 4 * 4 * (model.dt_rank + 2 * model.d_state)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("size", [(5, 4), (1, 7), (6, 1), (1, 1)])
def test_both_layouts_give_the_same(kind: str, size: tuple[int, int]) -> None:
    last, first = make(forward_type=kind), make(True, forward_type=kind)
    state = last.state_dict()
    if "cnorm" in kind:  # the release has Identity where the other layout permutes, so the names are the same
        assert state.keys() == first.state_dict().keys()
    first.load_state_dict(state)
    x = image(2, *size, 8)
    torch.testing.assert_close(
        first(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), last(x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", TYPES)
def test_every_parameter_has_a_finite_gradient(kind: str) -> None:
    model = make(forward_type=kind, bias=True)
    x = image(2, 3, 4, 8).requires_grad_()
    model(x).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()} | {"x": x.grad}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert all(g is not None and g.abs().max() > 0 for g in gradients.values())


def test_gradients_are_those_of_the_function() -> None:
    model = make(d_model=4, d_state=2, ssm_ratio=1.0, forward_type="v05").double()
    parameters = list(model.parameters())
    x = image(1, 2, 3, 4).double().requires_grad_()

    def run(x: Tensor, *_: Tensor) -> Tensor:
        result: Tensor = model(x)
        return result

    assert torch.autograd.gradcheck(run, (x, *parameters), atol=1e-6)


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["v05_noz", "v2", "v052dc_noz", "xv1a"])
def test_autocast_keeps_float32_states_where_half_precision_overflows(kind: str) -> None:
    model = make(forward_type=kind)
    sums: list[Tensor] = []
    model.out_norm.register_forward_hook(lambda module, inputs, output: sums.append(inputs[0].detach()))
    x = (300 * image()).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    assert sums[0].dtype == torch.float32
    if kind != "v052dc_noz":  # which norms in front of the scan
        assert sums[0].abs().max() > torch.finfo(torch.float16).max
    y.float().square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_autocast_is_close_to_float32() -> None:
    model = make(forward_type="v05_noz")
    with torch.autocast("cpu", torch.bfloat16):
        half = model(image())
    full = model(image())
    assert (half - full).abs().max() < 0.03 * full.abs().max()


def test_a_network_in_half_precision_runs() -> None:
    model = make(True, forward_type="v05").bfloat16()
    y = model(image().permute(0, 3, 1, 2).bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


# ---- arguments --------------------------------------------------------------------------------------------------------


def test_sizes_follow_the_arguments() -> None:
    model = make(d_model=40, d_state=5, ssm_ratio=1.5, forward_type="v05_noz")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert model.dt_rank == 3
    assert shapes == {
        "x_proj_weight": (4, 3 + 10, 60),
        "dt_projs_weight": (4, 60, 3),
        "dt_projs_bias": (4, 60),
        "A_logs": (240, 5),
        "Ds": (240,),
        "in_proj.weight": (60, 40),
        "conv2d.weight": (60, 1, 3, 3),
        "conv2d.bias": (60,),
        "out_norm.weight": (60,),
        "out_norm.bias": (60,),
        "out_proj.weight": (40, 60),
    }
    assert not list(make(d_conv=1).conv2d.parameters())
    assert make(d_conv=5, conv_bias=False).conv2d.bias is None


def test_the_start_of_the_scan() -> None:
    model = make(d_model=64, d_state=4, dt_rank=4, dt_min=0.01, dt_max=0.2, dt_init="constant", dt_scale=2.0)
    steps = F.softplus(model.dt_projs_bias)
    assert 0.01 <= steps.min() < 0.02
    assert 0.1 < steps.max() <= 0.2
    assert (model.dt_projs_weight == 1.0).all()
    torch.testing.assert_close(model.A_logs.exp(), torch.arange(1.0, 5).expand(512, 4))
    assert (model.Ds == 1).all()
    uniform = make(d_model=64, dt_rank=4).dt_projs_weight
    assert 0.45 < uniform.abs().max() <= 0.5
    assert make(initialize="v2").A_logs.abs().max() == 0
    assert make(initialize="v2").dt_projs_bias.min() >= 0
    assert make(initialize="v1").A_logs.std() > 0.5
    assert make(initialize="v1").dt_projs_bias.min() < 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"forward_type": "v7"}, "'v7' is not known"),
        ({"act_layer": "swish"}, "act_layer is 'swish'"),
        ({"initialize": "v3"}, "initialize is 'v3'"),
        ({"dt_init": "zeros"}, "dt_init is 'zeros'"),
        ({"d_conv": 4}, "d_conv is 4"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        make(**options)


def test_an_input_of_the_other_layout_is_refused() -> None:
    with pytest.raises(InputError) as refusal:
        SS2D(16, channel_first=True)(torch.zeros(2, 8, 10, 16))
    assert refusal.value.what == (
        "got (2, 8, 10, 16); this SS2D has channel_first=True and expects (batch, 16, height, width)"
    )
    with pytest.raises(InputError, match=r"got \(2, 16, 8, 10\); this VSSBlock has channel_first=False"):
        VSSBlock(16)(torch.zeros(2, 16, 8, 10))
    with pytest.raises(InputError, match=r"expects \(batch, height, width, 8\)"):
        make()(torch.zeros(2, 20, 8))


# ---- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("channel_first", [False, True])
def test_weights_make_the_round_trip(channel_first: bool, kind: str) -> None:
    one = make(channel_first, forward_type=kind)
    other = make(channel_first, forward_type=kind, initialize="v2")
    load_official(other, {f"module.{name}": tensor for name, tensor in one.state_dict().items()})
    x = image().permute(0, 3, 1, 2) if channel_first else image()
    assert torch.equal(other(x), one(x))


def test_weights_of_1x1_convolutions_and_of_a_bare_out_norm_are_taken() -> None:
    one, other = (make(True, forward_type="v05_ondwconv3", initialize=start) for start in ("v0", "v2"))
    state = one.state_dict()
    for name in ("in_proj.weight", "out_proj.weight"):
        state[name] = state[name][:, :, None, None]
    state["out_norm.weight"] = state.pop("out_norm.1.weight")
    load_official(other, state)
    assert torch.equal(other.out_norm[1].weight, one.out_norm[1].weight)  # type: ignore[index]
    assert torch.equal(other.in_proj.weight, one.in_proj.weight)


def test_drop_path_and_dropout_act_in_training_only() -> None:
    torch.manual_seed(0)
    block = VSSBlock(8, drop_path=0.5, ssm_drop_rate=0.5, mlp_drop_rate=0.5)
    assert isinstance(block.op.dropout, nn.Dropout)
    x = image(64, 1, 1, 8)
    block.train()
    changed = (block(x) != x).flatten(1).any(1)
    assert 32 < changed.sum() < 64  # both branches are left out for a quarter of the samples
    block.eval()
    assert torch.equal(block(x), block(x))


# ---- oblique orders ----------------------------------------------------------------------------------------------------


def path(order: str, height: int, width: int) -> list[int]:
    """The pixels in the order of the sequence."""
    if order in CROSS:
        return [walk(order, height, width).pixel(t) for t in range(height * width)]
    down = -1 if order.startswith("anti") else 1
    pixels = [row * width + (column + down * row) % width for column in range(width) for row in range(height)]
    return pixels[::-1] if order.endswith("reversed") else pixels


@pytest.mark.parametrize("orders", [OMNIDIRECTIONAL, OMNIDIRECTIONAL[4:]], ids=["eight", "oblique"])
@pytest.mark.parametrize("size", [(3, 5), (5, 3), (1, 4)], ids=str)
def test_oblique_orders_read_the_pixels_along_wrapped_diagonals(
    size: tuple[int, int], orders: tuple[str, ...]
) -> None:
    layer = make(forward_type=ForwardType(orders, gate="none"))
    x = torch.randn(2, *size, 16, generator=torch.Generator().manual_seed(2))
    expected = torch.zeros(2, x[0, ..., 0].numel(), 16)
    with torch.no_grad():
        for k, order in enumerate(orders):
            pixels = path(order, *size)
            line = x.flatten(1, 2)[:, pixels].unsqueeze(1)
            expected[:, pixels] += layer._scan(line, ("row",), [k]).squeeze(1)
        torch.testing.assert_close(layer._all_orders(x), expected.view(x.shape))


def test_all_directions_have_parameters_and_gradients() -> None:
    layer = make(forward_type=ForwardType(OMNIDIRECTIONAL))
    assert layer.A_logs.shape == (8 * 16, 3)
    layer(image()).square().sum().backward()
    for parameter in (layer.x_proj_weight, layer.dt_projs_weight, layer.dt_projs_bias):
        assert parameter.grad is not None
        assert parameter.grad.flatten(1).abs().amax(1).min() > 0
