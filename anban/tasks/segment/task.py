"""Semantic segmentation: one picture in, a class for every pixel out.

A batch is a dict: `image` (B, 3, H, W) float32, normalised; `label` (B, H, W) uint8, class numbers 0..K-1 and 255 where a
pixel neither trains nor scores; `name`.
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
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from anban.data.draws import derive
from anban.data.images import picture_files, read_rgb
from anban.data.scenes import Scene, SceneDataset, common_size
from anban.data.tiles import pad_to_multiple
from anban.errors import InputError
from anban.metrics.classes import CLASS_SCORES, confusion
from anban.recipe.schema import Arguments, Choice, Section
from anban.tasks.contract import LOOP_SECTIONS, NEGLIGIBLE, Diverged, Symptom
from anban.tasks.scenes import SceneTask, refuse_repeated
from anban.tasks.segment.classes import IGNORE, ClassSet
from anban.tasks.segment.data import SegmentData
from anban.tasks.segment.loss import LOSS_SECTION
from anban.tasks.segment.metric import SELECT, sample_record, score, total
from anban.tasks.segment.models import MODELS
from anban.tasks.segment.protocols import apply_protocol, label_at, parse_protocol
from anban.tasks.segment.transforms import AUGMENT_SECTION
from anban.tasks.supervision import DeepSupervision, SupervisedLoss

NETWORKS = {f"seg/{name}": address for name, address in MODELS.items()}

SECTIONS: dict[str, Section] = {
    "data": Arguments("anban.tasks.segment.data:SegmentData", places=("root",), means=("cache", "cache_mb")),
    "augment": AUGMENT_SECTION,
    "model": Choice(NETWORKS),
    "loss": LOSS_SECTION,
    "supervision": Arguments("anban.tasks.supervision:DeepSupervision"),
    **LOOP_SECTIONS,
    "eval": Arguments("anban.tasks.segment.task:Evaluation"),
}


@dataclass(frozen=True)
class Evaluation:
    """How the trained network is measured.

    Attributes:
        splits: evaluated at the end of a run, the first one being the result; adding `train` shows overfitting.
        protocols: ss, ssc-1024-2/3, msf, mscf ... (see `anban.tasks.segment.protocols`); the first one is the result.
        void: whether a class set's void class is predicted and scored like any other. If not, its scores are left out
            before the largest is taken, and pixels labelled so are ignored.
        shown: images of the first split that are kept as pictures.
    """

    splits: Annotated[list[str], Len(1)] = field(default_factory=lambda: ["val"])
    protocols: Annotated[list[str], Len(1)] = field(default_factory=lambda: ["ss"])
    void: bool = False
    shown: Annotated[int, Ge(0)] = 6

    def __post_init__(self) -> None:
        refuse_repeated(self.protocols, lambda given: parse_protocol(given).name)


class SegmentTask(SceneTask):
    """The segmentation task as the loop sees it."""

    select = SELECT
    scores = CLASS_SCORES
    scale = 100.0
    networks = NETWORKS
    augments = AUGMENT_SECTION
    data: SegmentData

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.data = SegmentData(**config["data"])
        supervision = DeepSupervision(**config["supervision"])
        self.criterion = SupervisedLoss(config["loss"], LOSS_SECTION, supervision)
        self.evaluation = Evaluation(**config["eval"])
        parse_protocol(config["train"]["validate"])
        given = config["model"].get("classes")
        if given not in (None, len(self.classes)):
            raise InputError(f"The network has {given} classes, the data {len(self.classes)} ({self.classes.name}).",
                             where="model.classes", expected="the classes of the data",
                             do=f"set model.classes={len(self.classes)}, or another data.classes")  # fmt: skip

    @property
    def classes(self) -> ClassSet:
        return self.data.classes

    @property
    def scored(self) -> list[int]:
        """The classes that are predicted and scored, all or all but void."""
        void = None if self.evaluation.void else self.classes.void
        return [number for number in range(len(self.classes)) if number != void]

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        label = batch["label"]
        return self.criterion(self.forward["model"](batch["image"]), label, valid=label != IGNORE)

    # Evaluation -----------------------------------------------------------------------------------------------

    def class_scores(
        self, model: nn.Module, image: Tensor, protocol: str, size: tuple[int, int] | None = None
    ) -> Tensor:
        """Scores (B, K, H, W) of the classes that are scored, in the order of `scored`; see `apply_protocol`."""
        multiple = int(getattr(model, "multiple_of", 1))

        def predict(image: Tensor) -> Tensor:
            image, crop = pad_to_multiple(image, multiple)
            outputs = model(image)
            main: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
            if main.shape[1] != len(self.classes):
                raise InputError(f"The network gives {main.shape[1]} classes, the data have {len(self.classes)}.",
                                 where="model", expected=f"the classes of {self.classes.name}")  # fmt: skip
            # Cut to the image; a network whose output is smaller than its input gets images that need no padding.
            return main[crop] if main.shape[-2:] == image.shape[-2:] else main

        return apply_protocol(parse_protocol(protocol), predict, image, size)[:, self.scored]

    def evaluate(
        self, model: nn.Module, batch: Any, protocol: str
    ) -> list[tuple[dict[str, Any], np.ndarray]]:
        label = self._scored_label(batch["label"])
        scores = self.class_scores(model, batch["image"], protocol, (label.shape[-2], label.shape[-1]))
        _refuse_nan(scores, batch["name"])
        predicted = scores.argmax(dim=1)
        matrices = confusion(predicted, label_at(label, scores), len(self.scored), IGNORE).cpu().numpy()
        maps = predicted.to(torch.uint8).cpu().numpy()
        return [
            (sample_record(name, matrix), picture)
            for name, matrix, picture in zip(batch["name"], matrices, maps, strict=True)
        ]

    def _scored_label(self, label: Tensor) -> Tensor:
        """Numbers of the data's classes -> numbers of the scored ones, IGNORE where there is none."""
        table = torch.full((256,), IGNORE, dtype=torch.uint8, device=label.device)
        table[self.scored] = torch.arange(len(self.scored), dtype=torch.uint8, device=label.device)
        return table[label.long()]

    def summary(self, records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
        return score(total(records, len(self.scored)))

    def health(self, records: Sequence[dict[str, Any]]) -> list[Symptom]:
        matrix = total(records, len(self.scored))
        labelled, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
        only = int(predicted.argmax())
        others = predicted.sum() - predicted[only]
        if others >= NEGLIGIBLE * (labelled.sum() - labelled[only]):
            return []
        name, right = self.classes.classes[self.scored[only]], matrix[only, only]
        told = f"all but {others} pixels are" if others else "every pixel is"
        return [Symptom("collapse", f"{told} predicted as {name}, which {right} of {matrix.sum()} are",
                        "One class is so frequent that answering with it alone costs little, or a step was too large.",
                        "Lower optimizer.lr or lengthen schedule.warmup; weigh rare classes (loss.ohem, loss.focal, "
                        "loss.dice); anban doctor DATA checks the coding of the labels.")]  # fmt: skip

    def stamp(self, protocol: str, split: str) -> dict[str, Any]:
        names = [self.classes.classes[number] for number in self.scored]
        return parse_protocol(protocol).to_dict(split, names, common_size(self.data.scenes(split)))

    # Pictures -------------------------------------------------------------------------------------------------

    def shown(self, split: str) -> list[int]:
        """Images evenly spread over the split's list: the same for every run on the same data."""
        count = min(self.evaluation.shown, total := len(self.data.scenes(split)))
        return [i * total // count for i in range(count)]

    def draw(self, folder: Path, split: str, shown: Sequence[tuple[int, np.ndarray]], protocol: str) -> None:
        listed = []
        for number, predicted in shown:
            image, label = self._scene(split, number)
            name = self.data.scenes(split)[number].name
            place = folder / "samples" / Path(name).stem
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / "image.png")
            self._indexed(label).save(place / "label.png")
            self._indexed(_at(predicted, label.shape)).save(place / "prediction.png")
            listed.append({"name": name, "folder": place.name})
        index = {
            "view": "classes",
            "classes": [self.classes.classes[number] for number in self.scored],
            "palette": [list(self.classes.palette[number]) for number in self.scored],
            "ignore": IGNORE,
            "protocol": parse_protocol(protocol).name,
            "split": split,
            "samples": listed,
        }
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        text = json.dumps(index, indent=1, ensure_ascii=False)
        (folder / "samples" / "index.json").write_text(text, encoding="utf-8")

    def picture(self, split: str, index: int, prediction: np.ndarray) -> np.ndarray | None:
        image, label = self._scene(split, index)
        maps = [self._indexed(x).convert("RGB") for x in (label, _at(prediction, label.shape))]
        return np.concatenate([image, *(np.asarray(x) for x in maps)], axis=1)

    def _scene(self, split: str, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The picture (H, W, 3) and its label (H, W) in numbers of the scored classes."""
        scene = self.data.scenes(split)[number]
        assert scene.label is not None
        label = torch.from_numpy(self.data.label_reader(split)(scene.label))
        return read_rgb(scene.pictures[0]), self._scored_label(label).numpy()

    def _indexed(self, numbers: NDArray[np.uint8]) -> Image.Image:
        """A map of scored classes as a picture of indices with its palette, ignored pixels black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.scored)] = [self.classes.palette[number] for number in self.scored]
        image = Image.fromarray(np.ascontiguousarray(numbers), mode="P")
        image.putpalette(palette.ravel().tolist())
        return image

    @torch.inference_mode()
    def predict(
        self, model: nn.Module, inputs: Sequence[Path], out: Path, protocol: str, device: torch.device
    ) -> Iterator[Path]:
        """Pictures, or folders of them: `<name>.png` (indices with a palette) and `<name>_overlay.png`."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config["train"]["precision"])
        out.mkdir(parents=True, exist_ok=True)
        for path in picture_files(inputs):
            scene = Scene(path.name, (path,), None)
            data = SceneDataset(
                [scene], _unread, inputs=self.data.inputs, mean=self.data.mean, std=self.data.std
            )
            image = self.collate([data[0]])["image"].to(device)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                scores = self.class_scores(model, image, protocol, (image.shape[-2], image.shape[-1]))
            _refuse_nan(scores, [path.name])
            numbers = _at(scores[0].argmax(dim=0).to(torch.uint8).cpu().numpy(), tuple(image.shape[-2:]))
            drawn = self._indexed(numbers)
            drawn.save(out / f"{path.stem}.png")
            yield out / f"{path.stem}.png"
            Image.blend(Image.fromarray(read_rgb(path)), drawn.convert("RGB"), 0.5).save(
                out / f"{path.stem}_overlay.png"
            )
            yield out / f"{path.stem}_overlay.png"

    def example(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(derive("example"))
        return (torch.randn(1, 3, 512, 1024, generator=generator),)


def _at(numbers: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """A class map at (height, width), nearest; protocols that score at the network's size give smaller ones."""
    if numbers.shape == size:
        return numbers
    return np.asarray(Image.fromarray(numbers).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _unread(path: Path) -> NDArray[np.uint8]:
    raise AssertionError(f"{path} is no label: what is predicted has none")


def _refuse_nan(scores: Tensor, names: Sequence[str]) -> None:
    for image, name in zip(scores, names, strict=True):
        if not torch.isfinite(image).all():
            raise Diverged(f"the network gives NaN for {name}")


TASK = SegmentTask
