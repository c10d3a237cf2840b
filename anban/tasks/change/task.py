"""Bitemporal change detection: two pictures of one place in, a map of what changed out.

A batch is a dict: `a`, `b` (B, 3, H, W) float32, normalised; `label` (B, H, W) uint8, 1 where changed; `name`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Len
from PIL import Image
from torch import Tensor, nn

from anban.data.draws import derive
from anban.data.images import read_label, read_rgb
from anban.data.scenes import SceneDataset, common_size
from anban.data.tiles import pad_to_multiple
from anban.errors import InputError
from anban.metrics import SCORES
from anban.recipe.schema import Arguments, Choice, Section, Share
from anban.tasks.change.data import ChangeData
from anban.tasks.change.layouts import Pair, find_pairs
from anban.tasks.change.loss import LOSS_SECTION, margin
from anban.tasks.change.metric import CLASSES, COUNTS, SELECT, counts, sample_record, score
from anban.tasks.change.models import MODELS
from anban.tasks.change.protocols import apply_protocol, parse_protocol
from anban.tasks.change.transforms import AUGMENT_SECTION
from anban.tasks.contract import LOOP_SECTIONS, NEGLIGIBLE, Diverged, Symptom
from anban.tasks.scenes import SceneTask, refuse_repeated
from anban.tasks.supervision import DeepSupervision, SupervisedLoss

NETWORKS = {f"change/{name}": address for name, address in MODELS.items()}

SECTIONS: dict[str, Section] = {
    "data": Arguments("anban.tasks.change.data:ChangeData", places=("root",), means=("cache", "cache_mb")),
    "augment": AUGMENT_SECTION,
    "model": Choice(NETWORKS),
    "loss": LOSS_SECTION,
    "supervision": Arguments("anban.tasks.supervision:DeepSupervision"),
    **LOOP_SECTIONS,
    "eval": Arguments("anban.tasks.change.task:Evaluation"),
}


@dataclass(frozen=True)
class Evaluation:
    """How the trained network is measured.

    Attributes:
        splits: evaluated at the end of a run, the first one being the result; adding `train` shows overfitting.
        protocols: whole, tiles-N, sliding-SIZE-STRIDE, each also with +flip; the first one is the result.
        threshold: probability above which a pixel is called changed.
        shown: scenes of the first split that are kept as pictures.
    """

    splits: Annotated[list[str], Len(1)] = field(default_factory=lambda: ["test"])
    protocols: Annotated[list[str], Len(1)] = field(default_factory=lambda: ["whole"])
    threshold: Share = 0.5
    shown: Annotated[int, Ge(0)] = 6

    def __post_init__(self) -> None:
        refuse_repeated(self.protocols, lambda given: parse_protocol(given).name)


class ChangeTask(SceneTask):
    """The change-detection task as the loop sees it."""

    select = SELECT
    scores = SCORES
    scale = 100.0
    networks = NETWORKS
    augments = AUGMENT_SECTION
    data: ChangeData

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.data = ChangeData(**config["data"])
        supervision = DeepSupervision(**config["supervision"])
        self.criterion = SupervisedLoss(config["loss"], LOSS_SECTION, supervision, margin)
        self.evaluation = Evaluation(**config["eval"])
        parse_protocol(config["train"]["validate"])

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.criterion(self.forward["model"](batch["a"], batch["b"]), batch["label"])

    # Evaluation -----------------------------------------------------------------------------------------------

    def probability(self, model: nn.Module, a: Tensor, b: Tensor, protocol: str) -> Tensor:
        """Probability of change (B, 1, H, W) in [0, 1] under a protocol; `a`, `b` as in a batch."""
        multiple = int(getattr(model, "multiple_of", 1))

        def predict(a: Tensor, b: Tensor) -> Tensor:
            (a, crop), (b, _) = pad_to_multiple(a, multiple), pad_to_multiple(b, multiple)
            outputs = model(a, b)
            main = outputs if isinstance(outputs, Tensor) else outputs[0]
            return torch.sigmoid(margin(main).float())[crop]

        return apply_protocol(parse_protocol(protocol), predict, a, b)

    def evaluate(
        self, model: nn.Module, batch: Any, protocol: str
    ) -> list[tuple[dict[str, Any], np.ndarray]]:
        probability = self.probability(model, batch["a"], batch["b"], protocol)
        _refuse_nan(probability, batch["name"])
        table = counts(probability, batch["label"], self.evaluation.threshold).cpu().tolist()
        maps = (255 * probability[:, 0]).round().to(torch.uint8).cpu().numpy()
        return [
            (sample_record(name, row), picture)
            for name, row, picture in zip(batch["name"], table, maps, strict=True)
        ]

    def summary(self, records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
        return score(self._total(records))

    def health(self, records: Sequence[dict[str, Any]]) -> list[Symptom]:
        tn, fp, fn, tp = (int(n) for n in self._total(records))
        changed, all_pixels = tp + fn, tn + fp + fn + tp
        if tp + fp < NEGLIGIBLE * changed:
            told = _told(tp + fp, "no pixel is", "only {} of all pixels are")
            return [Symptom("collapse", f"{told} predicted as change, though {changed} of {all_pixels} are",
                            "Unchanged pixels are so many that answering with them alone costs little, or a step was "
                            "too large.",
                            "Give change more weight (loss.weighted-bce, loss.focal or loss.dice), lower optimizer.lr "
                            "or lengthen schedule.warmup; anban doctor DATA checks the coding of the labels.")]  # fmt: skip
        if tn + fn < NEGLIGIBLE * (tn + fp):
            told = _told(tn + fn, "every pixel is", "all but {} pixels are")
            return [Symptom("collapse", f"{told} predicted as change, though only {changed} of {all_pixels} are",
                            "The loss gives change too much weight, the labels are inverted, or a step was too large.",
                            "Lower the weight of change in the loss, optimizer.lr, or lengthen schedule.warmup; anban "
                            "doctor DATA checks the coding of the labels.")]  # fmt: skip
        return []

    def _total(self, records: Sequence[dict[str, Any]]) -> np.ndarray:
        rows = [[record["counts"][name] for name in COUNTS] for record in records]
        total: np.ndarray = np.array(rows, dtype=np.int64).reshape(-1, 4).sum(axis=0)
        return total

    def stamp(self, protocol: str, split: str) -> dict[str, Any]:
        parsed = parse_protocol(protocol)
        return parsed.to_dict(split, common_size(self.data.scenes(split)), self.evaluation.threshold) | {
            "classes": list(CLASSES)
        }

    # Pictures -------------------------------------------------------------------------------------------------

    def shown(self, split: str) -> list[int]:
        """Scenes with change, evenly spread over the split's list: the same for every run on the same data."""
        empty = set(self.data.label_report(split).empty)
        pairs = self.data.scenes(split)
        changed = [i for i, pair in enumerate(pairs) if pair.name not in empty] or list(range(len(pairs)))
        count = min(self.evaluation.shown, len(changed))
        return [changed[i * len(changed) // count] for i in range(count)]

    def draw(self, folder: Path, split: str, shown: Sequence[tuple[int, np.ndarray]], protocol: str) -> None:
        listed = []
        for number, probability in shown:
            a, b, label = self._scene(split, number)
            name = self.data.scenes(split)[number].name
            place = folder / "samples" / Path(name).stem
            place.mkdir(parents=True, exist_ok=True)
            pictures = {"a": a, "b": b, "label": 255 * label, "probability": probability}
            for stem, picture in pictures.items():
                Image.fromarray(picture).save(place / f"{stem}.png")
            listed.append({"name": name, "folder": place.name})
        index = {
            "view": "change",
            "threshold": self.evaluation.threshold,
            "protocol": parse_protocol(protocol).name,
            "split": split,
        }
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        text = json.dumps({**index, "samples": listed}, indent=1, ensure_ascii=False)
        (folder / "samples" / "index.json").write_text(text, encoding="utf-8")

    def picture(self, split: str, index: int, prediction: np.ndarray) -> np.ndarray | None:
        a, b, label = self._scene(split, index)
        grey = [np.repeat(p[..., None], 3, axis=2) for p in (255 * label, prediction)]
        return np.concatenate([a, b, *grey], axis=1)

    @torch.inference_mode()
    def predict(
        self, model: nn.Module, inputs: Sequence[Path], out: Path, protocol: str, device: torch.device
    ) -> Iterator[Path]:
        """Two pictures A B, or folders that each hold A and B: `<name>.png` (0/255) and `<name>_probability.png`.

        With several folders, those of each go to a folder of its name under `out`. The precision is that of an
        evaluation.
        """
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config["train"]["precision"])
        for place, pair in self._unlabelled(inputs):
            dataset = SceneDataset(
                [pair], read_label, inputs=self.data.inputs, mean=self.data.mean, std=self.data.std
            )
            batch = self.collate([dataset[0]])
            a, b = (batch[date].to(device) for date in ("a", "b"))
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                scene = self.probability(model, a, b, protocol)
            _refuse_nan(scene, [pair.name])
            probability = scene[0, 0].cpu().numpy()
            mask = (probability > self.evaluation.threshold).astype(np.uint8)
            folder, stem = out / place, Path(pair.name).stem
            folder.mkdir(parents=True, exist_ok=True)
            for name, picture in ((stem, 255 * mask), (f"{stem}_probability", np.rint(255 * probability))):
                Image.fromarray(picture.astype(np.uint8)).save(folder / f"{name}.png")
                yield folder / f"{name}.png"

    def _unlabelled(self, inputs: Sequence[Path]) -> list[tuple[str, Pair]]:
        """Pairs without labels, each with the folder under `out` that its maps belong to."""
        files = [path for path in inputs if not path.is_dir()]
        if len(files) == 2 == len(inputs):
            a, b = (read_rgb(path) for path in files)
            if a.shape != b.shape:
                raise InputError(f"The two dates are {a.shape[:2]} and {b.shape[:2]} pixels.", where=files[1],
                                 expected="two pictures of one size")  # fmt: skip
            return [("", Pair(files[1].name, (files[0], files[1]), None, a.shape[:2]))]
        if files:
            raise InputError(f"Found {len(files)} files among {len(inputs)} inputs.", where=files[0],
                             expected="two pictures A B, or folders that hold A and B")  # fmt: skip
        places = [folder.resolve().name if len(inputs) > 1 else "" for folder in inputs]
        if repeated := [place for place in places if places.count(place) > 1]:
            raise InputError(f"Several folders are called '{repeated[0]}'.", where=inputs[places.index(repeated[0])],
                             expected="folders of different names, after which the maps' folders are named",
                             do="predict them one by one")  # fmt: skip
        found = [find_pairs(folder, "all", labels=False) for folder in inputs]
        return [(place, pair) for place, pairs in zip(places, found, strict=True) for pair in pairs]

    def _scene(self, split: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Both dates (H, W, 3) uint8 and the label (H, W) of 0 and 1."""
        pair = self.data.scenes(split)[number]
        assert pair.label is not None
        return read_rgb(pair.a), read_rgb(pair.b), self.data.label_reader(split)(pair.label)

    def example(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(derive("example"))
        a, b = torch.randn(2, 1, 3, 256, 256, generator=generator)
        return a, b


def _refuse_nan(probability: Tensor, names: Sequence[str]) -> None:
    for scene, name in zip(probability, names, strict=True):
        if not torch.isfinite(scene).all():
            raise Diverged(f"the network gives NaN for {name}")


def _told(pixels: int, none: str, some: str) -> str:
    return some.format(pixels) if pixels else none


TASK = ChangeTask
