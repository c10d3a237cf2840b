"""Counterparts of the official losses, evaluations and colour changes: their arguments, as published, in terms of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.data.scenes import normalised
from anban.losses.classes import ohem, pixel_costs
from anban.metrics.classes import class_f1, class_iou, class_scores, confusion
from anban.tasks.segment.jitter import adjust_brightness, adjust_contrast, adjust_saturation
from anban.tasks.segment.protocols import (
    Protocol,
    Rule,
    Size,
    Start,
    apply_protocol,
    parse_protocol,
    usual_rule,
)
from anban.testing.golden import Adapter, Case, Outputs, UnsupportedError, labelled

_SCALES = (0.5, 0.75, 1, 1.25, 1.5, 1.75)


# ---- losses ---------------------------------------------------------------------------------------------------------


def _ohem(case: Case) -> Outputs:
    given = case.arguments(("thresh", "n_min"))
    form: Literal["new", "old"] = "old" if "n_min" in given else "new"
    options = {name: given[name] for name in ("thresh", "n_min") if name in given}
    ignore = given.get("lb_ignore", given.get("ignore_lb", 255))
    inputs = case.inputs()
    logits, label = inputs["logits"].requires_grad_(), labelled(case, inputs, ignore)
    loss = ohem(logits, label, valid=label != ignore, form=form, **options)
    (gradient,) = torch.autograd.grad(loss, logits)
    costs, _, _ = pixel_costs(logits, label, label != ignore)
    return {"loss": loss.reshape(1), "grad_logits": gradient, "pixel_ce": costs}


# ---- evaluations ----------------------------------------------------------------------------------------------------


class _Network(nn.Module):
    """The network of the evaluation cases, which describe it in their notes."""

    def __init__(self, classes: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 3, padding=1)
        )

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.body(image)
        return 4 * F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=False)


def _whole(scales: Sequence[float] = (0.5,), flip: bool = False, **size: Any) -> Protocol:
    return Protocol(scales=_floats(scales), flip=flip, start=_start(**size))


def _cropped(
    cropsize: int | Sequence[int] = 1024,
    cropstride: float = 2 / 3,
    flip: bool = True,
    scales: Sequence[float] = _SCALES,
    rule: Rule | None = None,
    **size: Any,
) -> Protocol:
    height, width = (cropsize, cropsize) if isinstance(cropsize, int) else cropsize
    return Protocol(
        scales=_floats(scales),
        flip=flip,
        crop=(height, width),
        stride=(math.ceil(height * cropstride), math.ceil(width * cropstride)),
        rule=rule or usual_rule(windows=True, flip=flip),
        start=_start(**size),
    )


def _start(
    shape: Size | None = None, shortside: int | None = None, longside: int | None = None
) -> Start | None:
    if shape:
        return Start("size", tuple(shape))
    if shortside:
        return Start("short", (shortside,))
    return Start("long", (longside,)) if longside else None


def _floats(scales: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(scale) for scale in scales)


def _predicted(case: Case, protocol: Protocol, classes: int, ignore: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, prediction and confusion matrix under the protocol, which goes by its name."""
    network = _Network(classes)
    network.load_state_dict(case.weights())
    inputs = case.inputs()
    label = labelled(case, inputs, ignore)[:, 0]
    with torch.no_grad():
        scores = apply_protocol(
            parse_protocol(protocol.name), network, inputs["x"], (label.shape[-2], label.shape[-1])
        )
    predicted = scores.argmax(dim=1)
    return scores, predicted, confusion(predicted, label, classes, ignore).sum(0)


def _evaluation(build: Callable[..., Protocol], *positional: str) -> Adapter:
    """The adapter of one of today's evaluators; `build` makes the protocol of its further arguments."""

    def adapter(case: Case) -> Outputs:
        given = case.arguments(positional)
        classes, ignore = given.pop("n_classes"), given.pop("lb_ignore", 255)
        scores, predicted, matrix = _predicted(case, build(**given), classes, ignore)
        found = class_scores(matrix, smooth=1)
        return {
            "accumulated": scores,
            "pred": predicted,
            "confusion": matrix,
            "ious": class_iou(matrix, smooth=1),
            "weights": matrix.sum(1) / matrix.sum(),
            "f1_scores": class_f1(matrix, smooth=1),
            "summary": [found[name] for name in ("miou", "fwiou", "mf1", "pixel_acc")],
        }

    return adapter


def _old_evaluation(case: Case) -> Outputs:
    given = case.arguments(("model", "dataloader", "scales", "n_classes", "lb_ignore", "cropsize", "flip"))
    classes, ignore = given.pop("n_classes", 19), given.pop("lb_ignore", 255)
    protocol = _cropped(**given, cropstride=5 / 6, rule="exp-softmax")
    scores, predicted, matrix = _predicted(case, protocol, classes, ignore)
    # A class that is nowhere makes the official mean undefined.
    return {"accumulated": scores, "pred": predicted, "miou": class_iou(matrix).mean(keepdims=True)}


# ---- colours --------------------------------------------------------------------------------------------------------


def _colours(case: Case) -> Outputs:
    given = case.arguments()
    image = case.inputs()["image"].byte().permute(2, 0, 1)
    adjust = {"brightness": adjust_brightness, "contrast": adjust_contrast, "saturation": adjust_saturation}
    outputs = {}
    for name in (output["name"] for output in case.outputs):
        step, _, factor = name.partition("_")
        if name == "to_tensor":
            # Those of Cityscapes, where the case says nothing.
            mean = torch.tensor(given.get("mean", (0.3257, 0.3690, 0.3223))).view(3, 1, 1)
            std = torch.tensor(given.get("std", (0.2112, 0.2148, 0.2115))).view(3, 1, 1)
            outputs[name] = normalised(image, mean, std)
        elif step in adjust:
            outputs[name] = adjust[step](image, float(factor)).permute(1, 2, 0)
        else:
            raise UnsupportedError(f"no counterpart for the output {name}")
    return outputs


_REPOSITORY = "CoinCheung/BiSeNet"

FUNCTIONS: dict[tuple[str, str], Adapter] = {
    (_REPOSITORY, "OhemCELoss"): _ohem,
    (_REPOSITORY, "MscEvalV0"): _evaluation(_whole, "n_classes", "scales", "flip", "lb_ignore"),
    (_REPOSITORY, "MscEvalCrop"): _evaluation(
        _cropped, "n_classes", "cropsize", "cropstride", "flip", "scales", "lb_ignore"
    ),
    (_REPOSITORY, "MscEval"): _old_evaluation,
    (_REPOSITORY, "ColorJitter, ToTensor"): _colours,
}
