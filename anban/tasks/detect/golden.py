"""Counterparts of the official detection networks: their constructor arguments, as published, in terms of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from anban.official import key_map, load_official
from anban.tasks.detect.models.attention.layers import LogSparseAttention
from anban.tasks.detect.models.attention.patterns import log_mask
from anban.tasks.detect.models.boxes import cell_anchors, encode
from anban.tasks.detect.models.dilation import Shrinking
from anban.tasks.detect.models.fpn import FPN
from anban.tasks.detect.models.head import Head, Size, anchors_of, by_anchor, detect, losses
from anban.tasks.detect.models.pvt import PVT, SIZES, Classifier, from_mmdetection
from anban.tasks.detect.models.retinanet import PVTRetinaNet, TorchvisionRetinaNet
from anban.tasks.detect.models.settings import Attention, Detector, Dilation, Pyramid
from anban.testing.golden import Adapter, Case, Network, Outputs, UnsupportedError, run_network

# ---- PVT's own release ----------------------------------------------------------------------------------------------

_PVT = "whai362/PVT"
_RELEASED = {
    "pvt_tiny": "pvt-tiny",
    "pvt_small": "pvt-small",
    "pvt_small_f4": "pvt-small",
    "pvt_medium": "pvt-medium",
    "pvt_large": "pvt-large",
    "pvt_huge_v2": "pvt-huge",
    "pvt_v2_b0": "pvt-v2-b0",
    "pvt_v2_b1": "pvt-v2-b1",
    "pvt_v2_b2": "pvt-v2-b2",
    "pvt_v2_b2_li": "pvt-v2-b2-linear",
    "pvt_v2_b3": "pvt-v2-b3",
    "pvt_v2_b4": "pvt-v2-b4",
    "pvt_v2_b5": "pvt-v2-b5",
}


def _pvt(case: Case) -> Outputs:
    """A size of PVT: a classifier in the folder "classification", a backbone in those of detection and segmentation."""
    _, name = case.official
    if case.data["source"]["file"].startswith("classification/"):
        network = Network(partial(_classifier, SIZES[_RELEASED[name]]), tap=_classifier_tap)
    else:
        network = Network(partial(_release_backbone, name))
    return network(case)


def _release_backbone(name: str, **ignored: Any) -> PVT:
    # The release's detectors and segmenters take any argument and look at none but the weights' address.
    settings = replace(SIZES[_RELEASED[name]], positions_by_count=True)
    return PVT(replace(settings, outputs=(3,)) if name.endswith("_f4") else settings)


def _pvt_class(case: Case) -> Outputs:
    """The class behind the sizes, with its own defaults."""
    second = case.official[1].endswith("V2")
    start = replace(
        SIZES["pvt-v2-b2" if second else "pvt-small"],
        widths=(64, 128, 256, 512),
        heads=(1, 2, 4, 8),
        mlp_ratios=(4.0, 4.0, 4.0, 4.0),
        qkv_bias=False,
        eps=1e-5,
    )
    if case.data["source"]["file"].startswith("classification/"):
        return Network(partial(_classifier, start, patch_size=16), tap=_classifier_tap)(case)
    return Network(partial(_class_backbone, start))(case)


def _class_backbone(start: Pyramid, F4: bool = False, pretrained: Any = None, **given: Any) -> PVT:
    settings, _ = _release_settings(start, **{"patch_size": 16, **given})
    return PVT(replace(settings, outputs=settings.outputs[3:]) if F4 else settings)


def _classifier(start: Pyramid, factory: str = "", pretrained: Any = False, **given: Any) -> Classifier:
    settings, classes = _release_settings(start, **given)
    return Classifier(settings, classes, "mean" if settings.stage_norm else "token")


def _release_settings(
    start: Pyramid,
    img_size: int = 224,
    patch_size: int = 4,
    in_chans: int = 3,
    num_classes: int = 1000,
    embed_dims: Sequence[int] | None = None,
    num_heads: Sequence[int] | None = None,
    mlp_ratios: Sequence[float] | None = None,
    qkv_bias: bool | None = None,
    qk_scale: float | None = None,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    depths: Sequence[int] | None = None,
    sr_ratios: Sequence[int] | None = None,
    num_stages: int = 4,
    linear: bool | None = None,
) -> tuple[Pyramid, int]:
    stages = slice(num_stages)
    attention = replace(start.attention, reductions=tuple(sr_ratios or start.attention.reductions)[stages])
    second = start.stage_norm
    if linear is not None:
        attention = replace(attention, kind="pooled" if linear else "reduced")
        start = replace(start, attention=attention, mlp="conv-relu" if linear else "conv")
    patches = start.patch_sizes if second else (patch_size, 2, 2, 2)
    strides = start.patch_strides if second else (patch_size, 2, 2, 2)
    # Grids of the release's later stages do not follow from the first patch size.
    sides = [img_size // patch_size, *(img_size // 2 ** (stage + 1) // 2 for stage in range(1, num_stages))]
    settings = replace(
        start,
        in_channels=in_chans,
        widths=tuple(embed_dims or start.widths)[stages],
        depths=tuple(depths or start.depths)[stages],
        heads=tuple(num_heads or start.heads)[stages],
        mlp_ratios=tuple(mlp_ratios or start.mlp_ratios)[stages],
        patch_sizes=patches[stages],
        patch_strides=strides[stages],
        paddings=start.paddings[stages],
        image_size=(img_size, img_size),
        position_grids=tuple((side, side) for side in sides),
        positions_by_count=True,
        qkv_bias=start.qkv_bias if qkv_bias is None else qkv_bias,
        qk_scale=qk_scale or None,
        dropout=drop_rate,
        attention_dropout=attn_drop_rate,
        drop_path=drop_path_rate,
        outputs=tuple(range(num_stages)),
        attention=attention,
    )
    return settings, num_classes


def _classifier_tap(model: nn.Module, name: str) -> nn.Module:
    """ "patch_embed2" and "stage2_last_block" count stages from 1."""
    stage = int(name.removeprefix("patch_embed").removeprefix("stage")[0]) - 1
    part = model.get_submodule(f"pyramid.stages.{stage}")
    last = part.get_submodule("blocks")[-1]  # type: ignore[index]
    return part.get_submodule("embed_norm") if name.startswith("patch_embed") else last


# ---- MMDetection and the AtrousLSHTransformer's release --------------------------------------------------------------

_ATROUS = "iredawen/AtrousLSHTransformer"
_SHRINKING = Dilation(place="between", counts=(0, 1, 1, 1), kind="shrinking")
_STOCK_V2 = {
    "patch_sizes": [7, 3, 3, 3],
    "paddings": [3, 1, 1, 1],
    "use_abs_pos_embed": False,
    "norm_after_stage": True,
    "use_conv_ffn": True,
}
_ONCE = {"num_layers": [2, 2, 2, 2], "patch_sizes": [4, 4, 4, 4], "strides": [4, 4, 4, 4]}
_SAME = [0, "same", "same", "same"]
_TINY = [2, 2, 2, 2]

_VERSIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("PyramidVisionTransformer", ""): {},
    ("PyramidVisionTransformerV2", ""): _STOCK_V2,
    ("PVT_AtrousLSHTransformer", "776de54"): _STOCK_V2,
    ("PVT_AtrousLSHTransformer", "1a885c1"): {},
    ("PVT_AtrousLSHTransformer", "df4248d"): {
        **_ONCE,
        "entry": "linear",
        "num_heads": [1, 1, 1, 1],
        "sr_ratios": [1, 1, 1, 1],
    },
    ("PVT_AtrousLSHTransformer", "2abc867"): {**_ONCE, "entry": "linear", "num_dilation": [0, 1, 2, 3]},
    ("PVT_try", "bf2d4bd"): {"sr_ratios": [1, 1, 1, 1]},
    ("PVT_try", ""): {},
    ("PVT_LSH", "bf2d4bd"): {"paddings": _SAME},
    ("PVT_LSH", "copy"): {
        "patch_sizes": [4, 1, 1, 1],
        "strides": [4, 1, 1, 1],
        "num_dilation": [0, 1, 2, 3],
    },
    ("PVT_LSH", ""): {
        **_STOCK_V2,
        "num_layers": _TINY,
        "strides": [4, 1, 1, 1],
        "paddings": [3, "same", "same", "same"],
        "dilation": _SHRINKING,
    },
    ("PVT_LSH_attention", ""): {
        "num_layers": _TINY,
        "strides": [4, 1, 1, 1],
        "paddings": _SAME,
        "dilation": _SHRINKING,
        "kind": "log-sparse",
    },
}
"""Class and the beginning of its commit, or "copy" -> the arguments in which its defaults differ from the stock backbone's."""


def _version(case: Case) -> dict[str, Any]:
    name, source = case.official[1], case.data["source"]
    commit = "copy" if "copy" in source["file"] else source["commit"][:7]
    return _VERSIONS.get((name, commit)) or _VERSIONS[name, ""]


def _mmdetection(case: Case) -> Outputs:
    return Network(partial(_backbone, _version(case)), tap=_stage_tap)(case)


def _backbone(version: Mapping[str, Any], **given: Any) -> PVT:
    return PVT(_settings(**{**version, **given}))


def _settings(
    pretrain_img_size: Any = 224,
    in_channels: int = 3,
    embed_dims: int = 64,
    num_stages: int = 4,
    num_layers: Sequence[int] = (3, 4, 6, 3),
    num_heads: Sequence[int] = (1, 2, 5, 8),
    patch_sizes: Sequence[int] = (4, 2, 2, 2),
    strides: Sequence[int] = (4, 2, 2, 2),
    paddings: Sequence[Any] = (0, 0, 0, 0),
    sr_ratios: Sequence[int] = (8, 4, 2, 1),
    out_indices: int | Sequence[int] = (0, 1, 2, 3),
    mlp_ratios: Sequence[float] = (8, 8, 4, 4),
    qkv_bias: bool = True,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.1,
    use_abs_pos_embed: bool = True,
    norm_after_stage: bool = False,
    use_conv_ffn: bool = False,
    act_cfg: Mapping[str, Any] | None = None,
    norm_cfg: Mapping[str, Any] | None = None,
    num_dilation: Sequence[int] | None = None,
    win_len: int = 0,
    q_len: int = 8,
    sub_len: int = 8,
    entry: Any = "patch",
    kind: Any = "reduced",
    dilation: Dilation | None = None,
    pretrained: Any = None,
    convert_weights: bool = True,
    init_cfg: Any = None,
) -> Pyramid:
    # `win_len` is not passed on: the release takes it and does without.
    size = [pretrain_img_size] if isinstance(pretrain_img_size, int) else list(pretrain_img_size)
    once = entry != "patch"
    patches = [1 if once and stage else patch_sizes[stage] for stage in range(num_stages)]
    # Grids follow the kernels of the patch embeddings, not their strides.
    extents = np.cumprod(patches).tolist()
    if num_dilation is not None:
        dilation = Dilation(place="outputs", counts=tuple(num_dilation), kind="shrinking")
    eps = _eps({"type": "LN", "eps": 1e-6} if norm_cfg is None else norm_cfg)
    positions: Any = "none" if not use_abs_pos_embed else "first" if once else "every"
    return Pyramid(
        in_channels=in_channels,
        widths=tuple(embed_dims * heads for heads in num_heads),
        depths=tuple(num_layers),
        heads=tuple(num_heads),
        mlp_ratios=tuple(mlp_ratios),
        patch_sizes=tuple(patch_sizes),
        patch_strides=tuple(strides),
        paddings=tuple(paddings),
        entry=entry,
        positions=positions,
        position_grids=tuple((size[0] // extent, size[-1] // extent) for extent in extents),
        stage_norm=norm_after_stage,
        mlp="conv" if use_conv_ffn else "plain",
        activation=_activation(act_cfg or {"type": "GELU"}),
        qkv_bias=qkv_bias,
        dropout=drop_rate,
        attention_dropout=attn_drop_rate,
        drop_path=drop_path_rate,
        eps=eps,
        embed_eps=eps,
        outputs=(out_indices,) if isinstance(out_indices, int) else tuple(out_indices),
        attention=Attention(kind, reductions=tuple(sr_ratios), taps=q_len, stretch=sub_len, mask="added"),
        dilation=dilation or Dilation(),
    )


def _eps(norm: Mapping[str, Any]) -> float:
    if norm.get("type") != "LN" or norm.keys() - {"type", "eps", "requires_grad"}:
        raise UnsupportedError(f"no counterpart for the norm {dict(norm)}")
    return float(norm.get("eps", 1e-5))


def _activation(act: Mapping[str, Any]) -> Any:
    names = {"GELU": "gelu", "ReLU": "relu", "LeakyReLU": "leaky_relu", "SiLU": "silu", "Swish": "silu"}
    if act.get("type") not in names or act.keys() - {"type", "inplace"}:
        raise UnsupportedError(f"no counterpart for the activation {dict(act)}")
    return names[act["type"]]


def _stage_tap(model: nn.Module, name: str) -> nn.Module:
    """ "stage1_dilation" is the module in front of the second stage."""
    return model.get_submodule(f"stages.{int(name.removeprefix('stage').removesuffix('_dilation'))}.dilated")


def _dilation(
    in_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 0,
    dilation_1: int = 1,
    dilation_2: int = 2,
    dilation_3: int = 5,
) -> Shrinking:
    return Shrinking(in_channels, kernel_size, stride, padding, (dilation_1, dilation_2, dilation_3))


def _dilations(case: Case) -> Outputs:
    model = Network(_dilation).model(case)
    return run_network(case, model, call=lambda model, inputs: [model(x) for x in inputs.values()])


def _log_masks(case: Case) -> Outputs:
    """Outputs are named mask_{height}x{width}_sub{stretch}."""
    found = {}
    for output in case.outputs:
        height, width, stretch = map(int, re.findall(r"\d+", output["name"]))
        found[output["name"]] = log_mask(height * width, stretch).float()
    return found


class _LogSparse(nn.Module):
    """The release's layer: attention, and what it was given, for tokens of one map."""

    def __init__(self, attention: LogSparseAttention, size: tuple[int, int]):
        super().__init__()
        self.attention, self.size = attention, size

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.attention(x, self.size)
        return out

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        state = {f"stages.0.blocks.0.attn.{name}": tensor for name, tensor in state_dict.items()}
        renamed = from_mmdetection(state)
        return {
            name.removeprefix("stages.0.blocks.0."): t
            for name, t in renamed.items()
            if not name.startswith("unused.")
        }


def _log_sparse(
    embed_dims: int,
    num_heads: int,
    win_len: int,
    q_len: int,
    sub_len: int,
    hw_shape: Sequence[int],
    scale: bool = True,
    spare: bool = False,
    qkv_bias: bool = True,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    **ignored: Any,
) -> _LogSparse:
    if not spare:
        raise UnsupportedError("the release's layer fails without its mask")
    attention = LogSparseAttention(
        embed_dims, num_heads, stretch=sub_len, taps=q_len, mask="added", bias=qkv_bias
    )
    return _LogSparse(attention, (hw_shape[0], hw_shape[1]))


# ---- the parts of RetinaNet ------------------------------------------------------------------------------------------


def _octaves(generator: Mapping[str, Any]) -> dict[str, Any]:
    """MMDetection's AnchorGenerator as a detector's switches."""
    given = {key: value for key, value in generator.items() if key != "type"}
    strides = [int(each) for each in given.pop("strides")]
    base, octaves = given.pop("octave_base_scale", None), given.pop("scales_per_octave", None)
    sizes = given.pop("base_sizes", None) or strides
    ratios = given.pop("ratios")
    if base is None or octaves is None or not given.pop("scale_major", True) or any(given.values()):
        raise UnsupportedError(f"anchors in octaves around the corners of cells only, not {dict(generator)}")
    return {
        "anchor_sizes": tuple(float(base * size) for size in sizes),
        "anchor_octaves": octaves,
        "anchor_ratios": tuple(ratios),
        "anchor_strides": tuple(strides),
        "convention": "mmdetection",
    }


def _anchors(case: Case) -> Outputs:
    given = case.arguments()
    maps = [torch.empty(1, 0, *size) for size in given.pop("featmap_sizes")]
    detector = Detector(**_octaves(given))
    levels, _ = anchors_of(detector, maps, (0, 0))
    found = {f"anchors{level}": anchors for level, anchors in enumerate(levels)}
    for level, size in enumerate(detector.anchor_sizes):
        found[f"base_anchors{level}"] = cell_anchors(
            size, detector.anchor_octaves, detector.anchor_ratios, "mmdetection"
        )
    return found


class _Neck(nn.Module):
    """MMDetection's FPN takes all maps and leaves some out."""

    def __init__(self, fpn: FPN, used: slice):
        super().__init__()
        self.fpn, self.used = fpn, used

    def forward(self, *maps: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.fpn(maps[self.used])
        return found

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"fpn.{name}": tensor for name, tensor in self.fpn.from_official(state_dict).items()}


def _fpn(
    in_channels: Sequence[int],
    out_channels: int,
    num_outs: int,
    start_level: int = 0,
    end_level: int = -1,
    add_extra_convs: bool | str = False,
    relu_before_extra_convs: bool = False,
    no_norm_on_lateral: bool = False,
    conv_cfg: Any = None,
    norm_cfg: Any = None,
    act_cfg: Any = None,
    upsample_cfg: Mapping[str, Any] | None = None,
    init_cfg: Any = None,
) -> _Neck:
    if conv_cfg or norm_cfg or act_cfg or (upsample_cfg or {"mode": "nearest"}) != {"mode": "nearest"}:
        raise UnsupportedError("plain convolutions and nearest neighbours only")
    used = slice(start_level, None if end_level in (-1, len(in_channels) - 1) else end_level + 1)
    channels = in_channels[used]
    source = add_extra_convs.removeprefix("on_") if isinstance(add_extra_convs, str) else "input"
    fpn = FPN(
        channels,
        out_channels,
        extra=num_outs - len(channels),
        source=source if add_extra_convs else "pool",  # type: ignore[arg-type]
        relu=relu_before_extra_convs,
    )
    return _Neck(fpn, used)


def _head(
    num_classes: int,
    in_channels: int,
    feat_channels: int = 256,
    stacked_convs: int = 4,
    anchor_generator: Mapping[str, Any] | None = None,
    conv_cfg: Any = None,
    norm_cfg: Any = None,
    **ignored: Any,
) -> Head:
    if conv_cfg or norm_cfg:
        raise UnsupportedError("plain convolutions without norms only")
    generator = Detector(**_octaves(anchor_generator)) if anchor_generator else Detector()
    anchors = generator.anchor_octaves * len(generator.anchor_ratios)
    return Head(in_channels, feat_channels, stacked_convs, anchors, num_classes)


def _heads(case: Case) -> Outputs:
    model = Network(_head).model(case)
    return run_network(case, model, call=lambda model, inputs: model(list(inputs.values())))


def _detector(given: Mapping[str, Any]) -> Detector:
    """MMDetection's configuration of a head, of training and of testing as a detector's switches."""
    train, test = given["train_cfg"], given["test_cfg"]
    assigner, coder = train["assigner"], given["bbox_coder"]
    classes, boxes = given["loss_cls"], given["loss_bbox"]
    known = {
        "assigner": assigner.get("type") == "MaxIoUAssigner" and assigner.get("gt_max_assign_all", True),
        "border": train.get("allowed_border", -1) < 0 and train.get("pos_weight", -1) <= 0,
        "coder": not any(coder.get("target_means", ())) and coder.get("clip_border", True),
        "loss_cls": classes["type"] == "FocalLoss" and classes.get("use_sigmoid", True),
        "loss_bbox": boxes["type"] in ("L1Loss", "SmoothL1Loss"),
        "nms": test["nms"].get("type", "nms") == "nms",
    }
    if not all(known.values()):
        raise UnsupportedError(
            f"no counterpart for the {[name for name, is_known in known.items() if not is_known]}"
        )
    claims = assigner.get("match_low_quality", True)
    return Detector(
        **_octaves(given["anchor_generator"]),
        depth=given.get("stacked_convs", 4),
        positive=assigner["pos_iou_thr"],
        negative=assigner["neg_iou_thr"],
        claim=float(assigner.get("min_pos_iou", 0.0)) if claims else 2.0,
        focal_alpha=classes.get("alpha", 0.25),
        focal_gamma=classes.get("gamma", 2.0),
        class_weight=classes.get("loss_weight", 1.0),
        box_weight=boxes.get("loss_weight", 1.0),
        box_beta=boxes.get("beta", 1.0) if boxes["type"] == "SmoothL1Loss" else 0.0,
        box_deviations=tuple(coder.get("target_stds", (1.0,) * 4)),  # type: ignore[arg-type]
        score=test["score_thr"],
        candidates=test["nms_pre"],
        overlap=test["nms"].get("iou_threshold", test["nms"].get("iou_thr", 0.5)),
        detections=test["max_per_img"],
    )


def _targets(given: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}
        for boxes, labels in zip(given["gt_bboxes"], given["gt_labels"], strict=True)
    ]


def _losses(case: Case) -> Outputs:
    """Losses, what they want, detections and gradients, all from given maps of a head."""
    given, inputs = case.arguments(), case.inputs()
    detector, targets = _detector(given), _targets(given)
    logits = [x.requires_grad_() for name, x in inputs.items() if name.startswith("cls")]
    differences = [x.requires_grad_() for name, x in inputs.items() if name.startswith("reg")]
    image: Size = (given["image_hw"][0], given["image_hw"][1])
    classes, boxes, found = losses(detector, logits, differences, targets, image)
    sum(each.sum() for each in (*classes, *boxes)).backward()  # type: ignore[union-attr]
    outputs = {
        "loss_cls": torch.stack([each.sum() for each in classes]),
        "loss_bbox": torch.stack([each.sum() for each in boxes]),
    }
    levels, _ = anchors_of(detector, logits, image)
    start = 0
    for level, anchors in enumerate(levels):
        here = found[:, start : start + len(anchors)]
        start += len(anchors)
        labels = torch.full_like(here, given["num_classes"])
        aims = torch.zeros(*here.shape, 4)
        for i, target in enumerate(targets):
            positive = here[i] >= 0
            labels[i, positive] = target["labels"][here[i, positive]]
            boxes_here = target["boxes"][here[i, positive]]
            aims[i, positive] = encode(boxes_here, anchors[positive], detector.box_deviations)
        outputs[f"labels{level}"] = labels
        outputs[f"bbox_targets{level}"] = aims
        outputs[f"bbox_weights{level}"] = (here >= 0).unsqueeze(-1).expand(-1, -1, 4).float()
    for kind, maps in (("cls", logits), ("reg", differences)):
        outputs |= {f"grad_{kind}{level}": x.grad for level, x in enumerate(maps) if x.grad is not None}
    with torch.no_grad():
        detections = detect(detector, logits, differences, image, [image] * len(targets))
    for i, each in enumerate(detections):
        outputs[f"det_bboxes{i}"] = torch.cat((each["boxes"], each["scores"].unsqueeze(-1)), dim=-1)
        outputs[f"det_labels{i}"] = each["labels"]
    return outputs


# Backbones of the configurations: version of the class, and arguments.
_CONFIGURATIONS: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    "my_pvt": (("PyramidVisionTransformer", ""), {"num_layers": _TINY}),
    "my_pvt_AtrousLSHTransformer": (("PVT_AtrousLSHTransformer", "df4248d"), {}),
    "my_pvt_AtrousLSHTransformer_samefeaturesize": (("PVT_AtrousLSHTransformer", "2abc867"), {}),
    "my_pvt_AtrousLSHTransformer_voc": (("PVT_LSH", ""), {}),
    "my_pvt_AtrousLSHTransformer_voc_attention": (("PVT_LSH_attention", ""), {}),
    "my_pvt_AtrousLSHTransformer_voc_same": (("PVT_try", ""), {}),
    "retinanet_pvt-t_fpn_1x_coco": (("PyramidVisionTransformer", ""), {"num_layers": _TINY}),
    "retinanet_pvt-t_fpn_1x_coco_voc": (("PyramidVisionTransformerV2", ""), {"num_layers": _TINY}),
    **{
        f"retinanet_pvt-{size}_fpn_1x_coco": (("PyramidVisionTransformer", ""), {"num_layers": depths})
        for size, depths in (("s", [3, 4, 6, 3]), ("m", [3, 4, 18, 3]), ("l", [3, 8, 27, 3]))
    },
    **{
        f"retinanet_pvtv2-b{size}_fpn_1x_coco": (("PyramidVisionTransformerV2", ""), arguments)
        for size, arguments in (
            (0, {"embed_dims": 32, "num_layers": _TINY}),
            (1, {"num_layers": _TINY}),
            (2, {"num_layers": [3, 4, 6, 3]}),
            (3, {"num_layers": [3, 4, 18, 3]}),
            (4, {"num_layers": [3, 8, 27, 3]}),
            (5, {"num_layers": [3, 6, 40, 3], "mlp_ratios": (4, 4, 4, 4)}),
        )
    },
}
_RETINANET = Detector(
    convention="mmdetection",
    extra_source="input",
    extra_relu=False,
    anchor_strides=(8, 16, 32, 64, 128),
)


def _retinanets(case: Case) -> Outputs:
    """A configuration whole: the head's maps, and the losses of each level."""
    given = case.arguments()
    version, arguments = _CONFIGURATIONS[given["config"].rpartition("/")[2].removesuffix(".py")]
    settings = _settings(**{**_VERSIONS[version], **arguments})
    model = PVTRetinaNet(given["num_classes"], settings, _RETINANET)
    targets = _targets(given)

    def call(_: nn.Module, inputs: dict[str, Tensor]) -> Any:
        images = inputs["x"]
        maps = model.head(model.features(images))
        size = (images.shape[2], images.shape[3])
        costs = losses(_RETINANET, maps[0], maps[1], targets, size)
        return [maps, *(torch.stack([each.sum() for each in levels]) for levels in costs[:2])]

    return run_network(case, model, call=call)


# ---- torchvision -----------------------------------------------------------------------------------------------------


def _torchvision(case: Case) -> Outputs:
    """Images through torchvision's own resizing and padding; maps, losses with gradients, and detections."""
    given = case.arguments()
    build = re.match(r"resnet_fpn_backbone\('(\w+)', .*returned_layers=\[([\d, ]+)\]", given["backbone"])
    if not build or "LastLevelP6P7(256,256)" not in given["backbone"]:
        raise UnsupportedError(f"no counterpart for the backbone {given['backbone']}")
    stages = [int(number) for number in build[2].split(",")]
    if stages != list(range(stages[0], 5)):
        raise UnsupportedError("all stages from one on only")
    detector = Detector(
        first_stage=stages[0] - 1,
        anchor_sizes=(32.0, 64.0, 128.0, 256.0, 512.0),
        positive=given.get("fg_iou_thresh", 0.5),
        negative=given.get("bg_iou_thresh", 0.4),
        score=given.get("score_thresh", 0.05),
        candidates=given.get("topk_candidates", 1000),
        overlap=given.get("nms_thresh", 0.5),
        detections=given.get("detections_per_img", 300),
    )
    model = TorchvisionRetinaNet(given["num_classes"], build[1], detector=detector)  # type: ignore[arg-type]
    weights = case.weights()
    load_official(model, weights)
    transform = GeneralizedRCNNTransform(
        given.get("min_size", 800),
        given.get("max_size", 1333),
        given.get("image_mean") or [0.485, 0.456, 0.406],
        given.get("image_std") or [0.229, 0.224, 0.225],
    )
    images = list(case.inputs().values())
    targets = [
        {"boxes": torch.tensor(each["boxes"]), "labels": torch.tensor(each["labels"])}
        for each in given["targets"]
    ]
    batch, resized = transform.eval()(images, targets)
    x, sizes = batch.tensors, batch.image_sizes
    size = (x.shape[2], x.shape[3])
    maps = model.features(x)
    logits, differences = model.head(maps)
    costs = losses(detector, logits, differences, resized, size)
    with torch.no_grad():
        found = transform.postprocess(model.eval()(x, sizes=sizes), sizes, [i.shape[1:] for i in images])
    outputs = {
        "batch": x,
        "cls_logits": torch.cat([by_anchor(each, given["num_classes"]) for each in logits], dim=1),
        "bbox_regression": torch.cat([by_anchor(each, 4) for each in differences], dim=1),
        "anchors_image0": torch.cat(anchors_of(detector, maps, size)[0]),
        "loss_classification": torch.cat(costs[0], dim=1).sum().reshape(1),
        "loss_bbox_regression": torch.cat(costs[1], dim=1).sum().reshape(1),
        "grad_l2": _gradients(case, model, x, resized),
    }
    outputs |= {f"feature{level}": each for level, each in enumerate(maps)}
    for i, each in enumerate(found):
        outputs |= {f"{name}{i}": each[name] for name in ("boxes", "scores", "labels")}
    return outputs


def _gradients(case: Case, model: nn.Module, images: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
    """Norms of the gradients of both losses, in the case's order; in float32 their rounding would exceed the tolerance."""
    weights = case.weights()
    ours = {line.official: line.ours for line in key_map(model, weights)}
    wide = [{**target, "boxes": target["boxes"].double()} for target in targets]
    costs = model.double().train()(images.double(), wide)
    (costs["classes"] + costs["boxes"]).backward()
    gradients = [model.get_parameter(str(ours[name])).grad for name in case.data["grad_order"]]
    return torch.stack([torch.tensor(-1.0) if each is None else each.norm().float() for each in gradients])


_ATROUS_CLASSES = {name for name, _ in _VERSIONS}

ADAPTERS: dict[tuple[str, str], Adapter] = {
    **{(_PVT, name): _pvt for name in _RELEASED},
    **{(_PVT, name): _pvt_class for name in ("PyramidVisionTransformer", "PyramidVisionTransformerV2")},
    **{(_ATROUS, name): _mmdetection for name in _ATROUS_CLASSES},
    (_ATROUS, "DilationConvModule"): _dilations,
    (_ATROUS, "log_mask"): _log_masks,
    (_ATROUS, "SpatialReductionAttention_ss"): Network(_log_sparse),
    (_ATROUS, "AnchorGenerator"): _anchors,
    (_ATROUS, "FPN"): Network(_fpn, positional=("in_channels", "out_channels", "num_outs")),
    (_ATROUS, "RetinaHead"): _heads,
    (_ATROUS, "RetinaHead.loss / get_bboxes"): _losses,
    (_ATROUS, "RetinaNet(backbone, FPN, RetinaHead)"): _retinanets,
    ("pytorch/vision", "RetinaNet"): _torchvision,
}
