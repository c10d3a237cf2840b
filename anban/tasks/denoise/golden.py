"""Counterparts of the official denoising networks, losses and measures, in terms of ours, as published."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from anban.losses.restoration import FeatureEncoder, gram, l1, lsgan, perceptual, texture
from anban.metrics.restoration import gaussian_window, psnr, rmse, ssim
from anban.official import key_map, load_official
from anban.tasks.denoise.models import releases
from anban.tasks.denoise.models.attention import (
    MDTA,
    CrossAttentionBlock,
    CrossChannelAttention,
    CrossPositionAttention,
    PositionAttention,
    SelfAttentionBlock,
)
from anban.tasks.denoise.models.discriminator import PatchDiscriminator
from anban.tasks.denoise.models.fusion import FusionLayer
from anban.tasks.denoise.models.layers import ChannelAttention, DoubleConv, SimpleGate
from anban.tasks.denoise.models.redcnn import REDCNN
from anban.tasks.denoise.models.settings import Attention, Fusion, Levels, Places
from anban.tasks.denoise.models.twin import PRESETS, Separated, Twin
from anban.tasks.denoise.models.unet import UNet
from anban.tasks.denoise.scale import Scale
from anban.testing.golden import Adapter, Case, Network, Outputs, UnsupportedError, run_network

Translate = Callable[[Any], dict[str, Tensor]]

_NORMS: dict[str, Any] = {"bn": "bn", "ln": "ln"}
_ACTIVATIONS: dict[str, Any] = {"relu": "relu", "gelu": "gelu", "sg": "last-gelu"}
_CHANNEL_ATTENTION: dict[str, Any] = {"ca": "squeeze-excitation", "sca": "simple"}


def _levels(norm: str = "bn", act: str = "relu", attn_mode: str = "base") -> Levels:
    """The release takes any other word for none."""
    if attn_mode == "attn":
        raise UnsupportedError("the release's attn_mode 'attn' raises an AttributeError")
    return Levels(
        norm=_NORMS.get(norm, "none"),
        activation=_ACTIVATIONS.get(act, "none"),
        channel_attention=_CHANNEL_ATTENTION.get(attn_mode, "none"),
    )


def _named(model: nn.Module, translate: Translate) -> nn.Module:
    """The model, taking official names: parts of a network have no `from_official` of their own."""
    model.from_official = translate  # type: ignore[assignment]
    return model


def _giving(model: nn.Module, arrange: Callable[[Any], Any]) -> nn.Module:
    """The model, its output arranged as the release's."""
    model.register_forward_hook(lambda model, inputs, output: arrange(output))
    return model


# ---- networks ----------------------------------------------------------------------------------------------


def _unet(in_channels: int = 1, out_channels: int = 1, bilinear: bool = True, **options: str) -> nn.Module:
    upsampling: Any = "bilinear" if bilinear else "transposed"
    model = UNet(in_channels, out_channels, replace(_levels(**options), upsampling=upsampling))
    features: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda head, inputs: features.append(inputs[0]))
    return _giving(model, lambda image: (image, features.pop()))


def _unet_tap(model: nn.Module, name: str) -> nn.Module:
    part, number = name[:-1], name[-1:]
    if name == "inc":
        return model.get_submodule("encoder.0")
    if part == "down":
        return model.get_submodule(f"encoder.{number}")
    if part == "up":
        return model.get_submodule(f"decoder.{int(number) - 1}")
    return model.get_submodule({"se": "decoder.3.channel_attention", "outc": "head"}[name])


def _generator_unet() -> nn.Module:
    return _giving(Twin(**PRESETS["cncl"]), lambda given: torch.cat((given.image, given.noise), dim=1))


def _generator_unet_tap(model: nn.Module, name: str) -> nn.Module:
    places = {"content_1": "content.head", "noise": "noise.head"}
    branch = name.removesuffix("_bottleneck")
    return model.get_submodule(places.get(name) or f"{branch}.encoder.4.conv.norm2")


def _diary_twin(case: Case) -> Outputs:
    official = case.official[1]
    names = [name for name, _ in case.data["state_dict"]]
    model = _generator(official, case.arguments(_GENERATORS[official]), names)
    return run_network(case, _giving(model, _in_order))


def _in_order(given: Separated) -> dict[str, Tensor]:
    return {"pred_noise": given.noise, "pred_content": given.content, "pred_fusion": given.image}


def _generator(official: str, arguments: dict[str, Any], names: Iterable[str]) -> Twin:
    """The diary's generator of that class; of `CNCL_attn` in the state that its parameters' names tell."""
    unknown = arguments.keys() - set(_GENERATORS[official])
    if unknown:
        raise UnsupportedError(f"the release's {official} has no {', '.join(sorted(unknown))}")
    noise_encoder = arguments.get("noise_encoder", "unet")
    if arguments.get("content_encoder", "unet") != "unet" or noise_encoder not in ("unet", "sk"):
        raise UnsupportedError("the release has U-Nets, and 'sk' for the noise")
    _without_pre_fusion(arguments.get("pre_fusion"))
    # `fusion` is not passed on: there is one kind of it.
    attn_mode = arguments.get("attn_mode", "base")
    levels = _levels(
        arguments.get("norm_mode", "bn"),
        arguments.get("act_mode", "relu"),
        "base" if official == "CNCL_full_attn" else attn_mode,  # which takes it and does without
    )
    if noise_encoder == "sk":
        return _with_selective_kernels(official, levels)
    if official == "CNCL_unet":
        return Twin(levels=levels)
    attention = {name for name in names if "attn" in name}
    blocks = any(".norm" in name for name in attention)
    own_layers = any("noise_attn." in name for name in attention) and arguments.get("mdta_layer_num", 1)
    cross_layers = arguments.get("cross_layer_num", 1)
    return Twin(
        levels=levels,
        attention=Attention(norm=blocks, skip=blocks, values="own"),
        self_attention=Places(decoder=[1], layers=own_layers) if own_layers else Places(),
        cross_attention=replace(PRESETS[_ATTENTIVE[official]]["cross_attention"], layers=cross_layers)
        if cross_layers
        else Places(),
    )


def _with_selective_kernels(official: str, levels: Levels) -> Twin:
    if official != "CNCL_unet":
        raise UnsupportedError("the release's noise encoder 'sk' gives no features to attend to")
    model = Twin(noise_network="red-cnn", levels=levels)
    # The release takes a batch of two apart, for an image and its features: the first one's noise stands for
    # both.
    model.noise = REDCNN(selective=40, selection="published")
    _giving(model.noise, lambda noise: noise[0])
    return model


def _without_pre_fusion(pre_fusion: str | None) -> None:
    if pre_fusion == "scam":
        raise UnsupportedError("the release's pre_fusion 'scam' raises for images wider than one pixel")


def _double_conv(
    in_channels: int,
    out_channels: int,
    mid_channels: int | None = None,
    norm: str = "bn",
    act: str = "relu",
) -> DoubleConv:
    return DoubleConv(in_channels, out_channels, _levels(norm, act), mid_channels)


def _simple_gate(c: int, FFN_Expand: int = 2) -> nn.Module:
    names = {"conv4": "expand", "conv5": "reduce"}
    return _named(SimpleGate(c, FFN_Expand), lambda state: _replaced(state, names))


def _replaced(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The state with the first word of its names replaced."""
    parts = {name: name.split(".", 1) for name in state}
    return {".".join((names.get(first, first), *rest)): state[name] for name, (first, *rest) in parts.items()}


def _channel_attention(in_channel: int = 64, *, simple: bool) -> nn.Module:
    return _named(ChannelAttention(in_channel, simple=simple), releases.channel_attention)


def _mdta(dim: int = 64, num_heads: int = 4, bias: bool = False) -> nn.Module:
    return _named(MDTA(dim, num_heads, bias=bias), releases.mdta)


def _mdta_block(dim: int = 64, num_heads: int = 4, bias: bool = False) -> nn.Module:
    block = SelfAttentionBlock(dim, Attention(heads=num_heads))
    block.attention = MDTA(dim, num_heads, bias=bias)
    return _named(block, releases.mdta)


def _cross(dim: int = 64, num_heads: int = 4, bias: bool = False) -> CrossChannelAttention:
    return CrossChannelAttention(dim, num_heads, bias=bias, values="own")


def _cross_attention(**arguments: Any) -> nn.Module:
    return _named(_cross(**arguments), releases.cross_attention)


def _cross_attention_block(dim: int = 64, num_heads: int = 4, bias: bool = False) -> nn.Module:
    block = CrossAttentionBlock(dim, Attention(heads=num_heads))
    block.attention = _cross(dim, num_heads, bias)
    return _named(block, releases.cross_attention)


def _bidirectional(
    dim: int,
    heads: int = 8,
    dim_head: int = 64,
    context_dim: int | None = None,
    dropout: float = 0.0,
    talking_heads: bool = False,
    prenorm: bool = False,
) -> nn.Module:
    model = CrossPositionAttention(
        dim, context_dim, heads, dim_head, dropout=dropout, talking_heads=talking_heads, norm=prenorm
    )
    layers = {"norm": "norm", "to_qk": "qk", "to_v": "v", "to_out": "out", "talking_heads": "talk"}
    names = {official: f"{ours}.0" for official, ours in layers.items()}
    names |= {f"context_{official}": f"{ours}.1" for official, ours in layers.items()}
    return _named(model, lambda state: _replaced(state, names))


def _self_attention(input_dim: int, hidden_dim: int, num_heads: int) -> PositionAttention:
    return PositionAttention(input_dim, num_heads, hidden_dim)


def _simple_fusion(case: Case) -> Outputs:
    arguments = case.arguments(("pre_fusion", "norm"))
    _without_pre_fusion(arguments.get("pre_fusion"))
    if arguments.get("norm") == "ln":
        raise UnsupportedError("the release's norm 'ln' has one weight for two channels and raises")
    model = _named(FusionLayer(1, 1, Fusion(), Attention()), releases.fusion)
    return run_network(
        case, model, call=lambda model, given: model(given["pred_content"], given["img"] - given["noise"])
    )


def _red_cnn(out_ch: int = 96) -> REDCNN:
    return REDCNN(width=out_ch)


def _red_sk_block(hidden_dim: int = 96, middle: int = 40) -> REDCNN:
    return REDCNN(width=hidden_dim, selective=middle, selection="published")


# ---- losses, measures and data -----------------------------------------------------------------------------


def _feature_extractor(case: Case) -> Outputs:
    depth = case.arguments(("pool_layer_num",)).get("pool_layer_num", 30)
    encoder = FeatureEncoder(make_layers(cfgs["D"])[:depth], imagenet_scale=False)
    load_official(encoder, case.weights())
    given = case.inputs()
    images, features = (given["img"], given["target"]), (given["feat_img"], given["feat_target"])
    nothing = nn.Identity()
    return {
        "gram_feat_img": gram(features[0], by_batch=True),
        "gram_img": gram(images[0], by_batch=True),
        "texture_loss_images": texture(*images, encoder=nothing, by_batch=True).reshape(1),
        "texture_loss_features": texture(*features, encoder=nothing, by_batch=True).reshape(1),
        "vgg_features": encoder(images[0]),
        "perceptual_loss": perceptual(*images, encoder=encoder, gradient=False).reshape(1),
    }


def _measures(case: Case) -> Outputs:
    data_range = case.arguments()["data_range"]
    given = {name: image.reshape((1, 1, *image.shape[-2:])) for name, image in case.inputs().items()}
    target = given["y"]

    def of(image: Tensor) -> Tensor:
        values = (
            psnr(image, target, data_range=data_range),
            ssim(image, target, data_range=data_range, border="zeros"),
            rmse(image, target),
        )
        return torch.cat(values)

    return {
        "original_psnr_ssim_rmse": of(target + given["e1"]),
        "pred_psnr_ssim_rmse": of(target + given["e2"]),
        "ssim_window": gaussian_window(1),
    }


def _normalisation(case: Case) -> Outputs:
    given = case.inputs()
    scale = Scale.of(given["noisy"], by="variance")
    noisy, clean = scale.apply(given["noisy"]), scale.apply(given["clean"])
    return {
        "noisy_normalised": noisy,
        "target": torch.stack((clean, noisy - clean)),
        "mean_var": torch.tensor([scale.mean, scale.divisor]),
    }


# ---- one step of training ----------------------------------------------------------------------------------


def _train_step(case: Case, *, diary: bool) -> Outputs:
    """The losses of generator and discriminator, and the size of every parameter's gradient."""
    generator = _trained(case) if diary else Twin(**PRESETS["cncl"])
    discriminator = PatchDiscriminator().train()
    networks = {"generator": generator.train(), "discriminator": discriminator}
    for name, network in networks.items():
        load_official(network, case.weights(f"{name}_state_dict"))
    given = case.inputs()
    noisy, clean = given["noisy"], given["clean"]

    def judged(image: Tensor, noise: Tensor) -> Tensor:
        """The releases differ in the order of the images."""
        scores: Tensor = discriminator(image, noisy, noise) if diary else discriminator(image, noise, noisy)
        return scores

    made = generator(noisy)
    adversarial = lsgan(judged(made.image, made.noise), real=True)
    pixels = [l1(made.image, clean), l1(made.noise, noisy - clean)]
    if not diary:
        pixels = [torch.stack(pixels).mean()]  # of both maps as one of two channels
    total = adversarial + 100 * torch.stack(pixels).sum()
    total.backward()  # type: ignore[no-untyped-call]
    outputs = {
        "generator_losses": torch.stack([adversarial, *pixels, total]),
        "generator_grad_l2": _gradients(case, "generator", generator),
    }
    discriminator.zero_grad()
    real = lsgan(judged(clean, noisy - clean), real=True)
    fake = lsgan(judged(made.image.detach(), made.noise.detach()), real=False)
    judgement = 0.5 * (real + fake)
    judgement.backward()  # type: ignore[no-untyped-call]
    return outputs | {
        "discriminator_losses": torch.stack([real, fake, judgement]),
        "discriminator_grad_l2": _gradients(case, "discriminator", discriminator),
    }


def _trained(case: Case) -> Twin:
    """The generator that the diary's step is about."""
    arguments = case.arguments()
    official = arguments.pop("generator", "CNCL_unet")
    arguments.pop("discriminator", None)
    return _generator(official, arguments, [name for name, _ in case.data["generator_state_dict"]])


def _gradients(case: Case, name: str, network: nn.Module) -> Tensor:
    """The norm of each official parameter's gradient, -1 for what the release does not use."""
    parameters = dict(network.named_parameters())
    norms = {}
    for key in key_map(network, case.weights(f"{name}_state_dict")):
        gradient = parameters[key.ours].grad if key.ours in parameters else None
        norms[key.official] = -1.0 if gradient is None else float(gradient.double().norm())
    return torch.tensor([norms[official] for official in case.data[f"grad_order_{name}"]])


_CNCL = "gengmufeng/CNCL-denoising"
_DIARY = "imabackstabber/CT_DIY"
_ENCODERS, _MODES = ("noise_encoder", "content_encoder"), ("attn_mode", "norm_mode", "act_mode")
_GENERATORS = {
    "CNCL_unet": (*_ENCODERS, *_MODES, "pre_fusion", "fusion"),
    "CNCL_attn": (*_ENCODERS, *_MODES, "mdta_layer_num", "cross_layer_num", "pre_fusion", "fusion"),
    "CNCL_full_attn": (*_MODES, "cross_layer_num", "pre_fusion", "fusion"),
}
_ATTENTIVE = {"CNCL_attn": "cncl-attn", "CNCL_full_attn": "cncl-full-attn"}
_ATTENTION = ("dim", "num_heads", "bias")
_UNET = ("in_channels", "out_channels", "bilinear", "norm", "act", "attn_mode")

ADAPTERS: dict[tuple[str, str], Adapter] = {
    (_CNCL, "GeneratorUNet"): Network(_generator_unet, tap=_generator_unet_tap),
    (_CNCL, "Discriminator"): Network(PatchDiscriminator, positional=("in_channels",)),
    (_CNCL, "train()"): partial(_train_step, diary=False),
    (_CNCL, "DatasetFromFolder.__getitem__ (formula)"): _normalisation,
    (_DIARY, "UNet"): Network(_unet, positional=_UNET, tap=_unet_tap),
    (_DIARY, "CNCL_unet"): _diary_twin,
    (_DIARY, "CNCL_attn"): _diary_twin,
    (_DIARY, "CNCL_full_attn"): _diary_twin,
    (_DIARY, "PatchLSGAN"): Network(PatchDiscriminator, positional=("in_channels",)),
    (_DIARY, "RED_CNN"): Network(_red_cnn, positional=("out_ch",)),
    (_DIARY, "RED_SK_Block"): Network(_red_sk_block, positional=("hidden_dim", "middle")),
    (_DIARY, "DoubleConv"): Network(
        _double_conv, positional=("in_channels", "out_channels", "mid_channels", "norm", "act")
    ),
    (_DIARY, "SimpleGate"): Network(_simple_gate, positional=("c", "FFN_Expand")),
    (_DIARY, "ChannelAttention"): Network(
        partial(_channel_attention, simple=False), positional=("in_channel",)
    ),
    (_DIARY, "SimpleChannelAttention"): Network(
        partial(_channel_attention, simple=True), positional=("in_channel",)
    ),
    (_DIARY, "MDTA"): Network(_mdta, positional=_ATTENTION),
    (_DIARY, "MDTABlock"): Network(_mdta_block, positional=_ATTENTION),
    (_DIARY, "CrossAttention"): Network(_cross_attention, positional=_ATTENTION),
    (_DIARY, "CrossAttentionBlock"): Network(_cross_attention_block, positional=_ATTENTION),
    (_DIARY, "BidirectionalCrossAttention"): Network(_bidirectional),
    (_DIARY, "MultiHeadSelfAttention"): Network(
        _self_attention, positional=("input_dim", "hidden_dim", "num_heads")
    ),
    (_DIARY, "SimpleFusion"): _simple_fusion,
    (_DIARY, "feat_extractor, gram_matrix"): _feature_extractor,
    (_DIARY, "compute_measure (compute_PSNR, compute_SSIM, compute_RMSE)"): _measures,
    (_DIARY, "Solver.train_cncl"): partial(_train_step, diary=True),
}
