"""Counterparts of the official segmentation networks: their constructor arguments, as published, in terms of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anban.losses.classes import ohem
from anban.official import key_map, load_official
from anban.tasks.segment.golden_functions import FUNCTIONS
from anban.tasks.segment.models.bisenet.network import BiSeNetV1
from anban.tasks.segment.models.bisenet.settings import AGES, Auxiliary, SpatialPath
from anban.tasks.segment.models.bisenetv2 import BiSeNetV2
from anban.testing.golden import Adapter, Case, Network, Outputs, UnsupportedError, labelled, run_network

AuxMode = Literal["train", "eval", "pred"]


def _bisenetv1(n_classes: int, aux_mode: AuxMode = "train") -> BiSeNetV1:
    heads = Auxiliary() if aux_mode == "train" else Auxiliary(sources=[])
    return BiSeNetV1(n_classes, auxiliary=heads, **_returned(aux_mode))


def _bisenetv2(n_classes: int, aux_mode: AuxMode | None = None, *, file: str) -> BiSeNetV2:
    if file.startswith("old/"):
        if aux_mode is not None:
            raise UnsupportedError("the first BiSeNetV2 takes no aux_mode")
        return BiSeNetV2(
            n_classes, auxiliary="plain", guidance="bilinear", align_corners=True, side_outputs="always"
        )
    aux_mode = aux_mode or "train"
    heads: Literal["expanded", "none"] = "expanded" if aux_mode == "train" else "none"
    return BiSeNetV2(n_classes, auxiliary=heads, **_returned(aux_mode))


def _returned(aux_mode: AuxMode) -> dict[str, Any]:
    """What the release returns, whether it trains or not."""
    if aux_mode not in ("train", "eval", "pred"):
        raise UnsupportedError(f"the release has no aux_mode {aux_mode!r}")
    return {"side_outputs": "always", "output": "classes" if aux_mode == "pred" else "logits"}


def _bisenet(n_classes: int, *, file: str) -> BiSeNetV1:
    if not file.startswith("old/"):
        return BiSeNetV1(n_classes, **AGES["2019-01"], side_outputs="always")
    detail = SpatialPath(source="res2") if file == "old/diss/model.py" else SpatialPath()
    norm: Literal["bn", "inplace-abn"] = "bn" if file == "old/fp16/model.py" else "inplace-abn"
    return BiSeNetV1(n_classes, **AGES["2019-03"], spatial_path=detail, norm=norm, side_outputs="always")


_TAPS = {
    "feat8": "features.layer2",
    "feat16": "features.layer3",
    "feat32": "features.layer4",
    "arm16": "context_path.arm.16",
    "arm32": "context_path.arm.32",
    "sp": "spatial_path",
    "ffm": "fusion",
    "detail": "detail",
    "stem": "semantic.stem",
    "S3": "semantic.stage3",
    "S4": "semantic.stage4",
    "S5_4": "semantic.stage5",
    "S5_5": "semantic.context",
    "bga": "aggregation",
}
"""Official module, as the cases name it -> ours."""


def _tap(model: nn.Module, official: str) -> nn.Module:
    if official not in _TAPS:
        raise UnsupportedError(f"no counterpart for the module {official}")
    return model.get_submodule(_TAPS[official])


def build(case: Case) -> nn.Module:
    """Our network for the case's class, file and constructor arguments, with weights of its own making."""
    name, file = case.official[1], case.data["source"]["file"]
    makers: dict[str, Callable[..., nn.Module]] = {
        "BiSeNet": partial(_bisenet, file=file),
        "BiSeNetV1": _bisenetv1,
        "BiSeNetV2": partial(_bisenetv2, file=file),
    }
    return Network(makers[name], positional=("n_classes", "aux_mode")).model(case)


def _run(case: Case) -> Outputs:
    if any(output["name"] == "grad_l2" for output in case.outputs):
        return _training_step(case, build(case))
    return run_network(case, build(case), tap=_tap)


def _training_step(case: Case, model: nn.Module) -> Outputs:
    """The scores, the loss of each (OHEM), their sum, and the norms of gradients and buffers, without dropout."""
    model = model.to(case.dtype).train()
    weights = case.weights()
    load_official(model, weights)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    inputs = case.inputs()
    scores = model(inputs["x"])
    label = labelled(case, inputs)
    losses = torch.stack([ohem(score, label, valid=label != 255) for score in scores])
    losses.sum().backward()  # type: ignore[no-untyped-call]

    ours = {key.official: key.ours for key in key_map(model, weights)}
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def norms(official: list[str], tensors: Mapping[str, Tensor | None]) -> Tensor:
        """L2 norm of each, -1 where there is none."""
        found = [tensors[ours[name] or ""] for name in official]
        return torch.stack([torch.tensor(-1.0) if t is None else t.norm() for t in found])

    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    return {f"y{i}": score.detach() for i, score in enumerate(scores)} | {
        "losses": losses.detach(),
        "total_loss": losses.sum().detach().reshape(1),
        "grad_l2": norms(case.data["grad_order"], gradients),
        "bn_buffers_l2_after": norms(case.data["bn_buffer_order"], buffers),
    }


_REPOSITORY = "CoinCheung/BiSeNet"

ADAPTERS: dict[tuple[str, str], Adapter] = {
    (_REPOSITORY, "BiSeNet"): _run,
    (_REPOSITORY, "BiSeNetV1"): _run,
    (_REPOSITORY, "BiSeNetV2"): _run,
} | FUNCTIONS
