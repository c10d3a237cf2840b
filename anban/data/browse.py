"""What a page of a data set shows: pictures with what they can be filtered and sorted by, and a table of the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anban.data.images import read_rgb
from anban.data.scenes import Scene, SceneData, in_threads

Pixels = NDArray[np.uint8]
T = TypeVar("T")

#: Longer side of a picture on a page, in pixels.
SIDE = 320


class Item(NamedTuple):
    """A picture of a data set.

    Attributes:
        name: of its file.
        split: that it is in.
        picture: (H, W, 3), small, labels drawn over or beside it.
        tags: what it can be filtered by: kind of tag -> the tags that it has.
        numbers: what it can be sorted by.
        notes: what is wrong with it, as sentences.
    """

    name: str
    split: str
    picture: Pixels
    tags: Mapping[str, Sequence[str]]
    numbers: Mapping[str, float]
    notes: Sequence[str] = ()


class Browsed(NamedTuple):
    """A data set to look through.

    Attributes:
        items: of its pictures, at most as many as asked for.
        total: how many pictures there are.
        table: rows of a table of the classes, over all pictures; the first is its heading.
    """

    items: list[Item]
    total: int
    table: list[list[str | int | float]]


def chosen(
    splits: Mapping[str, Sequence[T]], limit: int, first: Callable[[T], bool] = lambda _: False
) -> list[tuple[str, T]]:
    """At most `limit` things with their splits: those that come `first`, then others evenly spread; in their order."""
    every = [(split, each) for split, members in splits.items() for each in members]
    urgent = [number for number, (_, each) in enumerate(every) if first(each)][:limit]
    taken = set(urgent)
    others = [number for number in range(len(every)) if number not in taken]
    room = min(limit - len(urgent), len(others))
    spread = [others[number * len(others) // room] for number in range(room)]
    return [every[number] for number in sorted([*urgent, *spread])]


def thumbnail(pixels: Pixels, side: int = SIDE) -> Pixels:
    """The picture (H, W, 3) at most `side` pixels high and wide."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    return np.asarray(picture)


def in_a_row(pictures: Sequence[Pixels]) -> Pixels:
    """Pictures of one size, small and side by side."""
    return np.concatenate([thumbnail(each, SIDE // 2) for each in pictures], axis=1)


def browse_scenes(
    data: SceneData[Any, Any],
    limit: int,
    show: Callable[[str, str, list[Pixels], NDArray[np.uint8] | None], Item],
) -> Browsed:
    """The scenes of all roles.

    Args:
        limit: most scenes.
        show: of a scene's name, its split, its pictures (H, W, 3) and its label (H, W), None where it has none.
    """
    splits = {role: data.scenes(role) for role in data.roles}
    readers = {role: data.label_reader(role) for role in splits}

    def look(split: str, scene: Scene) -> Item:
        label = None if scene.label is None else readers[split](scene.label)
        return show(scene.name, split, [read_rgb(path) for path in scene.pictures], label)

    items = in_threads(lambda each: look(*each), chosen(splits, limit))
    return Browsed(items, sum(map(len, splits.values())), [])


def unreadable() -> Pixels:
    """What stands for a picture that cannot be read."""
    return np.full((SIDE // 2, SIDE, 3), 127, dtype=np.uint8)
