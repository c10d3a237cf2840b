"""The pairs of a change detection data set, to look through: what `anban data --page` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from anban.data.browse import Browsed, Item, browse_scenes, in_a_row
from anban.tasks.change.data import ChangeData


def browse(section: Mapping[str, Any], limit: int) -> Browsed:
    """Both dates beside the map of changes, to be filtered and sorted by how much has changed.

    Args:
        section: the recipe section that reads the folder.
        limit: most pairs.
    """
    data = ChangeData(**section)

    def show(name: str, split: str, pictures: list[np.ndarray], label: np.ndarray | None) -> Item:
        if label is None:
            return Item(name, split, in_a_row(pictures), {}, {})
        share = 100 * float((label == 1).mean())
        kind = "no change" if not share else "little (<5 %)" if share < 5 else "much (≥5 %)"
        white = np.repeat(np.where(label == 1, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
        return Item(name, split, in_a_row([*pictures, white]), {"change": [kind]}, {"changed (%)": round(share, 2)})  # fmt: skip

    return browse_scenes(data, limit, show)
