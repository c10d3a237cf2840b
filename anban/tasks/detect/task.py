"""Object detection: one picture in, boxes with a class and a score out.

A batch is a dict: `image` (B, 3, H, W) float32, normalised, padded with zeros to the right and below where pictures differ in size;
`target`, for each picture a dict with `boxes` (N, 4), x1, y1, x2, y2 in its pixels, and `labels` (N), numbers of classes from 0;
`name`. In evaluation all pictures of a batch are of one size, and targets also have `ignored` and `areas`.
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
from loguru import logger
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from anban.data.augment import build_augment
from anban.data.draws import derive
from anban.data.images import picture_files, read_rgb
from anban.data.scenes import ROLES, normalised
from anban.errors import InputError
from anban.recipe.schema import Arguments, Choice, Section, Share, construct, pick
from anban.tasks.contract import LOOP_SECTIONS, Diverged, Symptom, Task
from anban.tasks.detect.data import DetectData, read_picture
from anban.tasks.detect.metric import SCORES, SELECT, sample_record, summary
from anban.tasks.detect.models import MODELS
from anban.tasks.detect.pictures import draw_boxes, palette
from anban.tasks.detect.protocols import padded, parse_protocol, resized
from anban.tasks.detect.start import Start, start_from
from anban.tasks.detect.transforms import AUGMENT_SECTION

NETWORKS = {f"det/{name}": address for name, address in MODELS.items()}

SECTIONS: dict[str, Section] = {
    "data": Arguments("anban.tasks.detect.data:DetectData", places=("root",)),
    "augment": AUGMENT_SECTION,
    "model": Choice(NETWORKS),
    "init": Arguments("anban.tasks.detect.start:Start", places=("path",)),
    **LOOP_SECTIONS,
    "eval": Arguments("anban.tasks.detect.task:Evaluation"),
}


@dataclass(frozen=True)
class Evaluation:
    """How the trained network is measured.

    Attributes:
        splits: evaluated at the end of a run, the first one being the result; adding `train` shows overfitting.
        protocols: whole, short-800-1333, size-448 ... (see `anban.tasks.detect.protocols`); the first one is the result.
        score: boxes with a lower one are not drawn, and not counted in precision, recall, F1 and mean IoU. Average precision takes
            all that the network puts out.
        shown: pictures of the first split that are kept.
    """

    splits: Annotated[list[str], Len(1)] = field(default_factory=lambda: ["val"])
    protocols: Annotated[list[str], Len(1)] = field(default_factory=lambda: ["whole"])
    score: Share = 0.3
    shown: Annotated[int, Ge(0)] = 6

    def __post_init__(self) -> None:
        names = [parse_protocol(protocol).name for protocol in self.protocols]
        if len(set(names)) < len(names):
            raise InputError(f"The protocols are {', '.join(names)}.", where="eval.protocols",
                             expected="every protocol once")  # fmt: skip


class DetectTask(Task):
    """The detection task as the loop sees it."""

    select = SELECT
    scores = SCORES
    scale = 100.0

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.data = DetectData(**config["data"])
        self.evaluation = Evaluation(**config["eval"])
        parse_protocol(config["train"]["validate"])

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.classes.names

    def check_data(self) -> dict[str, Any]:
        given = self.config["model"].get("classes")
        if given not in (None, len(self.classes)):
            raise InputError(f"The network has {given} classes, the data {len(self.classes)}.", where="model.classes",
                             expected="the classes of the data", do=f"set model.classes={len(self.classes)}")  # fmt: skip
        report = self.data.check()
        for split in self.evaluation.splits:
            self.data.labelled(split)
        return report

    def has_split(self, split: str) -> bool:
        return split not in ROLES or split in self.data.roles

    def build_networks(self) -> None:
        arguments = dict(self.config["model"])
        network: nn.Module = construct(pick(NETWORKS, arguments.pop("name"), "model.name"), arguments)
        self.modules["model"] = network

    def training_data(self) -> Dataset[Any]:
        # Who evaluates a trained network builds it without training's data, and needs no weights to begin with.
        if (path := Start(**self.config["init"]).path) is not None:
            taken = start_from(self.modules["model"], Path(path).expanduser())
            logger.info(f"{path}: {taken}")
        augment = build_augment(self.config["augment"], AUGMENT_SECTION)
        return self.data.dataset("train", augment, self.config["seed"])

    def evaluation_data(self, split: str) -> Dataset[Any]:
        return self.data.dataset(split)

    @staticmethod  # it is sent to worker processes, without the task and its networks
    def collate(samples: Sequence[Any]) -> Any:
        height, width = (max(sample["image"].shape[side] for sample in samples) for side in (-2, -1))
        return {
            "image": torch.stack([padded(sample["image"], height, width) for sample in samples]),
            "size": tuple(samples[0]["image"].shape[-2:]),
            "target": [sample["target"] for sample in samples],
            "name": [sample["name"] for sample in samples],
        }

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        parts: dict[str, Tensor] = self.forward["model"](batch["image"], batch["target"])
        return torch.stack(list(parts.values())).sum(), parts

    # Evaluation -----------------------------------------------------------------------------------------------

    def detect(self, model: nn.Module, images: Tensor, protocol: str) -> list[dict[str, Tensor]]:
        """Boxes of images (B, 3, H, W) in their pixels, best first: `boxes` (n, 4), `scores` (n) and `labels` (n)."""
        height, width = images.shape[-2:]
        size = parse_protocol(protocol).of(height, width)
        found: list[dict[str, Tensor]] = model(
            padded(resized(images, size), *size), sizes=[size] * len(images)
        )
        back = images.new_tensor([width / size[1], height / size[0]] * 2)
        return [{**each, "boxes": each["boxes"].float() * back} for each in found]

    def evaluate(
        self, model: nn.Module, batch: Any, protocol: str
    ) -> list[tuple[dict[str, Any], np.ndarray]]:
        height, width = batch["size"]
        images = batch["image"][..., :height, :width]
        results = []
        for name, target, found in zip(
            batch["name"], batch["target"], self.detect(model, images, protocol), strict=True
        ):
            boxes = _array(found, name)
            truth = {key: value.cpu().numpy() for key, value in target.items()}
            kept = {"boxes": boxes[:, :4], "scores": boxes[:, 4], "labels": boxes[:, 5].astype(int)}
            results.append(
                (sample_record(name, truth, kept, len(self.classes), self.evaluation.score), boxes)
            )
        return results

    def summary(self, records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
        return summary(records, len(self.classes), self.evaluation.score)

    def results(self, split: str, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Boxes as COCO's tools read them, with the numbers that the annotations give pictures and classes."""
        return [
            self._coco_result(labelled.id, labelled.name, *found)
            for labelled, record in zip(self.data.labelled(split), records, strict=True)
            for found in zip(*(record["found"][key] for key in ("boxes", "scores", "labels")), strict=True)
        ]

    def _coco_result(
        self, image: int, file: str, box: Sequence[float], score: float, label: int
    ) -> dict[str, Any]:
        x1, y1, x2, y2 = box
        return {
            "image_id": image,
            "file_name": file,
            "category_id": self.data.classes.ids[label],
            "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 6),
        }

    def health(self, records: Sequence[dict[str, Any]]) -> list[Symptom]:
        objects = sum(len(record["truth"]["boxes"]) for record in records)
        if not objects or any(record["found"]["boxes"] for record in records):
            return []
        return [Symptom("collapse", f"no box at all is found in {len(records)} pictures with {objects} objects",
                        "All scores lie below the least one that is put out: the network has learnt the background alone, or "
                        "nothing yet; or no anchor is as large as the objects.",
                        "Train longer, raise optimizer.lr, lower model.detector.score; compare model.detector.anchor_sizes "
                        "with the objects (python -m anban.tasks.detect.anchors).")]  # fmt: skip

    def stamp(self, protocol: str, split: str) -> dict[str, Any]:
        parsed = parse_protocol(protocol)
        sizes = {each.size for each in self.data.labelled(split)}
        inputs = {parsed.of(*size) for size in sizes}
        detector = self.config["model"].get("detector") or {}
        return {
            "name": parsed.name,
            "split": split,
            "size": "x".join(map(str, inputs.pop())) if len(inputs) == 1 else "mixed",
            "score": detector.get("score"),
            "candidates": detector.get("candidates"),
            "overlap": detector.get("overlap"),
            "detections": detector.get("detections"),
            "ap": "COCO: IoU 0.50:0.95, 101 recalls, 100 boxes an image",
            "voc_ap50": "area under the precision at IoU 0.5; voc07: at 11 recalls",
            "pairs": "IoU 0.5",
            "least_score": self.evaluation.score,
            "classes": list(self.classes),
            "ignored": "crowd and difficult objects",
            "data_range": "uint8 0..255",
        }

    # Pictures -------------------------------------------------------------------------------------------------

    def shown(self, split: str) -> list[int]:
        """Pictures evenly spread over the split's list: the same for every run on the same data."""
        count = min(self.evaluation.shown, total := len(self.data.labelled(split)))
        return [i * total // count for i in range(count)]

    def draw(self, folder: Path, split: str, shown: Sequence[tuple[int, np.ndarray]], protocol: str) -> None:
        """For each picture image.png, and truth.png and prediction.png with boxes."""
        listed = []
        for number, found in shown:
            labelled = self.data.labelled(split)[number]
            image = read_picture(labelled).permute(1, 2, 0).numpy()
            place = folder / "samples" / Path(labelled.name).stem
            place.mkdir(parents=True, exist_ok=True)
            for name, drawn in (
                ("image", image),
                ("truth", self._with_truth(image, split, number)),
                ("prediction", self._with_boxes(image, found)),
            ):
                Image.fromarray(drawn).save(place / f"{name}.png")
            listed.append({"name": labelled.name, "folder": place.name})
        index = {
            "view": "boxes",
            "classes": list(self.classes),
            "palette": [list(colour) for colour in palette(len(self.classes))],
            "score": self.evaluation.score,
            "protocol": parse_protocol(protocol).name,
            "split": split,
            "samples": listed,
        }
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        text = json.dumps(index, indent=1, ensure_ascii=False)
        (folder / "samples" / "index.json").write_text(text, encoding="utf-8")

    def picture(self, split: str, index: int, prediction: np.ndarray) -> np.ndarray | None:
        image = read_picture(self.data.labelled(split)[index]).permute(1, 2, 0).numpy()
        return np.concatenate(
            [self._with_truth(image, split, index), self._with_boxes(image, prediction)], axis=1
        )

    def _with_truth(self, image: NDArray[np.uint8], split: str, number: int) -> NDArray[np.uint8]:
        labelled = self.data.labelled(split)[number]
        texts = [
            self.classes[label] + (" (ignored)" if ignored else "")
            for label, ignored in zip(labelled.labels, labelled.ignored, strict=True)
        ]
        return draw_boxes(image, labelled.boxes, labelled.labels.tolist(), texts, len(self.classes))

    def _with_boxes(self, image: NDArray[np.uint8], found: np.ndarray) -> NDArray[np.uint8]:
        """The boxes (n, 6) whose score suffices, the best on top."""
        best = found[found[:, 4] >= self.evaluation.score][::-1]
        labels = best[:, 5].astype(int).tolist()
        texts = [
            f"{self.classes[label]} {score:.2f}" for label, score in zip(labels, best[:, 4], strict=True)
        ]
        return draw_boxes(image, best[:, :4], labels, texts, len(self.classes))

    @torch.inference_mode()
    def predict(
        self, model: nn.Module, inputs: Sequence[Path], out: Path, protocol: str, device: torch.device
    ) -> Iterator[Path]:
        """Pictures, or folders of them: `<name>.png` with boxes, and `results.json`, a list of boxes as COCO has it.

        There, `image_id` is the number that a file is named by (as in COCO), else its place in the sorted list, from 1; `file_name`
        says which file it was. Scores are all that the network puts out.
        """
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config["train"]["precision"])
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (self.data.mean, self.data.std))
        out.mkdir(parents=True, exist_ok=True)
        results = []
        for number, path in enumerate(picture_files(inputs), start=1):
            image = read_rgb(path)
            tensor = normalised(torch.from_numpy(image).permute(2, 0, 1), mean, std)[None].to(device)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                found = _array(self.detect(model, tensor, protocol)[0], path.name)
            image_id = int(path.stem) if path.stem.isdecimal() else number
            results += [
                self._coco_result(image_id, path.name, box, score, int(label))
                for *box, score, label in found.tolist()
            ]
            Image.fromarray(self._with_boxes(image, found)).save(out / f"{path.stem}.png")
            yield out / f"{path.stem}.png"
        (out / "results.json").write_text(json.dumps(results, ensure_ascii=False), encoding="utf-8")
        yield out / "results.json"

    def example(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(derive("example"))
        height, width = parse_protocol(self.evaluation.protocols[0]).of(480, 640)
        return (torch.randn(1, 3, height, width, generator=generator),)


def _array(found: dict[str, Tensor], name: str) -> np.ndarray:
    """What was found as an array (n, 6): corners, score, label."""
    columns = [found["boxes"], found["scores"][:, None], found["labels"][:, None]]
    array: np.ndarray = torch.cat([column.double() for column in columns], dim=1).cpu().numpy()
    if not np.isfinite(array).all():
        raise Diverged(f"the network gives NaN for {name}")
    return array


TASK = DetectTask
