"""Counterparts of the official change networks: their constructor arguments, as published, in terms of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Literal

from torch import nn

from anban.ssm.orders import CROSS
from anban.ssm.vmamba import forward_type
from anban.ssm.vmamba.golden import network_arguments
from anban.tasks.change.models.a2net import A2Net
from anban.tasks.change.models.aernet import AERNet
from anban.tasks.change.models.bit import BIT, VARIANTS
from anban.tasks.change.models.cdmamba import (
    CDMamba,
    GlobalBranch,
    GuidedFusion,
    LocalBranch,
    SRCMBlock,
    SRCMLayer,
)
from anban.tasks.change.models.cgnet import CGNet, HCGMNet
from anban.tasks.change.models.changeformer import ChangeFormer
from anban.tasks.change.models.fc import FCEF, FCSiamConc, FCSiamDiff, FullyConvolutional
from anban.tasks.change.models.hanet import HANet
from anban.tasks.change.models.ifnet import IFNet
from anban.tasks.change.models.mambabcd import MambaBCD
from anban.tasks.change.models.rs_mamba import RSMamba
from anban.tasks.change.models.snunet import SNUNet
from anban.tasks.change.models.tinycd import TinyCD
from anban.tasks.change.models.vss import Blocks
from anban.testing.golden import Adapter, Network, UnsupportedError


def _fc(
    network_class: type[FullyConvolutional], input_nbr: int, label_nbr: int, dates: int = 1
) -> FullyConvolutional:
    if input_nbr % dates:
        raise UnsupportedError(f"{input_nbr} input channels cannot be shared by {dates} dates")
    return network_class(in_channels=input_nbr // dates, classes=label_nbr, output="log_softmax")


def _tinycd(
    bkbn_name: Any = "efficientnet_b4",
    pretrained: bool = True,
    output_layer_bkbn: str = "3",
    freeze_backbone: bool = False,
) -> TinyCD:
    # `pretrained` is not passed on: a case fills every tensor, and nothing is to be downloaded for it.
    return TinyCD(bkbn_name, int(output_layer_bkbn), freeze_backbone=freeze_backbone, output="probability")


def _bit(net_G: str | None = None, **arguments: Any) -> BIT:
    net_G = arguments.pop("define_G net_G", net_G)
    if net_G is not None:
        if net_G not in VARIANTS or arguments:
            raise UnsupportedError(f"net_G {net_G!r} with {arguments}; known: {', '.join(VARIANTS)}")
        return BIT(**VARIANTS[net_G])
    return _base_transformer(**arguments)


def _base_resnet(
    input_nc: int = 3,
    output_nc: int = 2,
    resnet_stages_num: Any = 5,
    backbone: Any = "resnet18",
    output_sigmoid: bool = False,
    if_upsample_2x: bool = True,
    **define_G: str,
) -> BIT:
    if define_G:
        return _bit(**define_G)
    # `input_nc` is not passed on: the release's backbone takes three bands whatever it is.
    return BIT(
        tokens="none",
        classes=output_nc,
        stages=resnet_stages_num,
        resnet=backbone,
        output="probability" if output_sigmoid else "logits",
        enlarge_first=if_upsample_2x,
    )


def _base_transformer(
    input_nc: int = 3,
    output_nc: int = 2,
    with_pos: str | None = None,
    resnet_stages_num: Any = 5,
    token_len: int = 4,
    token_trans: bool = True,
    enc_depth: int = 1,
    dec_depth: int = 1,
    dim_head: int = 64,
    decoder_dim_head: int = 64,
    tokenizer: bool = True,
    if_upsample_2x: bool = True,
    pool_mode: str = "max",
    pool_size: int = 2,
    backbone: Any = "resnet18",
    decoder_softmax: bool = True,
    with_decoder_pos: str | None = None,
    with_decoder: bool = True,
) -> BIT:
    if with_pos not in {None, "", "learned"} or with_decoder_pos not in {None, "", "learned"}:
        raise UnsupportedError("the release has learned positions only")
    return BIT(
        classes=output_nc,
        resnet=backbone,
        stages=resnet_stages_num,
        enlarge_first=if_upsample_2x,
        tokens="semantic" if tokenizer else "pooled",
        token_len=token_len,
        pool_size=pool_size,
        pool_mode={"max": "max", "ave": "mean"}.get(pool_mode, "none"),  # type: ignore[arg-type]
        token_positions=bool(with_pos),
        encoder=token_trans,
        encoder_depth=enc_depth,
        encoder_head_width=dim_head,
        decoder=with_decoder,
        decoder_depth=dec_depth,
        decoder_head_width=decoder_dim_head,
        decoder_softmax=decoder_softmax,
        decoder_positions=with_decoder_pos == "learned",
    )


def _snunet(
    head: Literal["ecam", "sides"], in_ch: int = 3, out_ch: int = 2, base_channels_n1: int = 32
) -> nn.Module:
    model = SNUNet(in_ch, out_ch, base_channels_n1, head, side_outputs="always")
    return _in_order(model, (1, 2, 3, 4, 0)) if head == "sides" else model


def _changeformer(
    input_nc: int = 3, output_nc: int = 2, decoder_softmax: bool = False, embed_dim: int = 256
) -> nn.Module:
    output: Literal["logits", "probability"] = "probability" if decoder_softmax else "logits"
    model = ChangeFormer(input_nc, output_nc, embed_dim, side_outputs="always", output=output)
    return _in_order(model, (4, 3, 2, 1, 0))


def _ifnet(model_A: str = "vgg16_base()", model_B: str = "vgg16_base()") -> IFNet:
    # The release's constructor takes the encoders themselves, and there is one kind of them.
    return IFNet(shared_encoder=False, unused_layers=True, side_outputs="always", output="probability")


def _hanet(in_ch: int = 3, ou_ch: int = 2) -> HANet:
    # `in_ch` is not passed on: the release's first convolution takes three bands whatever it is.
    return HANet(classes=ou_ch, unused_layers=True)


def _a2net(input_nc: int = 3, output_nc: int = 1) -> A2Net:
    # Neither is passed on: the release takes three bands and gives one logit whatever they are.
    return A2Net(unused_layers=True, side_outputs="always", output="probability")


def _cgnet() -> nn.Module:
    return _in_order(CGNet(unused_layers=True, side_outputs="always"), (1, 0))


def _hcgmnet() -> nn.Module:
    return _in_order(HCGMNet(side_outputs="always"), (1, 0))


def _aernet(freeze_bn: bool = False) -> nn.Module:
    # `freeze_bn` is not passed on: the release sets a mode by it, which whoever trains or evaluates sets anew.
    model = AERNet(edge="hard", redraw_shifts=True, unused_layers=True, side_outputs="always")
    return _in_order(model, (5, 4, 3, 2, 0, 1))


def _in_order(model: nn.Module, order: Sequence[int]) -> nn.Module:
    """The model, its outputs in the release's order: those at the given places of ours."""
    model.register_forward_hook(lambda model, images, scores: [scores[place] for place in order])
    return model


def _mambabcd(in_chans: int = 3, num_classes: int = 1000, config_file: str = "", **given: Any) -> MambaBCD:
    # `num_classes` is not passed on: the release gives it to its backbone, which has no classifier.
    given = {"depths": (2, 2, 9, 2), "downsample_version": "v2", "patchembed_version": "v1", **given}
    return MambaBCD(in_channels=in_chans, **_with_blocks(network_arguments(_CHANGEMAMBA, given)))


def _rs_mamba(
    in_chans: int = 3,
    num_classes: int = 1000,
    patch_size: int = 4,
    downsample_version: str = "v3",
    patchembed_version: str = "v2",
    **given: Any,
) -> RSMamba:
    # `num_classes` and the two versions are not passed on: the release takes them and does without.
    given = {"ssm_d_state": 16, "ssm_conv_bias": True, "forward_type": "v2", **given}
    scan = given["forward_type"]
    first_release = scan.startswith("v0") and not scan.startswith("v01")
    if first_release or forward_type(scan).orders != CROSS:
        raise UnsupportedError(f"the release has no {scan} with eight directions")
    arguments = network_arguments(_RS_MAMBA, given)
    if patch_size != 4 or arguments["norm_layer"] != "ln":
        raise UnsupportedError("the release has patches of 4 pixels and layer norms only")
    return RSMamba(in_channels=in_chans, **_with_blocks(arguments))


def _with_blocks(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, those of the VSS blocks in a group of their own."""
    names = {field.name for field in fields(Blocks)}
    blocks = {name: arguments[name] for name in names & arguments.keys()}
    rest = {name: value for name, value in arguments.items() if name not in names}
    return {**rest, "blocks": Blocks(**blocks)}


def _cdmamba(
    spatial_dims: int = 3,
    init_filters: int = 16,
    in_channels: int = 1,
    out_channels: int = 2,
    conv_mode: str = "deepwise",
    local_query_model: str = "orignal_dinner",
    dropout_prob: float | None = None,
    act: Any = "RELU",
    norm: Any = ("GROUP", {"num_groups": 8}),
    norm_name: str = "",
    num_groups: int = 8,
    use_conv_final: bool = True,
    blocks_down: Sequence[int] = (1, 2, 2, 4),
    blocks_up: Sequence[int] = (1, 1, 1),
    mode: str = "",
    up_mode: str = "ResMamba",
    up_conv_mode: str = "deepwise",
    resdiual: bool = False,
    stage: int = 4,
    diff_abs: str = "later",
    mamba_act: str = "silu",
    upsample_mode: str = "nontrainable",
) -> CDMamba:
    upsample: Any = {"nontrainable": "bilinear", "deconv": "deconv"}.get(upsample_mode.lower())
    if spatial_dims != 2 or up_mode != "SRCM" or diff_abs != "later" or not use_conv_final or not upsample:
        raise UnsupportedError(
            "pairs of images, SRCM blocks, differences after the guidance and a classifier only"
        )
    return CDMamba(
        in_channels=in_channels,
        classes=out_channels,
        width=init_filters,
        depths=tuple(blocks_down),
        decoder_depths=tuple(blocks_up),
        local=_LOCAL[conv_mode],
        decoder_local=_LOCAL[up_conv_mode],
        guide_local=_LOCAL[local_query_model],
        guided_levels=min(stage, len(blocks_down)) if mode == "AGLGF" else 0,
        guide_act=_GUIDE_ACTS[mamba_act],
        guide_residual=resdiual,
        act=_monai_act(act),
        dropout=dropout_prob or 0.0,
        upsample=upsample,
        local_image="square",
        unused_layers=True,
        **_monai_norm(("GROUP", {"num_groups": num_groups}) if norm_name else norm),
    )


def _srcm_layer(
    input_dim: int,
    output_dim: int,
    d_state: int = 16,
    d_conv: int = 4,
    expand: float = 2,
    conv_mode: str = "deepwise",
) -> SRCMLayer:
    return SRCMLayer(input_dim, output_dim, _LOCAL[conv_mode], "square", d_state, d_conv, expand)


def _srcm_block(
    spatial_dims: int,
    in_channels: int,
    norm: Any,
    kernel_size: int = 3,
    conv_mode: str = "deepwise",
    act: Any = "RELU",
) -> SRCMBlock:
    # `kernel_size` is not passed on: the release looks whether it is odd, and no further.
    options = {"act": _monai_act(act), "local": _LOCAL[conv_mode], "image": "square", **_monai_norm(norm)}
    return SRCMBlock(in_channels, **options)


def _local_fusion(
    dim: int, conv_mode: str = "deepwise", resdiual: bool = False, act: str = "silu"
) -> GuidedFusion:
    guide = LocalBranch(dim, 2 * dim, _LOCAL[conv_mode], "square")
    return GuidedFusion(dim, guide, _GUIDE_ACTS[act], resdiual, unused_layers=True)


def _global_fusion(dim: int, resdiual: bool = False, act: str = "silu") -> GuidedFusion:
    return GuidedFusion(dim, GlobalBranch(dim), _GUIDE_ACTS[act], resdiual, unused_layers=True)


def _monai(given: Any) -> tuple[str, dict[str, Any]]:
    """What MONAI takes for a kind of layer: a name, or a name with arguments."""
    name, arguments = (given, {}) if isinstance(given, str) else given
    return name.lower(), dict(arguments)


def _monai_norm(given: Any) -> dict[str, Any]:
    name, arguments = _monai(given)
    options = {
        "norm": name,
        "norm_groups": arguments.pop("num_groups", 8),
        "norm_affine": arguments.pop("affine", name != "instance"),
    }
    if name not in {"group", "batch", "instance"} or arguments:
        raise UnsupportedError(f"no counterpart for the norm {given}")
    return options


def _monai_act(given: Any) -> Any:
    name, arguments = _monai(given)
    names = {"leakyrelu": "leaky_relu", "swish": "silu", "memswish": "silu"}
    same = {"relu", "elu", "selu", "gelu", "mish", "sigmoid"}
    if name not in names.keys() | same or arguments.keys() - {"inplace"}:
        raise UnsupportedError(f"no counterpart for the activation {given}")
    return names.get(name, name)


_LOCAL: dict[str, Any] = {
    "orignal": "dense",
    "orignal_1_5_dmodel": "dense-1.5",
    "orignal_dinner": "dense-wide",
    "deepwise": "separable",
    "deepwise_dinner": "separable-wide",
}
_GUIDE_ACTS: dict[str, Any] = {
    "silu": "silu",
    "relu": "relu",
    "swish": "hardswish",
    "sigmoid": "sigmoid",
    "lekyrelu": "leaky_relu",
}
_CHANGEMAMBA = "ChenHongruixuan/ChangeMamba"
_CDMAMBA = "zmoka-zht/CDMamba"
_RS_MAMBA = "walking-shadow/Official_Remote_Sensing_Mamba"
_FC = "rcdaudt/fully_convolutional_change_detection"
_FC_ARGUMENTS = ("input_nbr", "label_nbr")
_DSIFN = "GeoZcx/A-deeply-supervised-image-fusion-network-for-change-detection-in-remote-sensing-images"
_SNUNET = "likyoo/Siam-NestedUNet"

ADAPTERS: dict[tuple[str, str], Adapter] = {
    (_FC, "Unet"): Network(partial(_fc, FCEF, dates=2), positional=_FC_ARGUMENTS),
    (_FC, "SiamUnet_conc"): Network(partial(_fc, FCSiamConc), positional=_FC_ARGUMENTS),
    (_FC, "SiamUnet_diff"): Network(partial(_fc, FCSiamDiff), positional=_FC_ARGUMENTS),
    ("AndreaCodegoni/Tiny_model_4_CD", "ChangeClassifier"): Network(
        _tinycd, positional=("bkbn_name", "pretrained", "output_layer_bkbn", "freeze_backbone")
    ),
    ("justchenhao/BIT_CD", "ResNet"): Network(
        _base_resnet, positional=("input_nc", "output_nc", "resnet_stages_num", "backbone")
    ),
    ("justchenhao/BIT_CD", "BASE_Transformer"): Network(
        _bit, positional=("input_nc", "output_nc", "with_pos", "resnet_stages_num", "token_len")
    ),
    (_DSIFN, "DSIFN"): Network(_ifnet, positional=("model_A", "model_B")),
    ("zjd1836/AERNet", "zh_net"): Network(_aernet, positional=("freeze_bn",)),
    ("guanyuezhen/A2Net", "BaseNet"): Network(_a2net, positional=("input_nc", "output_nc")),
    (_SNUNET, "SNUNet_ECAM"): Network(partial(_snunet, "ecam"), positional=("in_ch", "out_ch")),
    (_SNUNET, "Siam_NestedUNet_Conc"): Network(partial(_snunet, "sides"), positional=("in_ch", "out_ch")),
    ("wgcban/ChangeFormer", "ChangeFormerV6"): Network(
        _changeformer, positional=("input_nc", "output_nc", "decoder_softmax", "embed_dim")
    ),
    (_CHANGEMAMBA, "ChangeMambaBCD"): Network(_mambabcd, positional=("pretrained",)),
    (_CHANGEMAMBA, "STMambaBCD"): Network(_mambabcd, positional=("pretrained",)),
    (_RS_MAMBA, "RSM_CD"): Network(
        _rs_mamba, positional=("patch_size", "in_chans", "num_classes", "depths", "dims")
    ),
    ("ChengxiHAN/HANet-CD", "HAN"): Network(_hanet, positional=("in_ch", "ou_ch")),
    ("ChengxiHAN/CGNet-CD", "CGNet"): Network(_cgnet),
    ("ChengxiHAN/CGNet-CD", "HCGMNet"): Network(_hcgmnet),
    (_CDMAMBA, "CDMamba"): Network(
        _cdmamba, positional=("spatial_dims", "init_filters", "in_channels", "out_channels", "conv_mode")
    ),
    (_CDMAMBA, "SRCMLayer"): Network(
        _srcm_layer, positional=("input_dim", "output_dim", "d_state", "d_conv", "expand", "conv_mode")
    ),
    (_CDMAMBA, "SRCMBlock"): Network(
        _srcm_block, positional=("spatial_dims", "in_channels", "norm", "kernel_size", "conv_mode", "act")
    ),
    (_CDMAMBA, "L_GF"): Network(_local_fusion, positional=("dim", "conv_mode", "resdiual", "act")),
    (_CDMAMBA, "G_GF"): Network(_global_fusion, positional=("dim", "resdiual", "act")),
}
