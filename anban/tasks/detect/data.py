"""The section `data` of a detection recipe: where pictures and boxes lie, and what they become for a network."""

from __future__ import annotations

import hashlib
import operator
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from anban.data.draws import derive, drawing_from
from anban.data.images import read_rgb
from anban.data.scenes import ROLES, Scene, normalised, overlaps
from anban.errors import InputError
from anban.recipe.schema import Count, Positive
from anban.tasks.detect.annotations import Annotations, Labelled
from anban.tasks.detect.classes import ClassSet, class_set
from anban.tasks.detect.layouts import LayoutName, find_layout, read_split

Sample = dict[str, Any]


class DetectData:
    """Pictures with boxes. Nothing is read before it is asked for.

    Args:
        root: the data set's folder; relative paths start at the current folder, `~` is the home folder.
        layout: how the folder is laid out; "auto" looks. See `anban.tasks.detect.layouts`.
        classes: "coco" or "voc", or names; null takes those of the training split's annotations.
        train, val, test: the split used in each role: a split's name, or the path of a json file (COCO) or of a list (VOC) under
            the root. Null leaves the role out.
        pictures: folder of the pictures under the root; null looks in the usual places.
        first_pixel: VOC only: what the files call the first pixel of a row, see `anban.tasks.detect.annotations.read_voc`.
        faulty: what to do with boxes without area, or outside of their picture.
        empty: whether to train on pictures without objects.
        limit: use at most this many pictures of a split, evenly spaced through its list.
        mean, std: of the pixel values as fractions 0..1, per channel; ImageNet's by default.
        overlap: what to do when a picture is in two splits.
    """

    def __init__(
        self,
        root: str,
        layout: LayoutName = "auto",
        classes: str | list[str] | None = None,
        train: str | None = "train",
        val: str | None = "val",
        test: str | None = None,
        pictures: str | None = None,
        first_pixel: Literal[0, 1] = 0,
        faulty: Literal["refuse", "drop"] = "refuse",
        empty: bool = True,
        limit: Count | None = None,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225),
        overlap: Literal["refuse", "warn"] = "refuse",
    ):
        self.root = Path(root).expanduser().absolute()
        self.layout, self.pictures, self.first_pixel = layout, pictures, first_pixel
        splits = {"train": train, "val": val, "test": test}
        self.roles = {role: split for role, split in splits.items() if split is not None}
        self.faulty, self.empty, self.limit, self.overlap = faulty, empty, limit, overlap
        self.mean, self.std = tuple(mean), tuple(std)
        self._named = class_set(classes) if classes is not None else None
        self._read: dict[str, Annotations] = {}

    @property
    def classes(self) -> ClassSet:
        """Those named, or those of the training split."""
        if self._named is None:
            role = next(iter(self.roles), "train")
            self._named = self._annotations(self.roles.get(role, role), None).classes
        return self._named

    def labelled(self, split: str) -> list[Labelled]:
        """The pictures of a role or another split.

        Raises:
            InputError: the role is left out, or the first thing that is wrong with the annotations.
        """
        return self.annotations(split).pictures

    def annotations(self, split: str) -> Annotations:
        """What a role or another split holds; boxes without area are left out if `faulty` says so. Raises as `labelled`."""
        if split in ROLES and split not in self.roles:
            raise InputError(f"The role '{split}' is left out: data.{split} is null.", where=f"data.{split}",
                             expected="a split, since this one is asked for", do=f"set data.{split}")  # fmt: skip
        if split not in self._read:
            found = self._annotations(self.roles.get(split, split), self.classes)
            wrong = found.problems + (found.faulty if self.faulty == "refuse" else [])
            if wrong:
                more = f" ({len(wrong) - 1} more faults in this split)" if len(wrong) > 1 else ""
                raise InputError(wrong[0].what + more, where=wrong[0].where, expected=wrong[0].expected,
                                 do=wrong[0].do)  # fmt: skip
            count = len(found.pictures)
            if self.limit is not None and self.limit < count:
                chosen = [found.pictures[i * count // self.limit] for i in range(self.limit)]
                found = Annotations(found.classes, chosen, faulty=found.faulty)
            self._read[split] = found
        return self._read[split]

    def _annotations(self, split: str, classes: ClassSet | None) -> Annotations:
        layout = find_layout(self.root, self.layout)
        return read_split(layout, split, classes, pictures=self.pictures, first_pixel=self.first_pixel)

    def check(self) -> dict[str, Any]:
        """Everything that annotations can be wrong about, looked at before a run; what was found, for its record.

        Pictures are looked for, not opened; one that differs in size from what its annotation says is refused when it is read.

        Raises:
            InputError: the first thing that is wrong.
        """
        found = {role: self.annotations(role) for role in self.roles}
        warnings = [
            f"{role}: faulty boxes that are left out: {len(each.faulty)}, first {each.faulty[0].what} in {each.faulty[0].where}"
            for role, each in found.items()
            if each.faulty
        ]
        warnings += self._overlaps({role: each.pictures for role, each in found.items()})
        if "train" in found and not sum(len(each.boxes) for each in found["train"].pictures):
            raise InputError("There is no object in the training split.", where=self.root)
        return {
            "root": str(self.root),
            "fingerprint": self.fingerprint,
            "splits": {role: len(each.pictures) for role, each in found.items()},
            "classes": list(self.classes.names),
            "objects": {role: self.counts(role) for role in found},
            "warnings": warnings,
        }

    def counts(self, split: str) -> dict[str, int]:
        """Objects of each class."""
        counted = Counter(int(label) for each in self.labelled(split) for label in each.labels)
        return {name: counted[number] for number, name in enumerate(self.classes.names)}

    @property
    def fingerprint(self) -> str:
        """12 hex digits that tell whether two runs saw the same data: names, sizes in bytes and boxes; no pixels."""
        digest = hashlib.sha256()
        for role in self.roles:
            for each in self.labelled(role):
                digest.update(repr((role, each.name, os.stat(each.path).st_size, each.size)).encode())
                for values in (each.boxes, each.labels, each.ignored, each.areas):
                    digest.update(values.tobytes())
        return digest.hexdigest()[:12]

    def _overlaps(self, splits: dict[str, list[Labelled]]) -> list[str]:
        """Texts on pictures that roles share, told by their content."""
        files = {
            role: [Scene(each.name, (each.path,), None) for each in pictures]
            for role, pictures in splits.items()
        }
        shared: dict[tuple[str, str], list[str]] = {}
        for first, second, name, _ in overlaps(files):
            shared.setdefault((first, second), []).append(name)
        texts = [
            f"{x} and {y} share {len(names)} pictures, first {names[0]}" for (x, y), names in shared.items()
        ]
        if texts and self.overlap == "refuse":
            raise InputError("The same pictures are in two splits: " + "; ".join(texts), where=self.root,
                             expected="splits without common pictures",
                             do="remove them from one (or set data.overlap=warn if you mean it, or a role to null)")  # fmt: skip
        return texts

    def dataset(
        self, split: str, augment: Callable[[Sample], Sample] | None = None, seed: int = 0
    ) -> DetectDataset:
        """The samples of a role or split; for training (with `augment`), without pictures that are not trained on."""
        pictures = self.labelled(split)
        if augment is not None and not self.empty:
            pictures = [each for each in pictures if (~each.ignored).any()]
        return DetectDataset(pictures, mean=self.mean, std=self.std, augment=augment, seed=seed)


class DetectDataset(Dataset[Sample]):
    """Samples by number: `image` float32 (3, H, W), normalised; `target`, a dict; and `name`.

    The target has `boxes` (N, 4) and `labels` (N): those to train with where `dataset[epoch, index]` is asked for, which is
    augmented by draws that depend on (seed, epoch, index) only; `dataset[index]` has the picture as it lies on disk, and all objects
    with `ignored` and `areas`.

    Raises:
        InputError: a picture is damaged, or of another size than its annotation says.
    """

    def __init__(
        self,
        pictures: Sequence[Labelled],
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: Callable[[Sample], Sample] | None = None,
        seed: int = 0,
    ):
        self.pictures, self.augment, self.seed = list(pictures), augment, seed
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        labelled = self.pictures[operator.index(index)]
        image = read_picture(labelled)
        target: dict[str, Tensor]
        if epoch is None:
            fields = ("boxes", "labels", "ignored", "areas")
            target = {name: torch.from_numpy(np.array(getattr(labelled, name))) for name in fields}
        else:
            seen = ~labelled.ignored
            boxes = torch.from_numpy(labelled.boxes[seen])
            sample = {
                "image": tv_tensors.Image(image),
                "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=labelled.size),
                "labels": torch.from_numpy(labelled.labels[seen]),
            }
            if self.augment is not None:
                with drawing_from(derive(self.seed, "augment", epoch, operator.index(index) % len(self))):
                    sample = self.augment(sample)
            image = sample["image"].as_subclass(Tensor)
            target = {"boxes": sample["boxes"].as_subclass(Tensor).clone(), "labels": sample["labels"]}
        return {"image": normalised(image, self.mean, self.std), "target": target, "name": labelled.name}


def read_picture(labelled: Labelled) -> Tensor:
    """A picture's pixels, uint8 (3, H, W).

    Raises:
        InputError: it is damaged, or of another size than its annotation says.
    """
    pixels = read_rgb(labelled.path)
    height, width = labelled.size
    if pixels.shape[:2] != (height, width):
        raise InputError(f"the picture has {pixels.shape[1]}x{pixels.shape[0]} pixels, its annotation says {width}x{height}",
                         where=labelled.path, expected="boxes in the pixels of the picture",
                         do="mend width and height in the annotation, or take the picture it was made for")  # fmt: skip
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
