"""S4 kernels and layers: equal to the release; training and running them are the same function."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anban.errors import InputError
from anban.official import load_official
from anban.ssm.s4 import S4D, S4ND, FFTConv, S4Block, S4DKernel, SSMKernelDiag, SSMKernelDPLR
from anban.ssm.s4.golden import ADAPTERS
from anban.ssm.s4.layers import activation_layer
from anban.testing import golden

COPIES = Path(__file__).parents[1] / "golden"
CASES = [
    case
    for folder in dict.fromkeys((COPIES, Path(os.environ.get("ANBAN_GOLDEN", COPIES))))
    for case in golden.find_cases([folder / "ssm"])
    if case.official in ADAPTERS
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def build(kind: type[nn.Module], **arguments: Any) -> Any:
    torch.manual_seed(0)
    return kind(**arguments).double().eval()


# ---- equal to the release -------------------------------------------------------------------------------------------


def test_every_adapter_has_a_case() -> None:
    assert {case.official for case in CASES} == set(ADAPTERS)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_outputs_equal_the_official_ones(case: golden.Case) -> None:
    result = golden.check(case, ADAPTERS)
    assert result.status == "ok", (result.why, *golden.each_output(result))


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("s4d_kernel_zoh", {"comp": True}, "comp"),
        ("s4d_kernel_zoh", {"disc": "euler"}, "euler"),
        ("s4d_kernel_zoh", {"dt_transform": "cube"}, "cube"),
        ("s4d_kernel_zoh", {"n_ssm": 4}, "n_ssm"),
        ("s4d_kernel_zoh", {"is_real": True, "bandlimit": 1.0}, "band limit"),
        ("s4_dplr_kernel", {"bandlimit": 1.0}, "band limit"),
        ("s4_dplr_kernel", {"init": "legt"}, "rank 1"),
        ("s4_legs_kernel", {"B_clip": 2.0}, "phases"),
        ("s4block_diag", {"gate": 2}, "gate"),
        ("s4block_diag", {"mode": "conv"}, "conv"),
        ("s4block_diag", {"final_act": "laplace"}, "laplace"),
        ("s4block_dplr_legs", {"rate": 2.0}, "another rate"),
        ("s4nd_2d", {"kernel": "ema"}, "ema"),
        ("s4nd_2d", {"out_channels": 3, "linear": False}, "out_channels"),
        ("s4nd_2d", {"contract_version": 1, "trank": 2, "channels": 2}, "contract_version 1"),
        ("s4nd_2d", {"kernel": "dplr", "init": "legs", "rate": 2.0}, "another rate"),
    ],
)
def test_what_has_no_counterpart_is_not_supported(name: str, changes: dict[str, object], why: str) -> None:
    (case,) = golden.find_cases([COPIES / "ssm" / f"{name}.json"])
    case.data["constructor"] |= changes
    result = golden.check(case, ADAPTERS)
    assert result.status == "unsupported", result.why
    assert why in str(result.why)


@pytest.mark.parametrize("module", ["kernel", "block", "image"])
def test_checkpoints_that_keep_the_truncated_output_are_turned_back(module: str) -> None:
    options = {"d_state": 8, "init": "legs"}
    model: Any = {
        "kernel": lambda: build(SSMKernelDPLR, d_model=3, **options),
        "block": lambda: build(S4Block, d_model=3, **options),
        "image": lambda: build(S4ND, d_model=3, kernel="dplr", linear=False, **options),
    }[module]()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kernels = {n: k for n, k in model.named_modules() if isinstance(k, SSMKernelDPLR)}
    assert kernels
    for name, kernel in kernels.items():
        prefix = f"{name}." if name else ""
        C = kernel.system().truncated_output(16)
        state[f"{prefix}C"] = torch.view_as_real(C.detach().resolve_conj())
        state[f"{prefix}l_kernel"] = torch.tensor(16)
    original = {name: value.clone() for name, value in model.state_dict().items()}
    load_official(model, state)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, original[name], atol=1e-9, rtol=0)


# ---- kernels --------------------------------------------------------------------------------------------------------


def test_deterministic_steps_lie_where_they_should_and_c_reads_the_first_coefficient() -> None:
    kernel = build(SSMKernelDPLR, d_model=3, d_state=16, deterministic=True, dt_min=0.01, dt_max=0.1)
    torch.testing.assert_close(
        kernel.inv_dt[:, 0].exp(), torch.tensor([0.01, 0.1**1.5, 0.1]).double(), atol=1e-7, rtol=0
    )
    # The first coefficient of LegS is the mean of the past; a constant input of one is remembered as one.
    y, _ = kernel.system().recur(torch.ones(1, 3, 3000).double())
    torch.testing.assert_close(y[0, 0, :, -1], torch.ones(3).double(), atol=1e-4, rtol=0)


def test_initial_parameters_are_the_exact_ones() -> None:
    kernel = build(SSMKernelDiag, d_model=2, d_state=8)
    A, B, C, dt = kernel.continuous()
    expected = torch.complex(torch.full((4,), -0.5), -torch.pi * torch.arange(4))
    torch.testing.assert_close(A, expected.to(A).expand(2, -1), atol=1e-6, rtol=0)
    assert B.eq(1).all()
    assert C.shape == (1, 2, 4)
    assert ((dt > 0.001) & (dt < 0.1)).all()


@pytest.mark.parametrize("transform", ["none", "exp", "relu", "sigmoid", "softplus"])
@pytest.mark.parametrize("fast", [False, True])
def test_every_transform_starts_at_the_same_system(transform: Any, fast: bool) -> None:
    options = {"d_model": 3, "d_state": 8, "deterministic": True}
    plain = build(SSMKernelDiag, **options)
    other = build(
        SSMKernelDiag,
        dt_transform=transform,
        real_transform=transform,
        imag_transform="relu" if transform == "sigmoid" else transform,
        dt_fast=fast,
        **options,
    )
    for got, expected in zip(other.continuous(), plain.continuous(), strict=True):
        # Logarithms cannot hold the constant mode's frequency of zero.
        torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-5)


def test_another_rate_samples_the_same_continuous_kernel() -> None:
    kernel = build(SSMKernelDiag, d_model=3, d_state=8, dt_min=1e-4, dt_max=1e-3)
    # Twice the step: half the samples, each the response to twice the input's area.
    torch.testing.assert_close(kernel(50, rate=2.0), 2 * kernel(100)[..., ::2], atol=2e-3, rtol=1e-2)
    dplr = build(SSMKernelDPLR, d_model=3, d_state=8, dt_min=1e-4, dt_max=1e-3)
    torch.testing.assert_close(dplr(50, rate=2.0), 2 * dplr(100)[..., ::2], atol=2e-3, rtol=1e-2)


def test_shared_systems_are_repeated_in_turn() -> None:
    kernel = build(SSMKernelDiag, d_model=4, d_state=8, n_ssm=2, init="diag")
    A, B, _, _ = kernel.continuous()
    assert kernel.A_real.shape == (2, 4)
    torch.testing.assert_close(A[:2], A[2:])
    assert not torch.equal(A[0], A[1])
    assert B.shape == (4, 4)


def test_a_band_limit_drops_what_aliases() -> None:
    options = {"d_model": 1, "d_state": 8, "deterministic": True, "dt_min": 0.5, "dt_max": 0.5}
    limited = build(SSMKernelDiag, bandlimit=1.0, **options)
    # Modes turn 0, 1/4, 1/2, 3/4 times per step: the last two alias.
    limited.C.data.fill_(1.0)
    assert limited.system().C.abs()[0, 0].bool().tolist() == [True, True, False, False]


def test_dss_has_a_kernel_and_no_recurrence() -> None:
    kernel = build(SSMKernelDiag, d_model=2, d_state=8, disc="dss")
    assert kernel(10).shape == (1, 2, 10)
    with pytest.raises(InputError, match="dss"):
        kernel.system()


def test_real_modes_are_moving_averages() -> None:
    kernel = build(SSMKernelDiag, d_model=2, d_state=3, init="diag-real", is_real=True)
    assert kernel.A_real.shape == (2, 3)
    assert "A_imag" not in kernel.state_dict()
    u = draw(1, 2, 20)
    system = kernel.system()
    torch.testing.assert_close(system.convolve(u), system.scan(u)[0], atol=1e-12, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = kernel.float().system().recur(u.float())
    torch.testing.assert_close(y.double(), system.convolve(u), atol=1e-4, rtol=0)


def test_wrong_options_are_one_message() -> None:
    for arguments, said in (
        ({"d_model": 4, "n_ssm": 3}, "n_ssm"),
        ({"d_model": 0}, "d_model"),
        ({"d_model": 4, "disc": "euler"}, "euler"),
        ({"d_model": 4, "dt_transform": "cube"}, "cube"),
        ({"d_model": 4, "dt_min": 0.1, "dt_max": 0.01}, "dt_min"),
        ({"d_model": 4, "is_real": True, "bandlimit": 1.0}, "band limit"),
    ):
        with pytest.raises(InputError, match=said):
            SSMKernelDiag(**arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown"):
        activation_layer("laplace")
    with pytest.raises(InputError, match="kernel 'conv'"):
        S4Block(4, kernel="conv")
    with pytest.raises(InputError, match="arguments of its class"):
        S4Block(4, depth=3)
    with pytest.raises(InputError, match="bottleneck"):
        S4Block(4, bottleneck=3)


# ---- layers ---------------------------------------------------------------------------------------------------------

BLOCKS: list[dict[str, Any]] = [
    {"kernel": "diag", "init": "diag-inv"},
    {"kernel": "dplr"},
    {"kernel": "dplr", "init": "legt", "rank": 2, "channels": 3, "swap_channels": True},
    {"kernel": "diag", "init": "diag-lin", "activation": "glu", "channels": 2, "transposed": False},
    {
        "kernel": "diag",
        "init": "diag-lin",
        "bottleneck": 2,
        "gate": 3,
        "gate_act": "gelu",
        "mult_act": "tanh",
    },
    {"kernel": "diag", "init": "diag-lin", "gate": 1, "final_act": None, "dropout": 0.5, "tie_dropout": True},
]


@pytest.mark.parametrize("options", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_is_run_as_it_is_trained(options: dict[str, Any]) -> None:
    block, x = build(S4Block, d_model=4, d_state=8, **options), draw(2, 4, 13)
    transposed = options.get("transposed", True)
    given = x if transposed else x.transpose(1, 2)
    whole = block(given)
    assert whole.shape == given.shape
    whole = whole if transposed else whole.transpose(1, 2)
    first, state = block.prefill(given[..., :5] if transposed else given[:, :5])
    torch.testing.assert_close(first if transposed else first.transpose(1, 2), whole[..., :5])
    system = block.layer.system()
    for t in range(5, 13):
        y, state = block.step(x[..., t], state, system if t % 2 else None)
        torch.testing.assert_close(y, whole[..., t])


@pytest.mark.parametrize("transposed", [True, False])
def test_a_minimal_layer_is_run_as_it_is_trained(transposed: bool) -> None:
    layer, u = build(S4D, d_model=4, d_state=8, transposed=transposed, dropout=0.3), draw(2, 4, 9)
    whole = layer(u) if transposed else layer(u.transpose(1, 2)).transpose(1, 2)
    state = None
    for t in range(9):
        y, state = layer.step(u[..., t], state)
        torch.testing.assert_close(y, whole[..., t])


def test_a_block_does_not_look_ahead_unless_it_is_bidirectional() -> None:
    x = draw(1, 4, 12).requires_grad_()
    for bidirectional in (False, True):
        y = build(S4Block, d_model=4, d_state=8, bidirectional=bidirectional)(x)
        (gradient,) = torch.autograd.grad(y[..., 5].sum(), x)
        assert gradient[..., :6].abs().min() > 0
        assert bool((gradient[..., 6:].abs() > 1e-12).any()) == bidirectional


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"l_max": 8}])
def test_what_has_no_recurrence_says_so(options: dict[str, Any]) -> None:
    block = build(S4Block, d_model=4, d_state=8, **options)
    with pytest.raises(InputError, match="no recurrence"):
        block.step(draw(1, 4))


def test_a_longest_kernel_forgets() -> None:
    layer = build(FFTConv, d_model=2, d_state=8, l_max=4)
    x = draw(1, 2, 10).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[..., 9].sum(), x)
    assert gradient[..., :6].abs().max() < 1e-12
    assert gradient[..., 6:].abs().min() > 0


@pytest.mark.parametrize("lengths", [7, torch.tensor([7, 7])])
def test_padding_counts_as_zero(lengths: Any) -> None:
    block, x = build(S4Block, d_model=4, d_state=8, bidirectional=True), draw(2, 4, 10)
    torch.testing.assert_close(block(x, lengths)[..., :7], block(x[..., :7]))


def test_tied_dropout_drops_whole_features() -> None:
    torch.manual_seed(0)
    block = S4Block(
        64, d_state=4, dropout=0.5, tie_dropout=True, final_act=None, activation=None, kernel="diag"
    )
    y = block.train()(torch.randn(1, 64, 9))
    dropped = y[0].eq(0)
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert 0.4 < dropped.all(1).float().mean() < 0.95  # dropped by the layer, or after it


@pytest.mark.parametrize(
    "options", [{"kernel": "diag"}, {"kernel": "dplr"}, {"kernel": "diag", "disc": "dss"}]
)
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    for model in (S4Block(4, d_state=8, **options), S4D(4, 8)):
        y = model(torch.randn(2, 4, 20))
        y.square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name


def test_a_layer_learns_to_remember() -> None:
    torch.manual_seed(0)
    layer = FFTConv(1, d_state=16, kernel="diag", init="diag-lin", activation=None, dt_min=0.05, dt_max=0.1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    u = torch.randn(8, 1, 64)
    target = torch.nn.functional.pad(u, (10, 0))[..., :64]
    losses = []
    for _ in range(150):
        loss = (layer(u) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_low_precision_inputs_and_autocast() -> None:
    torch.manual_seed(0)
    block = S4Block(4, d_state=8)
    x = torch.randn(2, 4, 20)
    exact = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = block(x)
    torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.05)
    image = S4ND(4, 8)
    low = image(torch.ones(1, 4, 6, 6, dtype=torch.bfloat16))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), image(torch.ones(1, 4, 6, 6)), atol=0.05, rtol=0.05)


# ---- S4ND -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("size", "l_max"), [((5, 4), None), ((3, 4, 5), None), ((6,), None), ((5, 6), [3, 9])]
)
def test_an_image_is_convolved_with_the_outer_product_of_the_kernels(
    size: tuple[int, ...], l_max: Any, bidirectional: bool
) -> None:
    model = build(
        S4ND,
        d_model=2,
        d_state=8,
        dim=len(size),
        l_max=l_max,
        trank=2,
        channels=3,
        bidirectional=bidirectional,
    )
    impulse = torch.zeros(1, 2, *size, dtype=torch.float64)
    where = tuple(axis // 2 if bidirectional else 0 for axis in size)
    impulse[(0, slice(None), *where)] = 1
    y = model(impulse).reshape(3, 2, *size)
    y[(..., *where)] -= model.D.detach()
    expected = torch.zeros_like(y)
    kernel = model.kernel_nd(size)
    for index in torch.cartesian_prod(*(torch.arange(axis) for axis in size)).reshape(-1, len(size)).tolist():
        lags = [i - w for i, w in zip(index, where, strict=True)]
        places = [
            lag + (length if bidirectional else 0)
            for lag, length in zip(lags, model.lengths(size), strict=True)
        ]
        if all(0 <= place < length for place, length in zip(places, kernel.shape[2:], strict=True)):
            expected[(..., *index)] = kernel[(..., *places)]
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=0)


def test_the_kernel_of_an_image_is_separable_for_rank_one() -> None:
    model = build(S4ND, d_model=2, d_state=8, bidirectional=False)
    first, second = (kernel(7) for kernel in model.kernel)
    torch.testing.assert_close(model.kernel_nd((7, 7)), first[..., :, None] * second[..., None, :])
    assert torch.linalg.matrix_rank(build(S4ND, d_model=1, d_state=8, trank=3).kernel_nd((9, 9))[0, 0]) == 3


def test_features_may_be_mixed() -> None:
    model, u = (
        build(S4ND, d_model=3, d_state=8, out_channels=2, channels=2, bidirectional=False),
        draw(1, 3, 4, 5),
    )
    y = model(u)
    assert y.shape == (1, 4, 4, 5)
    assert model.D is None
    kernel = model.kernel_nd((4, 5)).reshape(2, 2, 3, 4, 5)
    # The last pixel sees everything: the sum over features and pixels of the kernel turned round.
    expected = torch.einsum("ochij,hij->co", kernel.flip(-1, -2), u[0])
    torch.testing.assert_close(y[0, :, -1, -1], expected.flatten())


def test_layouts_and_the_output_layer() -> None:
    for linear in (True, False):
        options = {"d_model": 3, "d_state": 8, "linear": linear, "tie_dropout": True, "dropout": 0.1}
        first, last = build(S4ND, **options), build(S4ND, transposed=False, **options)
        u = draw(2, 3, 4, 5)
        torch.testing.assert_close(first(u), last(u.movedim(1, -1)).movedim(-1, 1))
    torch.manual_seed(0)
    dropped = first.train()(u)
    assert torch.isfinite(dropped).all()


def test_wrong_images_are_one_message() -> None:
    with pytest.raises(InputError, match="3 dimensions"):
        build(S4ND, d_model=3, d_state=8)(draw(1, 3, 4))
    with pytest.raises(InputError, match="out_channels"):
        S4ND(3, out_channels=2, linear=False)


def test_the_minimal_kernel_has_one_channel() -> None:
    kernel = build(S4DKernel, d_model=3, N=8)
    assert kernel(9).shape == (3, 9)
    torch.testing.assert_close(kernel.system().kernel(9)[0], kernel(9))
