"""The parameters of the published networks under our names: state dict -> state dict, for `from_official`.

Where a release joins the same two tensors in the other order, the input channels of the convolution behind
are exchanged. Layers that a release has but does not use are left out. Names of ours pass unchanged.

Sources: github.com/gengmufeng/CNCL-denoising (CNCL) and github.com/imabackstabber/CT_DIY (the diary's code).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from anban.official import rename

Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]

_RED_CNN: Rules = [
    (r"^conv(\d)\.", lambda match: f"encoder.{int(match[1]) - 1}."),
    (r"^tconv(\d)\.", lambda match: f"decoder.{int(match[1]) - 1}."),
    (r"^conk(\d)\.", lambda match: f"select.convs.{int(match[1]) - 1}."),
    (r"^sks\.affine1\.", "select.squeeze."),
    (r"^sks\.affine2\.", "select.excite."),
]
_MDTA: Rules = [
    (r"^mdta\.", "attention."),
    (r"\bqkv\.", "heads.qkv."),
    (r"\bqkv_dwconv\.", "heads.local."),
    (r"\bproject_out\.", "heads.out."),
]


def _cross(a: str, b: str) -> Rules:
    """The rules of a cross-attention whose official sides `a` and `b` are ours of these names."""
    rules: Rules = [(r"^attn\.", "attention.")]
    for ours, official in (("a", a), ("b", b)):
        rules += [
            (rf"\b{official}_qkv\.", f"{ours}.qkv."),
            (rf"\b{official}_qkv_dwconv\.", f"{ours}.local."),
            (rf"\b{official}_project_out\.", f"{ours}.out."),
            (rf"\bnorm_{official}\.", f"norm_{ours}."),
        ]
    return rules


def mdta(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CT_DIY's `MDTA`, or its `MDTABlock`."""
    return rename(state, _MDTA)


def cross_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CT_DIY's `CrossAttention`, or its `CrossAttentionBlock`; `x` is our first map."""
    return rename(state, _cross("x", "ctx"))


def channel_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CT_DIY's `ChannelAttention`, or its `SimpleChannelAttention`, which has one convolution."""
    two = any(name.startswith("ca.3.") for name in state)
    return rename(state, [(r"^ca\.1\.", "weigh.0." if two else "weigh."), (r"^ca\.3\.", "weigh.2.")])


def red_cnn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CT_DIY's `RED_CNN`, or its `RED_SK_Block`."""
    return rename(state, _RED_CNN)


def fusion(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CT_DIY's `SimpleFusion`, which puts the image less its noise first."""
    return _exchanged(rename(state, [(r"^conv\.", "predict.")]), r"predict\.weight")


def unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CT_DIY's `UNet`."""
    weighed = {name.removeprefix("se."): tensor for name, tensor in state.items() if name.startswith("se.")}
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("se.")}
    renamed = rename(
        rest,
        [
            (r"^inc\.", "encoder.0.conv."),
            (r"^down(\d)\.maxpool_conv\.1\.", r"encoder.\1.conv."),
            (r"^up(\d)\.(up|conv)\.", lambda match: f"decoder.{int(match[1]) - 1}.{match[2]}."),
            (r"^outc\.conv\.", "head."),
        ],
    )
    return renamed | _under("decoder.3.channel_attention.", channel_attention(weighed))


def twin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CNCL's `GeneratorUNet`, or CT_DIY's `CNCL_unet`, `CNCL_attn` or `CNCL_full_attn`."""
    if "final_conv.weight" in state:
        return _generator_unet(state)
    if "fusion_layer.conv.weight" not in state:
        return dict(state)
    fused = _under("fusion.", fusion(_part(state, "fusion_layer.")))
    if any(name.startswith("encoder.") for name in state):
        return fused | _full_attention(_part(state, "encoder."))
    return fused | _apart(state)


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The branches of `CNCL_unet`; or of `CNCL_attn`, which attends on the last features, the noise first."""
    renamed: dict[str, Tensor] = {}
    for branch in ("content", "noise"):
        network = _part(state, f"{branch}_encoder.")
        head = _part(state, f"{branch}_pred.conv.")
        if head:  # the U-Net's own is not used
            network = {name: tensor for name, tensor in network.items() if not name.startswith("outc.")}
        network = red_cnn(network) if "sks.affine1.weight" in network else unet(network)
        renamed |= _under(f"{branch}.", network | _under("head.", head))
        renamed |= _blocks(state, f"{branch}_attn.", f"{branch}.decoder.3.self_attention.", _MDTA)
    return renamed | _blocks(state, "cross_attn.", "cross_decoder.3.", _cross("ctx", "x"))


def _full_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The branches of `CNCL_full_attn`, which attends on all levels of the decoder, the content first."""
    renamed: dict[str, Tensor] = {}
    for branch in ("content", "noise"):
        renamed |= _under(f"{branch}.", unet(_part(state, f"{branch}_")))
    for level in range(4):
        renamed |= _blocks(state, f"cross_attn{level + 1}.", f"cross_decoder.{level}.", _cross("x", "ctx"))
    return renamed


def _blocks(state: Mapping[str, Tensor], official: str, ours: str, rules: Rules) -> dict[str, Tensor]:
    """Attention in a row: blocks, or the bare attention, which is a block's `attention` here."""
    inside = [(r"^(\d+)\.(?!norm|mdta|attn)", r"\1.attention."), (r"^(\d+)\.(mdta|attn)\.", r"\1.attention.")]
    return _under(ours, rename(_part(state, official), [*inside, *rules]))


def _generator_unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CNCL's generator: it joins what comes from below first; the norms of its last level are not used."""

    def place(match: re.Match[str]) -> str:
        up, kind, level, number, branch = match.groups()
        layer = f"conv.{'conv' if kind == 'conv' else 'norm'}{number}"
        spot = f"decoder.{4 - int(level)}.{layer}" if up else f"encoder.{int(level) - 1}.{layer}"
        if up and level == "1":
            spot = "decoder.3.conv" if number == "1" else "head"
        return f"{'content' if branch == '1' else 'noise'}.{spot}."

    used = {name: tensor for name, tensor in state.items() if not name.startswith("upbn1_")}
    renamed = rename(
        used, [(r"^(up)?(conv|bn)(\d)_(\d)_0([12])\.", place), (r"^final_conv\.", "fusion.predict.")]
    )
    return _exchanged(renamed, r"decoder\.\d\.conv\.(conv1\.)?weight$")


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _exchanged(state: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """The state, with the halves of the input channels exchanged in weights whose name the pattern meets."""
    return {
        name: tensor.roll(tensor.shape[1] // 2, dims=1) if re.search(pattern, name) else tensor
        for name, tensor in state.items()
    }
