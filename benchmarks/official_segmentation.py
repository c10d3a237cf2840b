"""BiSeNetV1 beside the authors' code (CoinCheung/BiSeNet): time and memory, evaluation, the losses of ten steps.

The authors' code is read from a clone in the folder that ANBAN_BENCH_OFFICIAL names and stays as it is; what it
needs and this does not (a GPU, tqdm, tabulate, OpenCV, pretrained weights) is replaced by stand-ins. Both sides
have the same weights, which are functions of the parameters' names. A training step is forward, OHEM on the main and
the two auxiliary outputs, backward and SGD, as recipe seg/bisenet-city and tools/train_amp.py have them (float32, two
crops of 256 x 256); inference is one image of 512 x 1024. Agreement: the confusion matrices and the mean IoU of two
images of 128 x 256, in windows of 96 px where there are windows; and the losses of ten steps from the same weights on the same ten batches (2 of 64 x 96, stored case
bisenetv1_tensteps_64x96), the warm-up and the decay of the rate brought into the ten.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock, patch

import torch
import torchvision
from torch import Tensor, nn

from anban.engine.golden_training import Training, case_batches, case_recipe, training_losses
from anban.metrics.classes import class_scores, confusion
from anban.official import load_official
from anban.recipe import Recipe, load_recipe
from anban.record.environment import commit
from anban.tasks.segment.protocols import apply_protocol, parse_protocol
from anban.testing.golden import Case, fill_input, find_cases
from benchmarks.official import COMMIT, clone, imports
from benchmarks.timing import Findings, Row, interleave, megabytes, page, row, seconds, table

REPOSITORY = "CoinCheung/BiSeNet"
CASE = Path(__file__).parents[1] / "tests" / "golden" / "segmentation" / "bisenetv1_tensteps_64x96.json"
RECIPE = "seg/bisenet-city", ["data.root=none", "model.backbone.pretrained=false", "train.precision=fp32"]
CLASSES, IGNORE, WINDOW = 19, 255, 96

# The authors' code ------------------------------------------------------------------------------------------

STAND_INS: dict[str, Any] = {
    **{name: MagicMock() for name in ("cv2", "lib.data", "lib.logger", "lib.meters", "tabulate")},
    "tqdm": SimpleNamespace(tqdm=lambda items: items),
}


class Scripts(NamedTuple):
    """tools/train_amp.py, set to BiSeNetV1 on Cityscapes, and tools/evaluate.py."""

    train: Any
    evaluate: Any


@contextmanager
def scripts(folder: Path) -> Iterator[Scripts]:
    """Their training and evaluation, on the processor while the context lasts."""
    config = folder / "configs" / "bisenetv1_city.py"
    with ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", ["train_amp.py", "--config", str(config)]))
        for cls in (Tensor, nn.Module):
            stack.enter_context(patch.object(cls, "cuda", lambda self: self))
        # Random weights of the right names and shapes: nothing is downloaded.
        weights = torchvision.models.resnet18().state_dict()
        stack.enter_context(patch("torch.utils.model_zoo.load_url", lambda _: weights))
        with imports(folder, STAND_INS), imports(folder / "tools", {}):
            found = Scripts(*map(importlib.import_module, ("train_amp", "evaluate")))
        yield found


class Official:
    """Their network, losses, optimiser and schedule, trained as their loop does, without mixed precision.

    Of the recipe only the lengths of training and warm-up are taken, all else is theirs.
    """

    def __init__(self, train: Any, recipe: Recipe, weights: dict[str, Tensor], dtype: torch.dtype):
        self.network, main, others = train.set_model(IGNORE)
        self.network.to(dtype).load_state_dict(weights)
        self.losses = [main, *others]
        self.optimizer = train.set_optimizer(self.network)
        steps, warmup = recipe.config["train"]["iterations"], recipe.config["schedule"]["warmup"]
        self.schedule = train.WarmupPolyLrScheduler(
            self.optimizer, power=0.9, max_iter=steps, warmup_iter=warmup, warmup_ratio=0.1, warmup="exp"
        )

    def step(self, image: Tensor, label: Tensor) -> Tensor:
        self.network.aux_mode = "train"
        self.network.train()
        self.optimizer.zero_grad()
        loss = sum(cost(scores, label) for cost, scores in zip(self.losses, self.network(image), strict=True))
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def infer(self, image: Tensor) -> Tensor:
        self.network.aux_mode = "eval"
        scores: Tensor = self.network.eval()(image)[0]
        return scores


# Evaluation -------------------------------------------------------------------------------------------------


class Evaluated(NamedTuple):
    """The confusion matrix (K, K), [label, prediction], and the mean IoU with one pixel added to each union, as in the release."""

    matrix: Tensor
    miou: float


def _ours(network: nn.Module, name: str, image: Tensor, label: Tensor) -> Evaluated:
    with torch.no_grad():
        scores = apply_protocol(parse_protocol(name), network.eval(), image)
    matrix = confusion(scores.argmax(dim=1), label, CLASSES, IGNORE).sum(0)
    return Evaluated(matrix, float(class_scores(matrix, smooth=1)["miou"]))


def _theirs(official: Official, evaluate: Any, name: str, image: Tensor, label: Tensor) -> Evaluated:
    protocol = parse_protocol(name)
    official.network.aux_mode = "eval"
    common = {"scales": protocol.scales, "flip": protocol.flip, "size_processor": evaluate.SizePreprocessor()}
    if protocol.crop:
        evaluator = evaluate.MscEvalCrop(CLASSES, cropsize=protocol.crop, cropstride=2.0 / 3, **common)
    else:
        evaluator = evaluate.MscEvalV0(CLASSES, **common)
    scores = evaluator(official.network.eval(), [(image, label[:, None])])
    return Evaluated(evaluator.metric_observer.confusion.long(), scores["miou"])


PROTOCOLS = ("ss", "msf", f"ssc-{WINDOW}-2/3", f"mscf-{WINDOW}-2/3")

# Measuring --------------------------------------------------------------------------------------------------


def run(rounds: int) -> Findings:
    """Rows of a training step, inference and memory; and in what the two sides agree."""
    folder = clone(REPOSITORY)
    (case,) = find_cases([CASE])
    with scripts(folder) as (train, evaluate):
        losses = {str(dtype).removeprefix("torch."): _losses(case, train, dtype)
                  for dtype in (torch.float32, torch.float64)}  # fmt: skip
        weights, recipe = case.weights(dtype=torch.float32), load_recipe(*RECIPE)
        official = Official(train, recipe, weights, torch.float32)
        ours = Training(recipe)
        load_official(ours.network, weights)
        evaluations = {name: _evaluate(ours, official, evaluate, name) for name in PROTOCOLS}
        rows = _time(ours, official, evaluate, rounds)
    details = {"evaluation": evaluations, "losses": losses, "commit": commit(folder)}
    return Findings(rows, details, _page(rows, details))


def _losses(case: Case, train: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The ten losses of either side, and the largest difference relative to theirs."""
    official = Official(train, case_recipe(case), case.weights(dtype=dtype), dtype)
    theirs = torch.stack([official.step(*batch).double() for batch in case_batches(case, dtype)])
    ours = training_losses(case, dtype)
    difference = float(((ours - theirs).abs() / theirs).max())
    return {"ours": ours.tolist(), "official": theirs.tolist(), "difference": difference}


def _images() -> tuple[Tensor, Tensor]:
    """Two images and their labels, some pixels ignored."""
    image = torch.from_numpy(fill_input("official_segmentation:image", (2, 3, 128, 256), -2, 2))
    drawn = torch.from_numpy(fill_input("official_segmentation:label", (2, 128, 256), -2, CLASSES))
    label = drawn.floor().long()
    return image, label.masked_fill(label < 0, IGNORE)


def _evaluate(ours: Training, official: Official, evaluate: Any, name: str) -> dict[str, float]:
    """What the two make of the same images and labels under one protocol."""
    image, label = _images()
    mine = _ours(ours.network, name, image, label)
    theirs = _theirs(official, evaluate, name, image, label)
    return {
        "pixels": int(mine.matrix.sum()),
        "predicted": int((mine.matrix.sum(0) > 0).sum()),
        "counted_otherwise": int((mine.matrix - theirs.matrix).abs().sum()) // 2,
        "ours": mine.miou,
        "official": theirs.miou,
    }


def _time(ours: Training, official: Official, evaluate: Any, rounds: int) -> list[Row]:
    crops = torch.from_numpy(fill_input("official_segmentation:crops", (2, 3, 256, 256), -2, 2))
    label = torch.from_numpy(fill_input("official_segmentation:labels", (2, 256, 256), 0, CLASSES)).long()
    street = torch.from_numpy(fill_input("official_segmentation:street", (1, 3, 512, 1024), -2, 2))

    @torch.inference_mode()
    def infer() -> None:
        ours.network.eval()(street)

    @torch.inference_mode()
    def infer_official() -> None:
        official.infer(street)

    def step() -> None:
        ours.network.train()
        ours.step(crops, label)

    steps: dict[str, Callable[[], object]] = {"ours": step, "official": lambda: official.step(crops, label)}
    inferences: dict[str, Callable[[], object]] = {"ours": infer, "official": infer_official}
    rows = []
    for what, works in (("a training step", steps), ("inference", inferences)):
        taken = interleave({who: seconds(work) for who, work in works.items()}, rounds)
        rows.append(row(taken, f"BiSeNetV1, {what}", "ours", "official"))
    image, labels = _images()
    for name in PROTOCOLS:
        works = {
            "ours": partial(_ours, ours.network, name, image, labels),
            "official": partial(_theirs, official, evaluate, name, image, labels),
        }
        taken = interleave({who: seconds(work) for who, work in works.items()}, rounds)
        rows.append(row(taken, f"evaluation, {name}, 2 images of 128x256", "ours", "official"))
    taken = interleave({who: megabytes(work) for who, work in steps.items()}, 1, warm=False)
    return [*rows, row(taken, "BiSeNetV1, memory of a training step", "ours", "official", unit="MB")]


def _page(rows: list[Row], details: dict[str, Any]) -> str:
    evaluations = [
        f"{name}: {found['counted_otherwise']} of {found['pixels']} pixels counted otherwise, "
        f"{found['predicted']} classes predicted; mean IoU {found['ours']:.7f}, official {found['official']:.7f}"
        for name, found in details["evaluation"].items()
    ]
    losses = details["losses"]
    numbers = [losses[dtype][who] for dtype in losses for who in ("ours", "official")]
    header = ["step", *(f"{who}, {dtype}" for dtype in losses for who in ("ours", "official"))]
    steps = [[str(step), *(f"{value:.8f}" for value in values)]
             for step, values in enumerate(zip(*numbers, strict=True))]  # fmt: skip
    lists = {
        "Evaluation with the same weights:": evaluations,
        "Largest difference of the ten losses below, relative to the official one:": [
            f"{dtype}: {found['difference']:.1e}" for dtype, found in losses.items()
        ],
        COMMIT: [f"{REPOSITORY}: {details['commit'] or 'unknown'}"],
    }
    top = page("BiSeNetV1 beside the authors' code", rows, lists)
    return top + "\nThe losses of ten training steps:\n\n" + "\n".join(table(header, steps)) + "\n"
