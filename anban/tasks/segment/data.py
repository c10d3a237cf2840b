"""The section `data` of a segmentation recipe: where the pictures lie, and which classes their labels tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from anban.data.scenes import LabelReader, Scene, SceneData
from anban.errors import InputError
from anban.recipe.schema import Count, Positive
from anban.tasks.segment.classes import class_set
from anban.tasks.segment.labels import CodingName, LabelReport, read_classes, sniff_labels
from anban.tasks.segment.layouts import LayoutName, find_layout, find_scenes


class SegmentData(SceneData[Scene, LabelReport]):
    """Pictures and label maps on disk. Nothing is read before it is asked for.

    Args:
        root: the data set's folder; relative paths start at the current folder, `~` is the home folder.
        layout: how the folder is laid out; "auto" looks. See `anban.tasks.segment.layouts`.
        classes: a class set, see `anban.tasks.segment.classes`, or how many classes there are.
        labels: coding of the label maps; "auto" reads them all and says what it found, a name insists on it.
        ignore: stored values to ignore besides those that the class set ignores.
        train, val, test: the split used in each role: a split's name, or the path of a list file (ending in
            .txt). Null leaves the role out; most sets keep the labels of their test split to themselves.
        limit: use at most this many scenes of a split, evenly spaced through their sorted names.
        tile: train on tiles of this many pixels instead of whole pictures. Evaluation always sees whole ones.
        tile_overlap: pixels that neighbouring tiles share.
        mean, std: of the pixel values as fractions 0..1, per channel; ImageNet's by default.
        cache: keep decoded pictures in memory; null does so for splits below `cache_mb`.
        cache_mb: the size in MiB that null stands for.
        overlap: what to do when a file is in two splits.
    """

    inputs = ("image",)

    def __init__(
        self,
        root: str,
        layout: LayoutName = "auto",
        classes: str | Count = "cityscapes-19",
        labels: CodingName = "auto",
        ignore: list[Annotated[int, Interval(ge=0, le=255)]] | None = None,
        train: str | None = "train",
        val: str | None = "val",
        test: str | None = None,
        limit: Count | None = None,
        tile: Count | None = None,
        tile_overlap: Annotated[int, Ge(0)] = 0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225),
        cache: bool | None = None,
        cache_mb: Annotated[int, Ge(0)] = 1024,
        overlap: Literal["refuse", "warn"] = "refuse",
    ):
        super().__init__(
            root,
            {"train": train, "val": val, "test": test},
            limit=limit,
            tile=tile,
            tile_overlap=tile_overlap,
            mean=mean,
            std=std,
            cache=cache,
            cache_mb=cache_mb,
            overlap=overlap,
        )
        self.layout, self.coding, self.ignore = layout, labels, ignore or []
        self.classes = class_set(classes)

    def find(self, split: str) -> list[Scene]:
        return find_scenes(self.root, split, self.layout, labels=self.coding)

    def splits(self) -> list[str]:
        return find_layout(self.root, self.layout).splits

    def look_at_labels(self, split: str) -> LabelReport:
        return sniff_labels(self.scenes(split), self.classes, self.coding, self.ignore)

    def label_reader(self, split: str) -> LabelReader:
        return partial(read_classes, coding=self.label_report(split).coding)

    def describe(self, reports: Mapping[str, LabelReport]) -> dict[str, Any]:
        """`layout`, `classes` (set), `labels` (coding), `shares` (role -> class -> share), `ignored` (role -> share)."""
        codings = {role: report.coding.name for role, report in reports.items()}
        if len(set(codings.values())) > 1:
            raise InputError(
                "the splits code their labels differently: "
                + ", ".join(f"{r} {c}" for r, c in codings.items()),
                where=self.root,
                expected="one coding",
                do="write the labels of all splits alike, or insist on one with data.labels",
            )
        return {
            "layout": find_layout(self.root, self.layout).kind,
            "classes": self.classes.name,
            "labels": next(iter(codings.values()), self.coding),
            "shares": {role: report.shares for role, report in reports.items()},
            "ignored": {role: report.ignored for role, report in reports.items()},
        }
