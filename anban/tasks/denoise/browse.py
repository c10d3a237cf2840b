"""The slices of a denoising data set, to look through: what `anban data --page` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from anban.data.browse import Browsed, Item, chosen, in_a_row
from anban.data.scenes import in_threads
from anban.tasks.denoise.data import DenoiseData, read_pair
from anban.tasks.denoise.layouts import Pair
from anban.tasks.denoise.pictures import WINDOWS, tone


def browse(section: Mapping[str, Any], limit: int) -> Browsed:
    """Slices at the low dose beside the full one, in the window of soft tissue, filtered by patient and sorted by noise.

    Args:
        section: the recipe section that reads the folder.
        limit: most slices.
    """
    data = DenoiseData(**section)
    splits = {role: data.pairs(role) for role in data.roles}

    def show(split: str, pair: Pair) -> Item:
        doses = read_pair(pair, data.codings_of(pair))
        tones = [tone(dose[0].numpy(), WINDOWS["soft-tissue"]) for dose in doses]
        picture = in_a_row([np.repeat(each[..., None], 3, axis=2) for each in tones])
        noise = round(float((doses.low - doses.full).std()), 1)
        return Item(
            pair.name, split, picture, {"patient": [pair.patient or "not known"]}, {"noise (HU)": noise}
        )

    items = in_threads(lambda each: show(*each), chosen(splits, limit))
    return Browsed(items, sum(map(len, splits.values())), [])
