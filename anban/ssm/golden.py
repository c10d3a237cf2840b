"""Counterparts of mamba_ssm's selective scan, of Vision Mamba and of RSCaMa: their arguments, as published, in terms of ours."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from anban.errors import InputError
from anban.ssm.backends import VARIABLE, choose
from anban.ssm.mamba import Mamba
from anban.ssm.rscama import CaMamba, RSCaMaEncoder
from anban.ssm.scan import selective_scan
from anban.ssm.vim import VimBlock, VisionMamba
from anban.testing.golden import Adapter, Case, Network, Outputs, UnsupportedError, run_network

_Net = TypeVar("_Net", bound=nn.Module)

# ---- state-spaces/mamba: the scan -----------------------------------------------------------------------------------


def _selective_scan(case: Case) -> Outputs:
    options = case.arguments()
    options.pop("function", None)
    device, dtype = _scan_place(case)
    inputs = {name: tensor.to(device) for name, tensor in case.inputs(dtype).items()}
    dout = inputs.pop("dout", None)
    # The options name optional tensors by a flag; what the inputs hold decides.
    for name in ("D", "delta_bias", "z"):
        if bool(options.pop(name, name in inputs)) != (name in inputs):
            raise UnsupportedError(f"{name} is asked for and not among the inputs, or the other way round")
    softplus = options.pop("delta_softplus", False)
    options.pop("return_last_state", None)  # always returned; read where the case has it
    if options:
        raise UnsupportedError(f"no counterpart for {options}")
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    out, last_state = selective_scan(**leaves, delta_softplus=softplus, return_last_state=True)  # type: ignore[call-overload]
    outputs = {"out": out.detach(), "last_state": last_state.detach()}
    if dout is not None:
        gradients = torch.autograd.grad((out * dout).sum(), list(leaves.values()))
        outputs |= {f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return outputs


def _scan_place(case: Case) -> tuple[str, torch.dtype]:
    """The reference's precision on the CPU, or what the backend that the environment names can run in."""
    device = "cuda" if os.environ.get(VARIABLE) == "triton" and torch.cuda.is_available() else "cpu"
    try:
        choose("auto", torch.device(device), case.dtype)
    except InputError:
        return device, torch.float32  # float32 meets the tolerances of functions too
    return device, case.dtype


# ---- hustvl/Vim -----------------------------------------------------------------------------------------------------


def _mamba(
    *,
    use_fast_path: bool = True,
    layer_idx: int | None = None,
    device: Any = None,
    dtype: Any = None,
    **options: Any,
) -> Mamba:
    # `layer_idx` names the layer in a cache of states; device and precision are the case's.
    return _on_path(Mamba(**options), use_fast_path)


def _on_path(network: _Net, fast: bool) -> _Net:
    """Off its fast path the release builds the second direction of a mixer and does not run it."""
    for mixer in network.modules():
        if isinstance(mixer, Mamba) and not fast:
            mixer.bimamba_type = "none"
    return network


def _block(
    d_model: int,
    d_state: int = 16,
    ssm_cfg: dict[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    drop_path: float = 0.0,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: Any = None,
    dtype: Any = None,
    if_bimamba: bool = False,
    bimamba_type: Any = "none",
    if_divide_out: bool = False,
    init_layer_scale: float | None = None,
) -> VimBlock:
    # `fused_add_norm` chooses between two kernels for the same sums.
    options = {
        "d_state": d_state,
        "bimamba_type": "v1" if if_bimamba else bimamba_type,
        "if_divide_out": if_divide_out,
        "init_layer_scale": init_layer_scale,
        **(ssm_cfg or {}),
    }
    fast = options.pop("use_fast_path", True)
    block = VimBlock(
        d_model,
        rms_norm=rms_norm,
        norm_epsilon=norm_epsilon,
        residual_in_fp32=residual_in_fp32,
        drop_path=drop_path,
        mixer=options,
    )
    return _on_path(block, fast)


def _vision_mamba(
    img_size: Any = 224,
    patch_size: Any = 16,
    stride: int = 16,
    depth: int = 24,
    embed_dim: int = 192,
    d_state: int = 16,
    channels: int = 3,
    num_classes: int = 1000,
    ssm_cfg: dict[str, Any] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.1,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = True,
    initializer_cfg: Any = None,
    fused_add_norm: bool = True,
    residual_in_fp32: bool = True,
    device: Any = None,
    dtype: Any = None,
    ft_seq_len: Any = None,
    pt_hw_seq_len: int = 14,
    if_bidirectional: bool = False,
    final_pool_type: str = "none",
    if_abs_pos_embed: bool = True,
    if_rope: bool = False,
    if_rope_residual: bool = False,
    flip_img_sequences_ratio: float = -1.0,
    if_bimamba: bool = False,
    bimamba_type: Any = "v2",
    if_cls_token: bool = True,
    if_divide_out: bool = True,
    init_layer_scale: float | None = None,
    use_double_cls_token: bool = False,
    use_middle_cls_token: bool = True,
    **ignored: Any,
) -> VisionMamba:
    # Not passed on: `initializer_cfg` (a case fills every tensor), `fused_add_norm` (see `_block`), `ft_seq_len` and
    # whatever else is given (the release reads neither).
    place = "double" if use_double_cls_token else "middle" if use_middle_cls_token else "head"
    options = {
        "d_state": d_state,
        "if_divide_out": if_divide_out,
        "init_layer_scale": init_layer_scale,
        **(ssm_cfg or {}),
    }
    fast = options.pop("use_fast_path", True)
    network = VisionMamba(
        img_size,
        patch_size,
        stride,
        depth,
        embed_dim,
        channels,
        num_classes,
        cls_token=place if if_cls_token else "none",  # type: ignore[arg-type]
        pool={"none": "last"}.get(final_pool_type, final_pool_type),  # type: ignore[arg-type]
        pos_embed=if_abs_pos_embed,
        rope="none" if not if_rope else "both" if if_rope_residual else "hidden",
        pt_hw_seq_len=pt_hw_seq_len,
        bimamba_type="v1" if if_bimamba else bimamba_type,
        pair_layers=if_bidirectional,
        flip_probability=max(0.0, flip_img_sequences_ratio),
        rms_norm=rms_norm,
        norm_epsilon=norm_epsilon,
        residual_in_fp32=residual_in_fp32,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        mixer=options,
    )
    return _on_path(network, fast)


def _features_and_logits(case: Case) -> Outputs:
    def call(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
        assert isinstance(model, VisionMamba)
        features = model.forward_features(*inputs.values())
        logits = model.classify(features)
        if model.pool == "max" and model.class_tokens:
            logits = logits.amax(
                1
            )  # the release takes its maximum over tokens even if there is but one: over classes
        return [tensor for name, tensor in (("features", features), ("logits", logits)) if name in named]

    named = {output["name"] for output in case.outputs}
    if not {"features", "logits"} & named:
        named.add("logits")
    return run_network(case, Network(_vision_mamba).model(case), tap=_vim_tap, call=call)


def _vim_tap(model: nn.Module, name: str) -> nn.Module:
    if name.startswith("layer") and name.endswith("_mixer"):
        return model.get_submodule(f"layers.{name.removeprefix('layer').removesuffix('_mixer')}.mixer")
    return model.get_submodule(name)


# ---- Chen-Yang-Liu/RSCaMa -------------------------------------------------------------------------------------------

_CONFIG = {
    "hidden_size": 768,
    "state_size": 16,
    "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "time_step_rank": "auto",
}
"""What the release reads of transformers' MambaConfig, with its defaults (version 4.39)."""


def _camamba(gated: bool, config: dict[str, Any], **unread: Any) -> CaMamba:
    if unread.keys() - {"head_num", "length", "craft"}:
        raise UnsupportedError(f"no counterpart for {unread}")
    given: dict[str, Any] = _CONFIG | config
    if given["num_hidden_layers"] != 1 or given["hidden_act"] not in {"silu", "swish"}:
        raise UnsupportedError("the release runs one layer with SiLU only")
    return CaMamba(
        given["hidden_size"],
        gated,
        given["layer_norm_epsilon"],
        d_state=given["state_size"],
        d_conv=given["conv_kernel"],
        expand=given["expand"],
        dt_rank=given["time_step_rank"],
        conv_bias=given["use_conv_bias"],
        bias=given["use_bias"],
    )


def _camamba_case(case: Case) -> Outputs:
    """The same class is called with a difference and without; the inputs tell."""
    gated = len(case.data["inputs"]) > 1
    return Network(partial(_camamba, gated))(case)


def _encoder(n_layers: int, feature_size: Any, heads: int = 8, dropout: float = 0.0) -> RSCaMaEncoder:
    # `heads` and `dropout` are not read by the release.
    height, width, channels = feature_size
    if height != width:
        raise UnsupportedError(
            "the release exchanges rows and columns in its position embedding: it takes squares only"
        )
    return RSCaMaEncoder(n_layers, (height, width, channels))


def _encoder_tap(model: nn.Module, name: str) -> nn.Module:
    layer, _, part = name.removeprefix("layer").partition("_")
    path = {"sd_A": "sd_ssm.{}.dates.0", "sd_B": "sd_ssm.{}.dates.1", "tt": "tt_ssm.{}.scan"}.get(part, name)
    return model.get_submodule(path.format(layer))


_VIM = "hustvl/Vim"
_RSCAMA = "Chen-Yang-Liu/RSCaMa"
_MIXER: Adapter = Network(
    _mamba,
    positional=(
        *("d_model", "d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max", "dt_init", "dt_scale"),
        *("dt_init_floor", "conv_bias", "bias", "use_fast_path", "layer_idx", "device", "dtype"),
        *("bimamba_type", "if_divide_out", "init_layer_scale"),
    ),
)

ADAPTERS: dict[tuple[str, str], Adapter] = {
    ("state-spaces/mamba", "selective_scan_ref"): _selective_scan,
    ("state-spaces/mamba", "Mamba"): _MIXER,
    (_VIM, "Mamba"): _MIXER,
    (_VIM, "create_block / Block"): Network(_block),
    (_VIM, "VisionMamba"): _features_and_logits,
    (
        _RSCAMA,
        "CaMambaModel (block = RMSNorm + bidirectional MambaMixer + residual, then norm_f)",
    ): _camamba_case,
    (_RSCAMA, "AttentiveEncoder (SD-SSM + TT-SSM, n layers)"): Network(
        _encoder, positional=("n_layers", "feature_size", "heads", "dropout"), tap=_encoder_tap
    ),
}
