"""Counterparts of the classes of VMamba's release and of ChangeMamba's copy: their constructor arguments in terms of ours."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from anban.ssm.orders import BIDIRECTIONAL, CROSS, ROTATED, UNIDIRECTIONAL
from anban.ssm.vmamba.blocks import VSSBlock
from anban.ssm.vmamba.cross import cross_merge, cross_scan
from anban.ssm.vmamba.layers import (
    GatedMlp,
    Linear2d,
    Mlp,
    PatchMerging2D,
    downsample,
    is_channel_first,
    patch_embed,
    to_first,
)
from anban.ssm.vmamba.ss2d import SS2D
from anban.ssm.vmamba.vssm import VSSM, VSSMBackbone
from anban.testing.golden import Adapter, Case, Network, Outputs, UnsupportedError

_VMAMBA, _CHANGEMAMBA = "MzeroMiko/VMamba", "ChenHongruixuan/ChangeMamba"


def _name(given: Any) -> Any:
    """A norm or activation as a case may write it: "silu", "SiLU", "nn.SiLU", "torch.nn.LayerNorm", a class."""
    text = getattr(given, "__name__", str(given)).rpartition(".")[2].rstrip("'>").lower()
    return {"layernorm": "ln", "layernorm2d": "ln2d", "batchnorm2d": "bn"}.get(text, text)


def _layout(norm_layer: Any, channel_first: bool | None) -> str:
    name = str(_name(norm_layer))
    if channel_first is not None and is_channel_first(name) != channel_first:
        raise UnsupportedError(
            f"norm {name} with channel_first={channel_first}: here the layout follows the norm"
        )
    return name


# ---- arguments that the releases take and disregard -------------------------------------------------------------------


def _is_first_release(forward_type: str, repository: str) -> bool:
    """Whether the release takes `forward_type` for its v0."""
    return forward_type in {"v0", "v0seq"} or (repository == _CHANGEMAMBA and forward_type.startswith("v0"))


def _check_fused(forward_type: str, repository: str) -> None:
    if forward_type.startswith("xv") and repository == _VMAMBA:
        raise UnsupportedError(f"{forward_type}: the xv types of VMamba's release fail when they are called")


def _ss2d(repository: str, *, forward_type: str = "v2", act_layer: Any = "silu", **given: Any) -> SS2D:
    _check_fused(forward_type, repository)
    if _is_first_release(forward_type, repository):
        taken = {"d_model", "d_state", "ssm_ratio", "dt_rank", "dropout"}
        given = {name: value for name, value in given.items() if name in taken}
        return SS2D(forward_type="v0", **given)
    return SS2D(forward_type=forward_type, act_layer=_name(act_layer), **given)


def _scan_arguments(repository: str, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a block, or of a network, that speak of the SS2D within."""
    kind = given.get("forward_type", "v2")
    _check_fused(kind, repository)
    given = {name: value for name, value in given.items() if not name.startswith("_")}
    for name in ("ssm_act_layer", "mlp_act_layer"):
        if name in given:
            given[name] = _name(given[name])
    if _is_first_release(kind, repository):
        given |= {
            "forward_type": "v0",
            "ssm_act_layer": "silu",
            "ssm_conv": 3,
            "ssm_conv_bias": True,
            "ssm_init": "v0",
        }
    return given


def _block(
    repository: str, *, norm_layer: Any = "ln", channel_first: bool | None = None, **given: Any
) -> VSSBlock:
    return VSSBlock(norm_layer=_layout(norm_layer, channel_first), **_scan_arguments(repository, given))  # type: ignore[arg-type]


def network_arguments(repository: str, given: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments of a network made of VSS blocks, as that release takes them, in terms of `VSSM`'s."""
    # pretrained is not passed on: a case fills every tensor; the second release added ssm_rank_ratio, which nothing reads
    ignored = {"pretrained", "ssm_rank_ratio"} | (
        {"posembed", "imgsize"} if repository == _CHANGEMAMBA else set()
    )
    given = {name: value for name, value in given.items() if name not in ignored}
    given.setdefault("dims", [96, 192, 384, 768])
    given["norm_layer"] = _name(given.get("norm_layer", "ln"))
    return _scan_arguments(repository, given)


def _vssm(repository: str, **given: Any) -> nn.Module:
    return VSSM(**network_arguments(repository, given))


def _backbone(repository: str, **given: Any) -> nn.Module:
    given.pop("num_classes", None)
    if repository == _CHANGEMAMBA:
        given.setdefault("norm_layer", "ln2d")
    return VSSMBackbone(add_pos_embed=False, **network_arguments(repository, given))


# ---- parts -------------------------------------------------------------------------------------------------------------


def _patch_embed(
    version: str,
    /,
    *,
    in_chans: int = 3,
    embed_dim: int = 96,
    patch_size: int = 4,
    patch_norm: bool = True,
    norm_layer: Any = "ln",
    channel_first: bool | None = None,
    **stated: Any,
) -> nn.Module:
    layout = _layout(norm_layer, channel_first)
    version = stated.pop("version", version)
    _none_left(stated)
    return patch_embed(version, in_chans, embed_dim, patch_size, patch_norm=patch_norm, norm_layer=layout)


def _downsample(
    version: str,
    /,
    *,
    dim: int = 96,
    out_dim: int = 192,
    norm_layer: Any = "ln",
    channel_first: bool | None = None,
    **stated: Any,
) -> nn.Module:
    layout = _layout(norm_layer, channel_first)
    version = stated.pop("version", version)
    _none_left(stated)
    return downsample(version, dim, 2 * dim if out_dim < 0 else out_dim, norm_layer=layout)


def _merging(*, dim: int, out_dim: int = -1, norm_layer: Any = "ln", **given: Any) -> nn.Module:
    given.pop("version", None)
    layout = _layout(norm_layer, given.pop("channel_first", None))
    _none_left(given)
    return PatchMerging2D(dim, 2 * dim if out_dim < 0 else out_dim, norm_layer=layout)


def _mlp(
    build: type[Mlp] | type[GatedMlp],
    *,
    in_features: int,
    hidden_features: int | None = None,
    out_features: int | None = None,
    act_layer: Any = "gelu",
    drop: float = 0.0,
    channels_first: bool = False,
) -> nn.Module:
    if out_features not in {None, in_features}:
        raise UnsupportedError("an FFN here has as many outputs as inputs")
    return build(
        in_features, hidden_features or in_features, _name(act_layer), drop, channel_first=channels_first
    )


def _none_left(arguments: dict[str, Any]) -> None:
    if arguments:
        raise UnsupportedError(f"arguments without a counterpart: {arguments}")


def _cross(case: Case) -> Outputs:
    given = case.arguments()
    given.pop("force_torch", None)
    scans = given.pop("scans", 0)
    options = {
        "channel_first": given.pop("in_channel_first", True),
        "out_channel_first": given.pop("out_channel_first", True),
        "one_by_one": given.pop("one_by_one", False),
    }
    _none_left(given)
    turned = options["channel_first"] and not options["out_channel_first"]
    wrong = turned if scans == 1 else scans in {2, 3} and not options["channel_first"]
    if options["one_by_one"] and wrong:
        raise UnsupportedError(f"scans={scans} with {options}: the release reads the wrong dimensions")
    orders = (CROSS, UNIDIRECTIONAL, BIDIRECTIONAL, ROTATED)[scans]
    functions = {"x": ("scan_x", cross_scan), "y": ("merge_y", cross_merge)}
    shapes = {entry["name"]: entry["shape"] for entry in case.outputs}
    outputs = {}
    for name, tensor in case.inputs().items():
        made, function = functions[name]
        # one by one with scans=1 the release returns (batch, K, C * H, W), the same numbers
        outputs[made] = function(tensor, orders, **options).reshape(shapes[made])
    return outputs


# ---- networks, with the releases' names and shapes of what is tapped ----------------------------------------------------


def _stage_part(model: nn.Module, name: str) -> nn.Module:
    """ "stage0_blocks", "stage0_down" -> that part of the network; any other name is a module's own."""
    stage, _, part = name.removeprefix("stage").partition("_")
    if name.startswith("stage") and part:
        return model.get_submodule(f"layers.{stage}." + {"down": "downsample"}.get(part, part))
    return model.get_submodule(name)


def _shaped(network: Network) -> Adapter:
    """Taps in the release's shape: some of its modules work on (batch, H * W, C) or (batch, C, H, W), ours on (batch, H, W, C)."""

    def adapter(case: Case) -> Outputs:
        outputs = dict(network(case))
        for entry in case.outputs:
            value = outputs.get(entry["name"])
            if isinstance(value, Tensor) and value.dim() == 4 and list(value.shape) != entry["shape"]:
                turned = value.flatten(1, 2) if len(entry["shape"]) == 3 else to_first(value)
                outputs[entry["name"]] = turned
        return outputs

    return adapter


_SS2D_ARGUMENTS = (
    "d_model",
    "d_state",
    "ssm_ratio",
    "dt_rank",
    "act_layer",
    "d_conv",
    "conv_bias",
    "dropout",
    "bias",
)
_BLOCK_ARGUMENTS = ("hidden_dim", "drop_path", "norm_layer", "channel_first")
_NETWORK_ARGUMENTS = ("patch_size", "in_chans", "num_classes", "depths", "dims")
_EMBED_ARGUMENTS = ("in_chans", "embed_dim", "patch_size", "patch_norm", "norm_layer", "channel_first")
_DOWN_ARGUMENTS = ("dim", "out_dim", "norm_layer", "channel_first")
_MLP_ARGUMENTS = ("in_features", "hidden_features", "out_features", "act_layer", "drop", "channels_first")


def _adapters(repository: str) -> dict[tuple[str, str], Adapter]:
    made: dict[str, Adapter] = {
        "SS2D": _shaped(Network(partial(_ss2d, repository), _SS2D_ARGUMENTS)),
        "VSSBlock": _shaped(Network(partial(_block, repository), _BLOCK_ARGUMENTS)),
        "VSSM": Network(partial(_vssm, repository), _NETWORK_ARGUMENTS, tap=_stage_part),
        "Backbone_VSSM": Network(partial(_backbone, repository), ("out_indices",), tap=_stage_part),
        "VSSM._make_patch_embed": Network(partial(_patch_embed, "v1"), _EMBED_ARGUMENTS),
        "VSSM._make_patch_embed_v2": Network(partial(_patch_embed, "v2"), _EMBED_ARGUMENTS),
        "VSSM._make_downsample": Network(partial(_downsample, "v2"), _DOWN_ARGUMENTS),
        "VSSM._make_downsample_v3": Network(partial(_downsample, "v3"), _DOWN_ARGUMENTS),
        "PatchMerging2D": Network(_merging, _DOWN_ARGUMENTS),
        "Mlp": Network(partial(_mlp, Mlp), _MLP_ARGUMENTS),
        "gMlp": Network(partial(_mlp, GatedMlp), _MLP_ARGUMENTS),
        "Linear2d": Network(_linear2d, ("in_features", "out_features", "bias")),
    }
    return {(repository, name): adapter for name, adapter in made.items()}


def _linear2d(in_features: int, out_features: int, bias: bool = True) -> nn.Module:
    return Linear2d(in_features, out_features, bias=bias)


ADAPTERS: dict[tuple[str, str], Adapter] = {
    **_adapters(_VMAMBA),
    **_adapters(_CHANGEMAMBA),
    (_VMAMBA, "cross_scan_fn / cross_merge_fn (torch paths)"): _cross,
}
