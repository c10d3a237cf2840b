"""The section `data` of a change recipe: where the pairs lie and how their labels are coded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from annotated_types import Ge

from anban.data.scenes import LabelReader, SceneData
from anban.errors import InputError
from anban.recipe.schema import Count, Positive
from anban.tasks.change.labels import Coding, LabelReport, read_change, sniff_labels
from anban.tasks.change.layouts import LayoutName, Pair, find_layout, find_pairs


class ChangeData(SceneData[Pair, LabelReport]):
    """Pairs of pictures on disk. Nothing is read before it is asked for.

    Args:
        root: the data set's folder; relative paths start at the current folder, `~` is the home folder.
        layout: how the folder is laid out; "auto" looks. See `anban.tasks.change.layouts`.
        labels: coding of the labels; "auto" reads them all and says what it found, a name insists on it.
        train, val, test: the split used in each role: a split's name, or the path of a list file (ending in
            .txt). Null leaves the role out.
        limit: use at most this many pairs of a split, evenly spaced through their sorted names.
        tile: train on tiles of this many pixels instead of whole scenes. Evaluation always sees whole scenes.
        tile_overlap: pixels that neighbouring tiles share.
        mean, std: of the pixel values as fractions 0..1, per channel; ImageNet's by default.
        cache: keep decoded pictures in memory; null does so for splits below `cache_mb`.
        cache_mb: the size in MiB that null stands for.
        overlap: what to do when a file is in two splits.
    """

    inputs = ("a", "b")

    def __init__(
        self,
        root: str,
        layout: LayoutName = "auto",
        labels: Coding = "auto",
        train: str | None = "train",
        val: str | None = "val",
        test: str | None = "test",
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
        self.layout, self.coding = layout, labels

    def find(self, split: str) -> list[Pair]:
        return find_pairs(self.root, split, self.layout)

    def splits(self) -> list[str]:
        return find_layout(self.root, self.layout).splits

    def look_at_labels(self, split: str) -> LabelReport:
        return sniff_labels(self.scenes(split), self.coding)

    def label_reader(self, split: str) -> LabelReader:
        return partial(read_change, coding=self.label_report(split).coding)

    def describe(self, reports: Mapping[str, LabelReport]) -> dict[str, Any]:
        """`layout`, `labels` (coding), `foreground` (role -> share of change, 0..1), `unchanged` (role -> pairs)."""
        return {
            "layout": find_layout(self.root, self.layout).kind,
            "labels": self._one_coding(reports),
            "foreground": {role: report.foreground for role, report in reports.items()},
            "unchanged": {role: len(report.empty) for role, report in reports.items()},
        }

    def _one_coding(self, reports: Mapping[str, LabelReport]) -> str:
        codings = {role: report.coding for role, report in reports.items()}
        if "0/1" in codings.values() and set(codings.values()) != {"0/1"}:
            raise InputError(
                "the splits code their labels differently: "
                + ", ".join(f"{r} {c}" for r, c in codings.items()),
                where=self.root,
                expected="one coding",
                do="write the labels of all splits as 0 and 255",
            )
        return "soft" if "soft" in codings.values() else next(iter(codings.values()), "auto")
