"""The same file twice, the same picture twice, and pictures that two splits of a data set share.

Near duplicates are found by a hash of 64 bits, the signs of a picture's low frequencies (a "perceptual hash": Zauner,
"Implementation and benchmarking of perceptual image hash functions", 2010), and confirmed on 16 x 16 colours. Hashes
that differ in at most seven bits agree, but for one bit, in one of four quarters: so every such pair is found without
comparing all with all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated

import annotated_types
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anban.audit.picture import Picture
from anban.recipe.schema import Share

Hashes = NDArray[np.uint64]

#: Sides of the pictures that the hash is made of, and that confirms.
_SIDE, _SMALL = 32, 16

#: Pairs of one bucket that are compared at a time.
_PIECE = 1 << 20

#: Larger text files are no list of a split.
_LIST_BYTES = 1 << 26

_QUARTERS = 4
_QUARTER_BITS = 16


@dataclass(frozen=True)
class Limits:
    """See limits.yaml."""

    most_bits: Annotated[int, annotated_types.Interval(ge=0, le=7)]
    most_difference: Share
    least_contrast: Share


@dataclass(frozen=True)
class Print:
    """What is kept of a picture to find it again.

    Attributes:
        hash: 64 bits.
        small: 16 x 16 x 3 bytes.
    """

    hash: int
    small: bytes


def print_of(picture: Picture, limits: Limits) -> Print | None:
    """The picture's print; None of one without structure, which is like every other of its colour."""
    image = Image.fromarray(picture.rgb).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    gray = np.asarray(image.convert("L"), np.float32) / 255
    if gray.std() < limits.least_contrast:
        return None
    waves = _cosines(_SIDE)[:8]
    low = (waves @ gray @ waves.T).ravel()[1:]  # without the mean
    bits = np.append(low > np.median(low), False)
    value = int(np.packbits(bits).view(">u8")[0])
    return Print(value, image.resize((_SMALL, _SMALL), Image.Resampling.BOX).tobytes())


@cache
def _cosines(size: int) -> NDArray[np.float32]:
    """(size, size), rows the waves of the discrete cosine transform."""
    places = (np.arange(size) + 0.5) * np.pi / size
    return np.cos(np.arange(size)[:, None] * places).astype(np.float32)


def alike(first: bytes, second: bytes, limits: Limits) -> bool:
    """Whether two small pictures differ by no more, on average, than the limits allow."""
    one, two = (np.frombuffer(each, np.uint8).astype(np.float32) for each in (first, second))
    return bool(np.abs(one - two).mean() / 255 <= limits.most_difference)


def close_pairs(hashes: Hashes, most_bits: int) -> Iterator[tuple[int, int]]:
    """Pairs of indices (first < second, each once) of distinct hashes that differ in at most `most_bits` bits (<= 7).

    Args:
        hashes: (N,), distinct.
    """
    seen: set[tuple[int, int]] = set()
    for quarter in range(_QUARTERS):
        part = (hashes >> np.uint64(quarter * _QUARTER_BITS)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        ordered = part[order]
        for flip in (0, *(1 << bit for bit in range(_QUARTER_BITS))):
            wanted = part ^ np.uint64(flip)
            begin, end = np.searchsorted(ordered, wanted, "left"), np.searchsorted(ordered, wanted, "right")
            for first, second in _compared(hashes, order, begin, end, most_bits):
                if (first, second) not in seen:
                    seen.add((first, second))
                    yield first, second


def _compared(
    hashes: Hashes, order: NDArray[np.intp], begin: NDArray[np.intp], end: NDArray[np.intp], most_bits: int
) -> Iterator[tuple[int, int]]:
    """Close pairs (first < second) among each hash i and those at order[begin[i]:end[i]], so many at a time."""
    counts = end - begin
    totals = np.cumsum(counts)
    at = 0
    while at < len(hashes):
        base = totals[at - 1] if at else 0
        stop = max(at + 1, int(np.searchsorted(totals, base + _PIECE, "right")))
        count = counts[at:stop]
        first = np.repeat(np.arange(at, stop), count)
        offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        second = order[np.repeat(begin[at:stop], count) + offset]
        ahead = second > first
        first, second = first[ahead], second[ahead]
        near = np.bitwise_count(hashes[first] ^ hashes[second]) <= most_bits
        yield from zip(first[near].tolist(), second[near].tolist(), strict=True)
        at = stop


# Splits ---------------------------------------------------------------------------------------------------------

_SPLIT = re.compile(r"(train|val|test)(ing|idation|id)?([_-]?set)?(annot)?\d*", re.IGNORECASE)
_IN_NAME = re.compile(r"(train|val|test)[_-]", re.IGNORECASE)
_LABELS = re.compile(
    r"labels?|gts?|masks?|annotations?|annots?|gtfine|gtcoarse|segmentationclass|segmentationobject|outs?",
    re.IGNORECASE,
)


def place_of(path: str, listed: Mapping[str, str]) -> tuple[str | None, bool]:
    """The split that a file is in, and whether it is a label map: those may well be the same from split to split.

    As the layouts of the tasks have it: `train/A/1.png`, `leftImg8bit/val/x.png`, `images/train2017/1.jpg`,
    `A/test_1.png`, or a name that stands in `list/train.txt`.

    Args:
        path: below the root, with `/`.
        listed: what `listed_splits` has read.

    Returns:
        train, val, test, or None outside of splits; and whether a folder on the way is one of label maps.
    """
    *folders, name = PurePosixPath(path).parts
    label = any(_LABELS.fullmatch(folder) for folder in folders)
    for folder in folders:
        if (found := _SPLIT.fullmatch(folder)) is not None:
            label = label or found[4] is not None
            return found[1].lower(), label
    if (found := _IN_NAME.match(name)) is not None:
        return found[1].lower(), label
    return listed.get(PurePosixPath(name).stem), label


def listed_splits(root: Path) -> dict[str, str]:
    """Name without extension -> split, from the list files of the tasks' layouts: `train.txt` and the like in the root,
    in `list`, `dataset_division` or below `ImageSets`. A name that several lists have is in none.
    """
    found: dict[str, set[str]] = {}
    for pattern in ("*.txt", "list/*.txt", "dataset_division/*.txt", "ImageSets/*/*.txt"):
        for file in sorted(root.glob(pattern)):
            named = _SPLIT.fullmatch(file.stem.removesuffix("_list"))
            if named is None or not file.is_file() or file.stat().st_size > _LIST_BYTES:
                continue
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                for word in line.split()[:1]:
                    found.setdefault(PurePosixPath(word).stem, set()).add(named[1].lower())
    return {name: splits.pop() for name, splits in found.items() if len(splits) == 1}
