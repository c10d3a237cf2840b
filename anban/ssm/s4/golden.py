"""Counterparts of the classes and functions of state-spaces/s4: their arguments, as published, in terms of ours."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from anban.errors import InputError
from anban.official import load_official, rename
from anban.ssm.s4 import hippo
from anban.ssm.s4.kernels import S4DKernel, SSMKernelDiag, SSMKernelDPLR
from anban.ssm.s4.layers import S4D, S4Block
from anban.ssm.s4.s4nd import S4ND
from anban.ssm.s4.systems import DPLRSystem, causal_convolution
from anban.testing.golden import Adapter, Case, Network, Outputs, UnsupportedError, run_network

Arguments = dict[str, Any]

_KERNEL = {
    "d_model",
    "channels",
    "d_state",
    "deterministic",
    "dt_min",
    "dt_max",
    "dt_tie",
    "dt_transform",
    "dt_fast",
    "n_ssm",
    "init",
    "real_transform",
    "imag_transform",
}
"""Arguments of the release's kernels that are ours as well."""
_NO_EFFECT = {"verbose", "backend", "lr", "wd", "l_max"}
"""Speed, training and, for a kernel whose length is asked for anyway, its longest length."""
_INITIAL = {
    "real_random",
    "real_scale",
    "imag_random",
    "imag_scale",
    "B_random",
    "B_init",
    "B_scale",
    "B_clip",
    "P_scale",
    "normalize",
    "diagonalize_precision",
}
"""Arguments that choose initial values, all of which a case replaces."""


_NORMALISED = "parametrizations.weight.original"


class _Given(Case):
    """A case whose inputs named like parameters are those parameters; the others of its state dict follow the fill rule."""

    def weights(self, key: str = "state_dict", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        state = super().weights(key, dtype) if key in self.data else {}
        given = super().inputs(dtype)
        # Without a state dict, every input but the signal may be a parameter; the module takes those it has.
        state |= {name: value for name, value in given.items() if name in state or key not in self.data}
        # The release marks a kernel that was never run by length 0: C is C, not yet C~.
        state = {name: value * 0 if name.endswith("l_kernel") else value for name, value in state.items()}
        # Weight normalisation has its modern names here.
        return rename(state, [(r"weight_g$", f"{_NORMALISED}0"), (r"weight_v$", f"{_NORMALISED}1")])

    def inputs(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        names = {name for name, _ in self.data["state_dict"]} if "state_dict" in self.data else set()
        return {name: value for name, value in super().inputs(dtype).items() if name not in names}


# ---- kernels --------------------------------------------------------------------------------------------------------


def _kernel_arguments(mode: str, arguments: Arguments) -> Arguments:
    """Arguments of a kernel class of the release -> ours; the release's defaults where they differ."""
    given = {"init": "legs", **arguments}
    measure = given.pop("measure", None)
    if measure is not None:
        given["init"] = measure
    ours = {name: given.pop(name) for name in _KERNEL & given.keys()}
    for name in (_NO_EFFECT | _INITIAL) & given.keys():
        given.pop(name)
    if mode in {"s4d", "diag"}:
        ours |= {name: given.pop(name) for name in ("disc", "bandlimit", "is_real") if name in given}
        given.pop("rank", None)
        if ours.get("is_real"):
            # The release doubles the size of the state if it was given, and halves it again.
            ours.setdefault("d_state", 32)
    else:
        given.pop("disc", None)  # accepted by the release, which has the bilinear rule alone here
        ours |= {"rank": given.pop("rank")} if "rank" in given else {}
        if given.pop("bandlimit", None) is not None or given.pop("is_real", False):
            raise UnsupportedError("a band limit or real modes in a DPLR kernel")
    if given:
        raise UnsupportedError(f"arguments that the release's kernels do not take: {', '.join(given)}")
    return ours


def _kernel(mode: str, arguments: Arguments) -> SSMKernelDiag:
    made = _kernel_arguments(mode, arguments)
    try:
        return SSMKernelDiag(**made) if mode == "diag" else SSMKernelDPLR(**made)
    except (TypeError, InputError) as error:
        raise UnsupportedError(f"{type(error).__name__} for {arguments}: {error}") from error


def _ssm_kernel(mode: str) -> Adapter:
    def adapter(case: Case) -> Outputs:
        case = _Given(case.path, case.data)
        arguments = case.arguments()
        L, rate = arguments.pop("L"), arguments.pop("rate", 1.0)
        arguments.pop("T", None)
        kernel = _kernel(mode, arguments).to(case.dtype)
        load_official(kernel, case.weights())
        u = case.inputs().get("u")
        longest = arguments.get("l_max") or round(rate * L)
        wanted = {output["name"] for output in case.outputs}
        with torch.no_grad():
            values = {"kernel": _release_kernel(kernel, L, rate, longest)}
            if u is not None:
                values["conv_y"] = causal_convolution(u, values["kernel"])
            if wanted - values.keys():
                values |= _recurrent(kernel, u, longest, round(rate * L))
        return values

    return adapter


def _release_kernel(kernel: SSMKernelDiag, L: int, rate: float, longest: int) -> Tensor:
    if not isinstance(kernel, SSMKernelDPLR) or rate == 1.0:
        return kernel(L, rate)  # type: ignore[no-any-return]
    # The release truncates once, at rate 1; at another rate the truncation is not exact any more.
    l_kernel = _l_kernel(longest, round(rate * L))
    C = kernel.system().truncated_output(l_kernel)
    system = kernel.system(rate)
    return system.generate(C, system.B[None], round(l_kernel / rate))[0, ..., :L]


def _l_kernel(longest: int, L: int) -> int:
    """The length that the release has truncated to: it doubles what it began with."""
    while longest < L:
        longest *= 2
    return longest


def _recurrent(kernel: SSMKernelDiag, u: Tensor | None, longest: int, L: int) -> dict[str, Tensor]:
    system = kernel.system()
    values: dict[str, Tensor] = {}
    if isinstance(kernel, SSMKernelDPLR):
        values["C_tilde"] = _real(_truncated_as_released(kernel.system(), _l_kernel(longest, L)))
    else:
        values |= {"dA": _real(kernel.system().dA), "dB": _real(kernel.system().dB)}
    if u is not None:
        y, state = system.recur(u)
        values |= {"recur_y": y, "final_state": _real(state)}
    return values


def _truncated_as_released(system: DPLRSystem, L: int) -> Tensor:
    """C~ = C (1 - dA^L) in the order in which the release computes it.

    In float32 five digits of dA^L are left for long sequences, and which five depends on the order; `truncated_output` keeps more.
    """

    def pairs(x: Tensor) -> Tensor:
        return torch.cat([x, x.conj()], dim=-1)

    def through(left: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("rhn,rhm,bhm->bhn", pairs(system.P), pairs(left), x)

    Q, ahead, back = system.P.conj(), 2 / system.dt + system.A, 1 / (2 / system.dt - system.A)
    core = torch.eye(len(Q)).to(Q) + 2 * torch.einsum("rhn,hn,shn->hrs", Q, back, system.P).real
    solved = torch.linalg.solve(core, (Q * back).transpose(0, 1)).transpose(0, 1)
    basis = torch.eye(2 * Q.shape[-1]).to(Q)[:, None]
    moved = pairs(ahead) * basis - through(Q, basis)
    square = (pairs(back) * (moved - through(solved, moved))).permute(1, 2, 0)
    power = torch.eye(square.shape[-1]).to(square).expand_as(square)
    while L:
        if L % 2:
            power = square @ power
        L //= 2
        square = square @ square if L else square
    C = pairs(system.C)
    kept: Tensor = C - torch.einsum("hmn,chn->chm", power.transpose(-1, -2), C)
    return kept[..., : Q.shape[-1]]


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _legs_kernel(case: Case) -> Outputs:
    arguments = case.arguments()
    L = arguments.pop("L")
    if arguments.get("B_clip", 2.0) is not None:
        raise UnsupportedError("a clipped B depends on the phases that a linear algebra library picks")
    kernel = _kernel("dplr", arguments).double()
    with torch.no_grad():
        kernel.inv_dt.copy_(case.inputs()["inv_dt"])
        return {"kernel_dense_float64": kernel(L)[0]}


def _s4d_kernel(case: Case) -> Outputs:
    arguments = case.arguments()
    L = arguments.pop("L")
    arguments.pop("lr", None)
    kernel = S4DKernel(**arguments)
    values = {f"fresh_{name}": value.clone() for name, value in kernel.state_dict().items()}
    inputs = case.inputs()
    load_official(kernel.to(case.dtype), {name: inputs[name] for name in kernel.state_dict()})
    with torch.no_grad():
        values["kernel"] = kernel(L)
        if "u" in inputs:
            values["conv_y"] = causal_convolution(inputs["u"], values["kernel"][None])[:, 0]
        if "D" in inputs:
            values["conv_y"] += inputs["u"] * inputs["D"][:, None]
    return values


# ---- initialisations ------------------------------------------------------------------------------------------------

_INIT_OUTPUTS = (
    (r"diag_(\w+)_A", lambda N, init: hippo.dplr(init, N).A[0]),
    (r"(\w+)_P_rank(\d+)", lambda N, measure, rank: hippo.rank_correction(measure, N, int(rank))),
    (r"(\w+)_normal_eig", lambda N, measure: hippo.nplr(measure, N, _rank(measure)).A),
    (r"(\w+)_nplr_absP", lambda N, measure: hippo.nplr(measure, N, _rank(measure)).P.abs()),
    (r"(\w+)_nplr_absB_noclip", lambda N, measure: hippo.nplr(measure, N, _rank(measure)).B.abs()),
    (r"(\w+)_A", lambda N, measure: hippo.transition(measure, N)[0]),
    (r"(\w+)_B", lambda N, measure: hippo.transition(measure, N)[1]),
)


def _rank(measure: str) -> int:
    return 2 if measure == "legt" else 1


def _initialisations(case: Case) -> Outputs:
    N = case.arguments()["N"]
    values = {}
    for output in case.outputs:
        for pattern, function in _INIT_OUTPUTS:
            found = re.fullmatch(pattern, output["name"])
            if found:
                values[output["name"]] = function(N, *found.groups())
                break
        else:
            raise UnsupportedError(f"the output {output['name']!r}")
    return values


# ---- layers ---------------------------------------------------------------------------------------------------------


def _run(case: Case, model: nn.Module, forward: Any) -> Outputs:
    """Run with given parameters; `forward(model, inputs)` returns outputs by name."""
    case = _Given(case.path, case.data)
    names = [o["name"] for o in case.outputs if not o["name"].startswith("tap:")]
    plain = list(dict.fromkeys(name.removesuffix("_f64") for name in names))

    def call(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
        values = forward(model, inputs)
        return [values[name] for name in plain]

    return run_network(case, model, call=call)


def _s4d(dt_min: float = 0.001, dt_max: float = 0.1, lr: float | None = None, **arguments: Any) -> S4D:
    return S4D(dt_min=dt_min, dt_max=dt_max, **arguments)


def _s4d_tap(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule("output_linear.0" if name == "pre_glu_conv" else name)


_BLOCK = (
    "d_model",
    "bottleneck",
    "gate",
    "gate_act",
    "mult_act",
    "final_act",
    "postact",
    "initializer",
    "weight_norm",
    "dropout",
    "tie_dropout",
    "transposed",
)
_CONV = ("l_max", "channels", "swap_channels", "bidirectional", "activation", "drop_kernel")


def _s4block_model(arguments: Arguments) -> S4Block:
    given = dict(arguments)
    if given.get("gate") is not None:
        raise UnsupportedError("the release's block cannot be built with a gate")
    for name in ("initializer", "weight_norm"):  # accepted by the release, and not used
        given.pop(name, None)
    postact = given.pop("postact", None)
    if postact is not None:
        given["final_act"] = postact
    mode, kernel = given.pop("mode", "dplr"), given.pop("kernel", None)
    mode = kernel if mode is None else mode
    ours = {name: given.pop(name) for name in (*_BLOCK, *_CONV) if name in given}
    kernel_args = _kernel_arguments(mode, given)
    return S4Block(**ours, kernel=mode, **kernel_args)


def _s4block(case: Case) -> Outputs:
    arguments = case.arguments(_BLOCK)
    rate = arguments.pop("rate", 1.0)
    try:
        model = _s4block_model(arguments)
    except (TypeError, InputError) as error:
        raise UnsupportedError(f"{type(error).__name__} for {arguments}: {error}") from error
    if rate != 1.0 and isinstance(model.layer.kernel, SSMKernelDPLR):
        raise UnsupportedError("a DPLR layer at another rate: the release's truncation is not exact there")

    def forward(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        signal = next(iter(inputs.values()))
        lengths, state = inputs.get("lengths"), inputs.get("state")
        assert isinstance(model, S4Block)
        if state is not None:
            y, state = model.prefill(signal, torch.view_as_complex(state))
            return {"y": y, "state": _real(state)}
        return {"y": model(signal, lengths, rate)}

    return _run(case, model, forward)


_ND = (
    "d_model",
    "d_state",
    "l_max",
    "dim",
    "out_channels",
    "channels",
    "bidirectional",
    "activation",
    "ln",
    "final_act",
    "initializer",
    "weight_norm",
    "hyper_act",
    "dropout",
    "tie_dropout",
    "transposed",
    "verbose",
    "trank",
    "linear",
    "return_state",
    "contract_version",
    "kernel",
    "mode",
)


class _Unsummed(S4ND):
    """The release's `contract_version` 1 does not take the mean over the tensor rank: every term is a channel of its own."""

    def __init__(self, trank: int, channels: int = 1, **arguments: Any):
        if trank > 1 and (
            not arguments.get("linear", True) or (channels > 1 and not arguments["out_channels"])
        ):
            raise UnsupportedError("the release fails for this tensor rank with contract_version 1")
        super().__init__(channels=trank * channels, trank=1, **arguments)

    def from_official(self, state_dict: Any) -> dict[str, Tensor]:
        state = super().from_official(state_dict)
        return {name: value.expand_as(self.D) if name == "D" and self.D is not None else value
                for name, value in state.items()}  # fmt: skip


def _s4nd_model(arguments: Arguments) -> S4ND:
    given = dict(arguments)
    # Of no consequence: unused by the release, or initial values, or whether a None is returned beside the output.
    for name in ("ln", "initializer", "hyper_act", "return_state", "verbose"):
        given.pop(name, None)
    kernel, mode = given.pop("kernel", None), given.pop("mode", "dplr")
    kernel = mode if kernel is None else kernel
    weight_norm, version = given.pop("weight_norm", False), given.pop("contract_version", 0)
    ours = {name: given.pop(name) for name in _ND if name in given}
    kernel_args = _kernel_arguments(kernel, given)
    if version:
        ours.setdefault("out_channels", None)
        model: S4ND = _Unsummed(ours.pop("trank", 1), **ours, kernel=kernel, **kernel_args)
    else:
        model = S4ND(**ours, kernel=kernel, **kernel_args)
    if weight_norm and model.output_linear is not None:
        linear = model.output_linear
        nn.utils.parametrizations.weight_norm(linear[0] if isinstance(linear, nn.Sequential) else linear)
    return model


def _s4nd(case: Case) -> Outputs:
    arguments = case.arguments(_ND)
    rate = arguments.pop("rate", 1.0)
    try:
        model = _s4nd_model(arguments)
    except (TypeError, InputError) as error:
        raise UnsupportedError(f"{type(error).__name__} for {arguments}: {error}") from error
    if rate != 1.0 and isinstance(model.kernel[0], SSMKernelDPLR):
        raise UnsupportedError("a DPLR layer at another rate: the release's truncation is not exact there")

    def forward(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        (u,) = inputs.values()
        assert isinstance(model, S4ND)
        size = u.shape[2:] if model.transposed else u.shape[1:-1]
        kernels = zip(model.kernel, model.lengths(size, rate), strict=True)
        return {f"kernel_{i}": kernel(length, rate) for i, (kernel, length) in enumerate(kernels)} | {
            "y": model(u, rate)
        }

    return _run(case, model, forward)


_S4 = "state-spaces/s4"

ADAPTERS: dict[tuple[str, str], Adapter] = {
    (_S4, "transition, rank_correction, nplr, dplr"): _initialisations,
    (_S4, "SSMKernelDiag"): _ssm_kernel("diag"),
    (_S4, "SSMKernelDPLR"): _ssm_kernel("dplr"),
    (_S4, "SSMKernelDPLR(init='legs', deterministic)"): _legs_kernel,
    (_S4, "S4DKernel"): _s4d_kernel,
    (_S4, "S4D"): Network(_s4d, positional=("d_model", "d_state", "dropout", "transposed"), tap=_s4d_tap),
    (_S4, "S4Block"): _s4block,
    (_S4, "S4ND"): _s4nd,
}
