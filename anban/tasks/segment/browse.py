"""The scenes of a segmentation data set, to look through: what `anban data --page` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from anban.data.browse import Browsed, Item, browse_scenes, in_a_row
from anban.tasks.segment.data import SegmentData


def browse(section: Mapping[str, Any], limit: int) -> Browsed:
    """Pictures beside their label maps, to be filtered by class and sorted by the number of classes.

    Args:
        section: the recipe section that reads the folder.
        limit: most scenes.
    """
    data = SegmentData(**section)
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(data.classes)] = data.classes.palette

    def show(name: str, split: str, pictures: list[np.ndarray], label: np.ndarray | None) -> Item:
        if label is None:
            return Item(name, split, in_a_row(pictures), {}, {})
        values = np.unique(label)
        seen = [data.classes.classes[value] for value in values if value < len(data.classes)]
        ignored = 100 * float((label >= len(data.classes)).mean())
        return Item(name, split, in_a_row([*pictures, colours[label]]), {"class": seen},
                    {"classes": len(seen), "ignored (%)": round(ignored, 2)})  # fmt: skip

    return browse_scenes(data, limit, show)
