"""The pictures of a detection data set with their boxes, to look through: what `anban data --page` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from anban.data.browse import Browsed, Item, chosen, thumbnail, unreadable
from anban.data.scenes import in_threads
from anban.errors import InputError
from anban.tasks.detect.annotations import Labelled
from anban.tasks.detect.classes import ClassSet
from anban.tasks.detect.data import read_picture
from anban.tasks.detect.layouts import find_layout, read_split
from anban.tasks.detect.pictures import draw_boxes

_SMALL, _LARGE = 32**2, 96**2  # COCO's


def browse(section: Mapping[str, Any], limit: int) -> Browsed:
    """Pictures to be filtered by class, by the size of their objects as COCO has it and by what is wrong with them.

    Splits that cannot be read are left out: the doctor tells why.

    Args:
        section: the recipe section that reads the folder.
        limit: most pictures; those with faulty boxes come first.
    """
    layout = find_layout(section["root"], section["layout"])
    classes: ClassSet | None = None
    splits: dict[str, list[Labelled]] = {}
    for split in layout.splits:
        try:
            found = read_split(layout, split, classes)
        except InputError:
            continue
        classes = classes or found.classes
        splits[split] = found.pictures
    if classes is None:
        return Browsed([], 0, [])
    names = classes.names
    items = in_threads(
        lambda each: _item(each[1], each[0], names), chosen(splits, limit, lambda each: bool(each.faulty))
    )
    return Browsed(items, sum(map(len, splits.values())), _table(splits, names))


def _item(labelled: Labelled, split: str, classes: tuple[str, ...]) -> Item:
    notes = [error.what for error in labelled.faulty]
    kinds = ["faulty box"] if notes else []
    try:
        picture = _drawn(labelled, classes)
    except InputError as error:
        picture = unreadable()
        notes.append(error.what)
        kinds.append("unreadable")
    if not len(labelled.boxes):
        kinds.append("no object")
    if labelled.ignored.any():
        kinds.append("crowd or difficult")
    areas = labelled.areas
    sizes = [
        name
        for name, has in (
            ("small (<32²)", areas < _SMALL),
            ("medium", (areas >= _SMALL) & (areas < _LARGE)),
            ("large (≥96²)", areas >= _LARGE),
        )
        if has.any()
    ]
    sides = np.sqrt(areas) if len(areas) else np.zeros(1)
    numbers = {
        "objects": len(labelled.boxes),
        "smallest object (side)": round(float(sides.min()), 1),
        "largest object (side)": round(float(sides.max()), 1),
        "height": labelled.size[0],
        "width": labelled.size[1],
    }
    seen = [classes[number] for number in np.unique(labelled.labels)]
    return Item(
        labelled.name, split, picture, {"class": seen, "size": sizes, "finding": kinds}, numbers, notes
    )


def _drawn(labelled: Labelled, classes: tuple[str, ...]) -> np.ndarray:
    """The small picture with its boxes."""
    small = thumbnail(read_picture(labelled).permute(1, 2, 0).numpy())
    height, width = labelled.size
    scale = np.array([small.shape[1] / width, small.shape[0] / height] * 2)
    texts = [classes[label] for label in labelled.labels]
    return draw_boxes(small, labelled.boxes * scale, labelled.labels.tolist(), texts, len(classes))


def _table(splits: dict[str, list[Labelled]], classes: tuple[str, ...]) -> list[list[str | int | float]]:
    """Objects of each class in each split, the pictures that have any, and how large they are."""
    rows: list[list[str | int | float]] = [
        ["Class", "Split", "Objects", "Pictures", "Median side (px)", "Small (%)", "Large (%)"]
    ]
    for split, pictures in splits.items():
        labels = np.concatenate([each.labels for each in pictures] or [np.zeros(0, np.int64)])
        areas = np.concatenate([each.areas for each in pictures] or [np.zeros(0)])
        for number, name in enumerate(classes):
            own = areas[labels == number]
            holding = sum(number in each.labels for each in pictures)
            measured = (
                [round(float(value), 1) for value in
                 (np.median(np.sqrt(own)), 100 * (own < _SMALL).mean(), 100 * (own >= _LARGE).mean())]
                if len(own) else ["", "", ""]
            )  # fmt: skip
            rows.append([name, split, len(own), holding, *measured])
    return rows
