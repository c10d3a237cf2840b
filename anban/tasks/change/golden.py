"""Counterparts of the official change networks: their constructor arguments, as published, in terms of ours."""

from __future__ import annotations

from functools import partial
from typing import Any

from anban.tasks.change.models.bit import BIT, VARIANTS
from anban.tasks.change.models.fc import FCEF, FCSiamConc, FCSiamDiff, FullyConvolutional
from anban.tasks.change.models.tinycd import TinyCD
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


_FC = "rcdaudt/fully_convolutional_change_detection"
_FC_ARGUMENTS = ("input_nbr", "label_nbr")

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
}
